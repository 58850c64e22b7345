"""Converts one functional program of `torch.export`, node by node."""

from __future__ import annotations

import operator
import re
from collections.abc import Iterator, Mapping
from typing import Any, Protocol

import torch
from torch import fx
from torch.export import ExportedProgram
from torch.export.graph_signature import (
    ConstantArgument,
    ExportGraphSignature,
    InputKind,
    InputSpec,
    OutputKind,
    OutputSpec,
)

from ..ir import Graph, IRError, TensorType, TersorError, Value, shorten
from .context import Context
from .errors import Operator, UnsupportedError
from .export import name_of, path_of, refused, writes_in_place
from .places import place_of_trace
from .registry import COMPLEX_CONVERTERS, CONVERTERS, Argument, Complex, ComplexConverter, ConvertedParts, Inexpressible
from .symbols import Symbols, is_extent
from .tensors import FIXED, check_weight, input_type, is_complex, is_row_major, result_types, strides_of, suspicion


def class_name(program: ExportedProgram) -> str:
    """Name of the class of the module that was exported."""
    for node in program.graph.nodes:
        if is_extent(node):  # which PyTorch may have put there, with a name of its own
            continue
        for _, kind in (node.meta.get("nn_module_stack") or {}).values():
            return (kind if isinstance(kind, str) else kind.__name__).rpartition(".")[2]
    return "program"


class FunctionalProgram(Protocol):
    """What a converter needs of an `ExportedProgram`."""

    @property
    def graph(self) -> fx.Graph: ...

    @property
    def graph_signature(self) -> ExportGraphSignature: ...

    @property
    def state_dict(self) -> Mapping[str, torch.Tensor]: ...

    @property
    def constants(self) -> Mapping[str, torch.Tensor]: ...


def user_results(program: FunctionalProgram) -> list[Argument]:
    """What a program returns to its caller, flat: nodes, and constants."""
    return [one for spec, one in results_of(program) if spec.kind is OutputKind.USER_OUTPUT]


def results_of(program: FunctionalProgram) -> list[tuple[OutputSpec, Argument]]:
    """All that a program returns, with what each is."""
    results = program.graph.output_node().args[0]
    flat = results if isinstance(results, tuple | list) else [results]
    return list(zip(program.graph_signature.output_specs, flat, strict=True))


