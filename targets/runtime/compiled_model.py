"""A compiled model as data: what `Executable` runs, and what packaging writes and reads."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

import torch

from ...ir import Graph, Structure, WeightStore
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
    """

    info: ModelInfo
    code: LinkedCode
    constants: tuple[torch.Tensor, ...]
    read_graph: Callable[[], Graph]
    structure: Structure | None = None

    @cached_property
    def graph(self) -> Graph:
        """The graph that was compiled, kept so that the model is never lost."""
        return self.read_graph()

    def beginning_with(self, state: Mapping[str, torch.Tensor]) -> CompiledModel:
        """The same model with another initial state."""
        graph = self.graph.clone()
        graph.weights = WeightStore({**graph.weights, **state})
        return replace(self, read_graph=lambda: graph)
