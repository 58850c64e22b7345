"""A tuning problem that stands alone: the text of a small graph around one kernel, and everything to check it by.

A worker process, or a reader years later, needs nothing else: weights and inputs are random numbers from a seed.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ...ir import DType, Graph, TensorType, parse
from ..record import Target
from .codec import CodecError, decode, encode
from .option import Workload

# Largest allowed difference from the interpreter, relative to an output's largest magnitude; integers must be equal.
TOLERANCES = {DType.F64: 1e-10, DType.F32: 1e-4, DType.BF16: 2e-2, DType.F16: 5e-3}


@dataclass(frozen=True)
class Task:
    """One kernel of a network, to be tuned.

    Attributes
    ----------
    workload
        What its records are looked up by.
    ir_text
        A graph, in row-major inputs and outputs, that lowers to this kernel and to what moves its operands.
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
    ir_text: str
    target: Target
    weight: int = 1
    macs: int = 0
    bytes: int = 0
    location: str = ""

    @property
    def threads(self) -> int:
        """Threads of one call."""
        return self.target.cores

    def graph(self) -> Graph:
        """The graph of `ir_text` with its seeded weights."""
        return seeded_graph(self.ir_text)

    def to_json(self) -> dict[str, Any]:
        """JSON types."""
        return {
            "workload": self.workload.to_json(),
            "ir": self.ir_text,
            "target": encode(self.target),
            "weight": self.weight,
            "macs": self.macs,
            "bytes": self.bytes,
            "location": self.location,
        }

    @classmethod
    def from_json(cls, value: Any) -> Task:
        """Read what `to_json` wrote; raises CodecError for a field that is missing or does not fit."""
        names = {"workload": dict, "ir": str, "target": dict, "weight": int, "macs": int, "bytes": int, "location": str}
        if not isinstance(value, dict) or set(value) != set(names):
            raise CodecError(f"task must be an object with {', '.join(names)}")
        for name, kind in names.items():
            if type(value[name]) is not kind:
                raise CodecError(f"task.{name} must be of type {kind.__name__}, not {value[name]!r}")
        return cls(
            Workload.from_json(value["workload"]),
            value["ir"],
            decode(Target, value["target"], "target"),
            value["weight"],
            value["macs"],
            value["bytes"],
            value["location"],
        )


def seeded_graph(ir_text: str) -> Graph:
    """Parse a graph and give it random weights, the same ones every time."""
    graph = parse(ir_text)
    for op in graph.ops:
        if op.name == "weight":
            type = op.attrs.type
            fan_in = max(1, type.size // type.shape[0]) if type.rank > 1 else 1
            graph.weights.add(_seeded_tensor(type, op.attrs.id, fan_in**-0.5), op.attrs.id)
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
        if wanted.shape != got.shape or wanted.dtype != got.dtype:
            return f"output {index} is {got.dtype} {list(got.shape)}, not {wanted.dtype} {list(wanted.shape)}"
        if not wanted.is_floating_point():
            if not torch.equal(wanted, got):
                return f"output {index} differs in {int((wanted != got).sum())} of {wanted.numel()} integers"
            continue
        finite = wanted[wanted.isfinite()].abs()
        scale = finite.max().item() if finite.numel() else 1.0
        same = torch.isclose(got, wanted, rtol=0.0, atol=tolerance * scale, equal_nan=True)
        if not same.all():
            worst = (got.double() - wanted.double()).abs()[~same].nan_to_num(torch.inf).max().item()
            return f"output {index} differs by {worst / (scale or 1.0):.2g} of its scale, more than {tolerance:g}"
    return ""


def _dtypes(graph: Graph) -> set[DType]:
    inner = [op for outer in graph.ops for op in (outer, *(outer.body.ops if outer.body is not None else ()))]
    return {value.type.dtype for value in graph.inputs} | {result.type.dtype for op in inner for result in op.results}


def _seeded_tensor(type: TensorType, name: str, scale: float = 1.0) -> torch.Tensor:
    """Normal floats; integers that any op takes: table rows 0 and 1, booleans, or the full range of 8 bits."""
    generator = torch.Generator().manual_seed(zlib.crc32(f"{name} {type}".encode()))
    if type.dtype.is_floating:
        return (scale * torch.randn(type.shape, generator=generator)).to(type.dtype.torch)
    low, high = {DType.I8: (-128, 128), DType.U8: (0, 256)}.get(type.dtype, (0, 2))
    return torch.randint(low, high, type.shape, generator=generator).to(type.dtype.torch)


__all__ = ["TOLERANCES", "Task", "check_outputs", "seeded_graph", "seeded_inputs"]
