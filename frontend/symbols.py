"""Dynamic shapes of an exported program: PyTorch's symbolic extents as those of the IR."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import reduce
from operator import add, floordiv, mod, mul
from typing import TYPE_CHECKING

import torch
from torch import fx
from torch.export import Dim, ExportedProgram
from torch.export.dynamic_shapes import _combine_args, _tree_map_with_path
from torch.utils import _pytree as pytree

from ..ir import Extent, IRError, Relation, Symbol, TersorError, elsewhere, shorten
from ..ir.foreign import UserObject

if TYPE_CHECKING:
    import sympy  # type: ignore[import-untyped]

Model = torch.nn.Module | ExportedProgram

_FEWEST = 2  # extents below are constants to `torch.export`

# What PyTorch's formulas are made of.
_FORMULAS: dict[str, Callable[[int, int], int]] = {
    "Add": add,
    "Mul": mul,
    "FloorDiv": floordiv,
    "CleanDiv": floordiv,
    "Mod": mod,
    "PythonMod": mod,
}


class Symbols:
    """The symbols of a program, and its extents as formulas in them.

    Parameters
    ----------
    program
        What `torch.export` made; a program without dynamic shapes has no symbols.
    names
        What the user calls the extents of inputs: by PyTorch's own symbol.
    """

    def __init__(self, program: ExportedProgram | None = None, names: Mapping[sympy.Symbol, str] | None = None) -> None:
        found = {} if program is None else {symbol: None for _, symbol in _dynamic_extents(program)}
        names = names or {}
        self._symbols = {symbol: _symbol(program, symbol, names.get(symbol, str(symbol))) for symbol in found}
        self._extents = {symbol: one.extent for symbol, one in self._symbols.items()}

    @property
    def symbols(self) -> tuple[Symbol, ...]:
        """In the order of the inputs that have them."""
        return tuple(self._symbols.values())

    @property
    def by_torch_name(self) -> dict[str, int]:
        """The symbols as extents, by the names that PyTorch gives them."""
        return {str(symbol): extent for symbol, extent in self._extents.items()}

    def elsewhere(self) -> Symbols:
        """The same with other hints, where bounds and relations allow any."""
        numbers = elsewhere(self.symbols)
        return self._changed(lambda one: replace(one, hint=numbers[one.name]))

    def related(self, relations: Iterable[Relation]) -> Symbols:
        """The same with relations, each of which the last of its symbols has."""
        names = [one.name for one in self.symbols]
        of_name: dict[str, list[Relation]] = {}
        for relation in relations:
            of_name.setdefault(max(relation.symbols, key=names.index), []).append(relation)
        return self._changed(lambda one: replace(one, relations=tuple(of_name.get(one.name, ()))))

    def _changed(self, change: Callable[[Symbol], Symbol]) -> Symbols:
        other = Symbols()
        other._symbols = {symbol: change(one) for symbol, one in self._symbols.items()}
        other._extents = {symbol: one.extent for symbol, one in other._symbols.items()}
        return other

    def shape(self, sizes: Iterable[int | torch.SymInt]) -> tuple[int, ...]:
        """A shape in the IR's extents; raises IRError for a formula that it does not have."""
        return tuple(self.extent(size) for size in sizes)

    def extent(self, size: int | torch.SymInt) -> int:
        """One extent."""
        return self._formula(size.node.expr) if isinstance(size, torch.SymInt) else int(size)

    def _formula(self, formula: sympy.Basic) -> int:
        if formula in self._extents:
            return self._extents[formula]
        if getattr(formula, "is_Integer", False):
            return int(formula)
        kind = type(formula).__name__
        if kind in _FORMULAS:
            return reduce(_FORMULAS[kind], map(self._formula, formula.args))
        base, exponent = (*formula.args, None, None)[:2]
        if kind == "Pow" and getattr(exponent, "is_Integer", False) and int(exponent) > 0:
            return self._formula(base) ** int(exponent)
        raise IRError(f"an extent is {shorten(formula)}, which is not made of sums, products, quotients and remainders")


