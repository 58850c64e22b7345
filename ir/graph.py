"""A graph: inputs, ops in topological order, outputs, and the weights that its ops name."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from .core import Op, Value
from .errors import IRError, TersorError
from .extents import Symbol
from .foreign import Array, UserObject
from .structure import Structure
from .traits import Cost
from .types import TensorType
from .weights import WeightStore

if TYPE_CHECKING:
    import torch


class Graph:
    """A typed SSA graph.

    Parameters
    ----------
    name
        Shown in text; by convention the class of the model in lower case.
    inputs
        Pairs of name and type, one per input.
    weights
        Tensors that the graph's `WeightOp`s name; a fresh store if omitted.

    Attributes
    ----------
    states
        Ids of the weights that the last inputs begin as, for a model that updates buffers: as many of the last outputs
        are their values after a call. Most graphs have none.
    symbols
        The extents of inputs that a call chooses, for a graph of several shapes; `tersor.ir.bind` makes one of fixed
        shapes of it. Most graphs have none.
    structure
        How the model is called and what it returns around the graph's flat tensors; None if these are all there is.
    """

    _write_onnx: ClassVar[Callable[[Graph, str | Path], None] | None] = None
    _to_module: ClassVar[Callable[[Graph, str], torch.nn.Module] | None] = None

    def __init__(
        self, name: str = "graph", inputs: Sequence[tuple[str, TensorType]] = (), weights: WeightStore | None = None
    ) -> None:
        self.name = name
        self.inputs: tuple[Value, ...] = tuple(
            Value(type, None, index, name) for index, (name, type) in enumerate(inputs)
        )
        self.weights = weights if weights is not None else WeightStore()
        self.states: tuple[str, ...] = ()
        self.symbols: tuple[Symbol, ...] = ()
        self.structure: Structure | None = None
        # Ops in a ring of links, with None between the last and the first: an op is put in or taken out at one step.
        self._next: dict[Op | None, Op | None] = {None: None}
        self._previous: dict[Op | None, Op | None] = {None: None}
        self._snapshot: tuple[Op, ...] | None = ()
        self._outputs: tuple[Value, ...] = ()

    # Ops ------------------------------------------------------------------------------------------------------

    @property
    def ops(self) -> tuple[Op, ...]:
        """All ops in execution order; a snapshot, safe to iterate while the graph changes."""
        if self._snapshot is None:
            self._snapshot = tuple(self._walk())
        return self._snapshot

    def _walk(self) -> Iterator[Op]:
        op = self._next[None]
        while op is not None:
            yield op
            op = self._next[op]

    def __iter__(self) -> Iterator[Op]:
        return iter(self.ops)

    def __len__(self) -> int:
        return len(self._next) - 1

    def append(self, op: Op) -> Op:
        """Add ``op`` at the end and return it."""
        return self.insert(op, before=None)

    def insert(self, op: Op, *, before: Op | None) -> Op:
        """Add ``op`` right before another one, or at the end, and return it."""
        if op.graph is not None:
            raise IRError(f"{op.describe()} is already in graph {op.graph.name!r}")
        self._link(self._previous[before], op)
        self._link(op, before)
        op.graph = self
        return op

    def _link(self, op: Op | None, following: Op | None) -> None:
        self._next[op], self._previous[following] = following, op
        self._snapshot = None

    def following(self, op: Op) -> Op | None:
        """The op that is executed next; None for the last one."""
        return self._next[op]

    def remove(self, op: Op) -> None:
        """Take ``op`` out; raises IRError when a result is still read."""
        if any(result.uses for result in op.results):
            raise IRError(f"{op.describe()} cannot be removed: its result is still read")
        self._link(self._previous.pop(op), self._next.pop(op))
        op.operands = ()
        op.graph = None

    def reorder(self, ops: Sequence[Op]) -> None:
        """Set the execution order; ``ops`` must be a permutation of the graph's ops."""
        if len(ops) != len(self) or set(ops) != set(self.ops):
            raise IRError("reorder needs a permutation of the graph's ops")
        for op, following in pairwise((None, *ops, None)):
            self._link(op, following)

    # Outputs --------------------------------------------------------------------------------------------------

    @property
    def outputs(self) -> tuple[Value, ...]:
        """The values returned; assign a new tuple to change them."""
        return self._outputs

    @outputs.setter
    def outputs(self, outputs: Sequence[Value]) -> None:
        for index, value in enumerate(self._outputs):
            value._drop_use(self, index)
        self._outputs = tuple(outputs)
        for index, value in enumerate(self._outputs):
            value._add_use(self, index)

    def set_operand(self, index: int, value: Value) -> None:
        """Replace output ``index``; named as in `Op`, so that a `Use` need not know who its user is."""
        self.outputs = (*self._outputs[:index], value, *self._outputs[index + 1 :])

    # State ----------------------------------------------------------------------------------------------------

    @property
    def user_inputs(self) -> tuple[Value, ...]:
        """The inputs that a call gives: all but state."""
        return self.inputs[: len(self.inputs) - len(self.states)]

    @property
    def user_outputs(self) -> tuple[Value, ...]:
        """The outputs that a call returns: all but new state."""
        return self._outputs[: len(self._outputs) - len(self.states)]

    def with_state(self, inputs: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
        """``inputs`` for all of the graph's inputs: state that is not given has its initial value."""
        missing = self.states if len(inputs) == len(self.user_inputs) else ()
        return *inputs, *(self.weights[id] for id in missing)

    def returned(self, outputs: Sequence[Array]) -> UserObject:
        """What a call returns, made of the graph's outputs; new state at their end is left out."""
        outputs = outputs[: len(self.user_outputs)]
        if self.structure is not None:
            return self.structure.with_classes().result.build(iter(outputs))
        return outputs[0] if len(outputs) == 1 else tuple(outputs)

    def forget_unused_weights(self) -> None:
        """Drop the weights that neither an op nor a state names."""
        self.weights.keep([*self.states, *(op.attrs.id for op in self.ops if op.name == "weight")])

    # Whole graph ----------------------------------------------------------------------------------------------

    @property
    def parts(self) -> tuple[Graph, ...]:
        """The graph itself, and the bodies of its fused ops."""
        return self, *(op.body for op in self.ops if op.body is not None)

    def cost(self) -> Cost:
        """Sum of the costs of all ops."""
        return sum((op.cost() for op in self.ops), Cost())

    def clone(self) -> Graph:
        """A copy with ops of its own; weights are shared."""
        copy, _ = self.clone_with_map()
        return copy

    def clone_with_map(self) -> tuple[Graph, dict[Value, Value]]:
        """`clone`, together with the map from this graph's values to the copy's."""
        copy = Graph(self.name, [(value.name, value.type) for value in self.inputs], self.weights.copy())
        mapping: dict[Value, Value] = dict(zip(self.inputs, copy.inputs, strict=True))
        for op in self.ops:
            copy.append(clone_op(op, mapping))
        copy.outputs = tuple(mapping[value] for value in self._outputs)
        copy.states, copy.symbols, copy.structure = self.states, self.symbols, self.structure
        return copy, mapping

    def evaluate(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Run the reference interpreter on CPU tensors; returns one tensor per output.

        Inputs and outputs are flat, whatever ``structure`` says. State may be left out of the inputs: then it has its
        initial value. The outputs end with the new state.
        """
        from .interpreter import evaluate

        return evaluate(self, inputs)

    def to_torch(self, quantizer: str = "lsq") -> torch.nn.Module:
        """A trainable module with the same numbers; what makes it is registered by `tersor.frontend`.

        Parameters
        ----------
        quantizer
            How the step sizes of activations learn, where the graph has calibrated notes: ``lsq`` or ``pact``
            (`tersor.training`). Other graphs have none.

        Raises
        ------
        TersorError
            When neither ``tersor.ir`` was reached through ``import tersor`` nor ``tersor.frontend`` imported.
        """
        if Graph._to_module is None:
            raise TersorError("nothing makes modules of graphs yet: import tersor.frontend first")
        return Graph._to_module(self, quantizer)

    def to_onnx(self, path: str | Path) -> None:
        """Write an ONNX file with the same numbers (`tersor.frontend.to_onnx`, which is registered by that folder).

        Raises
        ------
        TersorError
            Listing all ops that cannot be written; or when ``tersor.frontend`` is not imported.
        """
        if Graph._write_onnx is None:
            raise TersorError("nothing writes ONNX files of graphs yet: import tersor.frontend first")
        Graph._write_onnx(self, path)

    @classmethod
    def register_to_onnx(cls, write: Callable[[Graph, str | Path], None]) -> None:
        """Say what `to_onnx` calls."""
        cls._write_onnx = staticmethod(write)

    @classmethod
    def register_to_torch(cls, make: Callable[[Graph, str], torch.nn.Module]) -> None:
        """Say what `to_torch` calls."""
        cls._to_module = staticmethod(make)

    def __str__(self) -> str:
        from .printer import print_graph

        return print_graph(self)

    def __repr__(self) -> str:
        return f"<Graph {self.name!r}: {len(self.inputs)} inputs, {len(self)} ops, {len(self._outputs)} outputs>"


def clone_op(op: Op, mapping: dict[Value, Value]) -> Op:
    """Copy one op with its operands taken from ``mapping``, and add its results to ``mapping``."""
    copy = type(op)(
        tuple(None if value is None else mapping[value] for value in op.operands),
        op.attrs,
        body=op.body.clone() if op.body is not None else None,
        location=op.location,
        rule=op.rule,
    )
    for old, new in zip(op.results, copy.results, strict=True):
        new.name = old.name
        new.type = old.type
        mapping[old] = new
    return copy
