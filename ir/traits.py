"""What passes may ask of an op beyond its name: cost, and how channels flow through it."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class ChannelFlow(Enum):
    """How the operands' channels (dimension 1, or the last one after a linear layer) reach the result."""

    IDENTITY = "identity"  # channel i of every non-broadcast operand becomes channel i of the result
    PRODUCES = "produces"  # a weight's dimension 0 makes new channels; its dimension 1 consumes those of the operand
    CONCAT = "concat"  # the operands' channels follow one another
    RESHAPE = "reshape"  # channels are regrouped: flatten, split into heads, shuffle
    OTHER = "other"  # nothing is known: channels must not be changed across this op


class Storage(Enum):
    """Which physical layout an op's kernels work on; see `tersor.passes.layout`."""

    PLAIN = "plain"  # row-major only
    FOLLOWS = "follows"  # whichever layout its operands have, the result in the same one
    BLOCKED = "blocked"  # channel blocks for the result, and for operands that have enough channels


@dataclass(frozen=True)
class Cost:
    """Work of one execution of an op or a graph.

    Attributes
    ----------
    macs
        Multiply-adds.
    bytes
        Bytes read and written, each operand and result once.
    """

    macs: int = 0
    bytes: int = 0

    def __add__(self, other: Cost) -> Cost:
        return Cost(self.macs + other.macs, self.bytes + other.bytes)