class ProgramConverter:
    """Builds the graph of a program that `tersor.frontend.export.lower` has prepared.

    Attributes
    ----------
    graph
        The result.
    suspicious
        What is strange about the weights, for warnings.
    unsupported, unsupported_calls
        The calls that could not be converted, for messages, and all nodes whose results are unknown therefore.
    complex_calls
        Nodes that take or return complex numbers.
    """

    def __init__(
        self, program: FunctionalProgram, name: str, symbols: Symbols = FIXED, *, copy_weights: bool = True
    ) -> None:
        self.program = program
        self._copies = copy_weights
        self.symbols = symbols
        self.suspicious: list[str] = []
        self.weight_specs: dict[fx.Node, InputSpec] = {}
        inputs: dict[fx.Node, TensorType] = {}
        placeholders = program.graph.find_nodes(op="placeholder")
        states: dict[fx.Node, InputSpec] = {}
        updated = set(program.graph_signature.buffers_to_mutate.values())
        for node, spec in zip(placeholders, program.graph_signature.input_specs, strict=True):
            if spec.kind is InputKind.BUFFER and spec.target in updated:
                states[node] = spec
            elif spec.kind is not InputKind.USER_INPUT:
                self.weight_specs[node] = spec
            elif not isinstance(spec.arg, ConstantArgument):
                inputs[node] = input_type(node, symbols)
        graph_name = re.sub(r"[^a-z0-9_.\-]", "_", name.lower())
        names = {node: node.name for node in inputs}
        for node, spec in states.items():
            check_weight(self._tensor(spec), str(spec.target))
            names[node], inputs[node] = str(spec.target), input_type(node, symbols)
        self.graph = Graph(graph_name, [(names[node], type) for node, type in inputs.items()])
        self.graph.symbols = symbols.symbols
        self.states = {str(spec.target): self._store(spec, copy=True) for spec in states.values()}
        self.context = Context(self.graph)
        self.values: dict[fx.Node, ConvertedParts | None] = dict(zip(inputs, self.graph.inputs, strict=True))
        self.weight_ids: dict[tuple[object, ...], str] = {}
        self.unsupported: list[Operator] = []
        self.unsupported_calls: set[fx.Node] = set()
        self.complex_calls: set[fx.Node] = set()

    def convert(self) -> Graph:
        """Convert every call that is used or writes in place; raises UnsupportedError with all that failed."""
        for node, spec in self.weight_specs.items():
            if node.users:
                check_weight(self._tensor(spec), str(spec.target))
        for node in self.program.graph.nodes:
            if node.op == "call_function" and (node.users or writes_in_place(node)):
                self.values[node] = self._convert_call(node)
                if self.values[node] is None:
                    self.unsupported_calls.add(node)
        for one in user_results(self.program):
            if isinstance(one, fx.Node) and isinstance(self._value(one), Complex):
                self._fail(one, "it returns complex numbers to the caller; return torch.view_as_real of them", ())
        if self.unsupported:
            raise UnsupportedError(self.unsupported)
        self.graph.outputs = self._outputs()
        self.graph.states = tuple(self.states.values())
        return self.graph

    # Calls ----------------------------------------------------------------------------------------------------

    def _convert_call(self, node: fx.Node) -> ConvertedParts | None:
        """The node's result, or something of its type if it is not supported; None if it has no type in the IR."""
        if node.target is operator.getitem:
            return self._item(node)
        if is_extent(node):
            return self._extent(node)
        types = result_types(node, self.symbols)
        target: Any = node.target
        convert: ComplexConverter | None = CONVERTERS.get(target)
        if is_complex(node) or any(map(is_complex, node.all_input_nodes)):
            self.complex_calls.add(node)
            convert = COMPLEX_CONVERTERS.get(target)
            if convert is None:
                return self._fail(node, "complex numbers; compute with their real and imaginary parts", types)
        if convert is None:
            return self._fail(node, "", types)
        if any(self._value(argument) is None for argument in node.all_input_nodes):
            return self._stand_in(node, types)
        self.context.location, self.context.types = path_of(node), types
        self.context.used_results = frozenset(
            user.args[1] for user in node.users if user.target is operator.getitem and user.users
        )
        self.context.row_major = all(map(is_row_major, node.all_input_nodes))
        self.context.strides = next((strides_of(one.meta.get("val")) for one in node.all_input_nodes), None)
        args, kwargs = fx.map_arg((node.args, node.kwargs), self._value)
        try:
            result = convert(self.context, *args, **kwargs)
        except (Inexpressible, IRError) as refusal:
            return self._fail(node, str(refusal), types)
        if not _has_types(result, types) and any(type is not None and type.symbolic for type in types):
            return self._fail(node, "its converter needs fixed extents; leave them out of the dynamic shapes", types)
        _check_types(node, result, types)
        return result

    def _extent(self, node: fx.Node) -> Argument:
        value = node.meta["val"]
        try:
            if isinstance(value, torch.SymInt):
                return self.symbols.extent(value)
            reason = f"it computes {value} from extents that each call chooses; make them fixed"
        except IRError as error:
            reason = str(error)
        self._fail(node, reason, ())
        return None

    def _item(self, node: fx.Node) -> Value | None:
        source: Argument = node.args[0]
        index: Argument = node.args[1]
        parts = self._value(source)
        if parts is None:
            return None
        if parts[index] is None:
            return self._fail(source, f"its result number {index} is not available", result_types(node, self.symbols))
        return parts[index]

    def _fail(self, node: fx.Node, reason: str, types: tuple[TensorType | None, ...]) -> Argument:
        """Note an unsupported call; values of the right types stand in, so that what follows is checked too."""
        self.unsupported.append(refused(node, reason))
        return self._stand_in(node, types)

    def _stand_in(self, node: fx.Node, types: tuple[TensorType | None, ...]) -> Argument:
        self.unsupported_calls.add(node)
        make = (lambda type: Complex(Value(type), Value(type))) if is_complex(node) else Value
        stand_ins = tuple(None if type is None else make(type) for type in types)
        return stand_ins if len(stand_ins) != 1 else stand_ins[0]

    def _value(self, node: fx.Node) -> Argument:
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
            self.weight_ids[tied] = self._store(spec, copy=self._copies)
            message = suspicion(tensor, name, parameter=spec.kind is InputKind.PARAMETER)
            self.suspicious += [message] if message else []
        self.context.location = name.rpartition(".")[0]
        return self.context.weight(self.weight_ids[tied])

    def _store(self, spec: InputSpec, *, copy: bool) -> str:
        """Add a tensor to the graph's weights, or a copy of it, so that the module may change; returns its id."""
        tensor = self._tensor(spec).detach()
        if copy:
            tensor = tensor.to("cpu", copy=True, memory_format=torch.contiguous_format)
        return self.graph.weights.add(tensor, str(spec.target), lent=not copy)

    def _tensor(self, spec: InputSpec) -> torch.Tensor:
        name = str(spec.target)
        tensor = self.program.state_dict.get(name, self.program.constants.get(name))
        if not isinstance(tensor, torch.Tensor):
            raise TersorError(f"the model needs {shorten(name)!r}, which is not a tensor; keep tensors only")
        return tensor

    # Outputs --------------------------------------------------------------------------------------------------

    def _outputs(self) -> tuple[Value, ...]:
        """What the program returns, and then the new values of its states in their order."""
        updates: dict[str, Value] = {}
        for spec, result in results_of(self.program):
            if spec.kind is OutputKind.BUFFER_MUTATION:
                updates[str(spec.target)] = self._value(result)
            elif spec.kind is OutputKind.PARAMETER_MUTATION:
                place = place_of_trace(result.meta.get("stack_trace"))
                raise TersorError(
                    f"the model writes to its own parameter {shorten(spec.target)!r} when it runs"
                    f"{f' ({place})' if place else ''}; make it a buffer, whose values a compiled model keeps from "
                    "call to call, or, if it prepares its weights in the first call, call it once before compiling"
                )
            elif spec.kind is OutputKind.USER_INPUT_MUTATION:
                self.suspicious.append(
                    f"the model writes to its input {spec.target!r} in place: outputs are the same, but the caller's "
                    "tensor keeps its numbers; return the new value if callers need it"
                )
        returned = [self._value(one) for one in user_results(self.program) if isinstance(one, fx.Node)]
        if not all(isinstance(one, Value) for one in returned):
            raise TersorError("the model returns an extent that each call chooses; return tensors only")
        return *returned, *(updates[name] for name in self.states)


def _parts(result: ConvertedParts, types: tuple[TensorType | None, ...]) -> Iterator[tuple[Value, TensorType | None]]:
    """Each value of a result with the type that PyTorch computes."""
    for value, type in zip(result if isinstance(result, tuple) else (result,), types, strict=True):
        for part in (value.real, value.imaginary) if isinstance(value, Complex) else (value,):
            if part is not None:
                yield part, type


def _has_types(result: ConvertedParts, types: tuple[TensorType | None, ...]) -> bool:
    return all(part.type == type for part, type in _parts(result, types))


def _check_types(node: fx.Node, result: ConvertedParts, types: tuple[TensorType | None, ...]) -> None:
    for part, type in _parts(result, types):
        if part.type != type:
            raise IRError(
                f"{name_of(node.target)} at {path_of(node)!r} became {part.type}, but PyTorch computes {type}; "
                "this is an error in its converter, please report it"
            )
