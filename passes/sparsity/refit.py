"""Fitting the weights that stay, by least squares on calibration data, layer by layer.

With H the mean product of what a layer's weight is multiplied with, an output w of which only the weights S stay
returns what it did before as nearly as it can with ``H_SS^-1 (H w)_S``. H is damped by a hundredth of the mean of its
diagonal, and everything is computed in float64. Layers are taken in execution order; those that come later see what the
earlier ones make with their new weights.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from ...ir import Graph, Rewriter, Value
from ...ir.ops import Conv2dOp, LayerOp, LinearOp
from ..base import PassContext
from ..progress import Remaining
from ..quantization.moments import operand_rows
from ..quantization.streaming import watch
from .blocks import twins_of
from .patterns import ZeroPattern
from .reconstruction import WeightFit, WeightReconstruction
from .weights import LayerWeight, put_numbers

_MOST_TERMS = 8192  # of an output: H is a matrix of as many rows and columns
_BYTES = 2**30  # of such matrices at a time
_DAMPING = 0.01
_RULE = "refit"


def refusal(weight: LayerWeight) -> str:
    """Why a weight is not fitted; empty if it is."""
    if not all(isinstance(op, Conv2dOp | LinearOp) for op in weight.layers):
        return "only convolutions and linear layers are fitted"
    if _terms(weight) > _MOST_TERMS:
        return f"each output has {_terms(weight)} weights, more than {_MOST_TERMS}, too many to fit"
    return ""


def refitted(
    graph: Graph,
    chosen: Mapping[LayerWeight, tuple[torch.Tensor, int]],
    pattern: ZeroPattern,
    choose: WeightReconstruction,
    context: PassContext,
) -> tuple[dict[LayerWeight, torch.Tensor], str]:
    """New numbers of some weights, and a line for the report.

    Parameters
    ----------
    graph
        Of the weights; stays as it is.
    chosen
        For each weight what the criterion would keep, and how many units go.
    """
    scratch = graph.clone()
    twins = dict(zip(graph.ops, scratch.ops, strict=True))
    rewriter = Rewriter(scratch)
    remaining = Remaining(context.progress, "weights of layers", sum(weight.numbers.numel() for weight in chosen))
    found: dict[LayerWeight, torch.Tensor] = {}
    errors = []
    for portion in _portions(list(chosen)):
        layers = {weight: twins_of(weight.layers, twins) for weight in portion}
        hessians = _hessians(scratch, layers, context)
        for weight in portion:
            kept, gone = chosen[weight]
            hessian, rows = hessians.pop(weight), _rows(weight)
            task = WeightFit(rows, hessian, kept.reshape(rows.shape), pattern, weight.numbers.shape, gone)
            mask = choose(task)
            fitted = _fit(rows, hessian, mask)
            errors.append([_error(one - rows, rows, hessian) for one in (rows * task.chosen, fitted)])
            found[weight] = fitted.reshape(weight.numbers.shape).to(weight.numbers.dtype)
            rewriter.commit(_RULE, layers[weight][0])
            put_numbers(layers[weight], found[weight], rewriter)
            remaining.step(weight.numbers.numel())
    before, after = torch.tensor(errors).quantile(0.5, 0).tolist() if errors else (0.0, 0.0)
    return found, f"{len(found)} weights fitted: error of their layers' outputs {before:.3g} -> {after:.3g} (median)"


def _terms(weight: LayerWeight) -> int:
    return weight.numbers[0].numel()


def _rows(weight: LayerWeight) -> torch.Tensor:
    """A weight as [groups, outputs, terms], in float64."""
    groups = weight.layers[0].channel_groups
    return weight.numbers.double().reshape(groups, -1, _terms(weight))


def _portions(weights: Sequence[LayerWeight]) -> list[list[LayerWeight]]:
    """Weights whose matrices fit into memory together, in order; one at least."""
    portions: list[list[LayerWeight]] = []
    used = 0
    for weight in weights:
        needed = 8 * weight.layers[0].channel_groups * _terms(weight) ** 2
        if not portions or used + needed > _BYTES:
            portions.append([])
            used = 0
        portions[-1].append(weight)
        used += needed
    return portions


def _hessians(
    graph: Graph, layers: Mapping[LayerWeight, Sequence[LayerOp]], context: PassContext
) -> dict[LayerWeight, torch.Tensor]:
    """The damped mean of the products of what each weight is multiplied with: [groups, terms, terms]."""
    sums = {
        weight: torch.zeros(ops[0].channel_groups, _terms(weight), _terms(weight), dtype=torch.float64)
        for weight, ops in layers.items()
    }
    counts = dict.fromkeys(layers, 0)
    readers: dict[Value, list[tuple[LayerWeight, LayerOp]]] = {}
    for weight, ops in layers.items():
        for op in ops:
            readers.setdefault(op.x, []).append((weight, op))

    def see(value: Value, batch: torch.Tensor) -> None:
        for weight, op in readers[value]:
            for rows in operand_rows(op, batch.double()):
                sums[weight] += rows.mT @ rows
                counts[weight] += rows.shape[1]

    watch(graph, readers.keys(), context, see)
    for weight, total in sums.items():
        total /= max(1, counts[weight])
        diagonal = total.diagonal(dim1=1, dim2=2)
        diagonal += _DAMPING * diagonal.mean(1, keepdim=True).clamp(min=1e-30)
    return sums


def _fit(rows: torch.Tensor, hessian: torch.Tensor, kept: torch.Tensor) -> torch.Tensor:
    """Weights [groups, outputs, terms] of which only ``kept`` are not zero; outputs with equal zeros at once."""
    found = torch.zeros_like(rows)
    for group in range(len(rows)):
        targets = rows[group] @ hessian[group]
        masks, which = kept[group].unique(dim=0, return_inverse=True)
        for index, mask in enumerate(masks):
            terms, outputs = mask.nonzero()[:, 0], (which == index).nonzero()[:, 0]
            if len(terms):
                factor = torch.linalg.cholesky(hessian[group][terms][:, terms])
                solved = torch.cholesky_solve(targets[outputs][:, terms].T, factor)
                found[group, outputs[:, None], terms] = solved.T
    return found


def _error(difference: torch.Tensor, rows: torch.Tensor, hessian: torch.Tensor) -> float:
    """Root mean square of what outputs are off by, relative to them."""
    noise, signal = (float(((one @ hessian) * one).sum()) for one in (difference, rows))
    return (max(0.0, noise) / signal) ** 0.5 if signal else 0.0
