"""Criteria by name: how much the network would miss a single weight.

A criterion is a function in a file of its own, registered under the name that pipelines say::

    @register_weight_criterion("l1")
    def l1(weights, scoring):
        return [... for weight in weights]    # float64, in the weight's shape; larger is more important

The score of several weights that go together is the mean of theirs. With ``scope=global``, scores of all layers are
compared. A function that is not registered is named as ``package.module:function``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch

from ....ir import Graph, TersorError
from ....ir.imports import find_function
from ...name_table import NameTable
from ...numeric import calibration_batches
from ...pruning.gradients import Loss
from ..weights import LayerWeight


@dataclass(frozen=True)
class WeightScoring:
    """What a criterion may look at besides the weights.

    Attributes
    ----------
    graph
        The graph, without fused ops.
    calibration
        Batches of inputs, one sequence of tensors each, or None.
    seed
        For criteria that draw numbers.
    loss
        For criteria that need gradients, as in `tersor.passes.pruning.criteria`; None stands for the distance of the
        outputs to those of the network as it is.
    """

    graph: Graph
    calibration: Iterable[Sequence[torch.Tensor]] | None
    seed: int
    loss: Loss | None = None

    def batches(self) -> Iterable[Sequence[torch.Tensor]]:
        """Calibration batches, one after another; raises TersorError without any, and where one does not fit."""
        return calibration_batches(self.graph, self.calibration)


WeightCriterion = Callable[[Sequence[LayerWeight], WeightScoring], list[torch.Tensor]]

WEIGHT_CRITERIA: NameTable[WeightCriterion] = NameTable("criterion", family="weight")

register_weight_criterion = WEIGHT_CRITERIA.register
_ON_DATA: set[WeightCriterion] = set()


def on_data(criterion: WeightCriterion) -> WeightCriterion:
    """Decorator: say that a criterion asks for calibration data, so that a run without any fails at once."""
    _ON_DATA.add(criterion)
    return criterion


def needs_data(name: str) -> bool:
    """Whether a criterion says that it asks for calibration data."""
    return find_weight_criterion(name) in _ON_DATA


def find_weight_criterion(name: str) -> WeightCriterion:
    """What is registered under ``name``, or the user's function that ``package.module:function`` names."""
    if ":" not in name:
        return WEIGHT_CRITERIA.find(name)
    criterion: WeightCriterion = find_function(name, "that scores weights")
    return criterion


def score_weights(name: str, weights: Sequence[LayerWeight], scoring: WeightScoring) -> list[torch.Tensor]:
    """Scores by a criterion; weights that are zero already have the lowest of all.

    Raises
    ------
    TersorError
        When they are not one number for each weight; the message names a layer.
    """
    found = find_weight_criterion(name)(weights, scoring)
    if len(found) != len(weights):
        raise TersorError(f"criterion {name!r} returns {len(found)} tensors for the weights of {len(weights)} layers")
    for weight, scores in zip(weights, found, strict=True):
        if scores.shape != weight.numbers.shape:
            raise TersorError(
                f"criterion {name!r} returns a tensor {list(scores.shape)} for the weight {list(weight.numbers.shape)}"
                f" of {weight.name}"
            )
        if bool(scores.isnan().any()):
            raise TersorError(f"criterion {name!r} gives weights of {weight.name} scores that are not a number (NaN)")
    return found
