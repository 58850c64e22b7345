"""Converts one functional program of `torch.export`, node by node."""

from __future__ import annotations

import operator
import re
from typing import Any

import torch
from torch import fx
from torch.export import ExportedProgram
from torch.export.graph_signature import ConstantArgument, InputKind, InputSpec, OutputKind

from ..ir import Graph, IRError, TensorType, TersorError, Value, shorten
from .context import Context
from .errors import Operator, UnsupportedError
from .export import name_of, path_of, writes_in_place
from .registry import CONVERTERS, Converted, Inexpressible
from .tensors import check_weight, input_type, is_row_major, result_types, suspicion


def class_name(program: ExportedProgram) -> str:
    """Name of the class of the module that was exported."""
    for node in program.graph.nodes:
        for _, kind in (node.meta.get("nn_module_stack") or {}).values():
            return (kind if isinstance(kind, str) else kind.__name__).rpartition(".")[2]
    return "program"


class ProgramConverter:
    """Builds the graph of a program that `tersor.frontend.export.lower` has prepared.

    Attributes
    ----------
    graph
        The result.
    suspicious
        What is strange about the weights, for warnings.
    """

    def __init__(self, program: ExportedProgram, name: str) -> None:
        self.program = program
        self.suspicious: list[str] = []
        self.weight_specs: dict[fx.Node, InputSpec] = {}
        inputs: dict[fx.Node, TensorType] = {}
        placeholders = program.graph.find_nodes(op="placeholder")
        for node, spec in zip(placeholders, program.graph_signature.input_specs, strict=True):
            if spec.kind is not InputKind.USER_INPUT:
                self.weight_specs[node] = spec
            elif not isinstance(spec.arg, ConstantArgument):
                inputs[node] = input_type(node)
        graph_name = re.sub(r"[^a-z0-9_.\-]", "_", name.lower())
        self.graph = Graph(graph_name, [(node.name, type) for node, type in inputs.items()])
        self.context = Context(self.graph)
        self.values: dict[fx.Node, Converted | None] = dict(zip(inputs, self.graph.inputs, strict=True))
        self.weight_ids: dict[tuple[Any, ...], str] = {}
        self.unsupported: list[Operator] = []

    def convert(self) -> Graph:
        """Convert every call that is used or writes in place; raises UnsupportedError with all that failed."""
        for node, spec in self.weight_specs.items():
            if node.users:
                check_weight(self._tensor(spec), str(spec.target))
        for node in self.program.graph.nodes:
            if node.op == "call_function" and (node.users or writes_in_place(node)):
                self.values[node] = self._convert_call(node)
        if self.unsupported:
            raise UnsupportedError(self.unsupported)
        self.graph.outputs = self._outputs()
        return self.graph

    # Calls ----------------------------------------------------------------------------------------------------

    def _convert_call(self, node: fx.Node) -> Converted | None:
        """The node's result; None if it is unknown because something before it is not supported."""
        if node.target is operator.getitem:
            return self._item(node)
        types = result_types(node)
        target: Any = node.target
        convert = CONVERTERS.get(target)
        if convert is None:
            return self._fail(node, "", types)
        if any(self._value(argument) is None for argument in node.all_input_nodes):
            return None
        self.context.location, self.context.types = path_of(node), types
        self.context.row_major = all(map(is_row_major, node.all_input_nodes))
        args, kwargs = fx.map_arg((node.args, node.kwargs), self._value)
        try:
            result = convert(self.context, *args, **kwargs)
        except (Inexpressible, IRError) as refusal:
            return self._fail(node, str(refusal), types)
        _check_types(node, result, types)
        return result

    def _item(self, node: fx.Node) -> Value | None:
        source: Any = node.args[0]
        index: Any = node.args[1]
        parts = self._value(source)
        if parts is None:
            return None
        if parts[index] is None:
            return self._fail(source, f"its result number {index} is not available", result_types(node))
        return parts[index]

    def _fail(self, node: fx.Node, reason: str, types: tuple[TensorType | None, ...]) -> Any:
        """Note an unsupported call, and stand in values of the right types so that what follows is checked too."""
        self.unsupported.append(Operator(name_of(node.target), path_of(node), reason))
        stand_ins = tuple(None if type is None else Value(type) for type in types)
        return stand_ins if len(stand_ins) != 1 else stand_ins[0]

    def _value(self, node: fx.Node) -> Any:
        if node not in self.values and node in self.weight_specs:
            self.values[node] = self._weight(node)
        return self.values.get(node)

    # Weights --------------------------------------------------------------------------------------------------

    def _weight(self, node: fx.Node) -> Value:
        """Read a weight right before its first use, so that those which nothing uses never enter the graph."""
        spec = self.weight_specs[node]
        name, tensor = str(spec.target), self._tensor(spec)
        tied = (tensor.data_ptr() or id(tensor), tensor.dtype, tuple(tensor.shape), tensor.stride())
        if tied not in self.weight_ids:
            # A copy: training the module further must not change the graph.
            own = tensor.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)
            self.weight_ids[tied] = self.graph.weights.add(own, name)
            message = suspicion(tensor, name, parameter=spec.kind is InputKind.PARAMETER)
            self.suspicious += [message] if message else []
        self.context.location = name.rpartition(".")[0]
        return self.context.weight(self.weight_ids[tied])

    def _tensor(self, spec: InputSpec) -> torch.Tensor:
        name = str(spec.target)
        tensor = self.program.state_dict.get(name, self.program.constants.get(name))
        if not isinstance(tensor, torch.Tensor):
            raise TersorError(f"the model needs {shorten(name)!r}, which is not a tensor; keep tensors only")
        return tensor

    # Outputs --------------------------------------------------------------------------------------------------

    def _outputs(self) -> tuple[Value, ...]:
        results = self.program.graph.output_node().args[0]
        outputs = []
        for spec, result in zip(self.program.graph_signature.output_specs, results, strict=True):
            if spec.kind in (OutputKind.BUFFER_MUTATION, OutputKind.PARAMETER_MUTATION):
                target = shorten(spec.target)
                raise TersorError(
                    f"the model writes to its own {target!r} when it runs, which a graph cannot do: return "
                    "the new value from forward instead, or call model.eval() before torch.export.export"
                )
            if spec.kind is OutputKind.USER_INPUT_MUTATION:
                self.suspicious.append(
                    f"the model writes to its input {spec.target!r} in place: outputs are the same, but the caller's "
                    "tensor keeps its numbers; return the new value if callers need it"
                )
            if spec.kind is not OutputKind.USER_OUTPUT or result is None:
                continue
            if not isinstance(result, fx.Node):
                raise TersorError(
                    f"the model returns {shorten(repr(result))}, which is not a tensor; return tensors only"
                )
            outputs.append(self._value(result))
        return tuple(outputs)


def _check_types(node: fx.Node, result: Converted, types: tuple[TensorType | None, ...]) -> None:
    values = result if isinstance(result, tuple) else (result,)
    for value, type in zip(values, types, strict=True):
        if value is not None and value.type != type:
            raise IRError(
                f"{name_of(node.target)} at {path_of(node)!r} became {value.type}, but PyTorch computes {type}; "
                "this is an error in its converter, please report it"
            )
