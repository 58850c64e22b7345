"""Multiply a chain of matrices in the cheapest order.

Before, with ``M`` much larger than ``D``::

    %1 = matmul(%q, %k) {transpose_rhs=true}      # [M, D] times [D, M]: M*M*D multiply-adds
    %2 = matmul(%1, %v)                           # [M, M] times [M, D]: M*M*D

After::

    %1 = matmul(permute(%k), %v)                  # [D, M] times [M, D]: M*D*D
    %2 = matmul(%q, %1)                           # [M, D] times [D, D]: M*D*D

Products are associative, and (AB)^T = B^T A^T, so a tree of `matmul` and `linear` is a list of factors, each possibly
transposed. The order with the fewest multiply-adds is found by dynamic programming over sublists (Godbole 1973, "On
efficient computation of matrix chain products"); leading dimensions count as they broadcast. A product of weights costs
nothing: it is computed now, so two linear layers in a row become one where that is cheaper.

The tree is left alone when no order is cheaper. A product that is read elsewhere too counts as one factor, since it has
to be computed anyway; so does a linear layer with a bias, unless it is the last one.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from ..ir import Graph, Op, Rewriter, Value
from ..ir.ops import AddOp, LinearOp, MatmulOp, PermuteOp
from .base import Exactness, Pass, PassContext, Result
from .matching import numbers, part_name, replace, tensor
from .registry import register_pass

_RULE = "reassociate-matmul"


@register_pass(_RULE, purpose="simplify")
class ReassociateMatmul(Pass):
    """Multiply chains of matrices in the order with the fewest multiply-adds."""

    exactness = Exactness.CLOSE

    def run(self, graph: Graph, context: PassContext) -> Result:
        rewriter = context.rewriter(graph)
        inner: set[Op] = set()
        for op in reversed(graph.ops):
            if op.graph is not graph or op in inner or not _is_product(op):
                continue
            chain = _Chain(op, rewriter)
            inner.update(chain.products)
            if len(chain.factors) <= 2 or chain.best_macs >= chain.macs:
                continue
            if isinstance(op, LinearOp) and op.bias is not None and op.bias.type.dtype is not op.result.type.dtype:
                rewriter.refuse(_RULE, op, f"its bias is {op.bias.type.dtype.value}, which an addition would round")
            elif rewriter.commit(_RULE, op):
                chain.rebuild()
        return Result(rewriter.changed)


@dataclass(frozen=True)
class _Factor:
    """A matrix, or a batch of them, to multiply by; ``transposed`` swaps its last two dimensions."""

    value: Value
    transposed: bool

    @property
    def rows(self) -> int:
        return self.value.shape[-1 if self.transposed else -2]

    @property
    def columns(self) -> int:
        return self.value.shape[-2 if self.transposed else -1]

    def matrix(self) -> torch.Tensor:
        """The numbers of a constant factor, in double precision."""
        known = numbers(self.value).double()
        return known.mT if self.transposed else known

    def transpose(self) -> _Factor:
        return _Factor(self.value, not self.transposed)


class _Chain:
    """The factors below one product, and the cheapest order to multiply them."""

    def __init__(self, root: Op, rewriter: Rewriter) -> None:
        self.root = root
        self.rewriter = rewriter
        self.products: list[Op] = []
        self.factors = self._factors_of(root)
        self.macs = sum(op.macs() for op in self.products)
        self._constant = [tensor(factor.value) is not None for factor in self.factors]
        self._macs: dict[tuple[int, int], int] = {}
        self._split: dict[tuple[int, int], int] = {}
        self._plan()

    @property
    def best_macs(self) -> int:
        """Multiply-adds of the cheapest order."""
        return self._macs[0, len(self.factors) - 1]

    def _factors_of(self, op: Op) -> list[_Factor]:
        self.products.append(op)
        if isinstance(op, LinearOp):
            return [*self._expand(op.x, False), _Factor(op.weight, True)]
        assert isinstance(op, MatmulOp)
        return [*self._expand(op.lhs, False), *self._expand(op.rhs, op.attrs.transpose_rhs)]

    def _expand(self, value: Value, transposed: bool) -> list[_Factor]:
        op = value.op
        if op is None or not _is_product(op) or (isinstance(op, LinearOp) and op.bias is not None):
            return [_Factor(value, transposed)]
        if not value.has_one_use:
            self.rewriter.refuse(_RULE, self.root, f"the product {op.describe()} is read elsewhere too")
            return [_Factor(value, transposed)]
        factors = self._factors_of(op)
        return [factor.transpose() for factor in reversed(factors)] if transposed else factors

    def _plan(self) -> None:
        """Fill in the cost and the place of the last product for every sublist, the short ones first."""
        count = len(self.factors)
        for length in range(1, count + 1):
            for first in range(count - length + 1):
                last = first + length - 1
                if all(self._constant[first : last + 1]):
                    self._macs[first, last] = 0
                    self._split[first, last] = last
                    continue
                costs = {split: self._cost(first, split, last) for split in range(first, last)}
                split = min(costs, key=lambda split: costs[split], default=first)
                self._macs[first, last] = costs.get(split, 0)
                self._split[first, last] = split

    def _cost(self, first: int, split: int, last: int) -> int:
        batch = math.prod(torch.broadcast_shapes(*(f.value.shape[:-2] for f in self.factors[first : last + 1])))
        product = self.factors[first].rows * self.factors[split].columns * self.factors[last].columns
        return self._macs[first, split] + self._macs[split + 1, last] + batch * product

    # Rewriting ------------------------------------------------------------------------------------------------

    def rebuild(self) -> None:
        """Replace the tree by one in the cheapest order."""
        result = self._plain(self._build(0, len(self.factors) - 1))
        bias = self.root.bias if isinstance(self.root, LinearOp) else None
        if bias is not None:
            result = self.rewriter.create(AddOp, (result, bias)).result
        replace(self.rewriter, self.root, result)

    def _build(self, first: int, last: int) -> _Factor:
        if first == last:
            return self.factors[first]
        if all(self._constant[first : last + 1]):
            return self._constant_product(first, last)
        split = self._split[first, last]
        lhs, rhs = self._plain(self._build(first, split)), self._build(split + 1, last)
        if all(self._constant[split + 1 : last + 1]) and rhs.value.type.rank == 2:
            return _Factor(self.rewriter.create(LinearOp, (lhs, self._plain(rhs.transpose()))).result, False)
        attrs = MatmulOp.attrs_type(transpose_rhs=rhs.transposed)
        return _Factor(self.rewriter.create(MatmulOp, (lhs, rhs.value), attrs).result, False)

    def _constant_product(self, first: int, last: int) -> _Factor:
        """Weights multiplied in double precision; stored transposed, as linear layers take them."""
        product = self.factors[first].matrix()
        for factor in self.factors[first + 1 : last + 1]:
            product = product @ factor.matrix()
        value = self.factors[first].value
        stored = product.mT.contiguous().to(value.type.dtype.torch)
        return _Factor(self.rewriter.weight(stored, part_name(value, "product")), True)

    def _plain(self, factor: _Factor) -> Value:
        """The factor as a value of its own, transposed if need be."""
        if not factor.transposed:
            return factor.value
        known = tensor(factor.value)
        if known is not None:
            return self.rewriter.weight(known.mT.contiguous(), part_name(factor.value, "transposed"))
        *leading, rows, columns = range(factor.value.type.rank)
        attrs = PermuteOp.attrs_type(dims=(*leading, columns, rows))
        return self.rewriter.create(PermuteOp, (factor.value,), attrs).result


def _is_product(op: Op) -> bool:
    """Whether ``op`` multiplies matrices of floating-point numbers."""
    if not isinstance(op, MatmulOp | LinearOp) or not op.result.type.dtype.is_floating:
        return False
    return min(value.type.rank for value in op.operands[:2] if value is not None) >= 2
