"""Fine-tuning weights that ``prune-weights`` has set to zero in part: the zeros stay."""

from __future__ import annotations

import torch
from torch import nn

from ..ir import TersorError


def keep_zeros(module: nn.Module) -> int:
    """Let the numbers that are zero now in the weights of a module be zero after every step of an optimizer.

    Their gradients become zero, and so do the steps of SGD, Adam and what derives from them, with weight decay and
    momentum too: call this before the first step. It is for the parameters of this module; a copy (`copy.deepcopy`)
    forgets. Parameters of one dimension, such as biases, which often begin as zeros, are trained as they are.

    Parameters
    ----------
    module
        Of any kind; what ``to_torch()`` makes of a pruned graph.

    Returns
    -------
    How many weights have zeros.

    Raises
    ------
    TersorError
        When no weight has any.
    """
    weights = [one for one in module.parameters() if one.ndim > 1 and one.requires_grad and bool((one == 0).any())]
    if not weights:
        raise TersorError("no weight of the module has zeros that could be kept; prune it first, by prune-weights")
    for weight in weights:
        weight.register_hook(_Mask(weight.detach() != 0))
    return len(weights)


class _Mask:
    """Multiplies a gradient by zero where a weight is to stay zero."""

    def __init__(self, kept: torch.Tensor) -> None:
        self._kept = kept

    def __call__(self, gradient: torch.Tensor) -> torch.Tensor:
        return gradient * self._kept.to(gradient.device)
