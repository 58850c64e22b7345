"""A bounded sample of a tensor that changes from batch to batch."""

from __future__ import annotations

import random

import torch

_NUMBERS = 2**19  # of float32, in all: 2 MiB


class Sample:
    """Slices of the leading dimension from batches that are drawn evenly, with a seed; one slice at least.

    Attributes
    ----------
    tensors
        The slices, batch by batch: f32, all of the same rank.
    """

    def __init__(self) -> None:
        self.tensors: list[torch.Tensor] = []
        self._seen = 0
        self._random = random.Random(0)

    def add(self, batch: torch.Tensor) -> None:
        """Take in one batch; keeps it, a part of it, or nothing (Vitter 1985, algorithm R)."""
        self._seen += 1
        slices = max(1, _NUMBERS * len(batch) // max(1, batch.numel()))
        room = max(1, _NUMBERS // max(1, batch.numel()))
        if len(self.tensors) < room:
            self.tensors.append(batch[:slices].clone())
            return
        place = self._random.randrange(self._seen)
        if place < room:
            self.tensors[place] = batch[:slices].clone()
