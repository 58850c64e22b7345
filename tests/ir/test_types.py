from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tersor.ir import DType, IRError, TensorType


@given(st.lists(st.integers(0, 9), max_size=5), st.sampled_from(list(DType)), st.sampled_from([0, 8, 16]))
def test_text_round_trips(shape, dtype, block):
    type = TensorType(tuple(shape), dtype, block if len(shape) > 1 else 0)
    assert TensorType.parse(str(type)) == type


def test_sizes():
    type = TensorType((2, 20, 3), DType.F16, channel_block=16)
    assert (type.rank, type.size, type.bytes, type.physical_size) == (3, 120, 240, 2 * 32 * 3)
    assert type.logical == TensorType((2, 20, 3), DType.F16)
    assert TensorType((), DType.F64).size == 1
    assert type.with_shape((4,)) == TensorType((4,), DType.F16)
    assert type.with_dtype(DType.I8) == TensorType((2, 20, 3), DType.I8)


@pytest.mark.parametrize(
    ("shape", "block", "message"),
    [((-1,), 0, "negative extent"), ((4,), 8, "channel dimension"), ((4, 4), -1, "channel block")],
)
def test_invalid_types(shape, block, message):
    with pytest.raises(IRError, match=message):
        TensorType(shape, DType.F32, block)


@pytest.mark.parametrize("text", ["f33[1]", "f32", "f32[1", "f32[a]", "f32[-1]", "f32[1,]", "f32[1]@c", ""])
def test_malformed_text(text):
    with pytest.raises(IRError, match="is not a tensor type; expected something like"):
        TensorType.parse(text)


def test_torch_dtypes():
    assert all(DType.from_torch(dtype.torch) is dtype for dtype in DType)
    assert [dtype for dtype in DType if dtype.is_floating] == [DType.F64, DType.F32, DType.F16, DType.BF16]
    with pytest.raises(IRError, match="complex64 is not supported; cast it to one of f64"):
        DType.from_torch(torch.complex64)
