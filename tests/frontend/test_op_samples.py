"""PyTorch's own samples of its operators: each gives its result, or is refused in one line, and nothing else.

`torch.testing` holds samples of calls for every operator, with the shapes that PyTorch finds worth a test: rank 0, no
elements, negative dimensions. Those of float32 are converted here and run by the reference interpreter.
"""

from __future__ import annotations

import copy
import itertools
import warnings
from typing import Any

import pytest
import torch
from torch.testing._internal.common_methods_invocations import op_db
from torch.testing._internal.opinfo.core import OpInfo, SampleInput
from torch.utils._pytree import TreeSpec, tree_flatten, tree_leaves, tree_unflatten

from tersor import from_torch
from tersor.ir import Graph, TersorError

SAMPLES = 2  # of each operator
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
        return self._op(*args, **kwargs)


def differences(graph: Graph, call: Call) -> list[str]:
    """In what the graph's results are not those of the call."""
    expected = [leaf for leaf in tree_leaves(call(*copy.deepcopy(call.tensors))) if leaf is not None]
    actual = graph.evaluate(*call.tensors)
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


def outcome(op: OpInfo, sample: SampleInput) -> str:
    """``"same"``, ``"refused"``, or in what the results differ; any other exception than a refusal is raised."""
    call = Call(op, sample)
    try:
        graph = from_torch(call, tuple(call.tensors))
        return "; ".join(differences(graph, call)) or "same"
    except TersorError as refusal:
        assert "please report" not in str(refusal), refusal
        return "refused"


def samples(op: OpInfo) -> list[SampleInput]:
    torch.manual_seed(0)
    return list(itertools.islice(op.sample_inputs("cpu", torch.float32), SAMPLES))


@pytest.mark.slow
@pytest.mark.parametrize("name", OPERATORS)
def test_samples_have_a_result_or_a_refusal(name: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        outcomes = [outcome(OPERATORS[name], sample) for sample in samples(OPERATORS[name])]
    assert set(outcomes) <= {"same", "refused"}
