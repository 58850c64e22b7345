"""The table of converters: ATen overload to the function that expresses one call of it in the IR."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch._ops import OpOverload

from ..ir import Value


@dataclass(frozen=True)
class Complex:
    """Complex numbers: the IR holds their real and imaginary parts, of one type, as two tensors."""

    real: Value
    imaginary: Value


Argument = Any  # of an operator's call: a value or what stands for it, a number, a dtype, a list of these
Converted = Value | tuple[Value | None, ...]
Converter = Callable[..., Converted]
ConverterT = TypeVar("ConverterT", bound=Converter)
EntryT = TypeVar("EntryT")
ConvertedParts = Converted | Complex | tuple[Complex, ...]
ComplexConverter = Callable[..., ConvertedParts]
ComplexConverterT = TypeVar("ComplexConverterT", bound=ComplexConverter)

aten = torch.ops.aten
DROPOUTS = (
    aten.dropout.default,
    aten.feature_dropout.default,
    aten.alpha_dropout.default,
    aten.feature_alpha_dropout.default,
)
CONVERTERS: dict[OpOverload, Converter] = {}
COMPLEX_CONVERTERS: dict[OpOverload, ComplexConverter] = {}
FOREIGN_CONVERTERS: dict[str, Converter] = {}  # of operators that other packages define, which may not be loaded
FOREIGN_MODULES = {  # which define the operators
    "quantized_decomposed": "torch.ao.quantization.fx._decomposed",
    "tersor": f"{__package__}.ir_operator",
}
KEPT_ON_CONSTANTS: set[str] = set()  # those of them that are not computed, but kept, where all operands are constants


class Inexpressible(Exception):
    """Raised by a converter for a call that it cannot express; the message is the reason."""


def converter(*overloads: OpOverload) -> Callable[[ConverterT], ConverterT]:
    """Register a function as the converter of ATen overloads.

    The function is called with the `Context` and then exactly as the operator is, with a `Value` in place of each
    tensor; its defaults must be the operator's. It returns the operator's result, or a tuple for several, with None in
    place of those that the IR does not have.
    """

    def register(function: ConverterT) -> ConverterT:
        for overload in overloads:
            if overload in CONVERTERS:
                raise ValueError(f"{overload} has two converters")
            CONVERTERS[overload] = function
        return function

    return register


def foreign_converter(*names: str, of_constants: bool = False) -> Callable[[ConverterT], ConverterT]:
    """Register a function as the converter of operators of other packages, for example ``package::name.default``.

    With ``of_constants`` a `Tracer` lets calls on constants become ops, too, instead of computing them.
    """

    def register(function: ConverterT) -> ConverterT:
        FOREIGN_CONVERTERS.update(dict.fromkeys(names, function))
        KEPT_ON_CONSTANTS.update(names if of_constants else ())
        return function

    return register


def adopt(overload: OpOverload) -> None:
    """Give an operator of another package its converter, if there is one."""
    name = _full_name(overload)
    if name in FOREIGN_CONVERTERS:
        CONVERTERS.setdefault(overload, FOREIGN_CONVERTERS[name])


@functools.cache
def load_foreign(namespace: str) -> Any:
    """The operators of a namespace that is in `FOREIGN_MODULES`; its module is loaded, which takes a while."""
    importlib.import_module(FOREIGN_MODULES[namespace])
    return getattr(torch.ops, namespace)


def is_kept_on_constants(overload: OpOverload) -> bool:
    """Whether a call becomes an op even where all operands are constants."""
    return _full_name(overload) in KEPT_ON_CONSTANTS


def _full_name(overload: OpOverload) -> str:
    return f"{overload.name()}.default" if overload._overloadname == "default" else overload.name()


def complex_converter(*overloads: OpOverload) -> Callable[[ComplexConverterT], ComplexConverterT]:
    """Register a function for calls of ATen overloads that take or return complex numbers, as `Complex`."""

    def register(function: ComplexConverterT) -> ComplexConverterT:
        for overload in overloads:
            if overload in COMPLEX_CONVERTERS:
                raise ValueError(f"{overload} has two converters for complex numbers")
            COMPLEX_CONVERTERS[overload] = function
        return function

    return register


def register_each(table: dict[OpOverload, EntryT], make: Callable[[EntryT], Converter]) -> None:
    """Register ``make(entry)`` as the converter of every overload of a table."""
    for overload, entry in table.items():
        converter(overload)(make(entry))
