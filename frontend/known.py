"""Numbers that depend on no input: while `torch.export` traces a model, they may decide what the model does.

`torch.export` traces with tensors that have no numbers. So it refuses ``if mask.any():`` and ``ones.nonzero()`` even
where the mask is made of constants, or of buffers that nothing writes to. Here such tensors have twins with numbers.
What PyTorch computes from twins alone has a twin again. A function whose result needs numbers gets the twins, and its
result enters the program as a constant.

Views of twins share memory as the tensors do, so writes reach all of them. Twins are given up where something unknown
is written into them, or random numbers are drawn. A buffer that the model writes to has other numbers in the next call,
so it must not decide anything.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, MutableMapping, Sequence
from contextlib import contextmanager

import torch
from torch import nn
from torch._ops import OpOverload
from torch._subclasses import FakeTensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves, tree_map, tree_map_only
from torch.utils.weak import WeakIdKeyDictionary

from ..ir import TersorError
from ..ir.foreign import UserObject

_LIMIT = 1 << 20  # elements of a twin; what decides is small

# By name, since each is a method and a function. Those that make a tensor of no other one:
_MADE = frozenset({"arange", "as_tensor", "eye", "full", "linspace", "ones", "scalar_tensor", "tensor", "zeros"})
# Those that take nothing but shape and element type from a tensor:
_ALIKE = frozenset({"full_like", "new_full", "new_ones", "new_zeros", "ones_like", "zeros_like"})
# Those with results that a tensor without numbers does not tell: Python's numbers, and tensors of unknown extents.
_DECIDING = frozenset(
    {
        *("__array__", "__bool__", "__contains__", "__float__", "__index__", "__int__"),
        *("allclose", "equal", "is_nonzero", "item", "numpy", "tolist"),
        *("argwhere", "bincount", "masked_select", "nonzero", "unique", "unique_consecutive"),
    }
)
# Those that take extents and positions, which may be given as tensors:
_MEASURED = frozenset(
    {
        *("arange", "expand", "full", "narrow", "new_full", "new_ones", "new_zeros", "ones", "pad", "repeat"),
        *("reshape", "roll", "select", "split", "tile", "view", "zeros"),
    }
)

Call = tuple[Sequence[UserObject], Mapping[str, UserObject]]


@contextmanager
def known_numbers(module: nn.Module) -> Iterator[None]:
    """Let what depends on no input decide, while ``module`` is called by `torch.export`.

    Raises
    ------
    TersorError
        When a buffer decides that the model writes to.
    """
    numbers = {
        name: buffer.detach()
        for name, buffer in module.named_buffers()
        if buffer.numel() <= _LIMIT and buffer.layout is torch.strided and buffer.device.type == "cpu"
    }
    twins = Twins()

    def begin(root: nn.Module, args: UserObject, kwargs: UserObject) -> None:
        twins.begin(dict(root.named_buffers()), numbers)

    def end(root: nn.Module, args: UserObject, outputs: UserObject) -> None:
        twins.end(dict(root.named_buffers()))

    handles = [module.register_forward_pre_hook(begin, with_kwargs=True), module.register_forward_hook(end)]
    try:
        with twins:
            yield
    finally:
        for handle in handles:
            handle.remove()


class Twins(TorchFunctionMode):
    """Computes what depends on no input beside the tensors without numbers that stand for it."""

    def __init__(self) -> None:
        super().__init__()
        self.begin({}, {})
        self._running = False  # within the model

    def begin(self, buffers: Mapping[str, torch.Tensor], numbers: Mapping[str, torch.Tensor]) -> None:
        """Forget all twins but those of buffers; this is where the model is called."""
        self._twins: MutableMapping[torch.Tensor, torch.Tensor] = WeakIdKeyDictionary()
        self._sources: dict[int, set[str]] = {}  # names of buffers, by the memory that was computed from them
        self._alive: list[torch.Tensor] = []  # so that no memory is used again
        self._lost: set[int] = set()  # memory
        self._buffers = {name: (buffer, buffer._version) for name, buffer in buffers.items()}
        self._deciding: set[str] = set()  # names of buffers
        for name, buffer in buffers.items():
            if name in numbers and isinstance(buffer, FakeTensor):
                with _with_numbers():
                    twin = numbers[name].clone()
                self._link(buffer, twin, {name})
        self._running = True

    def end(self, buffers: Mapping[str, torch.Tensor]) -> None:
        """End there; raise TersorError if a buffer decided something and was written to."""
        self._running = False
        for name in sorted(self._deciding):
            before, version = self._buffers[name]
            if buffers.get(name) is not before or before._version != version:
                raise TersorError(
                    f"the model decides by the numbers of its buffer {name!r}, which it also writes to: the decision "
                    "would be another one in the next call; compute both ways, and choose with torch.where"
                )

    def __torch_function__(
        self,
        func: Callable[..., UserObject],
        types: UserObject,
        args: Sequence[UserObject] = (),
        kwargs: Mapping[str, UserObject] | None = None,
    ) -> UserObject:
        name = getattr(func, "__name__", "")
        if self._running and getattr(func, "__self__", None) is torch.Tensor.data:
            func, name = torch.Tensor.detach, "detach"  # the same, but PyTorch traces it
        if not self._running or name == "__get__":
            return func(*args, **(kwargs or {}))
        args, kwargs = self._with_extents(name, args, kwargs or {})
        call = self._call_of_twins(name, args, kwargs)
        if call is not None and (name in _DECIDING or (name == "where" and len(args) + len(kwargs) == 1)):
            return self._decide(func, call)
        before = {one: one._version for one in _tensors((args, kwargs))}
        result = func(*args, **kwargs)
        made = _tensors(result)
        written = [one for one, version in before.items() if one._version != version]
        computed = None
        if call is not None and (made or written) and sum(map(_size, made)) <= _LIMIT:
            computed = self._compute(func, call)
        if computed is None:
            self._lost |= {_memory(self._twins[one]) for one in written if one in self._twins}
        else:
            for one, twin in zip(made, computed, strict=True):
                self._link(one, twin, self._sources[_memory(twin)])
        return result

    # Twins ----------------------------------------------------------------------------------------------------

    def _twin(self, tensor: torch.Tensor) -> torch.Tensor | None:
        twin = self._twins.get(tensor)
        return None if twin is None or _memory(twin) in self._lost else twin

    def _link(self, tensor: torch.Tensor, twin: torch.Tensor, sources: set[str]) -> None:
        self._sources.setdefault(_memory(twin), set()).update(sources)
        if isinstance(tensor, FakeTensor):
            self._twins[tensor] = twin
            self._alive.append(twin)

    def _call_of_twins(self, name: str, args: Sequence[UserObject], kwargs: Mapping[str, UserObject]) -> Call | None:
        """A call with twins in place of tensors; None if there is something that has no twin."""
        leaves = tree_leaves((args, kwargs))
        if any(isinstance(one, torch.SymInt | torch.SymBool | torch.SymFloat) for one in leaves):
            return None
        tensors = _tensors(leaves)
        if not tensors:
            return (args, kwargs) if name in _MADE else None
        swapped = {}
        for index, tensor in enumerate(tensors):
            twin = self._twin(tensor)
            if twin is None and name in _ALIKE and index == 0 and _size(tensor) <= _LIMIT:
                with _with_numbers():
                    twin = torch.empty((), dtype=tensor.dtype).expand(tensor.shape)
            if twin is None and not isinstance(tensor, FakeTensor) and _size(tensor) <= _LIMIT:
                twin = tensor
            if twin is None:
                return None
            swapped[id(tensor)] = twin
        return tree_map_only(torch.Tensor, lambda one: swapped[id(one)], (args, kwargs))

    def _compute(self, func: Callable[..., UserObject], call: Call) -> list[torch.Tensor] | None:
        """The tensors that a call of twins gives; None, and what was to be written is lost, if it draws numbers."""
        before = {one: one._version for one in _tensors(call)}
        sources = set().union(*(self._sources.get(_memory(one), ()) for one in before))
        args, kwargs = call
        with _with_numbers():
            try:
                with _Deterministic():
                    result = func(*args, **kwargs)
            except _RandomError:
                return None
            made = _tensors(result)
        for one in (*made, *(one for one, version in before.items() if one._version != version)):
            self._sources.setdefault(_memory(one), set()).update(sources)
        return made

    def _decide(self, func: Callable[..., UserObject], call: Call) -> UserObject:
        """What a call of twins gives, as numbers, and constants of the program."""
        for one in _tensors(call):
            self._deciding |= self._sources.get(_memory(one), set())
        with _with_numbers():
            result = func(*call[0], **call[1])
        return tree_map_only(torch.Tensor, self._constant, result)

    def _constant(self, twin: torch.Tensor) -> torch.Tensor:
        constant = torch.ops.aten.lift_fresh_copy.default(twin)
        self._link(constant, twin, set())
        return constant

    def _with_extents(self, name: str, args: Sequence[UserObject], kwargs: Mapping[str, UserObject]) -> Call:
        """Arguments with known extents and positions as numbers, and known masks as positions."""
        if name in _MEASURED:
            rest = tree_map(self._extent, (args[1:], kwargs)) if args and name not in _MADE else None
            return ((args[0], *rest[0]), rest[1]) if rest is not None else tree_map(self._extent, (args, kwargs))
        if name == "__getitem__":
            indices = args[1] if isinstance(args[1], tuple) else (args[1],)
            if any(self._is_known_mask(one) for one in indices):
                return (args[0], tuple(part for one in indices for part in self._positions(one))), kwargs
        return args, kwargs

    def _is_known_mask(self, index: UserObject) -> bool:
        return isinstance(index, torch.Tensor) and index.dtype is torch.bool and self._twin(index) is not None

    def _positions(self, index: UserObject) -> Sequence[UserObject]:
        if not self._is_known_mask(index):
            return (index,)
        return self._decide(torch.Tensor.nonzero, ((self._twin(index),), {"as_tuple": True}))

    def _extent(self, value: UserObject) -> UserObject:
        if not isinstance(value, torch.Tensor) or value.ndim or value.dtype.is_floating_point:
            return value
        twin = self._twin(value)
        return value if twin is None else self._decide(torch.Tensor.item, ((twin,), {}))


class _RandomError(Exception):
    """A function draws random numbers."""


class _Deterministic(TorchDispatchMode):
    def __torch_dispatch__(
        self, func: OpOverload, types: UserObject, args: UserObject = (), kwargs: UserObject = None
    ) -> UserObject:
        if torch.Tag.nondeterministic_seeded in func.tags:
            raise _RandomError(str(func))
        return func(*args, **(kwargs or {}))


@contextmanager
def _with_numbers() -> Iterator[None]:
    """Compute in the ordinary way although something is traced."""
    with _disable_current_modes(), torch._C.DisableTorchFunction(), torch.no_grad():
        yield


def _memory(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage()._cdata


def _size(tensor: torch.Tensor) -> float:
    """How many elements; infinite where that depends on the input."""
    return math.prod(extent if isinstance(extent, int) else math.inf for extent in tensor.shape)


def _tensors(value: UserObject) -> list[torch.Tensor]:
    return [one for one in tree_leaves(value) if isinstance(one, torch.Tensor)]
