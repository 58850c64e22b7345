"""Shares of channels by the names of layers: ``skip`` and the table of ``ratio``, as shares of groups."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase

from ...ir import TersorError, suggest
from .groups import ChannelGroup, ChannelMap


def shares_of_groups(
    channels: ChannelMap, skip: Sequence[str], ratios: Mapping[str, float], floor: float
) -> dict[int, float]:
    """The share of channels that goes, by index of the group, for all groups that ``skip`` or ``ratios`` name.

    Of several patterns that match a layer, its full name decides.

    Raises
    ------
    TersorError
        When a pattern matches no layer, or only layers that cannot lose channels; when layers that lose their channels
        together, or patterns that match one layer, have different shares; when less than ``floor`` would be left.
    """
    held = {op.location: reason for op, reason in channels.held}
    names = [layer.op.location for layer in channels.layers]
    for option, patterns in (("skip", skip), ("ratio", ratios)):
        for pattern in patterns:
            _check(option, pattern, names, held, 0.0 if option == "skip" else ratios[pattern])
    shares = {}
    for index, group in enumerate(channels.groups):
        found = _shares(group, skip, ratios)
        if len(set(found.values())) > 1:
            (one, first), (other, second) = _apart(found)
            raise TersorError(
                f"{one} and {other} lose their channels together, but shares of {first:g} and {second:g} are asked for"
            )
        for name, share in found.items():
            if share > 1 - floor:
                raise TersorError(
                    f"ratio={share:g} leaves less than floor={floor:g} of the channels of {name}; ask for a lower floor"
                )
            shares[index] = share
    return shares


def _check(option: str, pattern: str, names: Sequence[str], held: Mapping[str, str], share: float) -> None:
    matching = [name for name in names if fnmatchcase(name, pattern)]
    if not matching:
        some = ", ".join(name for name in names[:3] if name) or "(none)"
        hint = suggest(pattern, names)
        hint = hint if hint.startswith("; did you mean") else f"; layers have names such as {some}"
        raise TersorError(f"{option}: {pattern!r} matches no layer{hint}")
    if share and all(name in held for name in matching):
        raise TersorError(
            f"{option}: {matching[0]} cannot lose channels, since {held[matching[0]]}; leave {pattern!r} out"
        )


def _shares(group: ChannelGroup, skip: Sequence[str], ratios: Mapping[str, float]) -> dict[str, float]:
    """What is asked for, by the name of the layer."""
    found = {}
    for op in group.layers:
        asked = {f"ratio {pattern!r}": share for pattern, share in ratios.items() if fnmatchcase(op.location, pattern)}
        if op.location in ratios:
            asked = {f"ratio {op.location!r}": ratios[op.location]}
        asked |= {f"skip {pattern!r}": 0.0 for pattern in skip if fnmatchcase(op.location, pattern)}
        if len(set(asked.values())) > 1:
            (one, first), (other, second) = _apart(asked)
            raise TersorError(
                f"{one} and {other} both match {op.location}, with shares of {first:g} and {second:g}; keep one"
            )
        if asked:
            found[op.location] = next(iter(asked.values()))
    return found


def _apart(shares: Mapping[str, float]) -> tuple[tuple[str, float], tuple[str, float]]:
    """Two entries with different shares."""
    first, *others = shares.items()
    return first, next(one for one in others if one[1] != first[1])
