"""Which layers and values of a graph with notes are rounded in training, and the batch normalisations that go along.

A batch normalisation behind a layer is folded into it for inference (Jacob et al. 2018, section 3.2): each output
channel ``w`` of the weight is multiplied by a number ``f``. A weight has a step size for each output channel, so
rounding ``f w`` in steps of ``|f| s`` is rounding ``w`` in steps of ``s``. Therefore training rounds the weight itself,
the batch normalisation does its work as ever, with the statistics of the batch, and step sizes need not follow these.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, field

from ..ir import Graph, Op, TersorError
from ..ir.ops import BatchNormOp, LayerOp
from ..passes.fold_batchnorm import fold_refusal
from ..passes.matching import tensor
from ..passes.quantization.calibrate import tied_notes
from ..passes.quantization.placement import find_notes, name_of, noted_layers, noted_products, weight_bits


@dataclass(frozen=True, eq=False)
class TrainedLayer:
    """A layer whose weight is rounded.

    Attributes
    ----------
    op
        The layer.
    norm
        The batch normalisation that inference folds into it, if there is one.
    """

    op: LayerOp
    norm: BatchNormOp | None

    @property
    def bits(self) -> int:
        """Of the weight as integers."""
        return weight_bits(self.op)

    @property
    def name(self) -> str:
        """For messages."""
        return name_of(self.op.result)


@dataclass(frozen=True, eq=False)
class TrainingPlan:
    """What is rounded, and the paths of the modules that do it.

    Attributes
    ----------
    groups
        Notes that share a step size, since integers are moved between them.
    layers
        By op.
    products
        Products of computed operands that inference computes on integers; training only rounds what they read.
    notes
        The path of each note's quantizer; filled in by the module.
    weights
        The path of each layer's quantizer; filled in by the module.
    """

    groups: Sequence[Sequence[Op]]
    layers: Mapping[Op, TrainedLayer]
    products: Sequence[Op] = ()
    notes: dict[Op, str] = field(default_factory=dict)
    weights: dict[Op, str] = field(default_factory=dict)

    def __deepcopy__(self, memo: dict[int, object]) -> TrainingPlan:
        return self  # never changes once a module is made, so that copies of the module can share it


def plan_of(graph: Graph, skipped: Set[Op]) -> TrainingPlan:
    """What training rounds of a graph with its weights, without layers and products that are skipped.

    Raises TersorError where notes have no range yet.
    """
    notes = find_notes(graph)
    for note in notes:
        if not note.attrs.is_calibrated:
            raise TersorError(f"the range of {name_of(note.x)} is not known; run quantize-calibrate before to_torch()")
    layers: dict[Op, TrainedLayer] = {
        op: TrainedLayer(op, _norm_behind(op)) for op in noted_layers(graph) if op not in skipped
    }
    products = [op for op in noted_products(graph) if op not in skipped]
    return TrainingPlan(tied_notes(graph, notes), layers, products)


def _norm_behind(op: LayerOp) -> BatchNormOp | None:
    """The batch normalisation that can be folded into ``op``."""
    readers = op.result.users
    norm = readers[0] if len(readers) == 1 else None
    if not isinstance(norm, BatchNormOp) or norm.x is not op.result or fold_refusal(norm, op):
        return None
    return norm if all(tensor(value) is not None for value in norm.inputs[1:]) else None
