"""Which weights of a graph the constants of its program hold, so that they are neither kept nor stored twice."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from ...ir import DType, WeightStore
from ...ir.arrangement import Arrangement, HeldWeight
from .ports import STORED_AS

_LARGE = 1 << 18  # bytes of a weight from which on it is looked for


def find_held(
    weights: WeightStore, constants: Sequence[torch.Tensor], arrangements: Mapping[int, Arrangement]
) -> dict[str, HeldWeight]:
    """The large weights that a constant holds, bit for bit, by id.

    Parameters
    ----------
    constants
        Flat tensors that a program reads, or several programs.
    arrangements
        How some of these hold weights, by number. Others can only hold a weight in its own order.
    """
    numbers = {id(constant): number for number, constant in enumerate(constants)}
    found: dict[str, HeldWeight] = {}
    taken: set[int] = set()
    for name in weights:
        held = weights.held(name)
        if held is None or id(held.packed) not in numbers:
            # Weights and constants are in the order of the network: the first that no other weight has is often right.
            held = _find(weights[name], constants, sorted(numbers.values(), key=taken.__contains__), arrangements)
        if held is not None:
            found[name] = held
            taken.add(numbers[id(held.packed)])
    return found


def _find(
    weight: torch.Tensor,
    constants: Sequence[torch.Tensor],
    order: Sequence[int],
    arrangements: Mapping[int, Arrangement],
) -> HeldWeight | None:
    """The first constant that holds a weight, if it is large."""
    if weight.nbytes < _LARGE:
        return None
    shape = tuple(weight.shape)
    stored, plain = STORED_AS.get(DType.from_torch(weight.dtype), weight.dtype), Arrangement.plain(shape)
    for number in order:
        constant, arrangement = constants[number], arrangements.get(number, plain)
        fits = constant.dtype is stored and constant.numel() == arrangement.size
        if fits and arrangement.is_exact(constant, weight):
            return HeldWeight(constant, arrangement, weight.dtype, shape)
    return None
