"""Reads ONNX files, as data: nothing in them is run, and external data is read from the file's own folder only."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ...ir import DType, Symbol, TensorType, TersorError, shorten
from ...ir.foreign import UserObject
from ...ir.names import suggest
from . import operators as _operators  # noqa: F401  (fills the table of operators)
from .known import DTYPES, TYPE_NAMES, Attribute
from .registry import OPERATORS
from .symbolic_inputs import symbolic_shapes

if TYPE_CHECKING:
    import onnx

Shapes = Mapping[str, Sequence[int]]
Constants = Mapping[str, Attribute]  # numbers, nested lists of them, or arrays, by the names of inputs

OPSETS = range(9, 24)
CONTROL_FLOW = ("If", "Loop", "Scan")
_STANDARD = ("", "ai.onnx")
_NAMES_SHOWN = 3
_QUANTIZED = re.compile(r"Quantize|(^|:)Q[A-Z]|Integer")
_QUANTIZED_HINT = (
    "of models in integers, those of QuantizeLinear and DequantizeLinear between ordinary operators (QDQ) are "
    "imported, and those in float32 with -p O3,quantize"
)
_HINTS = {
    "NonMaxSuppression": "how many boxes are left depends on the data, so cut the model off before it "
    "(onnx.utils.extract_model), and call torchvision.ops.nms on the result",
    "Unique": "how many numbers are left depends on the data, so cut the model off before it "
    "(onnx.utils.extract_model), and call numpy.unique on the result",
}


class OnnxError(TersorError):
    """An ONNX file cannot be converted.

    Attributes
    ----------
    problems
        All that was found, one line each.
    """

    def __init__(self, path: Path, problems: Sequence[str]) -> None:
        self.problems = tuple(problems)
        count = "" if len(problems) == 1 else f" {len(problems)} problems:"
        super().__init__(f"{path}:{count} " + ";\n".join(problems))


@dataclass(frozen=True)
class OnnxNode:
    """A node that something depends on.

    Attributes
    ----------
    operator
        A name in the table of operators, or one of `CONTROL_FLOW`.
    label
        Its name, or that of its first output.
    inputs, outputs
        Names; empty for those that are left out.
    attributes
        Numbers, texts, lists of them, tensors, and graphs.
    """

    operator: str
    label: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: Mapping[str, Attribute]


@dataclass(frozen=True)
class OnnxGraph:
    """Nodes in order, weights by name, and the names of what the graph takes and returns."""

    name: str
    nodes: tuple[OnnxNode, ...]
    weights: Mapping[str, torch.Tensor]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


@dataclass(frozen=True)
class OnnxModel:
    """What an ONNX file holds: the version of the standard operators, the types of inputs, and the graph.

    ``symbols`` are those of the types, where calls choose extents.
    """

    opset: int
    types: Mapping[str, TensorType]
    graph: OnnxGraph
    symbols: tuple[Symbol, ...] = ()


def read_onnx(
    path: Path,
    shapes: Shapes | Sequence[Sequence[int]],
    constants: Constants,
    dynamic_shapes: UserObject = None,
    hints: Mapping[str, int] | None = None,
) -> OnnxModel:
    """Read a file; ``shapes`` says how large the inputs with symbolic dimensions are.

    Inputs that are named in ``constants`` become weights. Those in ``dynamic_shapes`` have symbols (`symbolic_shapes`),
    of which ``hints`` may give the numbers.

    Raises
    ------
    OnnxError
        With all problems: operators and attributes that are not known, missing data, dimensions that are not known.
    TersorError
        When the package ``onnx`` is not installed, or the file is no ONNX file.
    """
    _check_package()
    from onnx import checker

    model = _parsed(path)
    if any(isinstance(name, bytes) for name in _names(model.graph)):
        raise TersorError(f"{path}: is a damaged ONNX file (a name in it is no text)")
    if model.functions:
        from onnx import inliner

        model = inliner.inline_local_functions(model)
    reader = _Reader(path, model)
    shapes = reader.by_name(shapes, constants)
    symbols: tuple[Symbol, ...] = ()
    if dynamic_shapes is not None:
        try:
            shapes, symbols = symbolic_shapes(dynamic_shapes, reader.declared(constants), shapes, hints or {})
        except TersorError as error:
            raise TersorError(f"{path}: {error}") from error
    types, numbers = reader.inputs(shapes, constants)
    graph = reader.graph(model.graph)
    graph = replace(graph, weights={**graph.weights, **numbers})
    reader.check_operators()
    if not reader.problems:
        try:
            checker.check_model(str(path))
        except (checker.ValidationError, UnicodeDecodeError) as error:
            reader.problems.append(f"is not a valid ONNX file ({' '.join(str(error).split())[:300]})")
    if reader.problems:
        raise OnnxError(path, reader.problems)
    return OnnxModel(reader.opset, types, graph, symbols)


def _check_package() -> None:
    try:
        import onnx  # noqa: F401
    except ImportError as error:
        raise TersorError("reading ONNX files takes the package onnx: pip install 'tersor[onnx]'") from error


def _parsed(path: Path) -> onnx.ModelProto:
    import onnx
    from google.protobuf.message import DecodeError

    try:
        model = onnx.load(path, format="protobuf", load_external_data=False)
    except OSError as error:
        raise TersorError(f"{path}: cannot be read ({error.strerror})") from error
    except DecodeError as error:
        raise TersorError(f"{path}: is not an ONNX file, or damaged") from error
    if not model.ir_version or not model.graph.output:
        raise TersorError(f"{path}: is not an ONNX file, or holds no graph")
    return model


@dataclass
class _Reader:
    """Makes records of a file's messages, and notes what is wrong."""

    path: Path
    model: onnx.ModelProto
    problems: list[str] = field(default_factory=list)
    unknown: dict[str, list[str]] = field(default_factory=dict)  # what is not supported, and the nodes that need it

    def __post_init__(self) -> None:
        versions = {entry.domain: entry.version for entry in self.model.opset_import}
        self.opset = next((versions[domain] for domain in _STANDARD if domain in versions), 0)
        if self.opset not in OPSETS:
            told = f"opset {self.opset}" if self.opset else "no opset of ONNX's own operators"
            self.problems.append(f"{told} is not supported, only {OPSETS[0]} to {OPSETS[-1]}")

    # Inputs ---------------------------------------------------------------------------------------------------

    def inputs(self, shapes: Shapes, constants: Constants) -> tuple[dict[str, TensorType], dict[str, torch.Tensor]]:
        """Types of the inputs that are no weights, and the numbers of those that are constants."""
        weights = {one.name for one in self.model.graph.initializer}
        inputs = [one for one in self.model.graph.input if one.name not in weights]
        for name in dict.fromkeys((*shapes, *constants)):
            if name not in {one.name for one in inputs}:
                self.problems.append(f"has no input {name!r}{suggest(name, [one.name for one in inputs])}")
        open_inputs = [one for one in inputs if one.name not in constants]
        types = {one.name: self._input_type(one, shapes.get(one.name)) for one in open_inputs}
        numbers = {one.name: self._numbers(one, constants[one.name]) for one in inputs if one.name in constants}
        return (
            {name: type for name, type in types.items() if type is not None},
            {name: tensor for name, tensor in numbers.items() if tensor is not None},
        )

    def by_name(self, shapes: Shapes | Sequence[Sequence[int]], constants: Constants) -> Shapes:
        """Shapes by input name, which may be given in the order of the inputs."""
        if isinstance(shapes, Mapping):
            return shapes
        names = list(self.declared(constants))
        if len(shapes) > len(names):
            raise TersorError(f"{self.path}: has {len(names)} inputs ({', '.join(names)}), but {len(shapes)} are given")
        return dict(zip(names, shapes, strict=False))

    def declared(self, constants: Constants) -> dict[str, list[Any] | None]:
        """Extents of the inputs that are neither weights nor constants; names, or ``?``, for symbolic dimensions."""
        weights = {one.name for one in self.model.graph.initializer}
        inputs = [one for one in self.model.graph.input if one.name not in weights and one.name not in constants]
        return {one.name: _extents(one) for one in inputs}

    def _numbers(self, proto: onnx.ValueInfoProto, given: Attribute) -> torch.Tensor | None:
        """A constant in the place of an input; a single number where the input is a tensor of one element, too."""
        try:
            tensor = torch.as_tensor(given)
        except (TypeError, ValueError, RuntimeError):
            self.problems.append(f"the constant for input {shorten(proto.name)!r} is not a number or an array of them")
            return None
        type = self._input_type(proto, [1] * len(proto.type.tensor_type.shape.dim) if not tensor.ndim else tensor.shape)
        if type is None:
            return None
        converted = tensor.to(type.dtype.torch)
        if not torch.equal(converted.double(), tensor.double()) and not type.dtype.is_floating:
            self.problems.append(f"the constant for input {shorten(proto.name)!r} is no {type.dtype.value}")
            return None
        return converted.reshape(type.shape)

    def _input_type(self, proto: onnx.ValueInfoProto, given: Sequence[int] | None) -> TensorType | None:
        name, kind = shorten(proto.name), proto.type.tensor_type
        if not proto.type.HasField("tensor_type") or kind.elem_type not in DTYPES:
            self.problems.append(f"input {name!r} is no tensor of an element type that is supported")
            return None
        declared = _extents(proto) or []
        shown = f"[{','.join(map(str, declared))}]" if kind.HasField("shape") else "of any rank"
        extents = declared if given is None else list(given)
        example = ",".join(str(extent) if isinstance(extent, int) else "N" for extent in declared) or "…"
        if any(isinstance(extent, str) for extent in extents) or (given is None and not kind.HasField("shape")):
            self.problems.append(
                f"input {name!r} is {shown}: give its shape, by shapes={{{name!r}: (…)}} or --shape {name}={example}"
            )
            return None
        fits = len(extents) == len(declared) and all(
            own == extent or isinstance(own, str) for own, extent in zip(declared, extents, strict=True)
        )
        if kind.HasField("shape") and not fits:
            self.problems.append(f"input {name!r} is {shown}, which the shape {list(extents)} does not fit")
            return None
        return TensorType(tuple(extents), DType.from_torch(DTYPES[kind.elem_type]))

    # Graphs ---------------------------------------------------------------------------------------------------

    def graph(self, proto: onnx.GraphProto) -> OnnxGraph:
        """What the outputs depend on."""
        wanted = {one.name for one in proto.output}
        live = []
        for node in reversed(proto.node):
            if wanted & set(filter(None, node.output)):
                live.append(node)
                wanted |= set(node.input) | set(_names_read_inside(node))
        weights = {one.name: self._tensor(one) for one in proto.initializer if one.name in wanted}
        if any(one.values.name in wanted for one in proto.sparse_initializer):
            self.problems.append("has sparse weights, which are not supported")
        return OnnxGraph(
            proto.name,
            tuple(self._node(node) for node in reversed(live)),
            {name: tensor for name, tensor in weights.items() if tensor is not None},
            tuple(one.name for one in proto.input if one.name not in weights),
            tuple(one.name for one in proto.output),
        )

    def _node(self, proto: onnx.NodeProto) -> OnnxNode:
        name = proto.op_type if proto.domain in _STANDARD else f"{proto.domain}::{proto.op_type}"
        label = proto.name or next(filter(None, proto.output), proto.op_type)
        known = OPERATORS.get(name)
        if known is None and name not in CONTROL_FLOW:
            hint = _QUANTIZED_HINT if _QUANTIZED.search(name) else _HINTS.get(name, "")
            self._note(f"operator {shorten(name)} is not supported{hint and f': {hint}'}", label)
            return OnnxNode(name, label, (), (), {})
        attributes = {one.name: self._attribute(one) for one in proto.attribute}
        if known is not None:
            for attribute in attributes.keys() - known.attributes:
                self._note(f"attribute {shorten(attribute)!r} of operator {name} is not supported", label)
            if len(proto.input) > known.inputs:
                self._note(f"operator {name} with {len(proto.input)} inputs is not supported", label)
        return OnnxNode(name, label, tuple(proto.input), tuple(proto.output), attributes)

    def _note(self, what: str, label: str) -> None:
        self.unknown.setdefault(what, []).append(label)

    def check_operators(self) -> None:
        """Add what nodes need and is not supported to the problems."""
        for what, labels in self.unknown.items():
            more = f" and {len(labels) - _NAMES_SHOWN} more" if len(labels) > _NAMES_SHOWN else ""
            self.problems.append(f"{what} (at {', '.join(repr(shorten(x)) for x in labels[:_NAMES_SHOWN])}{more})")

    def _attribute(self, proto: onnx.AttributeProto) -> Attribute:
        from onnx import AttributeProto, helper

        if proto.type == AttributeProto.GRAPH:
            return self.graph(proto.g)
        if proto.type == AttributeProto.TENSOR:
            return self._tensor(proto.t)
        value = helper.get_attribute_value(proto)
        if isinstance(value, bytes):
            return value.decode("utf-8", "replace")
        if proto.type == AttributeProto.STRINGS:
            return [one.decode("utf-8", "replace") for one in value]
        return list(value) if isinstance(value, Iterable) and not isinstance(value, str) else value

    def _tensor(self, proto: onnx.TensorProto) -> torch.Tensor | None:
        """The numbers, from the file or from external data; None, and a problem, if there are none."""
        from onnx import checker, numpy_helper

        name = shorten(proto.name)
        if proto.data_type not in DTYPES:
            kind = TYPE_NAMES.get(proto.data_type, f"{proto.data_type} of ONNX")
            self.problems.append(f"tensor {name!r} has element type {kind}, which is not supported")
            return None
        try:
            array = numpy_helper.to_array(proto, str(self.path.parent))
        except (OSError, ValueError, TypeError, checker.ValidationError) as error:
            self.problems.append(
                f"the numbers of tensor {name!r} cannot be read ({' '.join(str(error).split())[:200]})"
            )
            return None
        dtype = DTYPES[proto.data_type]
        if dtype is torch.bfloat16:
            return torch.from_numpy(array.view("int16").copy()).view(dtype)
        return torch.from_numpy(array.copy())


