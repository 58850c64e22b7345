"""From a group of ops to a kernel: which template, which numbers, which operands.

`select_kernel` asks the function registered for the group's anchor (in `tersor.targets.codegen.selection`, one file a
family). It answers with a `Kernel`: everything that the lowering needs, without having generated any code yet.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from types import ModuleType
from typing import Protocol

import torch

from ...ir import DType, Op, TensorType, TersorError, Value, WeightStore, is_constant, print_attrs
from ...ir.arrangement import Arrangement
from ...ir.ops import DequantizeOp, FullOp, QuantizeByOp, QuantizeOp, WeightOp
from ...ir.ops.integers import QUANTIZED
from ..machines.target import Cpu
from ..templates.base import Buffer, BufferSpec, Epilogue, Expr, JointStore, PrimFunc, VectorAt
from ..templates.option import Option, Workload
from ..templates.registry import Knobs, Spec, template_module
from ..templates.vector.bfloat16 import ROUNDING_IR, has_rounding_instruction, round_in_hardware
from ..templates.vector.lookup import ByteTable
from ..templates.vector.narrowing import TOGETHER, JointQuantize, can_narrow
from ..templates.vector.storage import NUMBERS, STORAGE
from .addressing import flatten_physical, load_operand, only_channels, reshape_at, same_storage
from .emit import as_stored, can_emit, emit, filled
from .group import Group
from .views import View

Operand = View | torch.Tensor
_ROUNDED = (QuantizeOp, QuantizeByOp, DequantizeOp)


class CompileError(TersorError):
    """A graph that a target cannot be compiled for."""


@dataclass(frozen=True)
class Choice:
    """Which of a workload's options a kernel is.

    Attributes
    ----------
    workload
        What is computed.
    option
        The template and its knobs.
    spec
        What that template takes.
    tuned
        Whether the option comes from a record; else it is the analytic default.
    """

    workload: Workload
    option: Option
    spec: Spec
    tuned: bool = False

    @property
    def template(self) -> ModuleType:
        """The template's module."""
        return template_module(self.option.template)

    @property
    def knobs(self) -> Knobs:
        """How the template is tiled."""
        return self.option.knobs


@dataclass(frozen=True)
class Kernel:
    """One PrimFunc to be called.

    Attributes
    ----------
    template
        Name of the template, for profiles and logs.
    spec
        What the template computes.
    operands
        Arguments in order, the output apart: views of values, or constant flat tensors.
    result
        How the output is stored.
    build
        Writes the PrimFunc.
    knobs
        How the template is tiled, if in more than one way.
    variant
        Text that tells kernels of one spec apart: the epilogue and the types that it reads.
    choice
        Where template and knobs come from; None for a kernel that there is only one way to write.
    """

    template: str
    spec: Spec
    operands: tuple[Operand, ...]
    result: View
    build: Callable[[], PrimFunc]
    knobs: Knobs = None
    variant: str = ""
    choice: Choice | None = None

    @property
    def key(self) -> str:
        """Kernels with equal keys share one PrimFunc, in this program or in another one for the same target."""
        sizes = [one.numel() if isinstance(one, torch.Tensor) else buffer_size(one) for one in self.operands]
        knobs = None if self.knobs is None else [getattr(self.knobs, one.name) for one in fields(self.knobs)]
        return f"{self.template} {self.spec} {knobs} {self.variant} {sizes} {buffer_size(self.result)}"

    def arrangement(self, target: Cpu) -> Arrangement | None:
        """How the first constant among the operands holds a weight, where the template says that it does."""
        if self.choice is None or not hasattr(self.choice.template, "arrangement"):
            return None
        made: Arrangement | None = self.choice.template.arrangement(self.spec, target, self.knobs)
        return made


class KernelContext(Protocol):
    """What a selection function may ask of the lowering."""

    target: Cpu

    def view(self, value: Value) -> View:
        """Where ``value`` can be read, through any strides."""

    def contiguous(self, value: Value) -> View:
        """Where ``value`` can be read as a whole row-major buffer; copies it there if need be."""

    def constant(self, value: Value) -> torch.Tensor:
        """The tensor behind a weight or a filled tensor."""

    def choose(self, kind: str, spec: Spec) -> Choice:
        """The template and the knobs to use for a spec: the tuned ones where a record exists, else the default."""

    def compute(self, kernel: Kernel, result: Value) -> None:
        """Call ``kernel`` first, for an intermediate result of the op at hand."""


