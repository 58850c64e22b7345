"""Methods by name: how a layer becomes a chain of smaller ones.

A method is a class in a file of its own, registered under the name that pipelines say::

    @register_method("svd")
    class Svd(Factorization):
        ...

It is made from a weight, does what is costly once, and is then cut at any ranks.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import ClassVar, TypeVar

import torch

from ....ir import Attrs, TersorError, suggest
from ....ir.ops import Conv2dOp, LinearOp
from ..spectrum import Spectrum

Layer = Conv2dOp | LinearOp
Ranks = tuple[int, ...]  # one for each spectrum of a factorization


class Factorization(ABC):
    """A layer's weight as a product of smaller ones; made from the weight in float64.

    Attributes
    ----------
    parts
        Names of the layers of the chain, in execution order, for the ids of their weights.
    spectra
        Singular values of the unfoldings whose ranks can be chosen, each at least 1 and at most full.
    """

    parts: ClassVar[tuple[str, ...]]
    spectra: tuple[Spectrum, ...]

    @abstractmethod
    def __init__(self, weight: torch.Tensor) -> None: ...

    @classmethod
    @abstractmethod
    def refusal(cls, op: Layer) -> str:
        """Why the method does not apply to a layer; empty if it does."""

    @abstractmethod
    def weights(self, ranks: Ranks) -> tuple[torch.Tensor, ...]:
        """Weights of the chain in float64, one for each part."""

    @abstractmethod
    def attrs(self, op: Layer) -> tuple[Attrs, ...]:
        """Attributes of the chain that replaces ``op``, one for each part; all parts are ops of its kind."""

    @abstractmethod
    def macs(self, op: Layer, ranks: Ranks) -> int:
        """Multiply-adds of the chain that replaces ``op``."""


MethodT = TypeVar("MethodT", bound=type[Factorization])

_METHODS: dict[str, type[Factorization]] = {}


def register_method(name: str) -> Callable[[MethodT], MethodT]:
    """Class decorator: make a method usable in pipelines; raises TersorError when the name is taken."""

    def register(method: MethodT) -> MethodT:
        if name in _METHODS:
            raise TersorError(f"low-rank method {name!r} is registered twice; choose another name")
        _METHODS[name] = method
        return method

    return register


def find_method(name: str) -> type[Factorization]:
    """The method registered under ``name``; raises ValueError that suggests the nearest name."""
    if name not in _METHODS:
        raise ValueError(f"unknown method {name!r}{suggest(name, _METHODS)}")
    return _METHODS[name]


def method_names() -> tuple[str, ...]:
    """All registered names, sorted."""
    return tuple(sorted(_METHODS))
