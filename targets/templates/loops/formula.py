"""Formulas for ops: what a kernel computes, in tensor expressions or as loops, and which op it is for.

A formula in TVM's tensor expressions takes the op and one tensor for each operand, of its shape, and returns the tensor
of the result. All stages that it makes are computed one after another; threads share the loops that are not reduced.

What no tensor expression says, such as a scan or a sort, is written with TVM's IR builder: such a formula takes the op,
one flat buffer for each operand, and the flat buffer of the result.

Either way, element types are those of `STORAGE`, but that numbers of 16 bits are read as float32 and rounded when they
are stored. An operand that an op reads twice is one operand here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

from tvm import s_tir, te, tirx

from ....ir import DType, Graph, Op, TensorType, TersorError, clone_op, parse, print_graph
from ...machines.target import Cpu
from ..base import NO_EPILOGUE, Buffer, BufferSpec, Expr
from ..parallelism import PARALLEL_MIN_BYTES, PARALLEL_MIN_MACS
from ..vector import bfloat16
from ..vector.builder import Output, make_prim_func
from ..vector.storage import NUMBERS, STORAGE
from .schedule import as_kernel, share_outer_loops

Formula = Callable[..., Expr | None]  # what it takes and returns: see `expresses` and `writes`

_EXPRESSIONS: dict[type[Op], Formula] = {}
_BODIES: dict[type[Op], Formula] = {}


def expresses(*kinds: type[Op]) -> Callable[[Formula], Formula]:
    """Register the formula of ops: ``formula(op, *tensors) -> tensor``, in tensor expressions."""
    return _register(_EXPRESSIONS, kinds)


def writes(*kinds: type[Op]) -> Callable[[Formula], Formula]:
    """Register the formula of ops: ``formula(op, target, *buffers, result)``, which writes loops."""
    return _register(_BODIES, kinds)


def _register(table: dict[type[Op], Formula], kinds: tuple[type[Op], ...]) -> Callable[[Formula], Formula]:
    def register(formula: Formula) -> Formula:
        for kind in kinds:
            if kind in _EXPRESSIONS or kind in _BODIES:
                raise ValueError(f"{kind.name} has two formulas")
            table[kind] = formula
        return formula

    return register


def ops_with_formulas() -> tuple[type[Op], ...]:
    """Every op that has a formula."""
    return (*_EXPRESSIONS, *_BODIES)


def registered_formulas() -> tuple[Formula, ...]:
    """Every formula that `expresses` and `writes` have registered."""
    return (*_EXPRESSIONS.values(), *_BODIES.values())


@dataclass(frozen=True)
class OpSpec:
    """One op on row-major operands.

    Attributes
    ----------
    text
        A graph of the op alone, as text.
    """

    text: str

    def __post_init__(self) -> None:
        try:
            kind = type(self.op)
        except (TersorError, IndexError) as error:
            raise ValueError(f"text must be a graph of one op: {error}") from error
        if kind not in ops_with_formulas():
            raise ValueError(f"op {kind.name} has no formula")

    @classmethod
    def of(cls, op: Op) -> OpSpec:
        """The spec of an op, without its location and the names around it."""
        values = dict.fromkeys(op.inputs)
        graph = Graph(op.name, [(f"x{index}", value.type) for index, value in enumerate(values)])
        alone = clone_op(op, dict(zip(values, graph.inputs, strict=True)))
        alone.location = alone.rule = ""
        graph.outputs = graph.append(alone).results
        return cls(print_graph(graph))

    @cached_property
    def op(self) -> Op:
        """The op."""
        return parse(self.text).ops[0]


def build_op(spec: OpSpec, target: Cpu) -> tirx.PrimFunc:
    """The PrimFunc of an op that has a formula: ``(*operands, result)``, each operand once."""
    op = spec.op
    operands = tuple(dict.fromkeys(op.inputs))
    inputs = [
        BufferSpec(f"x{index}", value.type.size, NUMBERS[value.type.dtype]) for index, value in enumerate(operands)
    ]
    output = BufferSpec("y", op.result.type.size, NUMBERS[op.result.type.dtype])
    if type(op) in _EXPRESSIONS:
        return as_kernel(op.name, _scheduled(op), [_bits(one) for one in inputs], _bits(output))

    def body(buffers: Sequence[Buffer], out: Output) -> None:
        _BODIES[type(op)](op, target, *(buffers[operands.index(value)] for value in op.inputs), out.buffer)

    return make_prim_func(op.name, inputs, output, body, NO_EPILOGUE)


def _bits(buffer: BufferSpec) -> BufferSpec:
    return BufferSpec(buffer.name, buffer.size, bfloat16.STORED.get(buffer.dtype, buffer.dtype))


def _scheduled(op: Op) -> s_tir.Schedule:
    """The schedule of a formula in tensor expressions: the conversions of what is read are inlined."""
    operands = dict.fromkeys(op.inputs)
    stored = [te.placeholder(value.shape, STORAGE[value.type.dtype], f"x{i}") for i, value in enumerate(operands)]
    read = {value: _read(tensor, value.type) for value, tensor in zip(operands, stored, strict=True)}
    result = _stored(_EXPRESSIONS[type(op)](op, *(read[value] for value in op.inputs)), op.result.type)
    schedule = s_tir.Schedule(te.create_prim_func([*stored, result]).with_attr("global_symbol", "main"))
    cost = op.cost()
    is_large = cost.macs >= PARALLEL_MIN_MACS or cost.bytes >= PARALLEL_MIN_BYTES
    for block in schedule.get_child_blocks(schedule.get_sblock("root")):
        if schedule.get(block).name_hint.startswith(_CONVERTED):
            schedule.compute_inline(block)
        elif is_large:
            share_outer_loops(schedule, block)
    return schedule


_CONVERTED = "as_float32"  # how the names of stages begin that convert operands


def _read(tensor: te.Tensor, type: TensorType) -> te.Tensor:
    """An operand as the formula sees it."""
    if type.dtype is DType.F16:
        return te.compute(type.shape, lambda *at: tirx.Cast("float32", tensor(*at)), _CONVERTED)
    if type.dtype is DType.BF16:
        return te.compute(type.shape, lambda *at: bfloat16.widen(tensor(*at)), _CONVERTED)
    return tensor


def _stored(tensor: te.Tensor, type: TensorType) -> te.Tensor:
    """What a formula returns, in the element type that it is stored in."""
    if type.dtype is DType.BF16:
        return te.compute(type.shape, lambda *at: bfloat16.nearest(tensor(*at)), "stored")
    if str(tensor.dtype) == STORAGE[type.dtype]:
        return tensor
    return te.compute(type.shape, lambda *at: tirx.Cast(STORAGE[type.dtype], tensor(*at)), "stored")
