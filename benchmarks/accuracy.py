"""What 8-bit integers cost two trained networks: EfficientNet-Lite0 on photographs, MiniLM on sentences.

Ours beside OpenVINO with NNCF, ONNX Runtime's static quantization and PyTorch's PT2E, all calibrated on the same
inputs, which are not those that are judged. Nothing is timed. PT2E is in the package ``torchao``, which
``make zoo-trained`` installs; it is left out where that is missing.
"""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import nn

import tersor
from benchmarks.harness import ExecutableRunner
from benchmarks.int8_peers import OnnxRuntimeInt8, OpenVinoInt8
from benchmarks.models import load
from benchmarks.peers import Network, Precision, Runner, TorchEager
from benchmarks.photographs import crops
from benchmarks.sentences import tokens

CALIBRATION = 64
JUDGED = 210  # thirty of each photograph
TRANSFORMERS = ("vit_tiny", "minilm")  # for which NNCF has settings of its own
Batch = tuple[torch.Tensor, ...]


@dataclass(frozen=True)
class Answers:
    """One runner's answers beside those of PyTorch in float32.

    Attributes
    ----------
    runner
        Its name.
    agreement
        Photographs: the share of them with the same likeliest class. Sentences: the mean cosine of the embeddings.
    lowest
        The lowest cosine of embeddings, or of logits.
    error
        Root mean square of the difference of all outputs, relative to that of the outputs.
    """

    runner: str
    agreement: float
    lowest: float
    error: float


@dataclass(frozen=True)
class Task:
    """A trained network, and what it is judged on.

    Attributes
    ----------
    model
        Its name in `benchmarks.models`.
    subject
        What is judged, for the table.
    inputs
        Makes so many inputs from a seed.
    answer
        Of an output, and the inputs that it belongs to: what is compared.
    agrees
        How far two answers agree, from 0 to 1.
    ours
        Options of ``quantize`` to show beside the default.
    """

    model: str
    subject: str
    inputs: Callable[[int, int], Iterator[Batch]]
    answer: Callable[[np.ndarray, Batch], np.ndarray]
    agrees: Callable[[np.ndarray, np.ndarray], float]
    ours: tuple[str, ...]


def _crops(count: int, seed: int) -> Iterator[Batch]:
    return ((crop,) for _, crop in crops(count, seed + 1))


def _logits(output: np.ndarray, inputs: Batch) -> np.ndarray:
    return output[0]


def _same_class(found: np.ndarray, expected: np.ndarray) -> float:
    return float(found.argmax() == expected.argmax())


def _embedding(output: np.ndarray, inputs: Batch) -> np.ndarray:
    """The mean over the tokens, as the package's 1_Pooling/config.json says."""
    mask = inputs[1].numpy()[0, :, None]
    return (output[0] * mask).sum(0) / mask.sum()


def _cosine(found: np.ndarray, expected: np.ndarray) -> float:
    return float(found @ expected / (np.linalg.norm(found) * np.linalg.norm(expected)))


TASKS = (
    Task(
        "efficientnet_lite0",
        "crops of photographs with the same class",
        _crops,
        _logits,
        _same_class,
        ("method=auto", "accuracy=[gptq]", "method=mse,accuracy=[gptq]", "accuracy=[adaround]"),
    ),
    Task(
        "minilm",
        "mean cosine of sentences",
        tokens,
        _embedding,
        _cosine,
        ("accuracy=[smooth-quant,bias-correction]", "accuracy=[smooth-quant,gptq]"),
    ),
)


class Pt2e(TorchEager):
    """PyTorch's export quantization with the defaults of its quantizer for x86 processors."""

    name = "PT2E"

    def __init__(self, network: Network, threads: int) -> None:
        from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e
        from torchao.quantization.pt2e.quantizer import x86_inductor_quantizer as x86

        super().__init__(network, threads)
        quantizer = x86.X86InductorQuantizer().set_global(x86.get_default_x86_inductor_quantization_config())
        prepared = prepare_pt2e(torch.export.export(network.module, network.inputs).module(), quantizer)
        with torch.no_grad():
            for batch in network.calibration:
                prepared(*batch)
        self.call = convert_pt2e(prepared)


def judge(task: Task, threads: int, folder: Path, say: Callable[[str], None]) -> list[Answers]:
    """Quantize in every way, and compare."""
    module, example = load(task.model)
    calibration = list(task.inputs(CALIBRATION, 0))
    judged = list(task.inputs(JUDGED, 1))
    with torch.inference_mode():
        expected = [module(*inputs).numpy() for inputs in judged]
    found = []
    for name, make in _runners(task, module, example, calibration, threads, folder):
        say(f"{task.model}: {name}")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            runner = make()
        found.append(_answers(name, task, runner, judged, expected))
    return found


def _runners(
    task: Task, module: nn.Module, example: Batch, calibration: Sequence[Batch], threads: int, folder: Path
) -> Iterator[tuple[str, Callable[[], Runner]]]:
    def ours(options: str) -> Runner:
        pipeline = f"O3,quantize{{keep=all{options and ','}{options}}}"
        made = tersor.compile(module, example, pipeline=pipeline, calibration=calibration, threads=threads)
        return ExecutableRunner(made)

    for options in ("", *task.ours):
        yield f"tersor {options}".strip(), partial(ours, options)

    def network(name: str) -> Network:
        (folder / name).mkdir()
        return Network(module, example, folder / name, Precision.INT8, calibration, task.model in TRANSFORMERS)

    for fast, name in ((True, "NNCF"), (False, "NNCF, full bias correction")):
        yield name, partial(OpenVinoInt8, network(name), threads, fast_bias_correction=fast)
    yield "onnxruntime static", partial(OnnxRuntimeInt8, network("static"), threads)
    if importlib.util.find_spec("torchao") is not None:
        yield Pt2e.name, partial(Pt2e, network("pt2e"), threads)


def _answers(name: str, task: Task, runner: Runner, judged: Sequence[Batch], expected: Sequence[np.ndarray]) -> Answers:
    agreements, cosines, noise, signal = [], [], 0.0, 0.0
    for inputs, right in zip(judged, expected, strict=True):
        output = np.array(runner.run([one.numpy() for one in inputs])[0], np.float64)
        noise += float(np.square(output - right).sum())
        signal += float(np.square(right, dtype=np.float64).sum())
        ours, theirs = task.answer(output, inputs), task.answer(right.astype(np.float64), inputs)
        agreements.append(task.agrees(ours, theirs))
        cosines.append(_cosine(ours, theirs))
    return Answers(name, float(np.mean(agreements)), min(cosines), (noise / signal) ** 0.5)
