"""What passes may ask of an op beyond its name: cost, and how channels flow through it."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class ChannelFlow(Enum):
    """How the indices of the operands' dimensions, channels above all, reach the result.

    Channel pruning asks this to know which slices of which weights go together. What an op needs besides is in its
    attributes: ``axis``, ``dims``, ``start`` and so on.
    """

    SOURCE = "source"  # no operands: a constant, which can be made smaller along every dimension
    # Elementwise ops: index i of every operand, where it is not broadcast, becomes index i of the result. Other ops:
    # so do dimensions 0 and 1 of the first operand, and further operands are vectors of one number per channel.
    IDENTITY = "identity"
    # The weight's dimension 0 makes new channels (`Op.channel_axis` of the result), its dimension 1 consumes those of
    # the first operand, in `Op.channel_groups` groups; a bias is a vector of one number per new channel.
    PRODUCES = "produces"
    CONCAT = "concat"  # the operands' indices along `axis` follow one another
    RESHAPE = "reshape"  # indices are regrouped: flatten, split into heads
    PERMUTE = "permute"  # dimension i of the result is dimension `dims[i]` of the operand
    SLICE = "slice"  # a range along `axis`
    PAD = "pad"  # new indices around those of the operand
    EXPAND = "expand"  # extents of 1 are repeated
    REDUCE = "reduce"  # the indices along `axes` are combined, all others stay apart
    SHUFFLE = "shuffle"  # the operands' channels follow one another, are shuffled, and a range is kept
    RECURRENT = "recurrent"  # a unit of the state goes with its row of each gate; see `ops.RecurrentOp`
    # Indices of the last `dims` dimensions are normalised together, others stay apart; see `ops.LayerNormOp`.
    NORMALIZES = "normalizes"
    MULTIPLIES = "multiplies"  # a product of matrices; see `ops.MatmulOp`
    OTHER = "other"  # indices that stay apart (`Op.apart`) reach the result, no other extent may change


class Storage(Enum):
    """Which physical layout an op's kernels work on; see `tersor.passes.layout`."""

    PLAIN = "plain"  # row-major only
    FOLLOWS = "follows"  # whichever layout its operands have, the result in the same one
    BLOCKED = "blocked"  # channel blocks for the result, and for operands that have enough channels


class OnIntegers(Enum):
    """What an op makes of operands of 8-bit integers; see "Integers" in docs/kernels.md."""

    NOTHING = "nothing"  # it is not defined for them, or means something else
    SUMS = "sums"  # exact i32 sums of products with an i8 weight
    PRODUCTS = "products"  # exact i32 sums of products of one operand with another, both computed: see `ops.ProductOp`
    MEANS = "means"  # f32 means of the integers
    MOVES = "moves"  # some of the operands' integers, which mean what they meant before


class Narrowing(Enum):
    """What ``to-bf16`` and ``to-fp16`` make of an op on float32 numbers."""

    NEVER = "never"  # it stays in float32
    FOLLOWS = "follows"  # it is converted where an operand is converted already
    LEADS = "leads"  # it is converted wherever it is: it gains from narrow numbers


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

    def __post_init__(self) -> None:
        for name in ("macs", "bytes"):  # plain numbers, where extents are at their hints
            object.__setattr__(self, name, int(getattr(self, name)))

    def __add__(self, other: Cost) -> Cost:
        return Cost(self.macs + other.macs, self.bytes + other.bytes)
