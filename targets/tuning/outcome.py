"""The result of measuring one candidate."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from ..templates.option import Option

Status = Literal["ok", "build-error", "crash", "timeout", "wrong", "out-of-memory"]
PASSING: tuple[Status, ...] = ("crash", "timeout", "out-of-memory")  # failures whose cause may be another program


@dataclass(frozen=True)
class Outcome:
    """One measured candidate.

    Attributes
    ----------
    option
        What was measured.
    status
        ``"ok"``, or how it failed.
    seconds
        Median of one kernel call; NaN unless ok.
    spread
        Difference of the quartiles over the median of the repeats.
    repeats
        Timed repetitions.
    baseline
        Median seconds of the incumbent, measured interleaved with it; NaN if there was none.
    detail
        One line: why it failed.
    build_seconds
        Time to generate the code.
    """

    option: Option
    status: Status
    seconds: float = math.nan
    spread: float = math.nan
    repeats: int = 0
    baseline: float = math.nan
    detail: str = ""
    build_seconds: float = math.nan

    def __post_init__(self) -> None:
        if self.ok and not self.seconds > 0:
            raise ValueError(f"seconds must be positive, not {self.seconds!r}")
        if self.baseline <= 0:
            raise ValueError(f"baseline must be positive or null, not {self.baseline!r}")

    @property
    def ok(self) -> bool:
        """Whether the candidate computed the right numbers and was timed."""
        return self.status == "ok"

    @property
    def may_pass(self) -> bool:
        """Whether it failed in a way that another attempt may not; wrong numbers stay wrong."""
        return self.status in PASSING

    @property
    def ratio(self) -> float:
        """Seconds over the incumbent's, measured side by side, so that drift cancels; NaN if there was none."""
        return self.seconds / self.baseline