def _symbol(program: ExportedProgram | None, symbol: sympy.Symbol, name: str) -> Symbol:
    assert program is not None
    bounds = program.range_constraints[symbol]
    most = int(bounds.upper) if bounds.upper.is_Integer else None
    environment = next(size.node.shape_env for size, one in _dynamic_extents(program) if one is symbol)
    return Symbol(name, int(environment.backed_var_to_val[symbol]), max(int(bounds.lower), 1), most)


def _dynamic_extents(program: ExportedProgram) -> Iterator[tuple[torch.SymInt, sympy.Symbol]]:
    """The symbols of inputs, each with an extent that it is part of."""
    for node in program.graph.find_nodes(op="placeholder"):
        value = node.meta.get("val")
        for size in value.shape if isinstance(value, torch.Tensor) else ():
            if isinstance(size, torch.SymInt):
                yield from ((size, symbol) for symbol in sorted(size.node.expr.free_symbols, key=str))


def depends_on_data(result: object) -> bool:
    """Whether an extent, or one of a tensor's, is only known when the numbers are."""
    from torch.fx.experimental.symbolic_shapes import free_unbacked_symbols

    symbolic = isinstance(result, torch.Tensor | torch.SymInt | torch.SymBool | torch.SymFloat)
    return symbolic and bool(free_unbacked_symbols(result))


def is_extent(node: fx.Node) -> bool:
    """Whether a call computes a number from the shapes of inputs."""
    return isinstance(node.meta.get("val"), torch.SymInt | torch.SymBool | torch.SymFloat)


# What users ask for -----------------------------------------------------------------------------------------------


def with_dims(
    module: Model, args: Sequence[UserObject], kwargs: Mapping[str, UserObject], dynamic_shapes: UserObject
) -> UserObject:
    """``dynamic_shapes`` with a `torch.export.Dim` for each name that stands for one, and all the model's arguments."""
    dims: dict[str, UserObject] = {}
    if isinstance(dynamic_shapes, Mapping):
        arguments = list(_combine_args(module, tuple(args), dict(kwargs)))
        unknown = next((name for name in dynamic_shapes if name not in arguments), None)
        if unknown is not None:
            raise TersorError(f"dynamic_shapes names {shorten(repr(unknown))}; the inputs are {', '.join(arguments)}")
        dynamic_shapes = {name: dynamic_shapes.get(name) for name in arguments}

    def dim(name: UserObject) -> UserObject:
        if not isinstance(name, str):
            return name
        if not name.isidentifier():
            raise TersorError(f"{shorten(name)!r} is no name for an extent; use letters, digits and underscores")
        return dims.setdefault(name, Dim(name, min=1))

    def walk(spec: UserObject) -> UserObject:
        if isinstance(spec, dict):
            return {key: dim(one) if isinstance(key, int) else walk(one) for key, one in spec.items()}
        return type(spec)(map(walk, spec)) if type(spec) in (list, tuple) else dim(spec)

    return walk(dynamic_shapes)


def widened(
    module: torch.nn.Module, args: Sequence[UserObject], kwargs: Mapping[str, UserObject], dynamic_shapes: UserObject
) -> tuple[tuple[UserObject, ...], dict[str, UserObject]]:
    """Example inputs whose dynamic extents are 2 where they were 1, which `torch.export` takes for a constant."""
    wanted = _dims_of_leaves(module, args, kwargs, dynamic_shapes)
    leaves, tree = pytree.tree_flatten((tuple(args), dict(kwargs)))
    for index, dims in wanted.items():
        for axis in dims:
            if leaves[index].shape[axis] < _FEWEST:
                leaves[index] = torch.cat([leaves[index]] * _FEWEST, axis)
    result: tuple[tuple[UserObject, ...], dict[str, UserObject]] = pytree.tree_unflatten(leaves, tree)
    return result


