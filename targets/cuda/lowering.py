"""Graph to Relax: convolutions and matrix products become calls of our kernels, everything else Relax ops.

Images that a convolution in half precision has made are stored with their channels last (NHWC), where 8 channels are
one copy of 16 bytes, and stay so through elementwise ops, pooling, concatenation and whatever else works on either
storage; all other tensors are row-major. Weights are arranged for the kernels here, at compile time. Constants are
parameters of the program, after its inputs, so that their numbers stay out of the code.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass

import torch
import tvm
from tvm import relax

from ...ir import Cost, DType, Graph, Op, Value, is_constant
from ...ir.ops import FullOp, FusedOp
from ...ir.ops.reduction import ReduceOp
from ..codegen.group import Group
from ..codegen.kernel import CompileError, constant_tensor
from ..machines.target import Gpu
from ..runtime.model_info import KernelInfo, described
from ..runtime.ports import STORED_AS
from .epilogue import CudaEpilogue, Reach
from .kernel import CudaKernel
from .relax_ops import RELAX, ROW_MAJOR, Axes, relax_dtype, scalar

ENTRY = "main"
SCHEDULED = "dlight"  # the template's name, in profiles, of kernels that TVM schedules
_IMAGE_RANK = 4
_POSITIONS = (2, 3)  # the dimensions of an image besides batch and channels
_DTYPES = frozenset(DType) - {DType.BF16, DType.F64}  # bf16 is for processors; doubles are no GPU's strength


@dataclass(frozen=True)
class StoredTensor:
    """A tensor of the Relax program: its variable, and how its dimensions are stored."""

    variable: relax.Expr
    axes: Axes = ROW_MAJOR


@dataclass(frozen=True)
class CudaProgram:
    """A lowered graph.

    Attributes
    ----------
    module
        Relax module, in which our kernels are called by name.
    kernels
        Those kernels by name.
    constants
        Parameters of the program after the inputs.
    calls
        What computes each op, for profiles.
    """

    module: tvm.IRModule
    kernels: dict[str, CudaKernel]
    constants: tuple[torch.Tensor, ...]
    calls: tuple[KernelInfo, ...]


# Compute a group by one of our kernels and what it needs around it, or answer None: then its ops are Relax ops.
Anchor = Callable[[Group, "Lowering"], StoredTensor | None]
ANCHORS: dict[type[Op], Anchor] = {}


def computes(*kinds: type[Op]) -> Callable[[Anchor], Anchor]:
    """Register how groups with such an anchor are computed; see `tersor.targets.cuda.anchors`."""

    def register(function: Anchor) -> Anchor:
        ANCHORS.update(dict.fromkeys(kinds, function))
        return function

    return register


def lower(graph: Graph, target: Gpu) -> CudaProgram:
    """Lower a graph whose values are all row-major.

    Raises
    ------
    CompileError
        When an op has no kernel; all such ops are listed.
    """
    problems = [f"no CUDA kernel computes {op.describe()}" for op in _all_ops(graph) if op.inputs and not _is_known(op)]
    problems += [f"{value!r} is stored in channel blocks" for value in _blocked(graph)]
    if problems:
        raise CompileError("; ".join(dict.fromkeys(problems)))
    return Lowering(graph, target).run()


class Lowering:
    """Builds the Relax function of one graph."""

    def __init__(self, graph: Graph, target: Gpu) -> None:
        self.graph = graph
        self.target = target
        self.builder = relax.BlockBuilder()
        self._stored: dict[Value, StoredTensor] = {}
        self._moved: dict[tuple[relax.Expr, bool], relax.Expr] = {}
        self._kernels: dict[CudaKernel, str] = {}
        self._constants: list[torch.Tensor] = []
        self._constant_variables: dict[Hashable, relax.Expr] = {}
        self._calls: list[KernelInfo] = []
        self._kernel_of_op: tuple[str, CudaKernel] | None = None

    def run(self) -> CudaProgram:
        inputs = [relax.Var(f"x{i}", _buffer_type(value)) for i, value in enumerate(self.graph.inputs)]
        with self.builder.function(ENTRY, attrs={"num_input": len(inputs)}, private=False):
            with self.builder.dataflow():
                for value, variable in zip(self.graph.inputs, inputs, strict=True):
                    self._stored[value] = StoredTensor(self._shaped(variable, value))
                for op in self.graph.ops:
                    if op.inputs:
                        self._lower(op)
                outputs = [self.builder.emit_output(self._output(value)) for value in self.graph.outputs]
            parameters = [*inputs, *self._constant_variables.values()]
            self.builder.emit_func_output(relax.Tuple(outputs), parameters)
        kernels = {name: kernel for kernel, name in self._kernels.items()}
        return CudaProgram(self.builder.get(), kernels, tuple(self._constants), tuple(self._calls))

    # Tensors ------------------------------------------------------------------------------------------------------

    def stored(self, value: Value) -> StoredTensor:
        """Where a value of the graph is; constants become parameters when they are first read."""
        if value not in self._stored:
            if isinstance(value.op, FullOp) and value.type.rank == 0:
                self._stored[value] = StoredTensor(scalar(value.op.attrs.value, value.type.dtype))
            else:
                self._stored[value] = StoredTensor(self._shaped(self.flat(value), value))
        return self._stored[value]

    def plain(self, value: Value) -> relax.Expr:
        """A value's variable, row-major."""
        return self._in(self.stored(value), channels_last=False)

    def channels_last(self, value: Value) -> relax.Expr:
        """A value's variable as an image with channels last; missing leading dimensions are added."""
        stored = self.stored(value)
        if not stored.axes.channels_last and value.type.rank < _IMAGE_RANK and value.type.size > 1:
            shape = (1,) * (_IMAGE_RANK - value.type.rank) + value.shape
            stored = StoredTensor(self.emit(relax.op.reshape(stored.variable, shape)))
        return stored.variable if value.type.size == 1 else self._in(stored, channels_last=True)

    def flat(self, value: Value) -> relax.Expr:
        """The flat buffer of a constant value."""
        return self.constant(value, "", constant_tensor(value, self.graph.weights))

    def constant(self, key: Hashable, form: str, tensor: torch.Tensor) -> relax.Expr:
        """The flat parameter that a constant is passed as; ``key`` and ``form`` tell it from all others."""
        if (key, form) not in self._constant_variables:
            buffer = tensor.to(STORED_AS.get(DType.from_torch(tensor.dtype), tensor.dtype)).reshape(-1).contiguous()
            dtype = str(buffer.dtype).removeprefix("torch.")
            variable = relax.Var(f"c{len(self._constants)}", relax.TensorType((buffer.numel(),), dtype))
            self._constant_variables[key, form] = variable
            self._constants.append(buffer)
        return self._constant_variables[key, form]

    def emit(self, expression: relax.Expr) -> relax.Expr:
        """A new variable of the program."""
        return self.builder.emit(expression)

    def _in(self, stored: StoredTensor, *, channels_last: bool) -> relax.Expr:
        if stored.axes.channels_last == channels_last:
            return stored.variable
        key = (stored.variable, channels_last)
        if key not in self._moved:
            dims = (0, 2, 3, 1) if channels_last else (0, 3, 1, 2)
            self._moved[key] = self.emit(relax.op.permute_dims(stored.variable, dims))
        return self._moved[key]

    def _shaped(self, buffer: relax.Expr, value: Value) -> relax.Expr:
        """A flat buffer as the tensor that it holds."""
        dtype = relax_dtype(value.type.dtype)
        if str(buffer.ty.dtype) != dtype:
            buffer = self.emit(relax.op.astype(buffer, dtype))
        return buffer if value.type.rank == 1 else self.emit(relax.op.reshape(buffer, value.shape))

    def _output(self, value: Value) -> relax.Expr:
        """What the program returns for ``value``: a flat buffer of its own."""
        variable = relax.op.reshape(self.plain(value), (value.type.size,))
        if value.type.dtype in STORED_AS:
            return relax.op.astype(variable, _buffer_type(value).dtype)
        foreign = is_constant(value) or value in self.graph.inputs or self.graph.outputs.count(value) > 1
        return relax.op.add(variable, scalar(0, value.type.dtype)) if foreign else variable

    # Ops ----------------------------------------------------------------------------------------------------------

    def _lower(self, op: Op) -> None:
        group = Group.of(op)
        self._kernel_of_op = None
        anchor = ANCHORS.get(type(group.anchor)) if group.anchor is not None else None
        made = anchor(group, self) if anchor is not None else None
        if made is None and isinstance(op, FusedOp):
            self._take_apart(op)
            made = self._stored[op.result]
        elif made is None:
            made = self._by_relax(op)
        self._stored[op.result] = made
        self._describe(op)

    def _take_apart(self, op: FusedOp) -> None:
        """Lower the members of a group one by one; TVM fuses what it can."""
        assert op.body is not None
        self._stored.update({v: self.stored(w) for v, w in zip(op.body.inputs, op.inputs, strict=True)})
        for member in op.body.ops:
            if not member.inputs:
                continue
            anchor = ANCHORS.get(type(member))
            made = anchor(Group.of(member), self) if anchor is not None else None
            self._stored[member.result] = made or self._by_relax(member)
        self._stored[op.result] = self._stored[op.body.outputs[0]]

    def _by_relax(self, op: Op) -> StoredTensor:
        pools = isinstance(op, ReduceOp) and op.x.type.rank == _IMAGE_RANK and op.attrs.axes == _POSITIONS
        image = op.result.type.rank == _IMAGE_RANK and (op.elementwise or op.any_image_order)
        axes = Axes((pools or image) and any(self.stored(value).axes.channels_last for value in op.inputs))
        read = self.channels_last if axes.channels_last else self.plain
        operands = [None if value is None else read(value) for value in op.operands]
        variable = self.emit(RELAX[type(op)](op, *operands, axes=axes))
        if op.result.type.rank != _IMAGE_RANK:
            axes = ROW_MAJOR
        if _extents(variable) != tuple(axes.order(op.result.shape)):
            raise CompileError(f"{op.describe()}: TVM computes {variable.ty} instead of {op.result.type}")
        return StoredTensor(variable, axes)

    def call(
        self, kernel: CudaKernel, operands: list[relax.Expr], epilogue: CudaEpilogue, shape: tuple[int, ...], axes: Axes
    ) -> StoredTensor:
        """Call a kernel on two variables and on what its epilogue reads; the result is stored as ``shape``."""
        read = self.channels_last if axes.channels_last else self.plain
        others = [read(v) if reach is Reach.ELEMENT else self.plain(v) for v, reach in epilogue.operands]
        if kernel.then is None:
            return StoredTensor(self._call(kernel, [*operands, *others], shape), axes)
        workspace = self._call(kernel, operands, kernel.output.shape)
        done = self._call(kernel.then, [workspace, *others], shape)
        self._kernel_of_op = (self._kernel_of_op or ("", kernel))[0], kernel
        return StoredTensor(done, axes)

    def _call(self, kernel: CudaKernel, arguments: list[relax.Expr], shape: tuple[int, ...]) -> relax.Expr:
        shaped = kernel.with_shapes(tuple(_extents(argument) for argument in arguments), shape)
        name = self._kernels.setdefault(shaped, f"{kernel.template}_{len(self._kernels)}")
        self._kernel_of_op = (name, shaped)
        type = relax.TensorType(shape, kernel.output.dtype)
        return self.emit(relax.call_dps_packed(name, relax.Tuple(arguments), out_ty=type))

    def _describe(self, op: Op) -> None:
        cost: Cost = op.cost()
        name, kernel = self._kernel_of_op or (SCHEDULED, None)
        template, knobs = (SCHEDULED, "") if kernel is None else (kernel.template, kernel.knobs)
        info = KernelInfo(name, described(op), op.location, template, knobs, cost.macs, cost.bytes)
        self._calls.append(info)


def _is_known(op: Op) -> bool:
    if any(value.type.dtype not in _DTYPES for value in (*op.inputs, *op.results)):
        return False
    return isinstance(op, FusedOp) or type(op) in RELAX or type(op) in ANCHORS


def _all_ops(graph: Graph) -> list[Op]:
    return [op for part in graph.parts for op in part.ops]


def _blocked(graph: Graph) -> list[Value]:
    return [result for op in graph.ops for result in op.results if result.type.channel_block]


def _extents(variable: relax.Expr) -> tuple[int, ...]:
    return tuple(int(extent) for extent in variable.ty.shape)


def _buffer_type(value: Value) -> relax.TensorType:
    """As executables pass a tensor: flat, and of an element type that TVM can address."""
    dtype = STORED_AS.get(value.type.dtype, value.type.dtype.torch)
    return relax.TensorType((value.type.size,), str(dtype).removeprefix("torch."))
