"""What compressing a model gave: the program that is kept, and the figures after each step."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass, field
from enum import Enum
from pathlib import Path

from ..frontend import save_module
from ..ir import Graph, TersorError
from ..ir.foreign import Json
from ..passes import PassRecord, Report
from ..targets import Executable

_SHRINKING = {"prune-channels", "low-rank"}


@dataclass(frozen=True)
class PairTiming:
    """Seconds of one call, and of the original's, timed alternately.

    Attributes
    ----------
    seconds, original
        Medians of the faster half of the blocks (`tersor.targets.tuning.timing`).
    spread
        Distance of the quartiles of that half over its median.
    """

    seconds: float
    original: float
    spread: float

    @property
    def speedup(self) -> float:
        """How many times faster than the original, timed alternately."""
        return self.original / self.seconds


@dataclass(frozen=True)
class Step:
    """The model after some passes.

    Attributes
    ----------
    name
        The passes, as pipeline text; ``"original"`` for the model before compression.
    macs
        Multiply-adds of one call.
    parameters
        Numbers in the weights.
    weight_bytes
        Their size, zeros left out (`tersor.evaluation.stored_bytes`).
    artifact_bytes
        Size of the file, code included; None where none was written.
    latency
        None where the target's code does not run on this machine.
    error
        Root mean square of the difference of the outputs from the original's, relative to that of the original's.
    score
        What the user's function says, larger is better; None without one.
    records
        What each pass did.
    seconds
        That the step took: passes, compiling, timing and scoring.
    """

    name: str
    macs: int
    parameters: int
    weight_bytes: int
    artifact_bytes: int | None
    latency: PairTiming | None
    error: float
    score: float | None = None
    records: tuple[PassRecord, ...] = ()
    seconds: float = 0.0

    @property
    def short_name(self) -> str:
        """The passes without their options."""
        return re.sub(r"\{[^{}]*\}", "", self.name)

    def to_json(self) -> dict[str, Json]:
        """A dictionary of JSON types."""
        latency = None if self.latency is None else asdict(self.latency) | {"speedup": self.latency.speedup}
        described = asdict(self) | {"latency": latency, "passes": [record.to_json() for record in self.records]}
        del described["records"]
        return described


class End(Enum):
    """Why no further step was made."""

    COMPLETE = "complete"  # there was none
    DROP = "drop"  # the last one lowered the score too much
    FAILED = "failed"
    INTERRUPTED = "interrupted"


@dataclass(frozen=True)
class Setting:
    """What was asked for, and where it ran.

    Attributes
    ----------
    model, pipeline, target
        Names and text.
    threads
        Of one call.
    data, evaluate
        What they are called; empty without any.
    max_drop
        By how much the score may fall, or None.
    machine
        Processor and operating system.
    versions
        Of Tersor and what it stands on.
    date
        When it began, in UTC.
    """

    model: str
    pipeline: str
    target: str
    threads: int
    data: str
    evaluate: str
    max_drop: float | None
    machine: str
    versions: dict[str, str]
    date: str


@dataclass(frozen=True)
class Compressed:
    """The outcome of `tersor.compress`.

    Attributes
    ----------
    executable
        The program that is kept; callable like the model.
    steps
        The original, and the model after each step, up to the one that went too far if one did.
    kept
        Index in ``steps`` of the program that is kept.
    end, reason
        Why no further step was made, and a line that says so; empty when all were.
    setting
        What was asked for, and where it ran.
    trainable
        The model after the last kept step that made the network itself smaller, for `save_module` and ``to_torch()``.
    trained_from
        The name of that step.
    output
        The file that the program was written to, if one was asked for.
    """

    executable: Executable
    steps: tuple[Step, ...]
    kept: int
    end: End
    reason: str
    setting: Setting
    trainable: Graph
    trained_from: str
    output: Path | None = field(default=None)

    @property
    def original(self) -> Step:
        """The model before compression, compiled for the same target."""
        return self.steps[0]

    @property
    def best(self) -> Step:
        """The step whose program is kept."""
        return self.steps[self.kept]

    def seconds(self, step: Step) -> float | None:
        """Seconds of one call of a step's model, as if all had been timed together; None where nothing was.

        That is the original's time when the machine was least disturbed, divided by the speedup.
        """
        if step.latency is None:
            return None
        calm = min(one.latency.original for one in self.steps if one.latency is not None)
        return calm / step.latency.speedup

    @property
    def is_interrupted(self) -> bool:
        """Whether Ctrl-C ended it."""
        return self.end is End.INTERRUPTED

    @property
    def advice(self) -> str:
        """What would likely keep more of the score; empty if nothing is known."""
        folded = any(record.name == "fold-batchnorm" and record.applied for record in self.original.records)
        shrunk = {record.name for step in self.steps for record in step.records if record.changed} & _SHRINKING
        if not (folded and shrunk):
            return ""
        return (
            f"batch norms were folded before {' and '.join(sorted(shrunk))}; with reestimate-batchnorm behind it and O3"
            " after that (prune-channels,reestimate-batchnorm,O3,quantize), their statistics are measured again on the"
            " data, which often wins back much of the score"
        )

    @property
    def report(self) -> Report:
        """What the passes did that made the program."""
        return Report(tuple(record for step in self.steps[: self.kept + 1] for record in step.records))

    @property
    def headline(self) -> str:
        """The gain in one line, such as ``"4.1x faster, 3.6x smaller, score -0.0020"``."""
        return ", ".join(headline(self.original, self.best))

    def save_page(self, path: str | Path) -> Path:
        """Write the report as one HTML page that needs no other file; returns its path."""
        from .page import write_page

        return write_page(self, Path(path))

    def save_module(self, path: str | Path) -> Path:
        """Write `trainable` as a module with the names of the user's own; see `tersor.frontend.save_module`."""
        save_module(self.trainable, path)
        return Path(path)

    def to_json(self) -> dict[str, Json]:
        """A dictionary of JSON types."""
        return {
            "headline": self.headline,
            "kept": self.kept,
            "end": self.end.value,
            "reason": self.reason,
            "output": None if self.output is None else str(self.output),
            "setting": asdict(self.setting),
            "steps": [step.to_json() | {"seconds_per_call": self.seconds(step)} for step in self.steps],
        }


class CompressError(TersorError):
    """A step failed after others had succeeded.

    Attributes
    ----------
    compressed
        What there is: the model after the last step that succeeded.
    """

    def __init__(self, message: str, compressed: Compressed) -> None:
        super().__init__(message)
        self.compressed = compressed


def headline(original: Step, best: Step) -> list[str]:
    """What was gained, a few words each."""
    if best is original:
        return ["not compressed"]
    size = original.weight_bytes / best.weight_bytes if best.weight_bytes else 1.0
    parts = [] if best.latency is None else [f"{best.latency.speedup:.2f}x faster"]
    parts += [f"{size:.2f}x smaller", f"{_ratio(original.macs, best.macs):.2f}x fewer multiply-adds"]
    if best.score is not None and original.score is not None:
        parts.append(f"score {score_change(original.score, best.score)}")
    return parts


def _ratio(before: int, after: int) -> float:
    return before / after if after else 1.0


def score_text(score: float | None) -> str:
    """A score: shares of one as percentages."""
    if score is None:
        return "-"
    return f"{score:.2%}" if 0 <= score <= 1 else f"{score:.5g}"


def score_change(before: float, after: float) -> str:
    """A difference of scores: between shares of one in points of a hundred."""
    if 0 <= before <= 1 and 0 <= after <= 1:
        return f"{(after - before) * 100:+.2f} points"
    return f"{after - before:+.4g}"
