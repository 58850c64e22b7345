"""PyTorch to IR: the public function."""

from __future__ import annotations

import warnings

from torch import nn
from torch.export import ExportedProgram

from ..ir import Graph, TersorError, TersorWarning
from ..ir.compare import first_difference
from ..ir.foreign import UserObject
from . import converters as _converters  # noqa: F401  (fills the table of converters)
from .conditions import relations_of
from .export import ExampleInputs, export, lower
from .program import ProgramConverter, class_name
from .structure import structure_of
from .symbols import Symbols, given_names


def from_torch(
    module: nn.Module | ExportedProgram,
    example_inputs: ExampleInputs | None = None,
    dynamic_shapes: UserObject = None,
    *,
    copy_weights: bool = True,
) -> Graph:
    """Convert a PyTorch model to a graph.

    Weights are copied, unless ``copy_weights`` says otherwise: a graph keeps its numbers when the module is trained
    further.
    Writes in place become ops, those into views included. A write into an input gives a warning: outputs are the same,
    but the caller's tensor keeps its numbers.

    Parameters
    ----------
    module
        A module, or a program from `torch.export.export`. A module is converted for inference: if any part of it is in
        training mode, a copy in evaluation mode is traced. The module itself is never changed.
    example_inputs
        What the module is called with: a tuple of positional arguments, a single tensor, a dict of named arguments,
        or `Arguments` for both. They may be nested. Shapes and element types become those of the graph; numbers, texts
        and None become constants of it. Not needed for a program, which has them.
    dynamic_shapes
        Which extents of inputs a call chooses, as `torch.export.export` takes it: for each argument, by position or by
        name, a dict from dimensions to `torch.export.Dim`, or to a name, for example ``{"x": {0: "batch"}}``. The graph
        then has these ``symbols``. An example of extent 1 is repeated for the export, which would take it for a
        constant. A program has symbols of its own, which names here replace.
    copy_weights
        If False, weights lie in the module's memory where it stores them as graphs do, contiguous and on the CPU; those
        that the model updates are copied all the same. Then the graph is of use as long as nobody writes to them.

    Returns
    -------
    Graph
        Inputs are the tensors among the flattened arguments; outputs are the tensors of the flattened result, in the
        order of `torch.utils._pytree` (nested lists, dicts and dataclasses). The structure around them is kept as the
        graph's ``structure``. Buffers that the model updates are its ``states``: the last inputs and outputs. Ids of
        weights are their qualified names, tied weights share one, and locations of ops are module paths.

    Raises
    ------
    UnsupportedError
        Listing every operator that the IR cannot express, with module paths.
    TersorError
        When the model cannot be exported, writes to its parameters, returns something that is
        neither a tensor nor a number, or has sparse, quantized, complex or missing weights.

    Warns
    -----
    TersorWarning
        When a weight contains NaN, or a parameter infinity, which is kept; or when the model writes to an input.
    """
    if isinstance(module, nn.Module):
        (program, symbols), name = export(module, example_inputs, dynamic_shapes), type(module).__name__
    elif isinstance(module, ExportedProgram):
        names = None if dynamic_shapes is None else given_names(module, dynamic_shapes)
        program, symbols, name = module, Symbols(module, names), class_name(module)
    else:
        kind = type(module).__name__
        raise TersorError(f"from_torch takes an nn.Module or a torch.export.ExportedProgram, not {kind}")
    symbols = symbols.related(relations_of(program, symbols))
    program = lower(program)
    converter = ProgramConverter(program, name, symbols, copy_weights=copy_weights)
    graph = converter.convert()
    if graph.symbols:
        _check_formulas(
            graph, ProgramConverter(program, name, symbols.elsewhere(), copy_weights=copy_weights).convert()
        )
    graph.structure = structure_of(program)
    for message in converter.suspicious:
        warnings.warn(message, TersorWarning, stacklevel=2)
    return graph


def _check_formulas(graph: Graph, elsewhere: Graph) -> None:
    """Raise TersorError where a number that follows from dynamic extents did not become a formula.

    Then it differs from that of a conversion with other hints.
    """
    op = first_difference(graph, elsewhere)
    if op is not None:
        names = ", ".join(symbol.name for symbol in graph.symbols)
        raise TersorError(
            f"{op.describe()} computes with a number that follows from the extents ({names}), for which its converter "
            "needs fixed ones; leave the extent out of dynamic_shapes"
        )
