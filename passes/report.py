"""What a pipeline run did, pass by pass, and what the referee decided in each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

from ..ir import Refusal
from ..ir.foreign import Json
from .numeric import Agreement

_WIDTH = 80  # columns of a terminal


@dataclass(frozen=True)
class Times:
    """Seconds before and after, and the share of ``before`` that chance explains."""

    before: float
    after: float
    noise: float

    @property
    def is_faster(self) -> bool:
        """Whether the change is faster by more than chance explains."""
        return self.after < self.before * (1 - self.noise)

    @property
    def is_slower(self) -> bool:
        """Whether the change is slower by more than chance explains."""
        return self.before < self.after * (1 - self.noise)

    def __str__(self) -> str:
        ratio = f" ({self.after / self.before:.3f})" if self.before else ""
        return f"{self.before * 1e3:.4g} -> {self.after * 1e3:.4g} ms{ratio}"


@dataclass(frozen=True)
class Verdict:
    """What the referee (`tersor.passes.referee`) decided on a rewrite, and why.

    Attributes
    ----------
    name
        Of the layer, with what was to become of it.
    stays
        Whether the rewrite was made.
    fault
        Why it was not; empty if it was.
    macs_before, macs_after
        Multiply-adds of all layers that it changes.
    times
        Measured; None where nothing could be.
    error
        Root mean square of the change of the layer's output, relative to that of the output; None if not known.
    is_whole
        Whether this is about all rewrites of a pass together.
    remark
        What else there is to say, for example how far outputs are apart.
    """

    name: str
    stays: bool
    fault: str
    macs_before: int
    macs_after: int
    times: Times | None = None
    error: float | None = None
    is_whole: bool = False
    remark: str = ""

    @property
    def note(self) -> str:
        """The line that says so."""
        share = f" ({self.macs_after / self.macs_before:.3f})" if self.macs_before else ""
        parts = [
            f"multiply-adds {self.macs_before} -> {self.macs_after}{share}",
            "not measured" if self.times is None else str(self.times),
        ]
        if self.error is not None:
            parts.append(f"error {self.error:.3g}")
        undone = "" if self.stays else f" undone, {self.fault}"
        remark = f"; {self.remark}" if self.remark else ""
        return f"{self.name}{undone}: {', '.join(parts)}{remark}"

    def to_json(self) -> dict[str, Json]:
        """A dictionary of JSON types."""
        return asdict(self)


@dataclass(frozen=True)
class Staircase:
    """Measured time of the layers of one group of channels, against how many there are.

    Attributes
    ----------
    name
        Of the layers that make the channels.
    steps
        Channels, and seconds with that many of them and all other groups whole; ascending.
    chosen
        How many stay.
    """

    name: str
    steps: tuple[tuple[int, float], ...]
    chosen: int

    def lines(self, width: int = _WIDTH) -> list[str]:
        """A table of at most ``width`` columns: the chosen count in brackets, then ``channels: microseconds``."""
        cells = []
        for count, seconds in self.steps:
            shown = f"[{count}]" if count == self.chosen else f"{count}"
            cells.append(f"{shown:>6}: {seconds * 1e6:<6.4g}")
        columns = max(1, (width - 2) // len(cells[0])) if cells else 1
        rows = ["".join(cells[start : start + columns]).rstrip() for start in range(0, len(cells), columns)]
        return [f"{self.name} keeps {self.chosen} of {self.steps[-1][0]} channels", *(f"  {row}" for row in rows)]


def staircase_lines(staircases: Sequence[Staircase]) -> list[str]:
    """The tables of all groups, with what they mean before them; none where there are no groups."""
    if not staircases:
        return []
    head = "channels: measured microseconds of the layers that make or read them; [chosen]"
    return [head, *(line for one in staircases for line in one.lines())]


@dataclass(frozen=True)
class LayerPrecision:
    """In which precision a layer is computed, how well what it reads is stored, and what to try where that is poor.

    Attributes
    ----------
    name
        Of the layer.
    computes
        On which numbers: ``int8``, ``int4 weights``, ``bf16``, ``float32``.
    weight_bits
        Of a number of its weight; None for a product of computed operands.
    activation_bits
        Of a number that it reads, as it is stored.
    scale
        Distance between neighbouring numbers of what it reads; None where that is no integers.
    saturated
        Share of these numbers beyond the range that integers cover, on calibration data; None likewise.
    sqnr
        Signal-to-noise ratio in dB of what it reads, errors of all layers before included; None likewise, and without
        noise.
    times
        Seconds of the layer alone, in float32 and as it is computed now; None where that was not measured.
    calibrator
        What found the range: ``minmax``, ``auto:mse``; empty where there is none.
    accuracy
        Passes that changed its weight or bias for the sake of accuracy, in this order.
    advice
        What to try where the ratio is poor.
    """

    name: str
    computes: str
    weight_bits: int | None
    activation_bits: int
    scale: float | None = None
    saturated: float | None = None
    sqnr: float | None = None
    times: Times | None = None
    calibrator: str = ""
    accuracy: tuple[str, ...] = ()
    advice: str = ""

    @property
    def bits(self) -> str:
        """Of the weight, and of what the layer reads: ``4 x 32``."""
        return f"{self.activation_bits}" if self.weight_bits is None else f"{self.weight_bits} x {self.activation_bits}"

    @property
    def method(self) -> str:
        """What produced its numbers: ``auto:mse, gptq``."""
        return ", ".join(filter(None, (self.calibrator, *self.accuracy)))


def worst_first(layers: Sequence[LayerPrecision], count: int = 5) -> tuple[list[LayerPrecision], list[LayerPrecision]]:
    """The layers that read the noisiest numbers, the worst first, and the others in the order given."""
    rated = [one for one in layers if one.sqnr is not None]
    worst = sorted(rated, key=lambda one: one.sqnr or 0.0)[:count]
    return worst, [one for one in layers if one not in worst]


@dataclass(frozen=True)
class PassRecord:
    """One pass of a run.

    Attributes
    ----------
    name, text
        The pass's name, and the pass with its options as pipeline text.
    changed
        Whether the IR changed.
    seconds
        Wall-clock time of the pass alone, without instruments.
    ops_before, ops_after
        Number of ops of the graph.
    applied
        ``"rule: op at location"`` of every rewrite.
    refused
        Rewrites that did not happen, each once, with reasons.
    notes
        Lines that the pass wants the user to see.
    verdicts
        What the referee decided, in this order.
    staircases
        Time against channels, of a pass that chose counts by it.
    layers
        In which precision each layer is computed, of a pass that chose it.
    """

    name: str
    text: str
    changed: bool
    seconds: float
    ops_before: int
    ops_after: int
    applied: tuple[str, ...] = ()
    refused: tuple[Refusal, ...] = ()
    notes: tuple[str, ...] = ()
    verdicts: tuple[Verdict, ...] = ()
    staircases: tuple[Staircase, ...] = ()
    layers: tuple[LayerPrecision, ...] = ()

    def to_json(self) -> dict[str, Json]:
        """A dictionary of JSON types."""
        described = asdict(self)
        described["pass"] = described.pop("text")
        return described


@dataclass(frozen=True)
class Report:
    """What was done to a model.

    Attributes
    ----------
    records
        All passes of a run, in order.
    agreement
        How far the compiled program is from the model; None where that was not asked for.
    """

    records: tuple[PassRecord, ...] = ()
    agreement: Agreement | None = None

    @property
    def seconds(self) -> float:
        """Time spent in passes."""
        return sum(record.seconds for record in self.records)

    def __str__(self) -> str:
        """One line a pass, its name last, since options may be long; passes that changed nothing are in brackets.

        Staircases follow.
        """
        lines = [f"{'ms':>9}  {'ops':>14}  {'rewrites':>8}  {'refused':>7}  pass"]
        for one in self.records:
            ops = f"{one.ops_before} -> {one.ops_after}"
            name = one.text if one.changed else f"({one.text})"
            counts = f"{len(one.applied):>8}  {len(one.refused):>7}"
            lines.append(f"{one.seconds * 1e3:>9.2f}  {ops:>14}  {counts}  {name}")
        for one in self.records:
            lines += staircase_lines(one.staircases)
        return "\n".join(lines)

    def to_json(self) -> list[dict[str, Json]]:
        """One dictionary per pass."""
        return [record.to_json() for record in self.records]
