"""Models that cannot be converted: every message says what is wrong, where, and what to do."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from tersor.frontend import Operator, UnsupportedError, from_torch
from tersor.ir import TersorError

X = torch.randn(2, 4, generator=torch.Generator().manual_seed(0))


class Airy(nn.Module):
    def forward(self, x):
        return torch.special.airy_ai(x)


class Order(nn.Module):
    def forward(self, x):
        return x.histogram(4).hist + x.mode(0).values.sum()


class Bags(nn.Module):
    def forward(self, x):
        return torch.embedding_bag(x[None], torch.tensor([0, 0]), torch.tensor([0]))[:2]


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = Order()
        self.inner = nn.ModuleDict({"airy": Airy()})
        self.last = Order()
        self.bags = Bags()

    def forward(self, x):
        values, bags = self.bags(self.last(self.first(x)))
        return self.inner["airy"](x), values, bags


def test_all_unsupported_operators_are_listed_once_with_their_paths():
    with pytest.raises(UnsupportedError) as caught:
        from_torch(Net(), X)
    assert isinstance(caught.value, TersorError)
    listed = {(operator.name, operator.path) for operator in caught.value.operators}
    assert listed >= {
        ("aten.histogram.bin_ct", "first"),
        ("aten.mode.default", "first"),
        ("aten.histogram.bin_ct", "last"),
        ("aten.mode.default", "last"),
        ("aten.special_airy_ai.default", "inner.airy"),
        ("aten._embedding_bag_forward_only.default", "bags"),
    }
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith("4 operators are not supported: ")
    assert "aten.histogram.bin_ct at 'first', 'last'; " in message
    assert "aten._embedding_bag_forward_only.default (its result number 1 is not available) at 'bags'" in message
    assert message.endswith("or add a converter in tersor/frontend/converters")


def test_many_paths_are_abbreviated():
    error = UnsupportedError(Operator("aten.sort.default", f"layers.{i}") for i in range(9))
    assert "at 'layers.0', 'layers.1', 'layers.2', 'layers.3' and 5 more" in str(error)


REFUSED = {
    "has a shape that depends on the data": (lambda x: torch.ops.aten.index.Tensor(x, [torch.ones(2).bool()])),
    "attention with dropout": (
        lambda x: nn.functional.scaled_dot_product_attention(x[None], x[None], x[None], dropout_p=0.1)
    ),
    "it is in training mode": (lambda x: nn.functional.dropout(x, 0.5, training=True)),
    "aten.rand.default": (lambda x: x + torch.rand(4)),
}


@pytest.mark.parametrize("reason", REFUSED)
def test_refusals_carry_a_reason(reason, wrap):
    with pytest.raises(TersorError, match=reason):
        from_torch(wrap(REFUSED[reason]), X)


class Learner(nn.Module):
    def __init__(self):
        super().__init__()
        self.count = nn.Parameter(torch.zeros(1), requires_grad=False)

    def forward(self, x):
        self.count += 1
        return x * self.count


def with_weight(tensor: torch.Tensor) -> nn.Module:
    class Weighted(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("table", tensor)

        def forward(self, x):
            return torch.view_as_real(self.table) if self.table.is_complex() else x @ self.table

    return Weighted()


BAD_MODELS = {
    "data-dependent": (
        lambda: lambda x: x * 2 if x.sum() > 0 else x,
        (X,),
        "torch.export cannot trace Lambda: .*first",
    ),
    "wrong arguments": (lambda: nn.Linear(3, 3), (X,), r"torch.export cannot trace Linear: .*; make it pass"),
    "output of another kind": (lambda: lambda x: (x, float("inf")), (X,), "takes or returns inf, which is neither"),
    "keys of another kind": (lambda: lambda x: {1.5: x}, (X,), r"a dict with keys \[1.5\]; use texts or numbers"),
    "parameter mutation": (Learner, (X,), "writes to its own parameter 'count'.*make it a buffer"),
    "complex input": (
        lambda: lambda x: x * 2,
        (X.to(torch.complex64),),
        "input 'inputs_0': element type torch.complex64",
    ),
    "complex weight": (
        lambda: with_weight(torch.ones(4, dtype=torch.complex64)),
        (X,),
        "weight 'table': element type torch.complex64 is not supported; cast it",
    ),
    "meta weight": (
        lambda: nn.Linear(4, 2, device="meta"),
        (X.to("meta"),),
        "has no numbers .* load the weights first",
    ),
    "no inputs": (lambda: nn.Linear(4, 2), None, "example_inputs are needed to trace a module"),
    "wrong inputs": (
        lambda: nn.Linear(4, 2),
        3,
        "must be a tensor, a tuple of tensors or a dict of named ones, not int",
    ),
}


@pytest.mark.parametrize("name", BAD_MODELS)
def test_bad_model(name, wrap):
    make, inputs, message = BAD_MODELS[name]
    model = make()
    with pytest.raises(TersorError, match=message) as caught:
        from_torch(model if isinstance(model, nn.Module) else wrap(model), inputs)
    assert "\n" not in str(caught.value)


@pytest.mark.filterwarnings("ignore:Sparse invariant checks")
def test_sparse_weight():
    with pytest.raises(TersorError, match=r"sparse .*use .to_dense|torch.export cannot trace"):
        from_torch(with_weight(torch.eye(4).to_sparse()), X)


def test_not_a_module():
    with pytest.raises(TersorError, match=r"takes an nn.Module or a torch.export.ExportedProgram, not function"):
        from_torch(lambda x: x, X)


def test_dynamic_shapes():
    module = nn.Linear(4, 2)
    batch = torch.export.Dim("batch")
    with pytest.raises(TersorError, match="leave dynamic_shapes out"):
        from_torch(module, X, dynamic_shapes={"input": {0: batch}})
    program = torch.export.export(module, (X,), dynamic_shapes={"input": {0: batch}})
    with pytest.raises(TersorError, match=r"input 'input' has dynamic shape .*without dynamic_shapes"):
        from_torch(program)


def test_a_program_exported_in_training_mode():
    program = torch.export.export(nn.Sequential(nn.BatchNorm1d(4), nn.Dropout(0.5)).train(), (X,))
    with pytest.raises(TersorError, match=r"eval\(\)"):
        from_torch(program)


def test_foreign_functions_are_refused_before_they_can_run():
    program = torch.export.export(nn.ReLU(), (X,))
    called = []

    def intruder(x):
        called.append(x)
        return x

    node = next(node for node in program.graph.nodes if node.op == "call_function")
    node.target = intruder
    with pytest.raises(UnsupportedError, match="intruder"):
        from_torch(program)
    assert not called
