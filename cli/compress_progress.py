"""How compression is shown while it goes on."""

from __future__ import annotations

from ..compression.result import Step
from ..compression.session import StepObserver
from .tables import Progress


class StepsShown(StepObserver):
    """Tells how a compression goes on."""

    def __init__(self, shown: Progress) -> None:
        self._shown = shown

    def begin(self, stage: str) -> None:
        """Show what takes a while now."""
        self._shown.show(stage)

    def finished(self, step: Step) -> None:
        """A line with the step's figures."""
        speedup = "not measured" if step.latency is None else f"{step.latency.speedup:.2f}x"
        score = "" if step.score is None else f", score {step.score:.4g}"
        size, macs = f"{step.weight_bytes / 1e6:.4g} MB", f"{step.macs / 1e6:.4g} M multiply-adds"
        self._shown.say(f"{step.name}: {size}, {macs}, {speedup}, error {step.error:.2g}{score} ({step.seconds:.1f} s)")
