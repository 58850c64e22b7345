"""Crops of natural photographs that install as packages, for networks that expect pictures.

scikit-image has five of them in colour, scikit-learn, which NNCF brings, two.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch.nn import functional

from benchmarks.models import IMAGE_SIZE

_SKIMAGE = ("astronaut", "chelsea", "coffee", "rocket")
SMALLEST_CROP = 0.35  # of the picture's shorter side


def photographs() -> dict[str, torch.Tensor]:
    """All photographs by name: float32 [3, height, width], 0 … 255."""
    from skimage import data
    from sklearn.datasets import load_sample_images

    pictures = {name: getattr(data, name)() for name in _SKIMAGE}
    pictures["motorcycle"] = data.stereo_motorcycle()[0]
    pictures |= dict(zip(("temple", "flower"), load_sample_images().images, strict=True))
    return {name: torch.from_numpy(np.array(one)).float().permute(2, 0, 1) for name, one in pictures.items()}


def crops(count: int, seed: int) -> Iterator[tuple[str, torch.Tensor]]:
    """Seeded square crops, photograph by photograph in turn, some of them mirrored.

    Yields
    ------
    The photograph's name, and float32 [1, 3, 224, 224] as EfficientNet-Lite0 expects it, ``(value - 127) / 128``.
    """
    generator = torch.Generator().manual_seed(seed)

    def uniform() -> float:
        return torch.rand((), generator=generator).item()

    pictures = list(photographs().items())
    for index in range(count):
        name, picture = pictures[index % len(pictures)]
        yield name, _prepared(_crop(picture, uniform))


def _crop(picture: torch.Tensor, uniform: Callable[[], float]) -> torch.Tensor:
    height, width = picture.shape[1:]
    side = round(min(height, width) * (SMALLEST_CROP + (1 - SMALLEST_CROP) * uniform()))
    top, left = round((height - side) * uniform()), round((width - side) * uniform())
    part = picture[:, top : top + side, left : left + side]
    return part.flip(2) if uniform() < 0.5 else part


def _prepared(picture: torch.Tensor) -> torch.Tensor:
    size = (IMAGE_SIZE, IMAGE_SIZE)
    scaled = functional.interpolate(picture[None], size, mode="bicubic", antialias=True, align_corners=False)
    return (scaled.clamp(0, 255) - 127) / 128