def names_of(
    program: ExportedProgram,
    module: torch.nn.Module,
    args: Sequence[UserObject],
    kwargs: Mapping[str, UserObject],
    dynamic_shapes: UserObject,
) -> dict[sympy.Symbol, str]:
    """What users call PyTorch's symbols."""
    leaves = pytree.tree_leaves((tuple(args), dict(kwargs)))
    tensors = [index for index, leaf in enumerate(leaves) if isinstance(leaf, torch.Tensor)]
    values = [node.meta["val"] for node in program.graph.find_nodes(op="placeholder") if _is_user_input(program, node)]
    given = dict(zip(tensors, [value for value in values if isinstance(value, torch.Tensor)], strict=True))
    names: dict[sympy.Symbol, str] = {}
    for index, dims in _dims_of_leaves(module, args, kwargs, dynamic_shapes).items():
        for axis, dim in dims.items():
            size, root = given[index].shape[axis], getattr(dim, "root", dim)
            if isinstance(size, torch.SymInt) and len(size.node.expr.free_symbols) == 1 and hasattr(root, "__name__"):
                names[next(iter(size.node.expr.free_symbols))] = str(root.__name__)
    return names


def given_names(program: ExportedProgram, dynamic_shapes: UserObject) -> dict[sympy.Symbol, str]:
    """Names for the symbols of a program, which it has of its own, by the extents of inputs that they are.

    Raises
    ------
    TersorError
        When an extent is fixed, or computed from symbols, or when names are not one for each symbol.
    """
    values = [node.meta["val"] for node in program.graph.find_nodes(op="placeholder") if _is_user_input(program, node)]
    args, kwargs = pytree.tree_unflatten(values, program.call_spec.in_spec)
    names: dict[sympy.Symbol, str] = {}
    dims = with_dims(program, args, kwargs, dynamic_shapes)
    for index, wanted in _dims_of_leaves(program, args, kwargs, dims).items():
        shape = Symbols(program).shape(values[index].shape)
        for axis, dim in wanted.items():
            symbol = values[index].shape[axis].node.expr if isinstance(shape[axis], Extent) else None
            if symbol is None or not symbol.is_Symbol:
                raise TersorError(
                    f"dynamic_shapes calls dimension {axis} of an input of shape {list(shape)} {dim.__name__!r}, but "
                    "only an extent that the program has a symbol for can have a name; others are as they were exported"
                )
            if names.setdefault(symbol, dim.__name__) != dim.__name__:
                raise TersorError(f"dynamic_shapes calls the one extent {symbol} {names[symbol]} and {dim.__name__}")
    repeated = next((name for name, count in Counter(names.values()).items() if count > 1), None)
    if repeated is not None:
        raise TersorError(
            f"dynamic_shapes calls several extents {repeated}, which the program takes for different ones"
        )
    return names


def _is_user_input(program: ExportedProgram, node: fx.Node) -> bool:
    return node.name in program.graph_signature.user_inputs


def _dims_of_leaves(
    module: Model, args: Sequence[UserObject], kwargs: Mapping[str, UserObject], dynamic_shapes: UserObject
) -> dict[int, dict[int, UserObject]]:
    """For each tensor among the inputs, by its number among all: its dynamic dimensions, by axis."""
    places = {id(leaf): index for index, leaf in enumerate(pytree.tree_leaves((tuple(args), dict(kwargs))))}
    found: dict[int, dict[int, UserObject]] = {}

    def note(path: UserObject, leaf: UserObject, spec: UserObject) -> None:
        if not isinstance(leaf, torch.Tensor) or spec is None:
            return
        dims = spec if isinstance(spec, dict) else dict(enumerate(spec))
        wrong = next((axis for axis in dims if not 0 <= axis < leaf.ndim), None)
        if wrong is not None:
            raise TersorError(f"dynamic_shapes names dimension {wrong} of an input of shape {list(leaf.shape)}")
        found[places[id(leaf)]] = {axis: dim for axis, dim in dims.items() if dim is not None and type(dim) is not int}

    combined: UserObject = _combine_args(module, tuple(args), dict(kwargs))
    if isinstance(dynamic_shapes, tuple | list):
        combined = type(dynamic_shapes)(combined.values())
    _tree_map_with_path(note, combined, dynamic_shapes, tree_name="inputs")
    return found
