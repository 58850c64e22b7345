"""Values and ops: the nodes of the flat SSA graph.

An op is mutable and compared by identity. Its operands are a tuple, replaced as a whole through a setter that keeps the
use lists of the values right. A value knows its type, the op that makes it and its uses. Each kind of op is one
subclass, defined in one place (`tersor.ir.ops`): its operands, attributes, type rule, reference evaluation, cost and
traits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, ClassVar

from .errors import IRError
from .foreign import Instance
from .traits import ChannelFlow, Cost, Narrowing, OnIntegers, Storage
from .types import TensorType

if TYPE_CHECKING:
    import torch

    from .graph import Graph


@dataclass(frozen=True)
class Attrs:
    """Base of the frozen attribute records of ops; fields are numbers, strings, DTypes and tuples of these."""

    def items(self) -> Iterator[tuple[str, Instance]]:
        """Field names and values, in the order of definition."""
        for entry in fields(self):
            yield entry.name, getattr(self, entry.name)


@dataclass(frozen=True)
class Use:
    """One place where a value is read: operand ``index`` of an op, or output ``index`` of a graph."""

    user: Op | Graph
    index: int


class Value:
    """A tensor in a graph: an input of the graph (``op is None``) or result ``index`` of ``op``."""

    __slots__ = ("_uses", "index", "name", "op", "type")

    def __init__(self, type: TensorType, op: Op | None = None, index: int = 0, name: str = "") -> None:
        self.type = type
        self.op = op
        self.index = index
        self.name = name
        self._uses: dict[tuple[int, int], Use] = {}

    @property
    def uses(self) -> tuple[Use, ...]:
        """All places that read this value, in the order in which they were made."""
        return tuple(self._uses.values())

    @property
    def users(self) -> tuple[Op, ...]:
        """The ops that read this value, each once."""
        return tuple(dict.fromkeys(use.user for use in self._uses.values() if isinstance(use.user, Op)))

    def is_read_by(self, user: Op | Graph, index: int) -> bool:
        """Whether this value is listed as operand ``index`` of an op, or as output ``index`` of a graph."""
        return (id(user), index) in self._uses

    @property
    def is_output(self) -> bool:
        """Whether a graph returns this value."""
        return any(not isinstance(use.user, Op) for use in self._uses.values())

    @property
    def has_one_use(self) -> bool:
        """Whether exactly one place reads this value."""
        return len(self._uses) == 1

    @property
    def shape(self) -> tuple[int, ...]:
        """Logical shape."""
        return self.type.shape

    def replace_uses(self, other: Value) -> None:
        """Make every reader of this value read ``other`` instead."""
        for use in self.uses:
            use.user.set_operand(use.index, other)

    def _add_use(self, user: Op | Graph, index: int) -> None:
        self._uses[id(user), index] = Use(user, index)

    def _drop_use(self, user: Op | Graph, index: int) -> None:
        del self._uses[id(user), index]

    def __repr__(self) -> str:
        return f"%{self.name or '?'}: {self.type}"


class Operand:
    """Declares an operand of an op class, and reads it by name: ``op.weight`` instead of ``op.operands[1]``."""

    def __init__(self, *, optional: bool = False, variadic: bool = False) -> None:
        self.optional = optional
        self.variadic = variadic
        self.name = ""
        self.index = -1

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    def __get__(self, op: Op | None, owner: type) -> Any:
        if op is None:
            return self
        if self.variadic:
            return op.operands[self.index :]
        return op.operands[self.index] if self.index < len(op.operands) else None


class Op:
    """One operation. Subclasses define a kind of op: ``class ReluOp(Op, name="relu")``.

    Parameters
    ----------
    operands
        Values read, in the order of the declared operands; ``None`` stands for an optional one that is missing.
    attrs
        The attribute record; the default record if omitted.
    body
        The inner graph, for ops that hold one (`FusedOp`).
    location
        Module path in the PyTorch model, for example ``"layer1.0.conv1"``.
    rule
        Name of the rewrite that made this op; empty for ops from the frontend.
    """

    name: ClassVar[str] = ""
    attrs_type: ClassVar[type[Attrs]] = Attrs
    signature: ClassVar[tuple[Operand, ...]] = ()
    # Traits: what passes and targets ask instead of names. An op that does not say is treated with the most care.
    elementwise: ClassVar[bool] = False  # result[i] depends on the operands at i only, after broadcasting
    whole_operands: ClassVar[tuple[int, ...]] = ()  # of an elementwise op: tables, which each element may read all of
    linear: ClassVar[bool] = False  # linear in the first operand, the others being fixed
    view: ClassVar[bool] = False  # plain row-major result has the operand's elements in the same order
    strided: ClassVar[bool] = False  # the result is elements of the operand, through other strides: `strided_view`
    keeps_numbers: ClassVar[bool] = False  # the result holds every number of operand 0 and no other, in any order
    leads_group: ClassVar[bool] = False  # its kernel takes the elementwise ops behind it along
    always_finite: ClassVar[bool] = False  # makes finite numbers of small ones, zero included: `keeps_finite`
    any_image_order: ClassVar[bool] = False  # works on images with their channels last as well, see the CUDA lowering
    default_narrowing: ClassVar[Narrowing] = Narrowing.NEVER  # see `narrowing`
    wide_operands: ClassVar[int | None] = None  # operands from this one on stay float32 when the op is made narrow
    channels: ClassVar[ChannelFlow] = ChannelFlow.OTHER
    channel_axis: ClassVar[int] = 1  # dimension of the result along which an op that makes channels puts them
    absorbing: ClassVar[tuple[int, ...]] = ()  # operands of which zeros make zeros of the result, where they stay apart
    default_storage: ClassVar[Storage] = Storage.PLAIN  # layout that its kernels work on; see `storage`
    on_integers: ClassVar[OnIntegers] = OnIntegers.NOTHING

    reads_narrow_plain: ClassVar[bool] = False  # a blocked op that reads operand 0 row-major if narrower than a block

    kinds: ClassVar[dict[str, type[Op]]] = {}  # every kind of op by name

    def __init_subclass__(cls, *, name: str = "", attrs: type[Attrs] | None = None, **kwargs: object) -> None:
        super().__init_subclass__(**kwargs)
        declared = tuple(entry for entry in vars(cls).values() if isinstance(entry, Operand))
        for index, operand in enumerate(declared, start=len(cls.signature)):
            operand.index = index
        cls.signature += declared
        if attrs is not None:
            cls.attrs_type = attrs
        if name:
            if name in Op.kinds:
                raise ValueError(f"op {name!r} is defined twice")
            cls.name = name
            Op.kinds[name] = cls

    def __init__(
        self,
        operands: Sequence[Value | None] = (),
        attrs: Attrs | None = None,
        *,
        body: Graph | None = None,
        location: str = "",
        rule: str = "",
    ) -> None:
        self.attrs: Any = attrs if attrs is not None else self.attrs_type()
        self.body = body
        self.location = location
        self.rule = rule
        self.graph: Graph | None = None
        self._operands: tuple[Value | None, ...] = ()
        self.results: tuple[Value, ...] = ()
        self.operands = tuple(operands)
        try:
            self._check_operands()
            types = self.infer_types()
        except BaseException:
            self.operands = ()
            raise
        self.results = tuple(Value(type, self, index) for index, type in enumerate(types))

    # Operands -------------------------------------------------------------------------------------------------

    @property
    def operands(self) -> tuple[Value | None, ...]:
        """The values read; assign a new tuple to change them."""
        return self._operands

    @operands.setter
    def operands(self, operands: tuple[Value | None, ...]) -> None:
        for index, value in enumerate(self._operands):
            if value is not None:
                value._drop_use(self, index)
        self._operands = tuple(operands)
        for index, value in enumerate(self._operands):
            if value is not None:
                value._add_use(self, index)

    def set_operand(self, index: int, value: Value | None) -> None:
        """Replace one operand."""
        self.operands = (*self._operands[:index], value, *self._operands[index + 1 :])

    @property
    def inputs(self) -> tuple[Value, ...]:
        """The operands that are present."""
        return tuple(value for value in self._operands if value is not None)

    @property
    def result(self) -> Value:
        """The only result; raises IRError if there are several."""
        if len(self.results) != 1:
            raise IRError(f"{self.describe()} has {len(self.results)} results, not one")
        return self.results[0]

    def _check_operands(self) -> None:
        variadic = bool(self.signature) and self.signature[-1].variadic
        required = sum(not (operand.optional or operand.variadic) for operand in self.signature)
        if len(self._operands) < required or (len(self._operands) > len(self.signature) and not variadic):
            raise self.error(f"takes {required} to {len(self.signature)} operands, got {len(self._operands)}")
        for index, value in enumerate(self._operands):
            operand = self.signature[min(index, len(self.signature) - 1)]  # a variadic one stands for all the rest
            if value is None and not operand.optional:
                raise self.error(f"operand {operand.name!r} is missing")

    # What a kind of op defines --------------------------------------------------------------------------------

    def infer_types(self) -> tuple[TensorType, ...]:
        """Types of the results, in plain layout; raises IRError (through ``self.error``) if the operands do not fit."""
        raise NotImplementedError

    def evaluate(self, *operands: torch.Tensor | None) -> torch.Tensor | tuple[torch.Tensor, ...]:
        """Reference semantics on CPU tensors, one argument per operand (``None`` where missing)."""
        raise NotImplementedError

    @property
    def storage(self) -> Storage:
        """Layout that this op's kernels work on; overridden where it depends on attributes or shapes."""
        return self.default_storage

    @property
    def narrowing(self) -> Narrowing:
        """Whether it may compute in 16 bits; overridden where it depends on attributes."""
        return self.default_narrowing

    @property
    def keeps_finite(self) -> bool:
        """Whether it makes no NaN or infinity of small finite numbers; overridden where it depends on attributes."""
        return self.always_finite

    def strided_view(self, x: torch.Tensor) -> torch.Tensor:
        """For `strided` ops: the result as a view of ``x``; raises RuntimeError where no strides express it."""
        raise NotImplementedError

    def apart(self, index: int, axis: int) -> int | None:
        """Along which axis of the results operand ``index``'s slices along ``axis`` stay apart; None if they may mix.

        If each slice were computed by itself, with as many slices of the other operands where they have them, the
        results would be slices of these. A reshape may join some to one slice or divide them. Overridden by ops that
        are not elementwise.
        """
        operand = self._operands[index]
        if not self.elementwise or operand is None or index in self.whole_operands:
            return None
        return axis + self.results[0].type.rank - operand.type.rank

    @property
    def channel_groups(self) -> int:
        """Groups of channels that an op which makes channels keeps apart; overridden by grouped convolution."""
        return 1

    def macs(self) -> int:
        """Multiply-adds of one execution."""
        return 0

    def cost(self) -> Cost:
        """Arithmetic and memory traffic of one execution, each operand read once and each result written once."""
        read = sum(value.type.bytes for value in dict.fromkeys(self.inputs))
        written = sum(value.type.bytes for value in self.results)
        return Cost(self.macs(), 0 if self.view else read + written)

    # Text -----------------------------------------------------------------------------------------------------

    def describe(self) -> str:
        """Name and location, for messages."""
        return f"{self.name or type(self).__name__} at {self.location!r}" if self.location else self.name

    def error(self, message: str) -> IRError:
        """An IRError that names this op and its location."""
        return IRError(f"{self.describe()}: {message}")

    def __repr__(self) -> str:
        operands = ", ".join("_" if value is None else repr(value) for value in self._operands)
        return f"<{self.describe()}({operands}) -> {', '.join(map(repr, self.results))}>"


class FunctionOp(Op):
    """Base of ops that a function of tensors computes, which the class statement names: ``function=torch.add``."""

    function: ClassVar[Callable[..., torch.Tensor]]

    def __init_subclass__(cls, *, function: Callable[..., torch.Tensor] | None = None, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if function is not None:
            cls.function = function
