"""What a pass is, what it returns and what it is given."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING, ClassVar, Protocol

from ..ir import Graph, Op, RewriteLog, Rewriter, TensorType, TersorError
from .report import LayerPrecision, Staircase, Verdict

if TYPE_CHECKING:
    import torch


class PassError(TersorError):
    """A pass failed, or left a graph behind that is malformed or computes something else.

    Attributes
    ----------
    rewrites
        ``"rule: op at location"`` of every rewrite of the run until then.
    """

    def __init__(self, message: str, rewrites: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.rewrites = tuple(rewrites)


class Exactness(Enum):
    """What a pass keeps of the numbers; the strictest that holds is declared."""

    EXACT = "exact"  # the same operations on the same numbers
    CLOSE = "close"  # equal in real arithmetic; floating-point operations are reassociated
    APPROXIMATE = "approximate"  # another function; the pass reports its own metric

    @property
    def tolerance(self) -> float:
        """Largest allowed difference, relative to the largest magnitude of an output.

        A doubled output exceeds all of them.
        """
        return _TOLERANCES[self]


_TOLERANCES = {
    Exactness.EXACT: 1e-6,  # not 0: libraries choose kernels by memory alignment, which moves the last bits
    Exactness.CLOSE: 1e-4,
    Exactness.APPROXIMATE: 0.5,
}


class TimedPair(Protocol):
    """Seconds of one execution of two graphs, and how much of their ratio is chance.

    The faster one is faster when it takes less than ``1 - noise`` of the other's time.
    """

    @property
    def before(self) -> float: ...

    @property
    def after(self) -> float: ...

    @property
    def noise(self) -> float: ...


class Latency(Protocol):
    """Time on a target, measured or predicted, for passes that decide by it; `PassManager.run` is given it."""

    def prepare(self, questions: Iterable[Sequence[Graph]]) -> None:
        """Tell what will be asked next, in this order: one graph each for its seconds, or two to compare.

        Several graphs are compiled together in less time than one by one. Graphs are drawn when they are needed.
        """
        ...

    def graph_seconds(self, graph: Graph) -> float:
        """Seconds of one execution of ``graph``."""
        ...

    def op_seconds(self, op: Op) -> float:
        """Seconds of one execution of ``op`` alone."""
        ...

    def compare(self, before: Graph, after: Graph) -> TimedPair:
        """Seconds of two graphs that do the same work differently; where they are measured, alternately."""
        ...


class LayoutCosts(Protocol):
    """What physical layouts cost on a target, in whole numbers of some unit of time or traffic.

    Only sums are compared, so the unit does not matter; whole numbers keep the sums exact.
    """

    def access(self, type: TensorType) -> int:
        """One kernel's reading, or writing, of a whole tensor stored as ``type`` says, padding included."""
        ...

    def relayout(self, type: TensorType, channel_block: int) -> int:
        """A kernel that stores such a tensor in ``channel_block`` instead; 0 where no element would move."""
        ...


class Machine(Protocol):
    """What passes ask of the machine to optimize for."""

    @property
    def name(self) -> str:
        """As users write it."""
        ...

    @property
    def integer_kernels(self) -> bool:
        """Whether there are kernels for 8-bit integers."""
        ...

    @property
    def weight_bits(self) -> int:
        """Bits of integers as weights, up to 8, that kernels multiply the fastest."""
        ...

    def lanes(self) -> int:
        """Elements of float32 that kernels work on at once."""
        ...

    def layout_costs(self) -> LayoutCosts | None:
        """What storing tensors in channel blocks costs; None where kernels take row-major tensors only."""
        ...


@dataclass(frozen=True)
class Calibrated:
    """A graph whose notes have ranges.

    Attributes
    ----------
    graph
        A copy.
    calibrators
        What found the range of each note, in execution order: ``minmax``, ``auto:mse``.
    """

    graph: Graph
    calibrators: tuple[str, ...]


