"""ONNX to IR: the public function."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import torch

from ..ir import Graph, IRError, Structure, Tree, shorten
from ..ir.foreign import UserObject
from . import converters as _converters  # noqa: F401  (fills the table of converters)
from .context import Context
from .onnx.control_flow import CONTROL_FLOW
from .onnx.file import Constants, OnnxError, OnnxGraph, OnnxModel, OnnxNode, Shapes, read_onnx
from .onnx.known import is_known
from .onnx.registry import OPERATORS
from .registry import Inexpressible
from .several_shapes import Conversion, Types, convert_for_symbols
from .tracer import Tracer

Tensors = Mapping[str, torch.Tensor | None]

# What functions of PyTorch, and those of the operators, raise for tensors and attributes that do not fit together.
_MISFITS = (ArithmeticError, AssertionError, AttributeError, IndexError, RuntimeError, TypeError, ValueError)


def from_onnx(
    path: str | Path,
    shapes: Shapes | Sequence[Sequence[int]] | None = None,
    constants: Constants | None = None,
    dynamic_shapes: UserObject = None,
    hints: Mapping[str, int] | None = None,
) -> Graph:
    """Convert an ONNX file to a graph.

    Takes the package ``onnx`` (``pip install 'tersor[onnx]'``). What does not depend on the inputs is computed now:
    shapes, constants, conditions. An ``If`` becomes one of its branches. A ``Loop`` or a ``Scan`` is unrolled, up to
    256 steps.

    Parameters
    ----------
    path
        A file of opset 9 to 23. External data is read from within the file's folder only. No code in a file is run.
    shapes
        For inputs with symbolic dimensions: all extents, by input name or in the file's order. Those that are dynamic
        are examples.
    constants
        Numbers, nested lists of them, or arrays, by input name: those inputs have these numbers in all calls, and are
        no inputs of the graph. So they may decide what the model does: ``constants={"sr": 16000}``.
    dynamic_shapes
        Which extents of inputs a call chooses, for example ``{"x": {0: "batch", 2: "32*height"}}``: for each input, by
        name or in the file's order, a dict from dimensions to names, formulas in names, or `torch.export.Dim`, which
        may give bounds; or a sequence with all dimensions, in which numbers are fixed. ``True`` stands for the symbolic
        dimensions of the file, with the names that it has for them. The graph then has these ``symbols``. The file is
        converted at several shapes, and formulas are found for what differs.
    hints
        Numbers of the symbols that passes assume, and where conversions begin; by default those of ``shapes``.

    Returns
    -------
    Graph
        Inputs have the names that the file gives them, and may be given by name or in the file's order. A call returns
        a dict of the outputs by name. Ids of weights are their names in the file; locations of ops are names of nodes.

    Raises
    ------
    OnnxError
        Listing all problems: operators, attributes and opsets that are not supported, external data that is missing or
        elsewhere, inputs whose shape is not known.
    TersorError
        When the file is no ONNX file, or the package is missing.
    """
    path = Path(path)
    model = read_onnx(path, shapes or {}, constants or {}, dynamic_shapes, hints)
    if not model.symbols:
        return _Importer(path, model).convert()

    def convert(types: Types, varying: frozenset[str]) -> Conversion:
        importer = _Importer(path, replace(model, types=types), varying)
        graph = importer.convert()
        return Conversion(graph, {name: tuple(found) for name, found in importer.constants.items()})

    return convert_for_symbols(convert, model.types, model.symbols, str(path))


class _Importer:
    """Builds the graph of one model, node by node; nodes of the names in ``varying`` compute nothing at once."""

    def __init__(self, path: Path, model: OnnxModel, varying: frozenset[str] = frozenset()) -> None:
        self.path, self.model, self.varying = path, model, varying
        name = re.sub(r"[^a-z0-9_.\-]", "_", (model.graph.name or path.stem).lower())
        self.built = Graph(name, list(model.types.items()))
        self.context = Context(self.built)
        self.tracer = Tracer(self.context)
        self.problems: list[str] = []
        self.constants: dict[str, list[tuple[int, ...]]] = {}  # shapes of what was computed at once, by names of nodes

    def convert(self) -> Graph:
        """The graph; raises OnnxError with everything that could not be converted."""
        graph, inputs = self.model.graph, self.built.inputs
        with self.tracer.running():
            known: Tensors = {value.name: self.tracer.stand_in(value) for value in inputs}
            results = self._run(graph, known)
            if self.problems:
                raise OnnxError(self.path, self.problems)
            self.context.location = ""
            outputs = [self.tracer.value(tensor) for tensor in results if tensor is not None]
        self.built.outputs = outputs
        self.built.structure = Structure(
            Tree("tuple", (Tree(),) * len(inputs), tuple(value.name for value in inputs)),
            Tree("dict"),
            Tree("dict", (Tree(),) * len(outputs), graph.outputs),
        )
        return self.built

    def _run(self, graph: OnnxGraph, outer: Tensors) -> list[torch.Tensor | None]:
        """The results of a graph in the scope of others; None for what could not be converted."""
        tensors = {**outer, **graph.weights}
        for name, tensor in graph.weights.items():
            self.tracer.name(tensor, name)
        for node in graph.nodes:
            operands = [tensors.get(name) if name else None for name in node.inputs]
            is_whole = all(one is not None for one, name in zip(operands, node.inputs, strict=True) if name)
            results = self._computed(node, operands, tensors) if is_whole else []
            for index, name in enumerate(node.outputs):
                tensors[name] = results[index] if index < len(results) else None
        return [tensors.get(name) for name in graph.outputs]

    def _computed(
        self, node: OnnxNode, operands: Sequence[torch.Tensor | None], scope: Tensors
    ) -> Sequence[torch.Tensor | None]:
        """A node's outputs; none, and a problem, if it is not supported."""
        self.context.location = node.label
        try:
            if node.operator in CONTROL_FLOW:
                results = CONTROL_FLOW[node.operator](self._run, node, operands, scope)
            else:
                results = self._call(node, operands)
        except (Inexpressible, IRError, *_MISFITS) as error:
            self._note(node, " ".join(str(error).split()) + self._advice(node))
            return []
        found = [tuple(one.shape) for one in results if one is not None and is_known(one)]
        self.constants.setdefault(node.label, []).extend(found)
        for index, name in enumerate(node.outputs):
            if name and (index >= len(results) or results[index] is None) and node.operator not in CONTROL_FLOW:
                self._note(node, f"its output number {index} is not available")
        return results

    def _note(self, node: OnnxNode, reason: str) -> None:
        self.problems.append(f"{node.operator} at {shorten(node.label)!r} is not supported: {shorten(reason, 300)}")

    def _call(self, node: OnnxNode, operands: Sequence[torch.Tensor | None]) -> Sequence[torch.Tensor | None]:
        operator = OPERATORS[node.operator]
        given = {"opset": self.model.opset, "outputs": len(node.outputs)}
        facts = {name: given[name] for name in operator.facts}
        with self.tracer.keeping_constants() if node.label in self.varying else nullcontext():
            results = operator.function(*operands, **node.attributes, **facts)
        return results if isinstance(results, tuple) else (results,)

    def _advice(self, node: OnnxNode) -> str:
        """Where single numbers alone decide on control flow: that they may be constants."""
        if node.operator not in CONTROL_FLOW:
            return ""
        makers = {name: one for one in self.model.graph.nodes for name in one.outputs}
        names, read = list(node.inputs[: 1 if node.operator == "If" else 2]), set()
        while names:
            name = names.pop()
            if name not in read and name in makers:
                names += makers[name].inputs
            read.add(name)
        asked = [name for name in self.model.types if name in read]
        if not asked or any(self.model.types[name].size > 1 for name in asked):
            return ""
        given = ", ".join(f"{name!r}: …" for name in asked)
        options = " ".join(f"--constant {name}=…" for name in asked)
        return f"; fix what decides, by constants={{{given}}} or {options}"
