"""A thin layer over TVM's IR builder: whole functions, loops, vector access, register tiles, epilogues.

Everything here only *writes* TIR; it makes no choices. Buffers are flat; a vector is ``lanes`` contiguous
elements (``lanes == 1`` is a scalar), so the same template code serves AVX-512, AVX2 and NEON.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from tvm import tirx
from tvm.script.ir_builder import IRBuilder
from tvm.tirx.script.builder import ir as T

from ...machines.target import ALIGNMENT
from ..base import Buffer, BufferSpec, Epilogue, Expr, Index, VectorAt
from .bfloat16 import STORED, NarrowBuffer, bits_of


def make_prim_func(
    name: str,
    inputs: Sequence[BufferSpec],
    output: BufferSpec,
    body: Callable[[Sequence[Buffer], Output], None],
    epilogue: Epilogue,
) -> tirx.PrimFunc:
    """Write one PrimFunc over flat buffers: ``inputs``, the epilogue's buffers, then ``output``.

    Parameters
    ----------
    name
        Global symbol of the function.
    inputs, output
        The main op's own buffers.
    body
        ``body(input_buffers, output)`` writes the statements.
    epilogue
        Supplies further buffers; it is applied where ``body`` calls `Output.store`.
    """
    with IRBuilder() as ib, T.prim_func(is_private=False, s_tir=False):
        T.func_name(name)
        specs = (*inputs, *epilogue.buffers, output)
        arguments = [_argument(spec) for spec in specs]
        T.func_attr({"tirx.noalias": True})
        arguments = [_from_start(spec, buffer) for spec, buffer in zip(specs, arguments, strict=True)]
        with _importing(epilogue.llvm_ir):
            body(arguments[: len(inputs)], Output(arguments[-1], epilogue, arguments[len(inputs) : -1]))
    return ib.get()


def _importing(llvm_ir: str) -> contextlib.AbstractContextManager[object]:
    """Make functions written in LLVM's language known to the statements inside; they are inlined."""
    if not llvm_ir:
        return contextlib.nullcontext()
    return T.attr(tirx.IntImm("int32", 0), "pragma_import_llvm", llvm_ir)


def _argument(spec: BufferSpec) -> Buffer:
    """An argument that may start anywhere in memory, at a multiple of `ALIGNMENT` bytes."""
    dtype = _stored_type(spec)
    factor = ALIGNMENT // tirx.const(0, dtype).ty.dtype.itemsize
    return T.arg(spec.name, T.buffer((spec.size,), dtype, elem_offset=T.int32(), offset_factor=factor))


def _from_start(spec: BufferSpec, argument: Buffer) -> Buffer:
    """The same memory as a buffer without an offset, so that no index has to add it."""
    buffer = T.decl_buffer((spec.size,), _stored_type(spec), data=T.Bind(T.address_of(argument[0])))
    return NarrowBuffer(buffer, spec.dtype) if spec.dtype in STORED else buffer


def _stored_type(spec: BufferSpec) -> str:
    return STORED.get(spec.dtype, spec.dtype)


def load(buffer: Buffer, offset: Index, lanes: int) -> Expr:
    """``lanes`` contiguous elements of ``buffer`` from ``offset``."""
    return buffer[offset] if lanes == 1 else buffer[T.Ramp(offset, 1, lanes)]


def store(buffer: Buffer, offset: Index, value: Expr, lanes: int) -> None:
    """Store ``lanes`` contiguous elements to ``buffer`` from ``offset``, rounded if it holds numbers of 16 bits."""
    if isinstance(buffer, NarrowBuffer):
        buffer, value = buffer.bits, buffer.rounded(value)
    T.buffer_store(buffer, value, [offset if lanes == 1 else T.Ramp(offset, 1, lanes)])


def bind(value: Expr | int) -> Expr | int:
    """Name an expression so that it is computed once; Python numbers pass through."""
    return value if isinstance(value, int) else T.Bind(value)


def broadcast(value: Expr, lanes: int) -> Expr:
    """A vector whose lanes all hold the scalar ``value``."""
    return value if lanes == 1 else T.Broadcast(value, lanes)


def constant(value: float, lanes: int, dtype: str = "float32") -> Expr:
    """A vector of one constant."""
    return broadcast(tirx.const(value, dtype), lanes)


