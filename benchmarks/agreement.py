"""How often a quantized EfficientNet-Lite0 says of natural photographs what the network says in float32.

Calibrated on other crops than those that are judged; OpenVINO's version, made by NNCF from the same crops, beside ours.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from benchmarks.peers import Runner
from benchmarks.photographs import crops

MODEL = "efficientnet_lite0"
CALIBRATION_CROPS = 64
JUDGED_CROPS = 140
CALIBRATION_SEED, JUDGED_SEED = 1, 2


@dataclass(frozen=True)
class Answers:
    """One runner's answers beside those of PyTorch in float32.

    Attributes
    ----------
    runner
        Its name.
    same, crops
        Crops for which the likeliest class is the same, and all crops.
    error
        Mean over the crops of the largest difference of a logit, relative to the largest logit.
    """

    runner: str
    same: int
    crops: int
    error: float

    @property
    def share(self) -> float:
        """Of the crops, those with the same class."""
        return self.same / self.crops


def calibration_crops() -> list[torch.Tensor]:
    """What both are calibrated on."""
    return [crop for _, crop in crops(CALIBRATION_CROPS, CALIBRATION_SEED)]


def measure_agreement(module: nn.Module, runners: Sequence[Runner]) -> list[Answers]:
    """Judge all on the same crops.

    Parameters
    ----------
    module
        The network in float32.
    runners
        The same, quantized.
    """
    judged = [crop for _, crop in crops(JUDGED_CROPS, JUDGED_SEED)]
    with torch.inference_mode():
        expected = [module(crop).numpy() for crop in judged]
    return [_judge(runner, judged, expected) for runner in runners]


def _judge(runner: Runner, judged: Sequence[torch.Tensor], expected: Sequence[np.ndarray]) -> Answers:
    same, errors = 0, []
    for crop, logits in zip(judged, expected, strict=True):
        (answer,) = runner.run([crop.numpy()])
        same += int(answer.argmax() == logits.argmax())
        errors.append(float(np.abs(answer - logits).max() / np.abs(logits).max()))
    return Answers(runner.name, same, len(judged), float(np.mean(errors)))
