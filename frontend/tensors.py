"""Checks on the tensors of a model: what the IR can hold, and what is worth a warning."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import fx
from torch._subclasses import FakeTensor

from ..ir import DType, IRError, TensorType, TersorError, shorten
from .symbols import Symbols

FIXED = Symbols()  # of a program without dynamic shapes


def tensor_type(tensor: object, symbols: Symbols = FIXED) -> TensorType | None:
    """The IR type of a traced result; None if it is not a tensor, or of an element type that the IR does not have."""
    if not isinstance(tensor, torch.Tensor):
        return None
    try:
        return TensorType(symbols.shape(tensor.shape), DType.from_torch(tensor.dtype))
    except IRError:
        return None


def result_types(node: fx.Node, symbols: Symbols) -> tuple[TensorType | None, ...]:
    """IR types of the results of a traced call, or of the parts of those that are complex."""
    return tuple(
        tensor_type(one.real if isinstance(one, torch.Tensor) and one.is_complex() else one, symbols)
        for one in _results(node)
    )


def _results(node: fx.Node) -> Sequence[object]:
    results = node.meta.get("val")
    return results if isinstance(results, tuple | list) else (results,)


def is_complex(node: fx.Node) -> bool:
    """Whether a traced call returns complex numbers."""
    return any(isinstance(one, torch.Tensor) and one.is_complex() for one in _results(node))


def is_row_major(node: fx.Node) -> bool:
    """Whether a traced tensor lies in memory in row-major order, from the start of its storage."""
    tensor = node.meta.get("val")
    return isinstance(tensor, torch.Tensor) and tensor.is_contiguous() and tensor.storage_offset() == 0


def strides_of(tensor: object) -> tuple[int, ...] | None:
    """Strides of a traced tensor that lies in memory from the start of its storage; None for anything else."""
    if not isinstance(tensor, torch.Tensor) or tensor.storage_offset() != 0:
        return None
    strides = tuple(tensor.stride())
    return strides if all(isinstance(one, int) for one in strides) else None


def input_type(node: fx.Node, symbols: Symbols) -> TensorType:
    """The IR type of an input; raises TersorError, naming it, if the IR cannot hold it."""
    tensor = node.meta["val"]
    if not isinstance(tensor, torch.Tensor):
        raise TersorError(f"input {node.name!r} is not a tensor but {type(tensor).__name__}; pass tensors")
    _check_kind(tensor, f"input {node.name!r}")
    return TensorType(symbols.shape(tensor.shape), DType.from_torch(tensor.dtype))


def check_weight(tensor: torch.Tensor, name: str) -> None:
    """Raise TersorError, naming the weight, if the IR cannot hold it."""
    _check_kind(tensor, f"weight {shorten(name)!r}")
    if tensor.device.type == "meta" or isinstance(tensor, FakeTensor):
        raise TersorError(f"weight {shorten(name)!r} has no numbers (it is on the meta device): load the weights first")


def _check_kind(tensor: torch.Tensor, what: str) -> None:
    if tensor.layout is not torch.strided:
        raise TersorError(f"{what} is sparse ({tensor.layout}), which is not supported: use .to_dense()")
    if tensor.is_quantized:
        raise TersorError(f"{what} is quantized, which is not supported: convert the model in floating point")
    try:
        DType.from_torch(tensor.dtype)
    except IRError as error:
        raise TersorError(f"{what}: {error}") from error


def suspicion(tensor: torch.Tensor, name: str, *, parameter: bool) -> str | None:
    """What is strange about a weight's numbers; buffers may well hold infinities, masks do."""
    if not tensor.is_floating_point() or bool(tensor.sum().isfinite()):
        return None  # one pass without a copy: a sum with such a number in it is none; large ones may overflow
    if bool(torch.isnan(tensor).any()):
        return f"weight {shorten(name)!r} contains NaN; it is kept, and outputs that depend on it will be NaN"
    if parameter and bool(torch.isinf(tensor).any()):
        return f"weight {shorten(name)!r} contains infinity; it is kept"
    return None
