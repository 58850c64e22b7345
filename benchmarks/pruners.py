"""Half of a network's multiply-adds by fewer channels: by our `prune-channels`, and by Torch-Pruning [1]_.

Torch-Pruning is told what its examples tell it: the numbers of heads, and how Swin's patch merging is cut. Its ratio of
channels is found by bisection on its own count of operations.

References
----------
.. [1] Fang et al., "DepGraph: Towards Any Structural Pruning", CVPR 2023, https://github.com/VainF/Torch-Pruning
"""

from __future__ import annotations

import copy
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import nn

import tersor
from benchmarks.results import Record
from tersor.ir import Graph
from tersor.ir.foreign import Instance
from tersor.ir.ops import WeightOp
from tersor.passes.pruning import find_channels

if TYPE_CHECKING:
    from torch_pruning.pruner.algorithms.base_pruner import BasePruner
    from torch_pruning.pruner.importance import Importance

SHARE = 0.5  # of the multiply-adds that is left
MULTIPLE = 16  # channels of a vector
HALVINGS = 7


@dataclass(frozen=True)
class PrunedNetwork:
    """What one of the two makes of a network.

    Attributes
    ----------
    graph
        What is left.
    groups
        Groups of channels that it found.
    seconds
        Time for all of it.
    """

    graph: Graph
    groups: int
    seconds: float

    def record(self) -> Record:
        """Counts for the results file."""
        return {
            "groups": self.groups,
            "macs": self.graph.cost().macs,
            "parameters": parameters(self.graph),
            "seconds": round(self.seconds, 1),
        }


def parameters(graph: Graph) -> int:
    """Numbers in the weights that a graph reads, shared ones once."""
    return sum(graph.weights[id].numel() for id in {op.attrs.id for op in graph.ops if isinstance(op, WeightOp)})


def prune_with_tersor(module: nn.Module, inputs: Sequence[torch.Tensor]) -> PrunedNetwork:
    """Half of the multiply-adds, by our pass."""
    begin = time.perf_counter()
    graph = tersor.from_torch(module, tuple(inputs))
    groups = len(find_channels(graph).groups)
    pipeline = f"prune-channels{{macs={SHARE},criterion=l2,multiple={MULTIPLE},keep=all}}"
    small = tersor.run_passes(graph, pipeline)
    return PrunedNetwork(small, groups, time.perf_counter() - begin)


def prune_with_torch_pruning(
    module: nn.Module,
    inputs: Sequence[torch.Tensor],
    importance: Importance | None = None,
    multiple: int | None = MULTIPLE,
    halvings: int = HALVINGS,
) -> PrunedNetwork:
    """Half of the multiply-adds by its own count, by Torch-Pruning; whatever it raises comes through.

    Parameters
    ----------
    module
        Of one output, the logits [samples, classes].
    importance
        Which channels stay; its norm of a group by default.
    multiple
        Kept channels are rounded to a multiple of this; None does not round.
    halvings
        Of the interval in which the ratio of channels is looked for.
    """
    from torch_pruning.utils import count_ops_and_params

    begin = time.perf_counter()
    whole, _ = count_ops_and_params(module, tuple(inputs))
    low, high, groups = 0.0, 1.0, 0
    best = module
    for _ in range(halvings):
        ratio = (low + high) / 2
        candidate = copy.deepcopy(module)
        pruner = _pruner(candidate, tuple(inputs), ratio, importance, multiple)
        groups = len(list(pruner.DG.get_all_groups(pruner.ignored_layers, pruner.root_module_types)))
        pruner.step()
        _tell_heads(candidate, pruner)
        left, _ = count_ops_and_params(candidate, tuple(inputs))
        if left <= SHARE * whole:
            high, best = ratio, candidate
        else:
            low = ratio
    seconds = time.perf_counter() - begin
    if best is module:
        raise ValueError(f"no ratio of channels leaves {SHARE} of the operations")
    return PrunedNetwork(tersor.from_torch(best, tuple(inputs)), groups, seconds)


def _pruner(
    module: nn.Module,
    inputs: tuple[torch.Tensor, ...],
    ratio: float,
    importance: Importance | None,
    multiple: int | None,
) -> BasePruner:
    """As in its examples for these networks."""
    from torch_pruning.pruner import BasePruner
    from torch_pruning.pruner.importance import MagnitudeImportance
    from transformers.models.swin.modeling_swin import SwinPatchMerging

    heads = {
        layer: part.num_attention_heads
        for part in _attention_of(module)
        for layer in (part.q_proj, part.k_proj, part.v_proj)
    }
    has_merging = any(isinstance(part, SwinPatchMerging) for part in module.modules())
    roots = (nn.Conv2d, nn.Linear, nn.LayerNorm, SwinPatchMerging) if has_merging else (nn.Conv2d, nn.Linear)
    with torch.no_grad():
        classes = module(*inputs).shape[-1]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of parameters that no layer holds
        return BasePruner(
            module,
            inputs,
            importance=importance or MagnitudeImportance(p=2),
            global_pruning=True,
            pruning_ratio=ratio,
            round_to=multiple,
            ignored_layers=[part for part in module.modules() if getattr(part, "out_features", 0) == classes],
            num_heads=heads,
            prune_num_heads=False,
            prune_head_dims=True,
            customized_pruners={SwinPatchMerging: _merging_pruner()},
            root_module_types=roots,
        )


def _attention_of(module: nn.Module) -> list[Instance]:
    return [part for part in module.modules() if hasattr(part, "q_proj") and hasattr(part, "num_attention_heads")]


def _tell_heads(module: nn.Module, pruner: BasePruner) -> None:
    """Numbers that the attention of `transformers` keeps beside its layers."""
    for part in _attention_of(module):
        part.num_attention_heads = pruner.num_heads[part.q_proj]
        part.head_dim = part.q_proj.out_features // part.num_attention_heads


def _merging_pruner() -> object:
    """How Swin's patch merging is cut: it reads each channel of four patches."""
    from torch_pruning import prune_layernorm_out_channels, prune_linear_in_channels, prune_linear_out_channels
    from torch_pruning.pruner.function import BasePruningFunc

    class MergingPruner(BasePruningFunc):  # type: ignore[misc]
        def prune_out_channels(self, layer: Instance, idxs: list[int]) -> Instance:
            prune_linear_out_channels(layer.reduction, idxs)
            return layer

        def prune_in_channels(self, layer: Instance, idxs: list[int]) -> Instance:
            width = self.get_in_channels(layer)
            all_four = [part * width + index for part in range(4) for index in idxs]
            prune_linear_in_channels(layer.reduction, all_four)
            prune_layernorm_out_channels(layer.norm, all_four)
            return layer

        def get_out_channels(self, layer: Instance) -> int:
            return int(layer.reduction.out_features)

        def get_in_channels(self, layer: Instance) -> int:
            return int(layer.reduction.in_features) // 4

    return MergingPruner()
