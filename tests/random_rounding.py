"""Other roundings of a PyTorch program: what its results owe to the order and the last bits of its arithmetic.

Each result of arithmetic is multiplied by ``1 + r`` with a random r of the size of float32's rounding (random rounding,
as in Parker, "Monte Carlo Arithmetic", 1997). Running in float64 tells how far rounding moved a result; it says nothing
where float32 was exact by chance, such as for the mean of a normalised row.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch._ops import OpOverload
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

# Operators that move or choose numbers, or compute with them exactly.
_EXACT = {
    "_to_copy",
    "abs",
    "amax",
    "amin",
    "cat",
    "clamp",
    "clone",
    "constant_pad_nd",
    "copy_",
    "embedding",
    "fill_",
    "flip",
    "floor",
    "gather",
    "index",
    "index_select",
    "masked_fill",
    "max",
    "maximum",
    "min",
    "minimum",
    "neg",
    "relu",
    "repeat",
    "roll",
    "round",
    "sign",
    "sort",
    "stack",
    "topk",
    "trunc",
    "where",
}


class RandomRounding(TorchDispatchMode):
    """While it is entered, float32 arithmetic rounds at random, by ``seed``."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self._generator = torch.Generator().manual_seed(seed)

    def __torch_dispatch__(
        self, func: OpOverload, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        computes = any(isinstance(one, torch.Tensor) for one in tree_leaves((args, kwargs)))
        if computes and not func.is_view and func._schema.name.removeprefix("aten::") not in _EXACT:
            for one in tree_leaves(result):
                if isinstance(one, torch.Tensor) and one.dtype is torch.float32:
                    self._round(one)
        return result

    def _round(self, result: torch.Tensor) -> None:
        noise = torch.rand(result.shape, generator=self._generator) * 2 - 1
        result.mul_(1 + noise * torch.finfo(torch.float32).eps)


def rounded(run: Callable[[], list[torch.Tensor]], count: int) -> list[list[torch.Tensor]]:
    """What ``run`` returns with so many other roundings."""
    results = []
    for seed in range(count):
        with RandomRounding(seed):
            results.append(run())
    return results