@dataclass(frozen=True)
class Output:
    """Where a kernel's results go: ``operands`` are the buffers made for those of the epilogue."""

    buffer: Buffer
    epilogue: Epilogue
    operands: Sequence[Buffer]

    def store(self, value: Expr, at: VectorAt) -> None:
        """Apply the epilogue to one vector of results and store it where it belongs."""
        store(self.buffer, at.flat, self.epilogue.apply(value, at, self.operands), at.lanes)

    def store_run(self, values: Sequence[Expr], places: Sequence[VectorAt]) -> None:
        """The same for vectors that lie one behind the other, several at a time where the epilogue can join them."""
        joint, done = self.epilogue.joint, 0
        if joint is not None and places[0].lanes == joint.lanes:
            for done in range(joint.vectors, len(values) + 1, joint.vectors):
                part = slice(done - joint.vectors, done)
                pairs = zip(values[part], places[part], strict=True)
                joined = joint.join([joint.before(value, at, self.operands) for value, at in pairs])
                store(self.buffer, places[part.start].flat, joined, joint.vectors * joint.lanes)
        for value, at in zip(values[done:], places[done:], strict=True):
            self.store(value, at)


class RegisterTile:
    """A fixed set of vectors that LLVM keeps in registers.

    Each vector is a small buffer of its own in the default scope: TVM puts those on the stack, from where LLVM promotes
    them to registers whatever happens between the accesses. (In scope ``local``, or all in one larger buffer, TVM would
    call its workspace allocator for each tile.) It has no layout: TVM's default one says the same as none, and takes
    longer to make than all the rest of a buffer.
    """

    def __init__(self, count: int, lanes: int, dtype: str = "float32") -> None:
        self.count = count
        self.lanes = lanes
        self.dtype = dtype
        self._vectors = [T.alloc_buffer((lanes,), dtype, layout=None) for _ in range(count)]

    def __getitem__(self, index: int) -> Expr:
        return load(self._vectors[index], 0, self.lanes)

    def __setitem__(self, index: int, value: Expr) -> None:
        store(self._vectors[index], 0, value, self.lanes)

    def fill(self, value: float) -> None:
        """Set every vector to a constant."""
        for index in range(self.count):
            self[index] = constant(value, self.lanes, self.dtype)

    def multiply_add(self, index: int, a: Expr, b: Expr) -> None:
        """``tile[index] += a * b``; LLVM contracts it into a fused multiply-add."""
        self[index] = self[index] + a * b


@contextlib.contextmanager
def loop(stop: Index, start: Index = 0) -> Iterator[Index]:
    """A serial loop over ``[start, stop)``; no loop at all when it is known to run exactly once."""
    if isinstance(start, int) and isinstance(stop, int) and stop - start == 1:
        yield start
        return
    with T.serial(start, stop) as index:
        yield index


def for_each(count: int, most: int, visit: Callable[[Index], None]) -> None:
    """``visit(index)`` for so many indices: written out if they are at most ``most``, else in a loop."""
    if count <= most:
        for index in range(count):
            visit(index)
    else:
        with loop(count) as index:
            visit(index)


@contextlib.contextmanager
def parallel(*extents: int) -> Iterator[tuple[Index, ...]]:
    """One parallel loop over the product of ``extents``, the last one running fastest.

    Each thread gets one contiguous range of the product, of at most ``ceil(product / threads)`` iterations.
    """
    total = 1
    for extent in extents:
        total *= extent
    with T.parallel(0, total) as flat:
        yield split_index(flat, extents)


def split_index(flat: Index, extents: Sequence[int]) -> tuple[Index, ...]:
    """The row-major coordinates of ``flat`` in a box of ``extents``; extents of 1 give the constant 0."""
    coordinates: list[Index] = []
    for position, extent in reversed(list(enumerate(extents))):
        outermost = all(other == 1 for other in extents[:position])
        coordinates.append(0 if extent == 1 else flat if outermost else flat % extent)
        flat = flat if extent == 1 else flat // extent
    return tuple(reversed(coordinates))


def when(condition: Expr | bool, then: Callable[[], None], otherwise: Callable[[], None] | None = None) -> None:
    """An ``if`` statement; a condition that is a Python bool is decided now and leaves no branch."""
    if isinstance(condition, bool):
        if condition:
            then()
        elif otherwise is not None:
            otherwise()
        return
    with T.If(condition):
        with T.Then():
            then()
        if otherwise is not None:
            with T.Else():
                otherwise()


def prefetch(buffer: Buffer, offset: Index, locality: int = 3) -> None:
    """Hint that ``buffer[offset]`` is read soon: ``locality`` 3 brings it into L1, 2 into L2; harmless past the end."""
    read, data_cache = 0, 1
    address = T.address_of(bits_of(buffer)[offset])
    arguments = (T.int32(read), T.int32(locality), T.int32(data_cache))
    T.evaluate(T.call_llvm_intrin("void", "llvm.prefetch", address, *arguments))