Selector = Callable[[Group, KernelContext], Kernel]
_SELECTORS: dict[type[Op] | None, Selector] = {}


def registered_selectors() -> tuple[Selector, ...]:
    """Every function that `selects` has registered."""
    return tuple(_SELECTORS.values())


def selects(*anchors: type[Op] | None) -> Callable[[Selector], Selector]:
    """Register the function that chooses kernels for groups with these anchors; None stands for elementwise groups."""

    def register(selector: Selector) -> Selector:
        _SELECTORS.update(dict.fromkeys(anchors, selector))
        return selector

    return register


def select_kernel(op: Op, context: KernelContext) -> Kernel:
    """The kernel for one op of the graph; raises CompileError when no template computes it."""
    group = Group.of(op)
    selector = _SELECTORS.get(None if group.anchor is None else type(group.anchor))
    if selector is None:
        assert group.anchor is not None
        raise CompileError(f"no kernel template computes {group.anchor.describe()} on {context.target.name}")
    return selector(group, context)


def anchor_type(
    group: Group, *, ignore: Sequence[Value | None] = (), integers: bool = False, wide: bool = False
) -> str:
    """How templates name the element type of the anchor's operands: ``"float32"``, ``"bfloat16"`` or ``"half"``.

    With ``integers``, also that of a first operand of 8-bit integers: ``"uint8"`` or ``"int8"``. With ``wide``, also
    ``"float64"``.

    Raises
    ------
    CompileError
        When an operand is of another type, those in ``ignore`` apart.
    """
    assert group.anchor is not None
    first = group.anchor.inputs[0].type.dtype
    if integers and first in QUANTIZED:
        return NUMBERS[first]
    taken = (DType.F32, DType.BF16, DType.F16, *((DType.F64,) if wide else ()))
    for value in group.anchor.inputs:
        if value.type.dtype not in taken and group.outer(value) not in ignore:
            raise CompileError(
                f"{group.anchor.describe()} on {value.type}: kernels take operands of f32, bf16 or f16; cast the model "
                "first"
            )
    return NUMBERS[first]


def constant_tensor(value: Value, weights: WeightStore) -> torch.Tensor:
    """The tensor behind a `WeightOp` or a `FullOp`."""
    if isinstance(value.op, WeightOp):
        return weights[value.op.attrs.id]
    assert isinstance(value.op, FullOp)
    return value.op.evaluate()


