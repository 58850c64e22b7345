"""PyTorch calls become ops while Python runs them: for models that are not PyTorch's, in functions that call it.

Tensors of the model are stand-ins without numbers. What is called on one of them is converted as the calls of
`torch.export` are, by the same converters. What is called on tensors with numbers only is computed at once; where such
a tensor meets a stand-in, it becomes a constant of the graph.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch._ops import OpOverload
from torch._subclasses import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

from ..ir import IRError, Value
from .context import Context
from .export import decompositions, tracing
from .registry import CONVERTERS, Argument, Converted, Inexpressible, adopt, is_kept_on_constants
from .tensors import strides_of, tensor_type

_LOG = logging.getLogger("torch._subclasses.fake_tensor")


class Tracer(TorchDispatchMode):
    """Puts the ops of PyTorch calls at the end of a graph.

    Parameters
    ----------
    context
        Of the graph; its location is that of all ops until it is changed.
    """

    def __init__(self, context: Context) -> None:
        super().__init__()
        self.context = context
        self._fakes = FakeTensorMode(allow_non_fake_inputs=True)
        self._values: dict[int, tuple[torch.Tensor, Value]] = {}  # by the identity of a tensor, which is kept alive
        self._names: dict[int, str] = {}
        self._computes = True  # what is called on tensors with numbers only

    @contextmanager
    def running(self) -> Iterator[None]:
        """Let calls become ops. Below autograd, PyTorch hands over composite operators as a whole."""
        was_disabled, _LOG.disabled = _LOG.disabled, True  # what fails is an exception already
        try:
            with tracing(), torch.no_grad(), torch._C._AutoDispatchBelowAutograd(), self:
                yield
        finally:
            _LOG.disabled = was_disabled

    @contextmanager
    def keeping_constants(self) -> Iterator[None]:
        """Let calls become ops even where all operands have numbers, or where there are none."""
        self._computes, self.context.keeps_constants = False, True
        try:
            yield
        finally:
            self._computes, self.context.keeps_constants = True, False

    def stand_in(self, value: Value) -> torch.Tensor:
        """A tensor without numbers that stands for ``value``."""
        with self._fakes:
            tensor = torch.empty(value.shape, dtype=value.type.dtype.torch)
        self._values[id(tensor)] = tensor, value
        return tensor

    def name(self, tensor: torch.Tensor, name: str) -> None:
        """Say under which id a tensor with numbers is kept, should it become a weight."""
        self._names[id(tensor)] = name

    def value(self, tensor: torch.Tensor) -> Value:
        """What a tensor stands for, or a new constant."""
        if id(tensor) not in self._values:
            self._values[id(tensor)] = tensor, self._constant(tensor)
        return self._values[id(tensor)][1]

    def _constant(self, tensor: torch.Tensor) -> Value:
        type = tensor_type(tensor)
        if type is None:
            self.context.refuse(f"a constant of element type {tensor.dtype}")
        if tensor.numel() == 1 and math.isfinite(tensor.item()):
            return self.context.full(tensor.item(), type)
        if id(tensor) in self._names:
            return self.context.weight(self.context.graph.weights.add(tensor, self._names[id(tensor)]))
        return self.context.constant(tensor, "constant")

    def __torch_dispatch__(
        self,
        func: OpOverload,
        types: object,
        args: tuple[Argument, ...] = (),
        kwargs: dict[str, Argument] | None = None,
    ) -> Argument:
        kwargs = kwargs or {}
        stand_ins = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, FakeTensor)]
        if self._computes and not stand_ins and not is_kept_on_constants(func):
            return func(*args, **kwargs)
        adopt(func)
        if func.namespace == "prim":  # PyTorch asks for a tensor's device
            with self._fakes:
                return func(*args, **kwargs)
        if func not in CONVERTERS:
            return self._decomposed(func, args, kwargs)
        with self._fakes:
            results = func(*args, **kwargs)
        self._convert(func, args, kwargs, stand_ins, results)
        return results

    def _convert(
        self,
        func: OpOverload,
        args: tuple[Argument, ...],
        kwargs: dict[str, Argument],
        stand_ins: Sequence[FakeTensor],
        results: Argument,
    ) -> None:
        flat = tuple(results) if isinstance(results, tuple | list) else (results,)
        self.context.types = tuple(map(tensor_type, flat))
        self.context.used_results = frozenset(range(len(flat)))
        self.context.row_major = all(one.is_contiguous() and not one.storage_offset() for one in stand_ins)
        self.context.strides = strides_of(stand_ins[0]) if stand_ins else None
        args, kwargs = tree_map_only(torch.Tensor, self.value, (args, kwargs))
        converted: Converted = CONVERTERS[func](self.context, *args, **kwargs)
        values = converted if isinstance(converted, tuple) else (converted,)
        for tensor, value, type in zip(flat, values, self.context.types, strict=True):
            if value is None:
                continue
            if value.type != type:
                raise IRError(
                    f"{func} became {value.type}, but PyTorch computes {type}; this is an error in its converter, "
                    "please report it"
                )
            self._values[id(tensor)] = tensor, value

    def _decomposed(self, func: OpOverload, args: tuple[Argument, ...], kwargs: dict[str, Argument]) -> Argument:
        composite, others = decompositions(frozenset(CONVERTERS))
        with self:
            if func in others:
                return others[func](*args, **kwargs)
            result = composite[func](*args, **kwargs) if func in composite else func.decompose(*args, **kwargs)
        if result is NotImplemented:
            raise Inexpressible(f"it needs {func}, which is not supported")
        return result
