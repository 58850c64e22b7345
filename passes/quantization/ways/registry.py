"""Ways to compute a layer that does not compute on 8-bit integers and need not be in float32, by name.

A way is a class in a file of its own, registered under the name that pipelines say::

    @register_way("bf16")
    class Bf16Way(NarrowWay):
        dtype = DType.BF16

``quantize{others=[bf16,int4]}`` tries it for every layer that it is for, and the referee or the budget chooses.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import ClassVar

from ....ir import Graph, Op, Rewriter
from ...base import PassContext
from ...name_table import NameTable

# Given a rewriter, the name of the rewrites, and ops of its graph: computes them in the way that was prepared. For each
# op there is the one that it stands for in the graph that was looked at.
WriteLayers = Callable[[Rewriter, str, Mapping[Op, Op]], None]


class LayerWay(ABC):
    """Base of the ways.

    Attributes
    ----------
    label
        How a layer is computed, for sentences: ``in bf16``.
    computes
        The same as a word: ``bf16``.
    weight_bits, activation_bits
        Of a number of the weight, and of what the layer reads.
    share
        What is saved of a layer's time where nothing can be measured, roughly, as a share of what integers save.
    """

    label: ClassVar[str]
    computes: ClassVar[str]
    weight_bits: ClassVar[int]
    activation_bits: ClassVar[int]
    share: ClassVar[float]

    @abstractmethod
    def layers(self, graph: Graph) -> Sequence[Op]:
        """The ops of a graph that can be computed so."""

    @abstractmethod
    def pair(self, op: Op) -> tuple[Graph, Graph]:
        """An op alone, in float32 and in this way, for their times."""

    @abstractmethod
    def prepared(self, graph: Graph, layers: Sequence[Op], context: PassContext) -> WriteLayers:
        """What writes any of these layers into copies of a graph, after a look at the calibration data if need be."""


WAYS: NameTable[type[LayerWay]] = NameTable("way to compute a layer")

register_way = WAYS.register