class FusedEpilogue:
    """The epilogue of a group: its buffers' operands, the code that it becomes, and the `result` that it stores.

    Parameters
    ----------
    group, context
        What is compiled.
    result
        How the kernel's output is stored.
    bias
        A value with one number per channel to add first, or None.
    kernel_shape
        Shape that the template sees its result in, when it is not the op's own.
    """

    def __init__(
        self,
        group: Group,
        context: KernelContext,
        result: View,
        *,
        bias: Value | None = None,
        kernel_shape: Sequence[int] | None = None,
    ) -> None:
        missing = [op for op in group.epilogue if op.inputs and not can_emit(op)]
        if missing:
            raise CompileError(
                "; ".join(f"no vector code for {op.describe()} on {op.inputs[0].type}" for op in missing)
            )
        self._group = group
        self._target = context.target
        self.result = result
        self._kernel_shape = tuple(kernel_shape or result.type.shape)
        self._values = group.epilogue_operands
        tables = group.tables
        pairs = [_table(one, context) if one in tables else _operand(one, context, result) for one in self._values]
        self._has_bias = bias is not None
        if bias is not None:
            pairs.insert(0, _operand(bias, context, result, per_channel=True))
        # What stands between integers is rounded like the reference, so that it rounds to the same integers.
        on_integers = group.anchor is not None and any(one.type.dtype in QUANTIZED for one in group.anchor.inputs[:1])
        self._exact = on_integers or any(
            isinstance(op, QuantizeOp | QuantizeByOp | DequantizeOp) for op in group.epilogue
        )
        numbers = [operand for _, operand in pairs if isinstance(operand, torch.Tensor)]
        self._keeps_finite = all(op.keeps_finite for op in group.epilogue) and all(map(_is_finite, numbers))
        self._views = tuple(view for view, _ in pairs)
        self._tables = frozenset(index for index, value in enumerate(self._values, self._has_bias) if value in tables)
        self.operands: tuple[Operand, ...] = tuple(operand for _, operand in pairs)

    @property
    def variant(self) -> str:
        """Text that tells two epilogues apart, whatever the names and weights behind them."""
        numbers = {value: str(index) for index, value in enumerate(self._values)}
        if self._group.anchor is not None:
            numbers[self._group.anchor.result] = "anchor"
        lines = []
        for op in self._group.epilogue:
            operands = ",".join(numbers[self._group.outer(value)] for value in op.inputs)
            numbers[op.result] = f"{len(numbers)}"
            lines.append(f"{op.name}({operands}){print_attrs(op.attrs)}")
        views = " ".join(
            f"{view.type}+{view.offset}{view.strides} of {buffer_size(view)}" for view in (*self._views, self.result)
        )
        how = f"bias={self._has_bias} exact={self._exact} clears={self._clears_padding}"
        return f"{how} {' '.join(lines)} on {views}"

    @property
    def is_flat(self) -> bool:
        """Whether every operand is read at the result's own offset, or is one number: coordinates do not matter."""
        read = [view for index, view in enumerate(self._views) if index not in self._tables]
        reads_in_place = all(view.type.size == 1 or same_storage(view, self.result) for view in read)
        return reads_in_place and not self._clears_padding

    @property
    def _clears_padding(self) -> bool:
        """Whether lanes without a channel must be set to zero, since they may hold NaN or an infinity.

        A convolution multiplies them by weights of zero, which keeps only finite numbers out of its sums.
        """
        block, shape = self.result.type.channel_block, self.result.type.shape
        return block > 0 and shape[1] % block > 0 and not self._keeps_finite

    def build(self) -> Epilogue:
        """The epilogue in the form that templates take."""
        buffers = tuple(
            BufferSpec(f"e{index}", _extent(view, operand), NUMBERS[view.type.dtype])
            for index, (view, operand) in enumerate(zip(self._views, self.operands, strict=True))
        )
        dtype = self.result.type.dtype
        if dtype is DType.BF16 and has_rounding_instruction(self._target):
            return Epilogue(buffers, self._apply_and_round, STORAGE[dtype], ROUNDING_IR)
        return Epilogue(buffers, self._apply, NUMBERS[dtype], joint=self._joint_store())

    def _joint_store(self) -> JointStore | None:
        """Where quantizing is the last thing that happens, it can be done to several vectors at once."""
        last = self._group.computed.op
        if not isinstance(last, QuantizeOp) or self._clears_padding or not can_narrow(self._target):
            return None
        narrowing = JointQuantize(last.attrs.scale, last.attrs.zero_point, STORAGE[last.attrs.dtype])
        return JointStore(TOGETHER, self._target.lanes(), self._before_last, narrowing.bytes_of)

    def _apply_and_round(self, vector: Expr, at: VectorAt, buffers: Sequence[Buffer]) -> Expr:
        return round_in_hardware(self._apply(vector, at, buffers))

    def _apply(self, vector: Expr, at: VectorAt, buffers: Sequence[Buffer]) -> Expr:
        at = reshape_at(at, self._kernel_shape, self.result.type.shape)
        computed = as_stored(self._compute(self._group.computed, vector, at, buffers))
        return only_channels(computed, at, self.result.type.shape[1]) if self._clears_padding else computed

    def _before_last(self, vector: Expr, at: VectorAt, buffers: Sequence[Buffer]) -> Expr:
        """The operand of the op that comes last."""
        at = reshape_at(at, self._kernel_shape, self.result.type.shape)
        last = self._group.computed.op
        assert last is not None
        return self._compute(self._group.outer(last.inputs[0]), vector, at, buffers)

    def _compute(self, wanted: Value, vector: Expr, at: VectorAt, buffers: Sequence[Buffer]) -> Expr:
        """The vector of one of the group's values."""
        loaded = [
            ByteTable(buffer, self._target) if index in self._tables else load_operand(buffer, view, at, self.result)
            for index, (buffer, view) in enumerate(zip(buffers, self._views, strict=True))
        ]
        if self._has_bias:
            vector = vector + loaded.pop(0)
        environment = dict(zip(self._values, loaded, strict=True))
        if self._group.anchor is not None:
            environment[self._group.anchor.result] = vector
        for op in self._group.epilogue:
            if wanted in environment:
                break
            if isinstance(op, FullOp):
                environment[op.result] = filled(op, at.lanes)
                continue
            operands = [environment[self._group.outer(value)] for value in op.inputs]
            environment[op.result] = emit(op, *operands, exact=self._exact)
        return environment[wanted]


