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
    fast_bias_correction
        NNCF's default; False takes longer, and adjusts each layer's bias to the layers before it.
    transformer
        Whether the model is one, for which NNCF has settings of its own.
    """

    name: ClassVar[str] = "openvino int8"

    def __init__(
        self,
        network: Network,
        threads: int,
        calibration: Sequence[tuple[torch.Tensor, ...]],
        *,
        fast_bias_correction: bool = True,
        transformer: bool = False,
    ) -> None:
        self.calibration = calibration
        self.fast_bias_correction = fast_bias_correction
        self.transformer = transformer
        super().__init__(network, threads)

    def _prepared(self, model: openvino.Model) -> openvino.Model:
        import nncf

        nncf.set_log_level(logging.ERROR)
        data = nncf.Dataset([tuple(tensor.numpy() for tensor in batch) for batch in self.calibration])
        return nncf.quantize(
            model,
            data,
            subset_size=len(self.calibration),
            fast_bias_correction=self.fast_bias_correction,
            model_type=nncf.ModelType.TRANSFORMER if self.transformer else None,
        )
