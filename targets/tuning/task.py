"""A tuning problem that stands alone: the text of a small graph around one kernel, and everything to check it by.

A worker process, or a reader years later, needs nothing else: weights and inputs are random numbers from a seed.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from ...ir import DType, Graph, Op, TensorType, WeightStore, parse
from ...ir.blocks import Blocks, cut_blocks, join_blocks
from ...ir.ops import WeightOp
from ...ir.ops.integers import WEIGHT_BITS
from ..codegen.group import Group
from ..machines.target import Cpu
from ..templates.option import Workload

# Largest allowed difference from the interpreter, relative to an output's largest magnitude; integers must be equal.
_GARBAGE = 0x7F  # every byte; 3.4e38 as float32 and as bfloat16
TOLERANCES = {DType.F64: 1e-10, DType.F32: 1e-4, DType.BF16: 2e-2, DType.F16: 5e-3}


@dataclass(frozen=True)
class Task:
    """One kernel of a network, to be tuned.

    Attributes
    ----------
    workload
        What its records are looked up by.
    ir
        The text of a graph, in row-major inputs and outputs, that lowers to this kernel and to what moves its operands.
    target
        The machine; ``target.cores`` is the number of threads.
    weight
        How often the network calls kernels of this workload.
    macs, bytes
        Multiply-adds and memory traffic of one call, epilogue included.
    location
        Module path of the first such layer, for tables.
    """

    workload: Workload
    ir: str
    target: Cpu
    weight: int = 1
    macs: int = 0
    bytes: int = 0
    location: str = ""

    @property
    def threads(self) -> int:
        """Threads of one call."""
        return self.target.cores

    def graph(self) -> Graph:
        """The graph of `ir` with its seeded weights."""
        return seeded_graph(self.ir)


def seeded_graph(ir_text: str) -> Graph:
    """Parse a graph and give it random weights, the same ones every time."""

    def random(type: TensorType, name: str) -> torch.Tensor:
        fan_in = max(1, type.size // type.shape[0]) if type.rank > 1 else 1
        return _seeded_tensor(type, name, fan_in**-0.5)

    graph = _graph_with(random, ir_text)
    for op in graph.ops:
        _thin(op, graph)
        _narrow(op, graph)
    return graph


def _thin(op: Op, graph: Graph) -> None:
    """Leave as many blocks of a layer's weight as its attributes say."""
    group = Group.of(op)
    blocks: Blocks = getattr(group.anchor.attrs, "blocks", ()) if group.anchor is not None else ()
    if not blocks:
        return
    inputs, outputs, kept = blocks
    made = group.operand(1).op
    assert isinstance(made, WeightOp)
    weight = graph.weights[made.attrs.id]
    cut = cut_blocks(weight.flatten(1), inputs, outputs)
    flat = cut.reshape(-1, inputs, outputs)
    flat[torch.randperm(len(flat), generator=torch.Generator().manual_seed(kept))[kept:]] = 0
    thin = join_blocks(flat.reshape(cut.shape), (weight.shape[0], weight[0].numel()))
    graph.weights = graph.weights.replaced({made.attrs.id: thin.reshape(weight.shape)})


def _narrow(op: Op, graph: Graph) -> None:
    """Make the integers of a layer's weight fit the bits that its attributes say."""
    group = Group.of(op)
    bits = WEIGHT_BITS if group.anchor is None else getattr(group.anchor.attrs, "weight_bits", WEIGHT_BITS)
    if bits == WEIGHT_BITS:
        return
    made = group.operand(1).op
    assert isinstance(made, WeightOp)
    narrow = graph.weights[made.attrs.id] >> WEIGHT_BITS - bits
    graph.weights = graph.weights.replaced({made.attrs.id: narrow})


def hollow_graph(ir_text: str) -> Graph:
    """Parse a graph and give it weights that have no numbers: packing them costs nothing, and code is the same."""
    return _graph_with(lambda type, name: torch.empty(type.shape, dtype=type.dtype.torch, device="meta"), ir_text)


def _graph_with(make: Callable[[TensorType, str], torch.Tensor], ir_text: str) -> Graph:
    graph = parse(ir_text)
    weights = [op.attrs for op in graph.ops if isinstance(op, WeightOp)]
    graph.weights = WeightStore({one.id: make(one.type, one.id) for one in weights})
    return graph


def seeded_inputs(graph: Graph) -> tuple[torch.Tensor, ...]:
    """Random inputs for a task's graph, the same ones every time."""
    return tuple(_seeded_tensor(value.type, value.name) for value in graph.inputs)


def check_outputs(graph: Graph, expected: Sequence[torch.Tensor], actual: Sequence[torch.Tensor]) -> str:
    """One line that tells what is wrong with ``actual``; empty if nothing is.

    Floating-point outputs may differ by `TOLERANCES` of their largest magnitude; the coarsest type that the graph
    computes in counts.
    """
    tolerance = max(TOLERANCES.get(dtype, 0.0) for dtype in _dtypes(graph))
    for index, (wanted, got) in enumerate(zip(expected, actual, strict=True)):
        if problem := difference(wanted, got, tolerance):
            return f"output {index} {problem}"
    return ""


def difference(expected: torch.Tensor, actual: torch.Tensor, tolerance: float) -> str:
    """What ``actual`` does wrong, as the predicate of a sentence; empty if nothing.

    Floating-point numbers may differ by ``tolerance`` times the largest magnitude that is expected.
    """
    if expected.shape != actual.shape or expected.dtype != actual.dtype:
        return f"is {actual.dtype} {list(actual.shape)}, not {expected.dtype} {list(expected.shape)}"
    if not expected.is_floating_point():
        wrong = int((expected != actual).sum())
        return f"differs in {wrong} of {expected.numel()} integers" if wrong else ""
    finite = expected[expected.isfinite()].abs()
    scale = finite.max().item() if finite.numel() else 1.0
    same = torch.isclose(actual, expected, rtol=0.0, atol=tolerance * scale, equal_nan=True)
    if same.all():
        return ""
    worst = (actual.double() - expected.double()).abs()[~same].nan_to_num(torch.inf).max().item()
    return f"differs by {worst / (scale or 1.0):.2g} of its scale, more than {tolerance:g}"


def spoil(tensor: torch.Tensor) -> None:
    """Fill with garbage what a kernel is to write: one that writes nothing must not find the last one's numbers."""
    tensor.view(torch.uint8).fill_(_GARBAGE)


def _dtypes(graph: Graph) -> set[DType]:
    made = {result.type.dtype for part in graph.parts for op in part.ops for result in op.results}
    return made | {value.type.dtype for value in graph.inputs}


def _seeded_tensor(type: TensorType, name: str, scale: float = 1.0) -> torch.Tensor:
    """Normal floats; integers that any op takes: table rows 0 and 1, booleans, or the full range of 8 bits."""
    generator = torch.Generator().manual_seed(zlib.crc32(f"{name} {type}".encode()))
    if type.dtype.is_floating:
        return (scale * torch.randn(type.shape, generator=generator)).to(type.dtype.torch)
    low, high = {DType.I8: (-128, 128), DType.U8: (0, 256)}.get(type.dtype, (0, 2))
    return torch.randint(low, high, type.shape, generator=generator).to(type.dtype.torch)