def fused_kernel(
    choice: Choice, context: KernelContext, operands: Sequence[Operand], epilogue: FusedEpilogue
) -> Kernel:
    """The kernel of a template that takes ``operands`` and an epilogue."""
    return chosen_kernel(
        choice,
        operands=(*operands, *epilogue.operands),
        result=epilogue.result,
        build=lambda: choice.template.build(choice.spec, context.target, choice.knobs, epilogue.build()),
        variant=epilogue.variant,
    )


def layer_kernel(
    kind: str, spec: Spec, context: KernelContext, operands: tuple[Operand, torch.Tensor], epilogue: FusedEpilogue
) -> Kernel:
    """The kernel of a layer, whose data and weight are ``operands``; the weight is packed as its template reads it.

    A template may pack it as several tensors.
    """
    choice, (data, weight) = context.choose(kind, spec), operands
    packed = choice.template.pack_weight(choice.spec, context.target, choice.knobs, weight)
    return fused_kernel(choice, context, (data, *(packed if isinstance(packed, tuple) else (packed,))), epilogue)


def chosen_kernel(
    choice: Choice, *, operands: Sequence[Operand], result: View, build: Callable[[], PrimFunc], variant: str = ""
) -> Kernel:
    """The kernel of a template that is built in its own way."""
    template = choice.option.template
    return Kernel(template, choice.spec, tuple(operands), result, build, choice.knobs, variant, choice)


def _operand(value: Value, context: KernelContext, result: View, *, per_channel: bool = False) -> tuple[View, Operand]:
    """How the epilogue reads ``value``: the view for addressing, and the argument to pass."""
    if not is_constant(value):
        view = context.view(value)
        return view, view
    tensor = context.constant(value)
    block = result.type.channel_block
    if per_channel and block:
        tensor = tensor.reshape(-1, *[1] * (result.type.rank - 2))
    if block and tensor.numel() > 1:
        tensor = tensor.reshape(*[1] * (result.type.rank - tensor.ndim), *tensor.shape)
    else:
        block = 0
    type = TensorType(tuple(tensor.shape), value.type.dtype, block if block and tensor.shape[1] > 1 else 0)
    view = View(value, type, 0, torch.empty(type.shape, device="meta").stride())
    return view, flatten_physical(tensor, type.channel_block)


def _table(value: Value, context: KernelContext) -> tuple[View, Operand]:
    """How the epilogue reads ``value`` where elements may need any number of it: as a whole, row-major."""
    if not is_constant(value):
        view = context.contiguous(value)
        return view, view
    return View.whole(value), context.constant(value).reshape(-1)


def _is_finite(numbers: torch.Tensor) -> bool:
    """Whether all numbers of a constant are finite; one without numbers stands for any like it, and those are."""
    return numbers.is_meta or bool(numbers.isfinite().all())


def _extent(view: View, operand: Operand) -> int:
    if isinstance(operand, torch.Tensor):
        return operand.numel()
    return view.base.type.physical_size


def buffer_size(view: View) -> int:
    """Elements of the buffer behind a view."""
    return view.base.type.physical_size