@dataclass
class PassContext:
    """What a pass may look at besides the graph; shared by all passes of one run.

    Attributes
    ----------
    target
        The machine to optimize for, or None.
    calibration
        Batches of inputs, one sequence of tensors each, or None; may be iterated repeatedly.
    log
        Rewrites applied and refused.
    latency
        Measures on the target, or None when nothing can be measured.
    score
        The user's number for a graph, larger for a better one, or None.
    calibrated
        What ``quantize-calibrate`` left behind, before accuracy passes change the weights.
    notes
        Lines for the report, appended by passes.
    verdicts
        What the referee (`tersor.passes.referee`) decided, appended by it.
    progress
        Told what is left, now and then, by passes that take long (`tersor.passes.progress`).
    """

    target: Machine | None = None
    calibration: Iterable[Sequence[torch.Tensor]] | None = None
    log: RewriteLog = field(default_factory=RewriteLog)
    latency: Latency | None = None
    score: Callable[[Graph], float] | None = None
    calibrated: Calibrated | None = None
    notes: list[str] = field(default_factory=list)
    verdicts: list[Verdict] = field(default_factory=list)
    progress: Callable[[str], None] = lambda text: None

    def lanes(self, unknown: int) -> int:
        """Elements of float32 in a vector register of the target; ``unknown`` without one."""
        return unknown if self.target is None else self.target.lanes()

    def rewriter(self, graph: Graph) -> Rewriter:
        """A rewriter for ``graph`` that keeps the run's log."""
        return Rewriter(graph, self.log)


@dataclass(frozen=True)
class Result:
    """What a pass did.

    Attributes
    ----------
    changed
        Whether the IR changed.
    notes
        Lines for the report.
    then
        Passes that the manager runs next, under the same instruments: ``fuse`` where fused groups were taken apart.
    staircases
        Time against channels, for the report.
    layers
        In which precision each layer is computed, for the report.
    """

    changed: bool
    notes: tuple[str, ...] = ()
    then: tuple[Pass, ...] = ()
    staircases: tuple[Staircase, ...] = ()
    layers: tuple[LayerPrecision, ...] = ()


@dataclass(frozen=True)
class Pass:
    """Base of all passes: a frozen dataclass whose fields are the pass's options.

    The first line of a subclass's docstring is its summary. Options are validated in ``__post_init__`` with ValueError.
    """

    name: ClassVar[str] = ""  # set by `register_pass`, as is the next
    purpose: ClassVar[str] = ""
    exactness: ClassVar[Exactness] = Exactness.EXACT
    measures: ClassVar[bool] = False  # asks `PassContext.latency`: callers that can measure should give one
    may_change_all: ClassVar[bool] = False  # outputs may be anywhere, so only their number and shape are checked
    before_notes: ClassVar[bool] = False  # an accuracy pass of ``quantize`` that comes before ``quantize-annotate``
    advice: ClassVar[Mapping[str, str]] = {}  # what to say where the value of an option cannot be read
    repairs: ClassVar[bool] = False  # wins back accuracy that the pass before it has cost: judge them together

    @property
    def steps(self) -> tuple[Pass, ...]:
        """The passes that this one is short for, which run in its place; none for most."""
        return ()

    @property
    def needs_data(self) -> bool:
        """Whether the pass fails without calibration data; asked before the first pass runs."""
        return False

    @property
    def needs_score(self) -> bool:
        """Whether the pass fails where nobody scores models; asked before the first pass runs."""
        return False

    @property
    def tolerance(self) -> float:
        """Tolerance of the numeric check, relative to the largest magnitude of an output."""
        return math.inf if self.may_change_all else self.exactness.tolerance

    def run(self, graph: Graph, context: PassContext) -> Result:
        """Change ``graph`` through ``context.rewriter(graph)``; ``changed`` is true exactly when the IR changed."""
        raise NotImplementedError
