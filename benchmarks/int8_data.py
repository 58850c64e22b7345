"""What integers are chosen from: sentences, photographs, or noise for networks with random weights."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from benchmarks.accuracy import CALIBRATION, TASKS, Batch
from benchmarks.models import MODELS, image

CALIBRATION_IMAGES = 8


def calibration_of(model: str, inputs: Sequence[torch.Tensor]) -> list[Batch]:
    """Inputs to calibrate a model on; the example ``inputs`` themselves where nothing else is known of it."""
    tasks = {task.model: task for task in TASKS}
    if model in tasks:
        return list(tasks[model].inputs(CALIBRATION, 0))
    if model in MODELS:
        return [(image(seed=1 + index),) for index in range(CALIBRATION_IMAGES)]
    return [tuple(inputs)]
