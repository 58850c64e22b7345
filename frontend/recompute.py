"""A program from a file, computed again on shapes: what the file says about types is true, or it is refused.

PyTorch has built it with the shapes of the example. Where inputs vary, they get symbols here, and every result gets the
extents that PyTorch's own rules give for these symbols. So no formula of an intermediate result is taken from a file.
"""

from __future__ import annotations

from collections.abc import Sequence
from operator import getitem

import sympy  # type: ignore[import-untyped]
import torch
from torch import fx
from torch._dispatch.python import enable_python_dispatcher
from torch._ops import OpOverload
from torch._subclasses import FakeTensor, FakeTensorMode
from torch.export import ExportedProgram
from torch.fx.experimental.symbolic_shapes import ShapeEnv
from torch.utils._pytree import tree_leaves, tree_map_only
from torch.utils._sympy.numbers import int_oo
from torch.utils._sympy.value_ranges import ValueRanges

from ..ir import TersorError, check_memory, shorten
from ..ir.foreign import UserObject
from .conditions import CONDITIONS
from .file_extents import DynamicInputs, Formula, evaluate
from .program_json import AGAIN

Layout = tuple[list[int | torch.SymInt], list[int | torch.SymInt]]  # sizes and strides

_REGION = torch.ops.higher_order.wrap_with_set_grad_enabled
_FEWEST = 2  # `torch.export` traces as if no dynamic extent were less


def recompute(program: ExportedProgram, dynamic: DynamicInputs | None) -> None:
    """Compute all calls on shapes; where inputs are dynamic, give all values of the program extents with symbols.

    Raises
    ------
    TersorError
        When the file says something else about a type, or the program fits the shapes of the example only.
    """
    placeholders = program.graph.find_nodes(op="placeholder")
    declared = [node.meta["val"] for node in placeholders]
    _check_given(program, placeholders)
    check_memory(sum(value.nbytes for value in declared if isinstance(value, torch.Tensor)), "its inputs and weights")
    if dynamic is None:
        mode = next((value.fake_mode for value in declared if isinstance(value, FakeTensor)), None)
        with mode or FakeTensorMode(), torch.no_grad():
            _Recomputation(program.graph_module).run(*(_fresh(value) for value in declared))
        return
    symbols = _FreshSymbols(dynamic)
    mode = FakeTensorMode(shape_env=symbols.environment, allow_non_fake_inputs=True)
    with mode, enable_python_dispatcher(), torch.no_grad():  # some kernels take symbols in Python only
        inputs = [_fresh(value, symbols.layout(node.name)) for node, value in zip(placeholders, declared, strict=True)]
        _Recomputation(program.graph_module, keep=True).run(*inputs)
    program._range_constraints = symbols.ranges()
    program.graph_module.meta[CONDITIONS] = dynamic.conditions


class _FreshSymbols:
    """PyTorch's symbols for the inputs of a program, of our own making."""

    def __init__(self, dynamic: DynamicInputs) -> None:
        self.dynamic = dynamic
        self.environment = ShapeEnv()
        self.hints = {name: told.hint for name, told in dynamic.symbols.items()}
        self.symbols = {name: sympy.Symbol(name, positive=True, integer=True) for name in dynamic.symbols}
        for name, symbol in self.symbols.items():
            told = dynamic.symbols[name]
            self.environment.add_backed_var_to_val(symbol, told.hint)
            self.environment.constrain_symbol_range(symbol, max(told.least, _FEWEST), _limit(told.most))

    def layout(self, name: str) -> Layout | None:
        """Sizes and strides of an input; None if they are fixed."""
        if name not in self.dynamic.layouts:
            return None
        sizes, strides = self.dynamic.layouts[name]
        return [*map(self._extent, sizes)], [*map(self._extent, strides)]

    def _extent(self, formula: Formula) -> int | torch.SymInt:
        extent = evaluate(formula, self.symbols)
        if isinstance(extent, int):
            return extent
        return self.environment.create_symintnode(extent, hint=evaluate(formula, self.hints))

    def ranges(self) -> dict[sympy.Symbol, ValueRanges]:
        """The bounds that the file gives; raises TersorError where calls fit the shapes of the example only."""
        elsewhere = {self.symbols[name]: told.elsewhere().hint for name, told in self.dynamic.symbols.items()}
        for guard in self.environment.guards:
            if guard.expr.subs(elsewhere) == sympy.false:
                raise TersorError(f"has calls that are right only where {shorten(guard.expr)}; {AGAIN}")
        told = self.dynamic.symbols
        return {symbol: ValueRanges(told[name].least, _limit(told[name].most)) for name, symbol in self.symbols.items()}


def _limit(most: int | None) -> int:
    return int_oo if most is None else most


class _Recomputation(fx.Interpreter):
    """Runs a program on tensors without numbers, and compares types with those that it declares.

    With ``keep``, what is computed takes the place of what was declared.
    """

    def __init__(self, module: fx.GraphModule, keep: bool = False) -> None:
        super().__init__(module)
        self.extra_traceback = False  # which would follow in a message
        self.keep = keep

    def run_node(self, node: fx.Node) -> UserObject:
        result = super().run_node(node)
        if node.op != "get_attr":  # of a region, which is no value
            _compare(node, result)
            if self.keep:
                node.meta["val"] = tree_map_only(torch.Tensor, torch.Tensor.detach, result)
        return result

    def call_function(
        self, target: fx.node.Target, args: tuple[UserObject, ...], kwargs: dict[str, UserObject]
    ) -> UserObject:
        if target is _REGION:
            return _Recomputation(args[1], self.keep).run(*args[2:])
        if not isinstance(target, OpOverload) and target is not getitem and not all(map(_is_number, args)):
            raise TersorError(f"computes an extent from something else; {AGAIN}")
        return super().call_function(target, args, kwargs)


def _is_number(value: UserObject) -> bool:
    return isinstance(value, int | torch.SymInt)


def _check_given(program: ExportedProgram, placeholders: Sequence[fx.Node]) -> None:
    """Raise TersorError where a weight or an example input is not what the program declares."""
    sources = iter(tree_leaves(program.example_inputs or ()))
    for node, spec in zip(placeholders, program.graph_signature.input_specs, strict=True):
        given = next(sources, node.meta["val"]) if spec.target is None else program.state_dict.get(spec.target)
        given = program.constants[spec.target] if given is None and spec.target is not None else given
        _compare(node, given)


def _fresh(value: UserObject, layout: Layout | None = None) -> UserObject:
    """A tensor of the same type, which calls may write to; of another layout, if that is given."""
    if not isinstance(value, torch.Tensor):
        return value
    return torch.empty_strided(*(layout or (value.shape, value.stride())), dtype=value.dtype)


def _compare(node: fx.Node, computed: UserObject) -> None:
    declared = [_type(value) for value in tree_leaves(node.meta.get("val"))]
    if declared != [_type(value) for value in tree_leaves(computed)]:
        raise TersorError(f"declares a type for {node.name!r} that it does not have; {AGAIN}")


def _type(value: UserObject) -> UserObject:
    """What is compared, with extents of the example for those that vary."""
    if isinstance(value, torch.Tensor):
        return value.dtype, tuple(map(_type, value.shape))
    return value.node.hint if isinstance(value, torch.SymInt) else value
