"""A compiled model as data: what `Executable` runs, and what packaging writes and reads."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING

import torch

from ...ir import Graph, Structure
from ...ir.arrangement import Arrangement
from .exits import EarlyExits
from .model_info import ModelInfo

if TYPE_CHECKING:
    from .virtual_machine import LinkedCode


@dataclass(frozen=True, eq=False)
class CompiledModel:
    """A compiled model.

    Attributes
    ----------
    info
        Description of the model.
    code
        The shared object.
    constants
        Flat weights, in the order of the code's constants.
    read_graph
        Returns the graph that was compiled; called once, when the graph is first asked for.
    structure
        The graph's.
    arrangements
        How some of the constants hold weights of the graph, by number: these need not be stored twice.
    """

    info: ModelInfo
    code: LinkedCode
    constants: tuple[torch.Tensor, ...]
    read_graph: Callable[[], Graph]
    structure: Structure | None = None
    arrangements: Mapping[int, Arrangement] = field(default_factory=dict)

    @cached_property
    def graph(self) -> Graph:
        """The graph that was compiled, kept so that the model is never lost."""
        return self.read_graph()

    def beginning_with(self, state: Mapping[str, torch.Tensor]) -> CompiledModel:
        """The same model with another initial state."""
        graph = self.graph.clone()
        graph.weights = graph.weights.replaced(state)
        return replace(self, read_graph=lambda: graph)


Numbers = Mapping[str, int]  # what symbols are: extents by name


@dataclass(frozen=True, eq=False)
class CompiledFamily:
    """A model compiled for several shapes.

    Attributes
    ----------
    programs
        The shapes, as numbers of the graph's symbols, each with the program for them; at least one.
    graph_without_weights
        The graph with symbols that all programs were made of; it need not have weights.
    read_graph
        Returns the same graph with its weights; called once, when it is first asked for.
    """

    programs: tuple[tuple[Numbers, CompiledModel], ...]
    graph_without_weights: Graph
    read_graph: Callable[[], Graph]

    @cached_property
    def graph(self) -> Graph:
        """The graph that was compiled, kept so that the model is never lost."""
        return self.read_graph()

    def beginning_with(self, state: Mapping[str, torch.Tensor]) -> CompiledFamily:
        """The same programs with another initial state."""
        graph = self.graph.clone()
        graph.weights = graph.weights.replaced(state)
        return replace(self, read_graph=lambda: graph)


@dataclass(frozen=True, eq=False)
class CompiledSegments:
    """A model of several exits, compiled segment by segment.

    Attributes
    ----------
    models
        The segments, see `tersor.ir.segments`; each returns its exit's output, and then what it hands on.
    takes
        For each segment, the numbers of its inputs among what is known when it begins.
    exits
        When a call may stop.
    graph_without_weights
        The graph that they were cut from; it need not have weights.
    read_graph
        Returns the same graph with its weights; called once, when it is first asked for.
    """

    models: tuple[CompiledModel, ...]
    takes: tuple[tuple[int, ...], ...]
    exits: EarlyExits
    graph_without_weights: Graph
    read_graph: Callable[[], Graph]

    @cached_property
    def graph(self) -> Graph:
        """The graph that was compiled, kept so that the model is never lost."""
        return self.read_graph()


Compiled = CompiledModel | CompiledFamily | CompiledSegments  # what an artifact holds


class SharedConstants:
    """Keeps one of all constants that hold the same bytes, so that programs of several shapes share packed weights."""

    def __init__(self) -> None:
        self._known: dict[tuple[torch.dtype, int, bytes], torch.Tensor] = {}

    def __call__(self, constants: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        """The same constants, those that are known already in place of equal ones."""
        return tuple(self._known.setdefault(_contents(constant), constant) for constant in constants)


def _contents(tensor: torch.Tensor) -> tuple[torch.dtype, int, bytes]:
    data = tensor.view(torch.uint8).numpy().data if tensor.numel() else b""
    return tensor.dtype, tensor.numel(), hashlib.sha256(data).digest()
