"""Layers whose weights have a known rank, and a clock that goes by multiply-adds."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from tersor.ir import Graph, TensorType
from tersor.ir.ops import Conv2dOp, LinearOp
from tersor.tests.random_graphs import GraphBuilder

RANK = 4


def product(*factors: tuple[int, ...], equation: str, seed: int = 0) -> torch.Tensor:
    """A contraction of random tensors, with numbers of about 1."""
    generator = torch.Generator().manual_seed(seed)
    numbers = torch.einsum(equation, *(torch.randn(shape, generator=generator) for shape in factors))
    return numbers / numbers.std()


def planted(method: str, outputs: int = 24, inputs: int = 20, window: int = 3, seed: int = 0) -> torch.Tensor:
    """A weight [outputs, inputs, window, window] that ``method`` represents exactly at rank `RANK`."""
    r, k = RANK, window
    if method == "svd":
        return product((outputs, r), (r, inputs), equation="or,ri->oi", seed=seed)[:, :, None, None]
    if method == "spatial":
        return product((inputs, k, r), (outputs, k, r), equation="iar,obr->oiab", seed=seed)
    return product((outputs, r), (r, r, k, k), (r, inputs), equation="or,rsab,si->oiab", seed=seed)


def conv_graph(weight: torch.Tensor, *, size: tuple[int, int] = (9, 11), bias: bool = True, **attrs: Any) -> Graph:
    """One convolution with ``weight``, batch 2."""
    b = GraphBuilder({"x": TensorType((2, weight.shape[1] * attrs.get("groups", 1), *size))})
    return b.done(
        b.op(
            Conv2dOp,
            b.graph.inputs[0],
            b.constant(weight, "conv.weight"),
            b.weight(weight.shape[0], hint="conv.bias") if bias else None,
            location="conv",
            **attrs,
        )
    )


def linear_graph(weight: torch.Tensor) -> Graph:
    """One linear layer with ``weight``."""
    b = GraphBuilder({"x": TensorType((3, weight.shape[1]))})
    x, bias = b.graph.inputs[0], b.weight(weight.shape[0], hint="fc.bias")
    return b.done(b.op(LinearOp, x, b.constant(weight, "fc.weight"), bias, location="fc"))


@dataclass(frozen=True)
class Reading:
    """What the clock says of two graphs."""

    before: float
    after: float
    noise: float


class Clock:
    """A latency: a nanosecond for each multiply-add and ``launch`` for each op, times ``factor`` for what replaces."""

    def __init__(self, factor: float = 1.0, launch: float = 0.0, noise: float = 0.02) -> None:
        self.factor, self.launch, self.noise = factor, launch, noise
        self.asked: list[tuple[Graph, Graph]] = []

    def prepare(self, questions: Iterable[Sequence[Graph]]) -> None:
        pass

    def graph_seconds(self, graph: Graph) -> float:
        return graph.cost().macs * 1e-9 + self.launch * sum(bool(op.inputs) for op in graph.ops)

    def op_seconds(self, op: object) -> float:
        raise AssertionError("the referee compares graphs")

    def compare(self, before: Graph, after: Graph) -> Reading:
        self.asked.append((before, after))
        return Reading(self.graph_seconds(before), self.graph_seconds(after) * self.factor, self.noise)
