"""OpenVINO on 8-bit integers, as NNCF's post-training quantization makes them: the peer of our pass ``quantize``."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

import torch

from benchmarks.peers import Network, OpenVino

if TYPE_CHECKING:
    import openvino


class OpenVinoInt8(OpenVino):
    """OpenVINO, the model quantized with NNCF's default settings; what these leave in floating point is float32.

    Parameters
    ----------
    network
        The float32 model, with one input.
    threads
        Threads of one call.
    calibration
        Inputs, all of which are used.
    """

    name: ClassVar[str] = "openvino int8"

    def __init__(self, network: Network, threads: int, calibration: Sequence[torch.Tensor]) -> None:
        self.calibration = calibration
        super().__init__(network, threads)

    def _prepared(self, model: openvino.Model) -> openvino.Model:
        import nncf

        nncf.set_log_level(logging.ERROR)
        data = nncf.Dataset([tensor.numpy() for tensor in self.calibration])
        return nncf.quantize(model, data, subset_size=len(self.calibration))
