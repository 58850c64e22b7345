"""Scans of sensitivity: what the outputs lose when one layer alone is compressed, as data and as JSON.

`tersor analyze sensitivity` makes them (`tersor.compression.sensitivity`), and passes that choose how much of each
layer goes read them: ``prune-channels{sensitivity=scan.json}``, ``low-rank{ranks=sensitivity:scan.json}``.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..ir import Op, TersorError
from ..ir.codec import decode, encode
from ..ir.files import write_text
from ..ir.foreign import Json

_ROUNDING = 1e-9  # a setting that was scanned is within the scan
_SHOWN = 3
_COMMAND = "`tersor analyze sensitivity`"


@dataclass(frozen=True)
class LossPoint:
    """What one layer costs at one setting.

    Attributes
    ----------
    label
        Of the column of tables, for example ``"30%"``: what was asked for.
    value
        The setting as a number: the share of channels that goes, of the full rank that stays, bits.
    detail
        What it comes to for this layer, for example ``"45 of 64 channels"``.
    error
        Root mean square of the change of the output that changes most, relative to that output's; None where the
        outputs are not finite any more.
    score
        What the user's function says of the model then; None without one, or where there was no time for it.
    """

    label: str
    value: float
    detail: str
    error: float | None
    score: float | None = None

    @property
    def loss(self) -> float:
        """The error; infinite where outputs are not finite."""
        return math.inf if self.error is None else self.error

    @property
    def decibels(self) -> float:
        """Signal-to-noise ratio of the output that changes most; infinite where nothing changes."""
        return -20 * math.log10(self.loss) if self.loss else math.inf


@dataclass(frozen=True)
class LossCurve:
    """What one layer, or one group of layers, costs at all settings.

    Attributes
    ----------
    name
        See `layer_names`; of a group, that of its first layer.
    kind
        How it was changed: the criterion, the low-rank method; empty where there is one way.
    layers
        Names of all layers that change.
    size
        What settings are shares of: the number of channels, the full ranks; empty for bits.
    points
        One for each setting, the smallest change first.
    """

    name: str
    kind: str
    layers: tuple[str, ...]
    size: tuple[int, ...]
    points: tuple[LossPoint, ...]

    def losses(self, settings: ArrayLike, whole: float) -> NDArray[np.float64]:
        """Losses at some settings: on straight lines between the points, and never less than before.

        Parameters
        ----------
        settings
            As `LossPoint.value`.
        whole
            The setting at which nothing is lost.

        Returns
        -------
        float64, infinite beyond the last point.
        """
        found = {0.0: 0.0} | {abs(point.value - whole): point.loss for point in self.points}
        distances = np.array(sorted(found))
        losses = np.maximum.accumulate([found[one] for one in distances.tolist()])
        finite = np.isfinite(losses)
        away = np.abs(np.asarray(settings, np.float64) - whole)
        last = distances[finite][-1]
        inside = np.interp(np.minimum(away, last), distances[finite], losses[finite])
        return np.where(away <= last + _ROUNDING, inside, np.inf)


@dataclass(frozen=True)
class ScannedAxis:
    """One way to compress: how much each layer costs by itself.

    Attributes
    ----------
    name
        As ``--axes`` takes it.
    title
        What the settings are.
    curves
        In execution order.
    notes
        Layers that cannot be changed in this way, with reasons.
    """

    name: str
    title: str
    curves: tuple[LossCurve, ...]
    notes: tuple[str, ...] = ()

    @property
    def labels(self) -> tuple[str, ...]:
        """Those of all settings, in order."""
        return tuple(dict.fromkeys(point.label for curve in self.curves for point in curve.points))

    def title_of(self, curve: LossCurve) -> str:
        """The name of a curve, with its kind where there are several."""
        several = len({one.kind for one in self.curves}) > 1
        return f"{curve.name} ({curve.kind})" if several and curve.kind else curve.name


@dataclass(frozen=True)
class SensitivityScan:
    """How much a model loses when one of its layers alone is compressed.

    Attributes
    ----------
    model
        Its name.
    axes
        One for each way to compress.
    data
        What the calibration data is called.
    batches
        How many batches of it were looked at.
    reestimated
        Whether batch normalisations were measured again behind each change.
    evaluate
        The name of the user's function, or empty.
    score
        What it says of the model as it is.
    end
        Why some points have no score; empty if all have one, or none was asked for.
    is_interrupted
        Whether that is since somebody pressed Ctrl-C.
    machine, versions, date
        Where and when it was made.
    schema
        Of the JSON.
    """

    model: str
    axes: tuple[ScannedAxis, ...]
    data: str
    batches: int
    reestimated: bool = False
    evaluate: str = ""
    score: float | None = None
    end: str = ""
    is_interrupted: bool = False
    machine: str = ""
    versions: Mapping[str, str] = field(default_factory=dict)
    date: str = ""
    schema: Literal[1] = 1

    def axis(self, name: str) -> ScannedAxis | None:
        """The axis of that name, if it was scanned."""
        return next((one for one in self.axes if one.name == name), None)

    def to_json(self) -> dict[str, Json]:
        """A dictionary of JSON types."""
        described: dict[str, Json] = encode(self)
        return described

    def save(self, path: str | Path) -> Path:
        """Write the JSON that passes read, as a whole or not at all; returns its path."""
        write_text(path, json.dumps(self.to_json(), indent=1) + "\n")
        return Path(path)


def read_scan(path: str | Path) -> SensitivityScan:
    """Read what `SensitivityScan.save` wrote; raises TersorError for a file that is missing, damaged or another."""
    try:
        text = Path(path).read_text("utf-8")
    except OSError as error:
        raise TersorError(f"{path}: {error.strerror or error}; {_COMMAND} with --output writes such a file") from error
    except UnicodeDecodeError as error:
        raise TersorError(f"{path} is no scan of sensitivities, but no text at all; make one by {_COMMAND}") from error
    try:
        scan: SensitivityScan = decode(SensitivityScan, json.loads(text), "it")
    except (ValueError, RecursionError) as error:
        raise TersorError(f"{path} is no scan of sensitivities, or damaged: {error}; make it by {_COMMAND}") from error
    return scan


def name_of_layer(op: Op) -> str:
    """By location, or else by kind of op."""
    return op.location or op.describe()


def layer_names(layers: Sequence[Op]) -> list[str]:
    """What curves of layers are called: as `name_of_layer` says, with numbers where several are called the same."""
    names = list(map(name_of_layer, layers))
    seen: Counter[str] = Counter()
    for index, name in enumerate(names):
        seen[name] += 1
        if seen[name] > 1:
            names[index] = f"{name} #{seen[name]}"
    return names


def find_curves(
    scan: SensitivityScan, source: str, axis: str, wanted: Sequence[tuple[str, tuple[int, ...]]], kind: str = ""
) -> list[LossCurve]:
    """The curves of some layers.

    Parameters
    ----------
    source
        Where the scan is from, for messages.
    axis
        Which of its axes.
    wanted
        Name and size of each layer.
    kind
        That the curves must have; empty for any.

    Raises
    ------
    TersorError
        When the axis, or the kind, was not scanned; when a layer was not, since the scan is of another model; and when
        a layer had another size.
    """
    scanned = scan.axis(axis)
    if scanned is None:
        raise TersorError(f"{source} has no curves for {axis}; scan again with --axes {axis}")
    curves = {curve.name: curve for curve in scanned.curves if not kind or curve.kind == kind}
    if not curves:
        raise TersorError(f"{source} has no curves for {axis} by {kind}; scan again")
    found = []
    for name, size in wanted:
        if name not in curves:
            known = ", ".join([*curves][:_SHOWN])
            raise TersorError(
                f"{source} is a scan of another model ({scan.model}): it has no curve for {axis} of {name!r}, but for"
                f" {known}{' …' if len(curves) > _SHOWN else ''}; scan this model by {_COMMAND}"
            )
        if curves[name].size != size:
            had, has = ("x".join(map(str, one)) for one in (curves[name].size, size))
            raise TersorError(
                f"{source}: {axis} of {name!r}: {had} when it was scanned, {has} here; scan the model as it is here"
            )
        found.append(curves[name])
    return found
