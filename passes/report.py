"""What a pipeline run did, pass by pass."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..ir import Refusal


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

    def to_json(self) -> dict[str, Any]:
        """A dictionary of JSON types."""
        return {
            "name": self.name,
            "pass": self.text,
            "changed": self.changed,
            "seconds": self.seconds,
            "ops_before": self.ops_before,
            "ops_after": self.ops_after,
            "applied": list(self.applied),
            "refused": [{"rule": r.rule, "op": r.op, "reason": r.reason} for r in self.refused],
            "notes": list(self.notes),
        }


@dataclass(frozen=True)
class Report:
    """All passes of a run, in order."""

    records: tuple[PassRecord, ...] = ()

    @property
    def seconds(self) -> float:
        """Time spent in passes."""
        return sum(record.seconds for record in self.records)

    def to_json(self) -> list[dict[str, Any]]:
        """One dictionary per pass."""
        return [record.to_json() for record in self.records]
