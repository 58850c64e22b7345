"""Inputs that are read with few checks: which ones, and that they are read where they are, at every call."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import nn

import tersor
from tersor import TersorError
from tersor.ir import DType, TensorType, ops
from tersor.ir.foreign import Array
from tersor.targets import Executable
from tersor.targets.runtime.executable import Port
from tersor.targets.runtime.plain_inputs import PlainInput
from tersor.tests.random_graphs import GraphBuilder

from .compiled import compiled

SHAPE = (3, 32)
FLOAT = PlainInput(Port("x", TensorType(SHAPE)))


class Named(np.ndarray):
    """An array that may mean anything."""


def values() -> torch.Tensor:
    return torch.arange(96.0).view(SHAPE)


def doubled() -> Executable:
    b = GraphBuilder({"x": TensorType(SHAPE)})
    return compiled(b.done(b.op(ops.AddOp, *b.graph.inputs * 2)))


def frozen() -> np.ndarray:
    array = values().numpy()
    array.flags.writeable = False
    return array


@pytest.mark.parametrize("dtype", DType)
@pytest.mark.parametrize("shape", [SHAPE, (96,), (1, 3, 1, 32)])
def test_plain_arrays_are_read_in_place(dtype: DType, shape: tuple[int, ...]) -> None:
    reader = PlainInput(Port("x", TensorType(shape, dtype)))
    tensor = torch.ones(shape, dtype=dtype.torch)
    given = [tensor] if dtype is DType.BF16 else [tensor, tensor.numpy()]
    for value in given:
        flat = reader.read(value)
        assert flat is not None, f"{type(value)} is not found to be plain"
        assert flat.shape == (96,) and flat.data_ptr() == tensor.data_ptr()
        assert torch.equal(flat.view(dtype.torch), tensor.view(-1))


@pytest.mark.parametrize(
    "value",
    [
        values().view(32, 3),
        values().double(),
        values().view(32, 3).t(),
        values()[:1].expand(SHAPE),
        torch.empty(97)[1:].view(SHAPE),
        values().requires_grad_(),
        nn.Parameter(values()),
        torch._neg_view(values()),
        values().to_mkldnn(),
        values().to("meta"),
        values().to_sparse(),
        torch._efficientzerotensor(SHAPE),
        values().numpy().T,
        values().numpy().reshape(32, 3),
        values().numpy().astype(np.float64),
        values().numpy().astype(">f4"),
        values().numpy().view(Named),
        np.asfortranarray(values().numpy()),
        frozen(),
        values().tolist(),
        None,
    ],
    ids=lambda value: type(value).__name__,
)
def test_all_others_are_left_alone(value: Array) -> None:
    assert FLOAT.read(value) is None


@pytest.mark.parametrize("value", [torch.ones(64)[::2], torch.ones(64).numpy()[::2]], ids=["torch", "numpy"])
def test_a_vector_with_gaps_is_left_alone(value: Array) -> None:
    assert PlainInput(Port("x", TensorType((32,)))).read(value) is None


@pytest.mark.filterwarnings("ignore:.*nested tensors:UserWarning")
def test_a_nested_tensor_is_left_alone() -> None:
    assert FLOAT.read(torch.nested.nested_tensor(list(values()))) is None


def test_tensors_within_a_transformation_of_pytorch_have_no_memory() -> None:
    with pytest.raises(TersorError, match="input 'x' cannot be read"):
        torch.vmap(doubled())(torch.ones(2, *SHAPE))


@pytest.mark.parametrize("kind", [torch.Tensor.numpy, torch.Tensor.clone])
def test_writes_between_calls_are_seen(kind: Callable[[torch.Tensor], Array]) -> None:
    executable = doubled()
    value = kind(torch.ones(SHAPE))
    for number in (1.0, 2.0, 3.0):
        value[:] = number
        assert (executable(value) == 2 * number).all()


@pytest.mark.parametrize("count", [1, 16, 17, 500])
@pytest.mark.parametrize("dtype", [torch.int64, torch.int32])
def test_row_numbers_are_checked_in_plain_arrays_and_others(count: int, dtype: torch.dtype) -> None:
    b = GraphBuilder({"ids": TensorType((count,), DType.from_torch(dtype))})
    graph = b.done(b.op(ops.EmbeddingOp, b.weight(10, 24), b.graph.inputs[0]))
    executable, rows = compiled(graph), next(iter(graph.weights.values()))
    right = torch.arange(count) % 10
    for ids in (torch.empty(count, dtype=dtype), torch.empty(count + 1, dtype=dtype)[1:]):
        assert torch.equal(executable(ids.copy_(right)), rows[right])
        ids[-1] = 10
        lowest = 10 if count == 1 else 0
        for given in (ids, ids.numpy()):
            with pytest.raises(TersorError, match=f"must hold row numbers from 0 to 9, got {lowest} to 10"):
                executable(given)
        ids[-1] = -3
        with pytest.raises(TersorError, match="got -3 to"):
            executable(ids)


class Constant(nn.Module):
    """A model without inputs: a number, a vector and a table."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(values())

    def forward(self) -> tuple[torch.Tensor, ...]:
        return self.weight.sum(), self.weight[0] + 1, self.weight > 3


def test_outputs_of_a_model_without_inputs_are_tensors() -> None:
    results = tersor.compile(Constant().eval(), ())()
    for actual, expected in zip(results, Constant()(), strict=True):
        assert type(actual) is torch.Tensor
        assert torch.equal(actual, expected)
