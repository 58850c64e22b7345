"""The result of measuring one candidate."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal, get_args

from ..templates.codec import CodecError
from ..templates.option import Option

Status = Literal["ok", "build-error", "crash", "timeout", "wrong", "out-of-memory"]
STATUSES: tuple[str, ...] = get_args(Status)
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

    def to_json(self) -> dict[str, Any]:
        """JSON types; NaN becomes null."""
        numbers = {name: _finite(getattr(self, name)) for name in _NUMBERS}
        rest = {"status": self.status, "repeats": self.repeats, "detail": self.detail}
        return {"option": self.option.to_json(), **rest, **numbers}

    @classmethod
    def from_json(cls, value: Any) -> Outcome:
        """Read what `to_json` wrote; raises CodecError for a field that is missing or does not fit."""
        names = {"option", "status", "repeats", "detail", *_NUMBERS}
        if not isinstance(value, dict) or set(value) != names:
            raise CodecError(f"outcome must be an object with {', '.join(sorted(names))}")
        if value["status"] not in STATUSES:
            raise CodecError(f"outcome.status must be one of {list(STATUSES)}, not {value['status']!r}")
        if type(value["repeats"]) is not int or not isinstance(value["detail"], str):
            raise CodecError("outcome.repeats must be a whole number and outcome.detail text")
        numbers = {name: _number(value[name], f"outcome.{name}") for name in _NUMBERS}
        if value["status"] == "ok" and not numbers["seconds"] > 0:
            raise CodecError(f"outcome.seconds must be positive, not {value['seconds']!r}")
        if numbers["baseline"] <= 0:
            raise CodecError(f"outcome.baseline must be positive or null, not {value['baseline']!r}")
        option = Option.from_json(value["option"])
        return cls(option, value["status"], repeats=value["repeats"], detail=value["detail"], **numbers)


_NUMBERS = ("seconds", "spread", "baseline", "build_seconds")


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _number(value: Any, where: str) -> float:
    if value is None:
        return math.nan
    if not isinstance(value, int | float) or isinstance(value, bool) or not math.isfinite(value):
        raise CodecError(f"{where} must be a number or null, not {value!r}")
    return float(value)
