"""How many units of each weight become zero: a share of each, one threshold for all, or one loss of a scan for all.

With ``scope=layer`` every weight loses the same share. With ``scope=global`` the lowest scores of all weights together
go. With a scan every weight loses what costs it, alone, no more than one loss, which is the same for all; between
scanned shares losses lie on straight lines. Of each weight at least a fraction (``floor``) stays. Names of layers may
have shares of their own.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

import numpy as np
import torch
from numpy.typing import NDArray

from ...ir import Op, TersorError, suggest
from ..pruning.select import Scope
from ..sensitivity import LossCurve, find_curves, layer_names, read_scan
from .weights import LayerWeight

ZEROS = "zeros"  # the axis of a scan

_STEPS = 1024  # shares of a weight at which the losses of a scan are looked at


@dataclass(frozen=True)
class WantedZeros:
    """What is asked for.

    Attributes
    ----------
    ratio
        Share of the weights that becomes zero: of all that no name has a share for, or by patterns of names.
    skip
        Patterns of names of layers that stay as they are.
    scope
        What scores are compared in.
    floor
        Smallest fraction of a weight that stays.
    sensitivity
        The file of a scan, or None.
    """

    ratio: float | Mapping[str, float]
    skip: tuple[str, ...]
    scope: Scope
    floor: float
    sensitivity: str | None


def units_that_go(
    weights: Sequence[LayerWeight],
    units: Sequence[torch.Tensor],
    wanted: WantedZeros,
    refused: Sequence[tuple[Op, str]],
) -> list[int]:
    """How many units of each weight become zero, where ``units`` are their scores.

    Raises
    ------
    TersorError
        When a name matches no layer, or only layers whose weights cannot have zeros; when two names with different
        shares match one weight; when less than ``floor`` would be left.
    """
    fixed = _fixed(weights, wanted, refused)
    sizes = [len(one) for one in units]
    counts = {index: int(share * sizes[index] + 1e-9) for index, share in fixed.items()}
    free = [index for index in range(len(weights)) if index not in fixed]
    if free and not isinstance(wanted.ratio, Mapping):
        most = [int((1 - wanted.floor) * sizes[index] + 1e-9) for index in free]
        total = wanted.ratio * sum(sizes[index] for index in free)
        if wanted.sensitivity is not None:
            curves = _curves([weights[index] for index in free], wanted.sensitivity)
            found = _equal_loss(curves, [sizes[index] for index in free], most, total, wanted.sensitivity)
        elif wanted.scope is Scope.GLOBAL:
            found = _lowest([units[index] for index in free], most, total)
        else:
            found = [int(wanted.ratio * sizes[index] + 1e-9) for index in free]
        counts.update(zip(free, found, strict=True))
    return [counts.get(index, 0) for index in range(len(weights))]


def _fixed(weights: Sequence[LayerWeight], wanted: WantedZeros, refused: Sequence[tuple[Op, str]]) -> dict[int, float]:
    """Shares of weights, by index, that names say."""
    ratios = wanted.ratio if isinstance(wanted.ratio, Mapping) else {}
    names = [op.location for weight in weights for op in weight.layers]
    reasons = {op.location: reason for op, reason in refused}
    for option, patterns in (("skip", wanted.skip), ("ratio", tuple(ratios))):
        for pattern in patterns:
            _check(option, pattern, names, reasons)
    found: dict[int, float] = {}
    for index, weight in enumerate(weights):
        asked = {f"skip {one!r}": 0.0 for one in wanted.skip if _matches(weight, one)}
        exact = [one for one in ratios if any(op.location == one for op in weight.layers)]
        asked |= {f"ratio {one!r}": ratios[one] for one in exact or ratios if _matches(weight, one)}
        if len(set(asked.values())) > 1:
            one, other, *_ = asked
            raise TersorError(f"{one} and {other} both match {weight.name}, with different shares; keep one")
        if asked:
            found[index] = next(iter(asked.values()))
            if found[index] > 1 - wanted.floor:
                raise TersorError(
                    f"ratio={found[index]:g} leaves less than floor={wanted.floor:g} of the weights of {weight.name};"
                    " ask for a lower floor"
                )
    return found


def _matches(weight: LayerWeight, pattern: str) -> bool:
    return any(fnmatchcase(op.location, pattern) for op in weight.layers)


def _check(option: str, pattern: str, names: Sequence[str], reasons: Mapping[str, str]) -> None:
    if any(fnmatchcase(name, pattern) for name in names):
        return
    held = next((name for name in reasons if fnmatchcase(name, pattern)), None)
    if held is not None:
        if option == "skip":
            return
        raise TersorError(f"{option}: {held} gets no zeros, since {reasons[held]}; leave {pattern!r} out")
    some = ", ".join(name for name in names[:3] if name) or "(none)"
    hint = suggest(pattern, names)
    hint = hint if hint.startswith("; did you mean") else f"; layers have names such as {some}"
    raise TersorError(f"{option}: {pattern!r} matches no layer{hint}")


def _lowest(units: Sequence[torch.Tensor], most: Sequence[int], wanted: float) -> list[int]:
    """How many of each are among the lowest ``wanted`` of all, but no more than ``most`` of each."""
    ordered = [one.sort().values.numpy() for one in units]
    values = np.unique(np.concatenate(ordered))

    def counts(index: int) -> list[int]:
        found = (np.searchsorted(one, values[index], side="right") for one in ordered)
        return [min(int(count), limit) for count, limit in zip(found, most, strict=True)]

    return _first(len(values), counts, wanted)


def _curves(weights: Sequence[LayerWeight], path: str) -> list[LossCurve]:
    names = layer_names([weight.layers[0] for weight in weights])
    wanted = [(name, tuple(weight.numbers.shape)) for name, weight in zip(names, weights, strict=True)]
    return find_curves(read_scan(path), path, ZEROS, wanted)


def _equal_loss(
    curves: Sequence[LossCurve], sizes: Sequence[int], most: Sequence[int], wanted: float, path: str
) -> list[int]:
    """How many units go at the lowest loss of single weights at which ``wanted`` go."""
    shares = np.linspace(0, 1, _STEPS + 1)
    losses = [_rising(curve, shares) for curve in curves]
    values = np.unique(np.concatenate(losses))
    values = values[np.isfinite(values)]

    def counts(index: int) -> list[int]:
        places = (int(np.searchsorted(one, values[index], side="right")) - 1 for one in losses)
        return [min(int(shares[at] * size), limit) for at, size, limit in zip(places, sizes, most, strict=True)]

    found = _first(len(values), counts, wanted)
    if sum(found) < int(wanted * (1 - 1 / _STEPS)):
        raise TersorError(
            f"sensitivity={path}: {sum(found) / sum(sizes):.3f} of the weights become zero where every layer has the"
            f" largest share that was scanned; ask for a lower ratio, or scan higher shares"
        )
    return found


def _rising(curve: LossCurve, shares: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.maximum.accumulate(curve.losses(shares, whole=0))


def _first(count: int, counts: Callable[[int], list[int]], wanted: float) -> list[int]:
    """The first of ``count`` settings at which as much goes as is wanted; the last where none does."""
    low, high = 0, count - 1
    while low < high:
        middle = (low + high) // 2
        if sum(counts(middle)) >= math.floor(wanted):
            high = middle
        else:
            low = middle + 1
    return counts(low)
