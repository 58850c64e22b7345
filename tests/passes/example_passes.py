"""Passes that go wrong on purpose; a plugin for tests of instruments, reproducers and bisection."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from tersor.ir import DType, Graph, TensorType
from tersor.ir.ops import AddOp, CastOp, EmbeddingOp, MulOp, ReluOp, ReshapeOp, SigmoidOp, TanhOp
from tersor.passes import Exactness, Pass, PassContext, Result, register_pass


class Mood(Enum):
    CALM = "calm"
    WILD = "wild"


@register_pass("test-options")
@dataclass(frozen=True)
class Options(Pass):
    """One option of each type.

    Changes nothing.
    """

    number: int = 1
    ratio: float = 0.5
    flag: bool = False
    text: str = "plain"
    mood: Mood = Mood.CALM
    sizes: tuple[int, ...] = ()
    pair: tuple[int, float] = (1, 2.0)
    maybe: int | None = None
    word: str | None = None

    def run(self, graph: Graph, context: PassContext) -> Result:
        context.notes.append(f"{self.number}")
        return Result(False, ("nothing to do",))


@register_pass("test-required")
@dataclass(frozen=True)
class Required(Pass):
    """An option without a default."""

    rank: int

    def run(self, graph: Graph, context: PassContext) -> Result:
        return Result(False)


@register_pass("test-wrong")
@dataclass(frozen=True)
class Wrong(Pass):
    """Double each relu, and replace a sigmoid at one location by tanh, which is wrong."""

    location: str = "bad"
    exactness = Exactness.CLOSE

    def run(self, graph: Graph, context: PassContext) -> Result:
        rewriter = context.rewriter(graph)
        for op in graph.ops:
            if isinstance(op, ReluOp) and rewriter.commit("relu-again", op):
                rewriter.replace(op, rewriter.create(ReluOp, (rewriter.create(ReluOp, (op.x,)).result,)).result)
            elif isinstance(op, SigmoidOp) and op.location == self.location and rewriter.commit("bad-rule", op):
                rewriter.replace(op, rewriter.create(TanhOp, (op.x,)).result)
        return Result(rewriter.changed)


@register_pass("test-drift")
@dataclass(frozen=True)
class Drift(Pass):
    """Scale the first output by a little more than 1, within the tolerance of one pass."""

    exactness = Exactness.CLOSE

    def run(self, graph: Graph, context: PassContext) -> Result:
        rewriter = context.rewriter(graph)
        value = graph.outputs[0]
        if value.op is not None and rewriter.commit("drift", value.op):
            factor = rewriter.full(1 + 8e-5, TensorType((), value.type.dtype))
            rewriter.set_output(0, rewriter.create(MulOp, (value, factor), after=True).result)
        return Result(rewriter.changed)


@register_pass("test-malformed")
@dataclass(frozen=True)
class Malformed(Pass):
    """Move the first op to the end, so that it is used before it is defined."""

    def run(self, graph: Graph, context: PassContext) -> Result:
        rewriter = context.rewriter(graph)
        first, *rest = graph.ops
        if rewriter.commit("misplace", first):
            rewriter.reorder([*rest, first])
        return Result(rewriter.changed)


@register_pass("test-crash")
@dataclass(frozen=True)
class Crash(Pass):
    """Raise an error that is no TersorError."""

    def run(self, graph: Graph, context: PassContext) -> Result:
        raise ValueError(f"cannot cope with {len(graph)} ops")


@register_pass("test-liar")
@dataclass(frozen=True)
class Liar(Pass):
    """Claim a change that did not happen, or hide one that did."""

    claim: bool = True

    def run(self, graph: Graph, context: PassContext) -> Result:
        if not self.claim:
            graph.ops[-1].location = "changed"
        return Result(self.claim)


@register_pass("test-retype")
@dataclass(frozen=True)
class Retype(Pass):
    """Return the first output in double precision, or in another shape."""

    shape: bool = False

    def run(self, graph: Graph, context: PassContext) -> Result:
        rewriter = context.rewriter(graph)
        value = graph.outputs[0]
        if value.op is not None and value.type.dtype is DType.F32 and rewriter.commit("retype", value.op):
            kind, attrs = (
                (ReshapeOp, ReshapeOp.attrs_type(shape=(value.type.size,)))
                if self.shape
                else (CastOp, CastOp.attrs_type(dtype=DType.F64))
            )
            rewriter.set_output(0, rewriter.create(kind, (value,), attrs, after=True).result)
        return Result(rewriter.changed)


@register_pass("test-unevaluable")
@dataclass(frozen=True)
class Unevaluable(Pass):
    """Add 1000 to the indices of each embedding, which leaves its table."""

    def run(self, graph: Graph, context: PassContext) -> Result:
        rewriter = context.rewriter(graph)
        for op in graph.ops:
            if isinstance(op, EmbeddingOp) and rewriter.commit("out-of-table", op):
                far = rewriter.create(AddOp, (op.indices, rewriter.full(1000, TensorType((), op.indices.type.dtype))))
                rewriter.replace(op, rewriter.create(EmbeddingOp, (op.table, far.result)).result)
        return Result(rewriter.changed)
