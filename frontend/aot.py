"""Graphs of `torch.compile`: made functional, and divided into parts that the IR expresses and other calls."""

from __future__ import annotations

import operator
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx
from torch._dynamo.backends.common import aot_autograd
from torch._guards import TracingContext
from torch._ops import OpOverload
from torch.export.exported_program import _override_composite_implicit_decomp
from torch.export.graph_signature import (
    ConstantArgument,
    ExportGraphSignature,
    InputKind,
    InputSpec,
    OutputKind,
    OutputSpec,
    TensorArgument,
)
from torch.fx.passes.infra.partitioner import CapabilityBasedPartitioner
from torch.fx.passes.operator_support import OperatorSupportBase

from ..ir import Graph
from .errors import UnsupportedError
from .export import decompositions, tracing
from .program import ProgramConverter
from .registry import CONVERTERS

GraphValue = Any  # an input or a result of a graph of `torch.compile`: a tensor, or a number
Compiled = Callable[..., GraphValue]

_FEWEST_CALLS = 3  # of a part: for less, a call of a program takes longer than it saves


def functional(
    module: fx.GraphModule, inputs: Sequence[GraphValue], compile: Callable[[fx.GraphModule, frozenset[int]], Compiled]
) -> Compiled:
    """Make a graph of `torch.compile` functional and have it compiled; writes and views are left to PyTorch.

    Parameters
    ----------
    inputs
        Those that PyTorch gives with the graph. What is symbolic in them becomes a number that PyTorch guards.
    compile
        Is given the functional graph of ATen operators, and which of its inputs are parameters and buffers of modules
        that the graph only reads.
    """
    for one in inputs:
        for number in one.shape if isinstance(one, torch.Tensor) else [one]:
            if isinstance(number, torch.SymInt | torch.SymFloat):
                float(number)

    def inner(functional_module: fx.GraphModule, examples: Sequence[GraphValue]) -> Compiled:
        metadata: Any = TracingContext.get().fw_metadata
        read = {i for i in metadata.static_input_indices if not metadata.input_info[i].mutates_data}
        return compile(functional_module, frozenset(read))

    composite, others = decompositions(frozenset(CONVERTERS))
    with tracing(), _override_composite_implicit_decomp(composite):
        return aot_autograd(fw_compiler=inner, inference_compiler=inner, decompositions=dict(others))(module, inputs)


def convert_functional(module: fx.GraphModule, weights: Mapping[int, torch.Tensor]) -> Graph | Division:
    """The graph of a functional module, or how it is divided into parts that have one.

    The graph's weights are lent to it (`WeightStore.lent`).

    Parameters
    ----------
    weights
        Inputs that are weights, by index. The other inputs that are tensors become the graph's.

    Raises
    ------
    TersorError
        When nothing can be made of it, for example since an input has an element type that the IR lacks.
    """
    converter = _converter(module, weights)
    try:
        return converter.convert()
    except UnsupportedError as error:
        support = _Support(converter.unsupported_calls | converter.complex_calls)  # parts exchange real numbers
        partitioner = CapabilityBasedPartitioner(module, support, allows_single_node_partition=False)
        parts = [part for part in partitioner.propose_partitions() if len(part.nodes) >= _FEWEST_CALLS]
        return Division(partitioner.fuse_partitions(parts), error)


def viewed(node: fx.Node) -> fx.Node:
    """The call, or the input, whose memory a node's result is a view of; the node itself if it has its own."""
    while node.op == "call_function" and isinstance(node.target, OpOverload):
        if not any(result.alias_info for result in node.target._schema.returns):
            break
        node = node.all_input_nodes[0]
    return node


@dataclass(frozen=True)
class Division:
    """A module whose calls are in sub-modules where the IR can express them.

    Attributes
    ----------
    module
        The sub-modules are to be compiled; all other calls stay in PyTorch.
    reason
        Names the operators that do.
    """

    module: fx.GraphModule
    reason: UnsupportedError


@dataclass(frozen=True)
class _FunctionalProgram:
    """What a converter reads of an exported program."""

    graph: fx.Graph
    graph_signature: ExportGraphSignature
    state_dict: Mapping[str, torch.Tensor]
    constants: Mapping[str, torch.Tensor]


class _Support(OperatorSupportBase):
    def __init__(self, failed: Collection[fx.Node]) -> None:
        self._failed = failed

    def is_node_supported(self, submodules: Mapping[str, torch.nn.Module], node: fx.Node) -> bool:
        source = node.args[0] if node.target is operator.getitem else node
        return node.op == "call_function" and node not in self._failed and source not in self._failed


def _converter(module: fx.GraphModule, weights: Mapping[int, torch.Tensor]) -> ProgramConverter:
    placeholders = module.graph.find_nodes(op="placeholder")
    inputs = []
    for index, node in enumerate(placeholders):
        if index in weights:
            kind = InputKind.PARAMETER if isinstance(weights[index], torch.nn.Parameter) else InputKind.BUFFER
            persistent = True if kind is InputKind.BUFFER else None
            inputs.append(InputSpec(kind, TensorArgument(node.name), node.name, persistent))
        elif isinstance(node.meta["val"], torch.Tensor):
            inputs.append(InputSpec(InputKind.USER_INPUT, TensorArgument(node.name), None))
        else:  # an extent that has become a number
            inputs.append(InputSpec(InputKind.USER_INPUT, ConstantArgument(node.name, int(node.meta["val"])), None))
    results: GraphValue = module.graph.output_node().args[0]
    outputs = [
        OutputSpec(
            OutputKind.USER_OUTPUT,
            TensorArgument(one.name) if isinstance(one, fx.Node) else ConstantArgument("", one),
            None,
        )
        for one in (results if isinstance(results, tuple | list) else [results])
    ]
    held = {placeholders[index].name: tensor for index, tensor in weights.items()}
    program = _FunctionalProgram(module.graph, ExportGraphSignature(inputs, outputs), held, {})
    return ProgramConverter(program, "compiled", copy_weights=False)
