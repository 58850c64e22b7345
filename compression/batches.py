"""Longer batches than a model was exported for: cut them, run the parts, join the outputs."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch.utils import _pytree as pytree

from ..ir.foreign import Array, UserObject
from ..passes.calibration import Shape, split


def run_in_parts(run: Callable[..., UserObject], inputs: Sequence[Array], shapes: Sequence[Shape]) -> UserObject:
    """Call ``run`` on each part of `split`, and join what it returns along dimension 0."""
    results = [run(*part) for part in split(inputs, shapes)]
    if len(results) == 1:
        return results[0]
    leaves = zip(*map(pytree.tree_leaves, results), strict=True)
    return pytree.tree_unflatten([_join(column) for column in leaves], pytree.tree_structure(results[0]))


def _join(parts: Sequence[UserObject]) -> UserObject:
    if not hasattr(parts[0], "__dlpack__"):  # a constant
        return parts[0]
    return np.concatenate(parts) if isinstance(parts[0], np.ndarray) else torch.cat(tuple(parts))
