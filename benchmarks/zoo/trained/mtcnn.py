"""facenet-pytorch's MTCNN: where faces are, by three networks one after the other.

Its post-processing takes non-maximum suppression from torchvision, which is as large as PyTorch and has to be of the
same build. `suppress` stands in for it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
import torch
from torch import nn

from .case import Answer, Loaded, Trained
from .sources import Call, TorchSource
from .stand_ins import stand_ins

SMALLEST_FACE = 40  # pixels


def cases() -> Iterator[Trained]:
    """All three networks, since each takes what the one before it has found."""
    task = "face, eyes, nose and mouth in a photograph"
    yield Trained("mtcnn", "facenet-pytorch", ("facenet_pytorch", "skimage"), task, load)


def load() -> Loaded:
    """The proposal, refinement and output networks."""
    from PIL import Image
    from skimage import data

    boxes = {"torchvision.ops.boxes": {"batched_nms": suppress}}
    transforms = {"torchvision.transforms": {"functional": None}}  # for saving faces only
    with stand_ins({"torchvision": {}, "torchvision.ops": {}, **boxes, **transforms}):
        from facenet_pytorch import MTCNN

    detector = MTCNN(min_face_size=SMALLEST_FACE, keep_all=True)
    networks = {"P-Net": detector.pnet, "R-Net": detector.rnet, "O-Net": detector.onet}
    photograph = Image.fromarray(data.astronaut())

    def ask(calls: Mapping[str, Call]) -> Answer:
        detector.pnet, detector.rnet, detector.onet = (_Module(networks[name], calls[name]) for name in networks)
        boxes, scores, points = detector.detect(photograph, landmarks=True)
        detector.pnet, detector.rnet, detector.onet = networks.values()
        found = [f"face at {', '.join(f'{edge:.0f}' for edge in box)}" for box in boxes]
        parts = [f"nose at {face[2][0]:.0f}, {face[2][1]:.0f}" for face in points]
        numbers = tuple(np.asarray(one, np.float32) for one in (boxes, scores, points))
        return Answer("; ".join(f"{face}, {part}" for face, part in zip(found, parts, strict=True)), numbers)

    return Loaded({name: TorchSource(network) for name, network in networks.items()}, ask)


class _Module(nn.Module):
    """A call in the place of a network, whose parameters are asked for their type."""

    def __init__(self, network: nn.Module, call: Call) -> None:
        super().__init__()
        self.network, self.call = network, call

    def forward(self, pictures: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return tuple(map(torch.from_numpy, self.call(pictures.contiguous().numpy())))


def suppress(boxes: torch.Tensor, scores: torch.Tensor, groups: torch.Tensor, threshold: float) -> torch.Tensor:
    """Non-maximum suppression within each group, as ``torchvision.ops.batched_nms``.

    Parameters
    ----------
    boxes
        [count, 4]: left, top, right, bottom.
    scores, groups
        [count]; boxes of several groups do not meet.
    threshold
        Of intersection over union, above which the box with the lower score goes.

    Returns
    -------
    torch.Tensor
        Numbers of the boxes that stay, by falling score.
    """
    order = scores.argsort(descending=True, stable=True)
    boxes, groups = boxes[order], groups[order]
    corner, end = boxes[:, None, :2].maximum(boxes[:, :2]), boxes[:, None, 2:].minimum(boxes[:, 2:])
    common = (end - corner).clamp(min=0).prod(-1)
    area = (boxes[:, 2:] - boxes[:, :2]).prod(-1)
    meets = (common / (area[:, None] + area - common) > threshold) & (groups[:, None] == groups)
    stays = torch.ones(len(boxes), dtype=torch.bool)
    for index in range(len(boxes)):
        if stays[index]:
            stays[index + 1 :] &= ~meets[index, index + 1 :]
    return order[stays]
