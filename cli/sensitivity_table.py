"""A scan of sensitivities as text: a table for each axis, a line for each layer, whose name is never cut."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from ..compression.result import score_text
from ..passes.sensitivity import LossPoint, ScannedAxis, SensitivityScan

_FEWEST = 3  # columns, beside names; for fewer, names stand on lines of their own
_GAP = 2
_NAMED = 3
_LAYER = "layer"  # above names


def sensitivity_lines(scan: SensitivityScan, width: int, *, verbose: bool) -> Iterator[str]:
    """Lines of at most ``width`` characters, unless a name alone is longer."""
    for axis in scan.axes:
        yield f"{axis.name}: change of the outputs, relative, by {axis.title}"
        yield from _table(axis, _error, width)
        if scan.score is not None:
            yield ""
            yield f"{axis.name}: score by {scan.evaluate}, {score_text(scan.score)} as it is"
            yield from _table(axis, lambda point: score_text(point.score), width)
        yield _most_sensitive(axis)
        if verbose:
            yield from (f"left as it is: {note}" for note in axis.notes)
        elif axis.notes:
            yield f"layers that cannot be changed: {len(axis.notes)}; --verbose says why"
        yield ""
    again = ", batch norms measured again on them" if scan.reestimated else ""
    yield f"{scan.model} on {scan.batches} batches of {scan.data}{again}"
    if scan.end:
        yield f"stopped: {scan.end}"


def _error(point: LossPoint) -> str:
    return "inf" if point.error is None else f"{point.error:.2g}"


def _table(axis: ScannedAxis, text: Callable[[LossPoint], str], width: int) -> Iterator[str]:
    names = [axis.title_of(curve) for curve in axis.curves]
    cells = [{point.label: text(point) for point in curve.points} for curve in axis.curves]
    sizes = {label: max(len(label), *(len(row.get(label, "")) for row in cells)) for label in axis.labels}
    longest = max(len(_LAYER), *map(len, names))
    shown = _fitting(sizes, width - longest)
    beside = len(shown) >= min(_FEWEST, len(sizes))
    if not beside:
        longest = 0
        shown = _fitting(sizes, width)
    head = "".join(label.rjust(sizes[label] + _GAP) for label in shown)
    yield f"{_LAYER if beside else '':{longest}}{head}".rstrip()
    for name, row in zip(names, cells, strict=True):
        line = "".join(row.get(label, "").rjust(sizes[label] + _GAP) for label in shown).rstrip()
        if beside:
            yield f"{name:{longest}}{line}"
        else:
            yield name
            yield line
    if len(shown) < len(sizes):
        yield f"(of {len(sizes)} settings; --report has all)"


def _fitting(sizes: dict[str, int], width: int) -> Sequence[str]:
    """As many columns as fit, evenly spread, the last one among them."""
    labels = [*sizes]
    for count in range(len(labels), 0, -1):
        chosen = [labels[len(labels) * (index + 1) // count - 1] for index in range(count)]
        if sum(sizes[label] + _GAP for label in chosen) <= width:
            return chosen
    return labels[-1:]


def _most_sensitive(axis: ScannedAxis) -> str:
    """The layers that lose most at the setting in the middle."""
    label = axis.labels[len(axis.labels) // 2]
    found = [
        (point.loss, axis.title_of(curve), point)
        for curve in axis.curves
        for point in curve.points
        if point.label == label
    ]
    found.sort(key=lambda one: -one[0])
    named = ", ".join(f"{name} {_error(point)}" for _, name, point in found[:_NAMED])
    return f"most sensitive at {label}: {named}"
