"""The runtimes whose tools quantize a trained model, on 8-bit integers: the peers of our pass ``quantize``.

Both are calibrated on `Network.calibration`. What their tools leave in floating point is float32.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from benchmarks.peers import Network, OnnxRuntime, OpenVino

if TYPE_CHECKING:
    import openvino


class OpenVinoInt8(OpenVino):
    """OpenVINO, the model quantized with NNCF's default settings for networks of its kind.

    Parameters
    ----------
    network
        The float32 model, with calibration data.
    threads
        Threads of one call.
    fast_bias_correction
        NNCF's default; False takes longer, and adjusts each layer's bias to the layers before it.
    """

    def __init__(self, network: Network, threads: int, *, fast_bias_correction: bool = True) -> None:
        self.network = network
        self.fast_bias_correction = fast_bias_correction
        super().__init__(network, threads)

    def _prepared(self, model: openvino.Model) -> openvino.Model:
        import nncf

        nncf.set_log_level(logging.ERROR)
        batches = [tuple(tensor.numpy() for tensor in batch) for batch in self.network.calibration]
        return nncf.quantize(
            model,
            nncf.Dataset(batches),
            subset_size=len(batches),
            fast_bias_correction=self.fast_bias_correction,
            model_type=nncf.ModelType.TRANSFORMER if self.network.transformer else None,
        )


class OnnxRuntimeInt8(OnnxRuntime):
    """ONNX Runtime after its static quantization: QDQ, a scale for each channel of a weight, else its defaults.

    It rounds what ``operators`` read, or all that it knows how to.
    """

    def __init__(self, network: Network, threads: int, operators: Sequence[str] = ()) -> None:
        self.network = network
        self.operators = operators
        super().__init__(network, threads)

    def _prepared(self, path: Path) -> Path:
        from onnxruntime.quantization import CalibrationDataReader, quantize_static, shape_inference

        batches = iter(self.network.calibration)

        class Reader(CalibrationDataReader):
            def get_next(self) -> dict[str, np.ndarray] | None:
                batch = next(batches, None)
                return None if batch is None else {f"input_{i}": one.numpy() for i, one in enumerate(batch)}

        prepared, quantized = path.with_name("prepared.onnx"), path.with_name("quantized.onnx")
        shape_inference.quant_pre_process(path, prepared)
        rounded = {"op_types_to_quantize": list(self.operators)} if self.operators else {}
        quantize_static(prepared, quantized, Reader(), per_channel=True, **rounded)
        return quantized


INT8_PEERS = {peer.name: peer for peer in (OnnxRuntimeInt8, OpenVinoInt8)}
