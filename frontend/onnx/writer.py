"""The table of ops that can be written as ONNX, and what their writers work with."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

import torch

from ...ir import DType, Graph, Op, Value, name_of
from ...ir.ops import FullOp, FusedOp, WeightOp
from ..registry import Inexpressible
from .known import DTYPES

if TYPE_CHECKING:
    import onnx

CODES = {dtype: code for code, dtype in DTYPES.items()}

Written = str | tuple[str, ...] | None  # the names of an op's results; None where its only reader writes it
OpWriter = Callable[["Writer", Any], Written]
OpWriterT = TypeVar("OpWriterT", bound=OpWriter)

WRITERS: dict[type[Op], OpWriter] = {}


def writes(*kinds: type[Op]) -> Callable[[OpWriterT], OpWriterT]:
    """Register a function as the writer of ops.

    It is called with the `Writer` and the op, appends nodes, and returns the name of the result. It raises
    `Inexpressible` with the reason for what ONNX cannot say.
    """

    def register(function: OpWriterT) -> OpWriterT:
        for kind in kinds:
            if kind in WRITERS:
                raise ValueError(f"{kind.__name__} is written twice")
            WRITERS[kind] = function
        return function

    return register


class Writer:
    """Appends nodes for the ops of a graph.

    Attributes
    ----------
    nodes
        In execution order.
    """

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self._tensors: dict[str, torch.Tensor] = {}
        self._names: dict[Value, str] = {}
        self._made_of: dict[Value, Value] = {}  # what inputs of the bodies of groups are bound to
        self._location = ""

    # Values ---------------------------------------------------------------------------------------------------

    def bind(self, value: Value, name: str) -> None:
        """Say what an input, or a result, is called in the file."""
        self._names[value] = name

    def origin(self, value: Value) -> Value:
        """What ``value`` is outside of the groups that it is an input of."""
        while value in self._made_of:
            value = self._made_of[value]
        return value

    def known(self, value: Value | None) -> torch.Tensor | None:
        """The numbers of a constant; None for anything else."""
        op = None if value is None else self.origin(value).op
        if isinstance(op, WeightOp) or (isinstance(op, FullOp) and op.known):
            return op.evaluate()
        return None

    def name(self, value: Value) -> str:
        """What ``value`` is called; a constant becomes a tensor of the file where it is read first."""
        value = self.origin(value)
        if value not in self._names:
            numbers = self.known(value)
            if numbers is None:
                raise Inexpressible("it reads what could not be written")
            hint = name_of(value.op.attrs.id) if isinstance(value.op, WeightOp) else "number"
            self._names[value] = self.tensor(numbers, hint)
        return self._names[value]

    def tensor(self, numbers: torch.Tensor, hint: str) -> str:
        """A tensor of the file; the same one for the same numbers under the same name."""
        name, count = hint, 0
        while name in self._tensors and not _same(self._tensors[name], numbers):
            count += 1
            name = f"{hint}_{count}"
        self._tensors[name] = numbers.detach()
        return name

    def number(self, number: float | int | bool, dtype: torch.dtype) -> str:
        """A single number of the file."""
        return self.tensor(torch.tensor(number, dtype=dtype), "number")

    def numbers(self, numbers: Sequence[int]) -> str:
        """Extents, axes and the like, which ONNX wants as i64."""
        return self.tensor(torch.tensor([int(one) for one in numbers], dtype=torch.int64), "numbers")

    @property
    def tensors(self) -> dict[str, torch.Tensor]:
        """All constants that nodes read."""
        return self._tensors

    # Nodes ----------------------------------------------------------------------------------------------------

    def node(self, kind: str, *inputs: str, **attributes: Any) -> str:
        """Append a node with one result; returns its name. Trailing inputs that are empty are left out."""
        from onnx import helper

        given = list(inputs)
        while given and not given[-1]:
            given.pop()
        label = f"{self._location}/{kind}_{len(self.nodes)}".lstrip("/")
        self.nodes.append(helper.make_node(kind, given, [f"{label}_output"], label, **attributes))
        return f"{label}_output"

    def cast(self, name: str, dtype: DType) -> str:
        """The tensor in another element type."""
        return self.node("Cast", name, to=CODES[dtype.torch])

    # Ops ------------------------------------------------------------------------------------------------------

    def write(self, graph: Graph) -> list[str]:
        """Append nodes for all ops; returns what could not be written, and why."""
        problems = []
        for op in graph.ops:
            if isinstance(op, WeightOp | FullOp) and self.known(op.result) is not None:
                continue
            if isinstance(op, FusedOp):
                problems += self._write_body(op)
                continue
            try:
                with self._at(op):
                    written = WRITERS[type(op)](self, op)
            except Inexpressible as reason:
                problems.append(f"{op.name}{f' at {op.location}' if op.location else ''}: {reason}")
                written = tuple("" for _ in op.results)
            names = (written,) if isinstance(written, str) else written or ()
            for result, name in zip(op.results, names, strict=False):
                self.bind(result, name)
        return problems

    def _write_body(self, op: FusedOp) -> list[str]:
        body = op.body
        assert body is not None  # guaranteed by infer_types
        self._made_of.update(zip(body.inputs, op.inputs, strict=True))
        problems = self.write(body)
        self._made_of.update(zip(op.results, body.outputs, strict=True))
        return problems

    @contextmanager
    def _at(self, op: Op) -> Iterator[None]:
        self._location = op.location
        yield


def _same(one: torch.Tensor, other: torch.Tensor) -> bool:
    return one is other or (one.dtype is other.dtype and one.shape == other.shape and torch.equal(one, other))
