"""PyTorch's own samples of its operators: each gives its result, or is refused in one line, and nothing else.

`torch.testing` holds samples of calls for every operator, with the shapes that PyTorch finds worth a test: rank 0, no
elements, negative dimensions. Those of float32 are converted here and run by the reference interpreter, then compiled.
"""

from __future__ import annotations

import copy
import itertools
import warnings
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch.testing._internal.common_methods_invocations import op_db
from torch.testing._internal.opinfo.core import OpInfo, SampleInput
from torch.utils._pytree import TreeSpec, tree_flatten, tree_leaves, tree_map_only, tree_unflatten

import tersor
from tersor import from_torch
from tersor.ir import Graph, TersorError, Value, clone_op
from tersor.ir.ops import WeightOp
from tersor.targets.codegen.kernel import CompileError

from .refused_operators import REFUSED

SAMPLES = 2  # of each operator
GROUP = 24  # operators compiled together
TOLERANCE = 1e-4  # of the largest output

# Operators that draw random numbers, and those whose results are whatever memory held.
UNDEFINED = (
    "empty",
    "rand",
    "normal",
    "bernoulli",
    "multinomial",
    "dropout",
    "rrelu",
    "uniform",
    "cauchy",
    "geometric",
)

OPERATORS = {
    op.formatted_name: op
    for op in op_db
    if torch.float32 in op.dtypes and not any(word in op.name for word in UNDEFINED)
}


class Call(torch.nn.Module):
    """One call of an operator, with its tensors as inputs and everything else fixed."""

    def __init__(self, op: OpInfo, sample: SampleInput) -> None:
        super().__init__()
        self.name = op.formatted_name
        self._op = op
        leaves, self._spec = self._flat(sample)
        self.tensors = [leaf.detach() for leaf in leaves if isinstance(leaf, torch.Tensor)]
        self._leaves = [None if isinstance(leaf, torch.Tensor) else leaf for leaf in leaves]
        self._places = [index for index, leaf in enumerate(leaves) if isinstance(leaf, torch.Tensor)]

    @staticmethod
    def _flat(sample: SampleInput) -> tuple[list[Any], TreeSpec]:
        return tree_flatten(((sample.input, *sample.args), sample.kwargs))

    def forward(self, *tensors: torch.Tensor) -> Any:
        leaves = list(self._leaves)
        for place, tensor in zip(self._places, tensors, strict=True):
            leaves[place] = tensor
        args, kwargs = tree_unflatten(leaves, self._spec)
        return tree_map_only(torch.Tensor, _real, self._op(*args, **kwargs))


def _real(x: torch.Tensor) -> torch.Tensor:
    """Complex numbers as pairs, since graphs return real ones only."""
    return torch.view_as_real(x.resolve_conj()) if x.is_complex() else x


def differences(actual: Sequence[torch.Tensor], call: Call) -> list[str]:
    """In what results are not those of the call."""
    expected = [leaf for leaf in tree_leaves(call(*copy.deepcopy(call.tensors))) if isinstance(leaf, torch.Tensor)]
    if len(actual) != len(expected):
        return [f"{len(actual)} results instead of {len(expected)}"]
    return [text for pair in zip(actual, expected, strict=True) if (text := _difference(*pair))]


def _difference(actual: torch.Tensor, expected: torch.Tensor) -> str:
    if (actual.shape, actual.dtype) != (expected.shape, expected.dtype):
        return f"{actual.dtype}{list(actual.shape)} instead of {expected.dtype}{list(expected.shape)}"
    numbers = expected.double()
    scale = numbers[numbers.isfinite()].abs().max().item() if numbers.isfinite().any() else 0.0
    close = torch.isclose(actual.double(), numbers, rtol=0, atol=TOLERANCE * max(scale, 1e-3), equal_nan=True)
    return "" if bool(close.all()) else f"{actual} instead of {expected}"


def converted(op: OpInfo, sample: SampleInput) -> tuple[Call, Graph] | None:
    """A call and its graph, whose results are the call's; None if it is refused, and nothing else may be raised."""
    call = Call(op, sample)
    try:
        graph = from_torch(call, tuple(call.tensors))
        wrong = differences(graph.evaluate(*call.tensors), call)
    except TersorError as refusal:
        assert "please report" not in str(refusal), refusal
        return None
    assert not wrong, f"{op.formatted_name}: {'; '.join(wrong)}"
    return call, graph


def samples(op: OpInfo, count: int = SAMPLES) -> list[SampleInput]:
    torch.manual_seed(0)
    return list(itertools.islice(op.sample_inputs("cpu", torch.float32), count))


def joined(graphs: Sequence[Graph]) -> Graph:
    """Graphs beside each other as one, which takes one compilation."""
    types = [value.type for graph in graphs for value in graph.inputs]
    whole = Graph("samples", [(f"x{index}", type) for index, type in enumerate(types)])
    given = iter(whole.inputs)
    outputs: list[Value] = []
    for number, graph in enumerate(graphs):
        values = {value: next(given) for value in graph.inputs}
        for op in graph.ops:
            if isinstance(op, WeightOp):
                id = whole.weights.add(graph.weights[op.attrs.id], f"{number}.{op.attrs.id}")
                values[op.result] = whole.append(WeightOp((), WeightOp.attrs_type(id, op.attrs.type))).result
            else:
                whole.append(clone_op(op, values))
        outputs += [values[value] for value in graph.outputs]
    whole.outputs = tuple(outputs)
    return whole


def check_compiled(cases: Sequence[tuple[Call, Graph]]) -> None:
    """One program for all calls computes what they return; calls that targets refuse are left out."""
    try:
        program = tersor.compile(joined([graph for _, graph in cases]), check=False)
    except CompileError:
        if len(cases) > 1:
            middle = len(cases) // 2
            check_compiled(cases[:middle])
            check_compiled(cases[middle:])
        return
    results = program(*(tensor for call, _ in cases for tensor in call.tensors))
    left = iter(results if isinstance(results, tuple) else (results,))
    for call, graph in cases:
        assert differences([next(left) for _ in graph.outputs], call) == [], call.name


def is_computed(case: tuple[Call, Graph]) -> bool:
    """Whether a graph computes something."""
    _, graph = case
    return bool(graph.outputs) and any(op.inputs for op in graph.ops)


@pytest.mark.slow
@pytest.mark.parametrize("first", range(0, len(OPERATORS), GROUP))
def test_samples_are_computed_or_refused(first: int) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        names = tuple(OPERATORS)[first : first + GROUP]
        found = {name: [converted(OPERATORS[name], sample) for sample in samples(OPERATORS[name])] for name in names}
    refused = {name for name, cases in found.items() if None in cases}
    check_compiled([case for cases in found.values() for case in cases if case is not None and is_computed(case)])
    assert refused <= REFUSED.keys(), "these operators were supported"


def test_a_tenth_of_the_operators() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        names = [name for name in tuple(OPERATORS)[::10] if name not in REFUSED]
        cases = {name: [converted(OPERATORS[name], one) for one in samples(OPERATORS[name], 1)] for name in names}
    assert [name for name, found in cases.items() if None in found] == []
