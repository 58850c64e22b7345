"""Methods by name: how a layer becomes a chain of smaller ones.

A method is a class in a file of its own, registered under the name that pipelines say::

    @register_method("svd")
    class Svd(Factorization):
        ...

It is made from a weight, does what is costly once, and is then cut at any ranks.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

import torch

from ....ir import Attrs
from ....ir.ops import LayerOp
from ...name_table import NameTable
from ..spectrum import Spectrum

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
    def refusal(cls, op: LayerOp) -> str:
        """Why the method does not apply to a layer; empty if it does."""

    @abstractmethod
    def weights(self, ranks: Ranks) -> tuple[torch.Tensor, ...]:
        """Weights of the chain in float64, one for each part."""

    @abstractmethod
    def attrs(self, op: LayerOp) -> tuple[Attrs, ...]:
        """Attributes of the chain that replaces ``op``, one for each part; all parts are ops of its kind."""

    @abstractmethod
    def macs(self, op: LayerOp, ranks: Ranks) -> int:
        """Multiply-adds of the chain that replaces ``op``."""


METHODS: NameTable[type[Factorization]] = NameTable("method", family="low-rank")

register_method = METHODS.register


def name_of_method(factors: Factorization) -> str:
    """What the method of a factorization is registered as."""
    return next(name for name, kind in METHODS.entries.items() if type(factors) is kind)
