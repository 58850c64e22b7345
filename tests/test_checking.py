"""The program beside the model on the example inputs: what is found, what is excused, and what the error names."""

from __future__ import annotations

import warnings
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

import tersor
from tersor.checking import DisagreementError
from tersor.frontend.registry import CONVERTERS
from tersor.ir import ops
from tersor.passes.numeric import float32_rounding, own_rounding
from tersor.targets import resolve_target
from tersor.targets.codegen import emit

aten = torch.ops.aten


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Linear(8, 8)
        self.bad = nn.Sigmoid()  # the place that the pass `test-wrong` spoils
        self.second = nn.Linear(8, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(self.bad(torch.tanh(self.first(x))))


X = torch.linspace(-2, 2, 16).reshape(2, 8)


@pytest.fixture
def net() -> nn.Module:
    return Net().eval()


def test_what_was_found_is_in_the_report(net: nn.Module) -> None:
    agreement = tersor.compile(net, (X,)).report.agreement
    assert agreement.exact
    assert agreement.subject == "program"
    assert agreement.difference < 1e-5
    assert agreement.decibels > 100
    assert "largest difference" in str(agreement)


def test_the_comparison_can_be_left_out(net: nn.Module) -> None:
    assert tersor.compile(net, (X,), check=False).report.agreement is None
    with pytest.raises(tersor.TersorError, match="check must be 'auto' or False, not 'always'"):
        tersor.compile(net, (X,), check="always")


def test_approximate_passes_report_their_noise(net: nn.Module) -> None:
    agreement = tersor.compile(net, (X,), pipeline="O3,to-bf16").report.agreement
    assert not agreement.exact
    assert 20 < agreement.decibels < 80
    assert "dB" in str(agreement)


def test_graphs_are_compared_with_what_they_mean(net: nn.Module) -> None:
    assert tersor.compile(tersor.from_torch(net, (X,))).report.agreement.difference < 1e-5


def test_code_for_other_machines_is_compared_as_a_graph(net: nn.Module) -> None:
    lean = replace(resolve_target("x86:avx2"), features=("a-feature-of-no-processor",))
    agreement = tersor.compile(net, (X,), target=lean).report.agreement
    assert agreement.subject == "graph"
    assert agreement.difference < 1e-5


def test_wrong_code_names_the_layer(net: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    _, dtypes = emit._EMITTERS[ops.TanhOp]
    monkeypatch.setitem(emit._EMITTERS, ops.TanhOp, (lambda op, x: x, dtypes))
    with pytest.raises(DisagreementError, match=r"generated code is wrong; the first layer that differs is"):
        tersor.compile(net, (X,), pipeline="O0")


@pytest.mark.parametrize("training", [False, True])
def test_wrong_conversion_names_the_module(net: nn.Module, training: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    net.train(training)  # then a copy in evaluation mode runs, and is what the search must look at
    right = CONVERTERS[aten.linear.default]

    def doubled(context: Any, x: Any, weight: Any, bias: Any = None) -> Any:
        result = right(context, x, weight, bias)
        return context.emit(ops.AddOp, result, result)

    monkeypatch.setitem(CONVERTERS, aten.linear.default, doubled)
    with pytest.raises(DisagreementError, match=r"conversion from PyTorch is wrong; .* first \(Linear\)"):
        tersor.compile(net, (X,))


def test_wrong_pass_is_named(net: nn.Module) -> None:
    from tersor.tests.passes import example_passes  # noqa: F401  (registers them)

    with pytest.raises(DisagreementError, match="pass 'test-wrong' goes wrong at rewrite 1"):
        tersor.compile(net, (X,), pipeline="test-wrong")


class Amplifier(nn.Module):
    """Rounding of the first product, a hundred thousand times."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = (x * 1.1) / 1.1 - x
        return y.sum(1) * 1e8


def test_rounding_that_the_network_amplifies_is_no_error() -> None:
    torch.manual_seed(0)
    agreement = tersor.compile(Amplifier(), (torch.randn(4, 64),)).report.agreement
    assert agreement.difference <= 1e-3 or agreement.rounding is not None


class Choosing(nn.Module):
    """The sign hangs on which of two sums is larger, which is hardly larger."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(256, 32), nn.Linear(256, 32)
        self.second.weight = self.first.weight
        self.second.bias = nn.Parameter(self.first.bias + 3e-7)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        first = self.first(x)
        return torch.where(self.second(x) > first, first, -first)


def test_choices_that_rounding_decides_are_found() -> None:
    torch.manual_seed(0)
    x = torch.randn(4, 256)
    graph = tersor.from_torch(Choosing(), (x,))
    assert float32_rounding(graph, (x,)) < 1e-5
    assert own_rounding(graph, (x,)) > 0.1


class Rows(nn.Module):
    """Rows of a table, by numbers that are computed without rounding."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(8, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.table((x * 2).floor().long())


def test_choices_by_exact_numbers_stay() -> None:
    x = torch.arange(4.0)
    graph = tersor.from_torch(Rows(), (x,))
    assert own_rounding(graph, (x,)) == 0


class Fussy(nn.Module):
    """Exports, but refuses real numbers."""

    def forward(self, x: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        return nn.functional.embedding(rows, x)


def test_a_model_that_fails_on_its_inputs_is_not_compared() -> None:
    executable = tersor.compile(Fussy(), (torch.randn(3, 4), torch.tensor([7])))
    assert "the model fails on its example inputs" in str(executable.report.agreement)


def test_arguments_by_name_and_nested_outputs() -> None:
    class Nested(nn.Module):
        def forward(self, a: torch.Tensor, b: torch.Tensor) -> dict[str, Any]:
            return {"z": a - b, "y": (a + b, [a > b])}

    for inputs in ({"b": torch.randn(3), "a": torch.randn(3)}, (torch.randn(3), torch.randn(3))):
        assert tersor.compile(Nested(), inputs).report.agreement.difference == 0


def test_the_module_is_left_as_it_was(net: nn.Module) -> None:
    net.train()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tersor.compile(net, (X,))
    assert net.training