def _extents(proto: onnx.ValueInfoProto) -> list[Any] | None:
    """What a file says of an input's shape; None if it says nothing."""
    kind = proto.type.tensor_type
    if not kind.HasField("shape"):
        return None
    return [one.dim_value if one.dim_value > 0 else one.dim_param or "?" for one in kind.shape.dim]


def _names(graph: onnx.GraphProto) -> Iterator[str | bytes]:
    """All names in a graph, those within its nodes among them; what is no text comes as bytes."""
    yield graph.name
    for value in (*graph.input, *graph.output):
        yield value.name
        yield from (extent.dim_param for extent in value.type.tensor_type.shape.dim)
    yield from (one.name for one in graph.initializer)
    for node in graph.node:
        yield from (node.name, node.op_type, node.domain, *node.input, *node.output)
        for attribute in node.attribute:
            yield attribute.name
            for inner in (attribute.g, *attribute.graphs):
                yield from _names(inner)


def _names_read_inside(node: onnx.NodeProto) -> Iterator[str]:
    """Names that the graphs in a node's attributes read, those from outside among them."""
    for attribute in node.attribute:
        for graph in (attribute.g, *attribute.graphs):
            yield from (one.name for one in graph.output)
            for inner in graph.node:
                yield from inner.input
                yield from _names_read_inside(inner)
