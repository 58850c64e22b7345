"""Models that cannot be converted: every message says what is wrong, where, and what to do."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from tersor.frontend import Operator, UnsupportedError, from_torch
from tersor.frontend.places import place_of_trace
from tersor.ir import TersorError

X = torch.randn(2, 4, generator=torch.Generator().manual_seed(0))


class Exponential(nn.Module):
    def forward(self, x):
        return torch.matrix_exp(x @ x.mT)


class Decompositions(nn.Module):
    def forward(self, x):
        rows = x.reshape(2, -1)
        return (torch.linalg.eigvalsh(rows @ rows.mT)[:, None] * torch.geqrf(rows).a).flatten()


class Bags(nn.Module):
    def forward(self, x):
        return torch.embedding_bag(x[None], torch.tensor([0, 0]), torch.tensor([0]))[:2]


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = Decompositions()
        self.inner = nn.ModuleDict({"power": Exponential()})
        self.last = Decompositions()
        self.bags = Bags()

    def forward(self, x):
        values, bags = self.bags(self.last(self.first(x)))
        return self.inner["power"](x), values, bags


def test_all_unsupported_operators_are_listed_once_with_their_paths():
    with pytest.raises(UnsupportedError) as caught:
        from_torch(Net(), X)
    assert isinstance(caught.value, TersorError)
    listed = {(operator.name, operator.path) for operator in caught.value.operators}
    assert listed >= {
        ("aten._linalg_eigh.default", "first"),
        ("aten.geqrf.default", "first"),
        ("aten._linalg_eigh.default", "last"),
        ("aten.geqrf.default", "last"),
        ("aten.linalg_matrix_exp.default", "inner.power"),
        ("aten._embedding_bag_forward_only.default", "bags"),
    }
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith("4 operators are not supported: ")
    assert re.search(r"aten._linalg_eigh.default at 'first', 'last' \(\S*test_bad_models.py:\d+\); ", message)
    assert "aten._embedding_bag_forward_only.default (its result number 1 is not available) at 'bags' (" in message
    assert message.endswith("or add a converter in tersor/frontend/converters")


def place(text: str) -> str:
    """The line of this file that contains a text, as messages name it."""
    lines = Path(__file__).read_text().splitlines()
    return f"test_bad_models.py:{1 + next(number for number, line in enumerate(lines) if text in line)}"


def deciding(x):
    total = x.sum()
    if total > 0:  # decided here
        return x * 2
    return x


def looping(x):
    for _ in range(int(x.abs().sum())):  # counted here
        x = x + 1
    return x


def test_control_flow_on_data_names_the_line(wrap, capfd, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for function, text in {deciding: "if total > 0:  # decided", looping: "# counted here"}.items():
        with pytest.raises(TersorError) as caught:
            from_torch(nn.Sequential(wrap(function)), X)
        message = str(caught.value)
        assert "\n" not in message
        assert "numbers that depend on the input decide what it does at " in message
        assert place(f"{text}") in message
        assert "(Could not guard on data-dependent expression " in message
        assert message.endswith("; choose with torch.where, or decide before the model is called")
    assert capfd.readouterr() == ("", "")  # PyTorch prints what it traced


def test_what_the_model_prints_is_printed(wrap, capfd):
    def speaking(x):
        print("here", file=sys.stderr)
        return x.sum().item() + deciding(x)

    with pytest.raises(TersorError):
        from_torch(wrap(speaking), X)
    assert capfd.readouterr() == ("", "here\n")


def test_errors_of_the_model_name_the_line(wrap):
    def wrong(x):
        return x @ torch.ones(5, 5)  # no such product

    with pytest.raises(TersorError, match=f"at .*{place('# no such product')} .'return x @ .*make it pass"):
        from_torch(wrap(wrong), X)


class Picking(nn.Module):
    def forward(self, x):
        chosen = x[x > 0]  # some of them
        return chosen * 2 + chosen.sum(), x.sort().values


def test_shapes_that_depend_on_the_data_are_named_where_they_begin():
    with pytest.raises(UnsupportedError) as caught:
        from_torch(nn.Sequential(Picking()), X)
    (operator,) = caught.value.operators
    assert (operator.name, operator.path) == ("aten.index.Tensor", "0")
    assert operator.place.endswith(place("# some of them"))
    assert "the data; keep all elements, or a fixed number as topk does) at '0' (" in str(caught.value)


def test_the_line_is_the_users_own_where_a_package_has_the_operator():
    assert place_of_trace(TRACE) == "net.py:7"
    assert place_of_trace(TRACE.partition("\n")[2].partition("\n")[2]) == "nets/b.py:9"
    assert place_of_trace(None) == ""


TRACE = f'''File "{Path("net.py").absolute()}", line 7, in forward
    return self.inner(x)
  File "/usr/lib/python3/site-packages/nets/b.py", line 9, in forward
    return self.linear(x)
  File "{torch.nn.__file__}", line 134, in forward
    return F.linear(input, self.weight, self.bias)'''


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
        "torch.export cannot trace Lambda: .*torch.where",
    ),
    "wrong arguments": (lambda: nn.Linear(3, 3), (X,), r"torch.export cannot trace Linear: .*; make it pass"),
    "output of another kind": (lambda: lambda x: (x, float("inf")), (X,), "takes or returns inf, which is neither"),
    "keys of another kind": (lambda: lambda x: {1.5: x}, (X,), r"a dict with keys \[1.5\]; use texts or numbers"),
    "parameter mutation": (
        Learner,
        (X,),
        r"writes to its own parameter 'count' when it runs \(.*_models.py:\d+\); make it a buffer.*call it once",
    ),
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
