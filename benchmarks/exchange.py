"""Quantized models in and out: how near our integers are to PyTorch's and to ONNX Runtime's on the same models.

::

    python -m benchmarks.exchange                      # ResNet-18, MobileNetV2 (drawn weights), MiniLM

``PT2E in`` are models that PyTorch's PT2E flow quantized, compiled by us. ``QDQ in`` are files of ONNX Runtime's static
quantization, compiled by us. ``QDQ out`` are models that we quantized, written by ``graph.to_onnx``, checked by
``onnx.checker``, and run by ONNX Runtime without its optimizations.

The table has the share of the outputs within one step, 255 of which cover an output, and the largest distance in steps:
of ours from theirs, and of both from the same model with sums of float64. Where numbers lie near the edge between two
integers, the order of float32 sums decides, so two ways to compute a model are no nearer to each other than that. How
near that is, the last column says: their numbers against the same model whose float32 results are all moved by a unit
in the last place, up, down or not at all, the worst of a few draws. Nothing is timed.
"""

from __future__ import annotations

import importlib.util
import tempfile
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console

import tersor
from benchmarks.accuracy import TASKS, Batch, Pt2e
from benchmarks.int8_peers import OnnxRuntimeInt8
from benchmarks.models import load
from benchmarks.peers import Network, Precision
from benchmarks.tables import new_table
from tersor.ir import DType, Graph, Op, evaluate_op, is_constant
from tersor.ir.ops import LayerOp, ProductOp

CALIBRATION = 8
DRAWS = 8  # of the last column
MODELS = "resnet18,mobilenetv2,minilm"
# ONNX Runtime rounds MiniLM's attention mask, 0 and -inf, too, unless it is told what to round.
PRODUCTS_ONLY = ("minilm",)

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
console = Console()


@app.command()
def exchange(models: Annotated[str, typer.Option(help="Names of benchmarks.models.")] = MODELS) -> None:
    """Print the share of the outputs within one step, and the largest distance in steps."""
    rows = []
    for name in models.split(","):
        with console.status(name) as status, tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for way, compute in _WAYS.items():
                if way == "PT2E in" and importlib.util.find_spec("torchao") is None:
                    continue
                status.update(f"{name}: {way}")
                graph, ours, theirs = compute(name, Path(folder))
                exact = _float64(graph, _loaded(name)[1])
                draws = (_moved(graph, _loaded(name)[1], draw) for draw in range(DRAWS))
                moved = min(draws, key=partial(_share, theirs))
                pairs = ((ours, theirs), (theirs, exact), (ours, exact), (moved, theirs))
                rows.append((name, way, *(_distance(*pair) for pair in pairs)))
    header = ("model", "way", "ours,\ntheirs", "theirs,\nfloat64", "ours,\nfloat64", "theirs,\n1 ulp")
    title = "Outputs within one step in %, and the largest distance"
    console.print(new_table(title, header, rows, text_columns=2))


def _pt2e(name: str, folder: Path) -> tuple[Graph, torch.Tensor, torch.Tensor]:
    module, inputs, batches = _loaded(name)
    call = Pt2e(Network(module, inputs, folder, Precision.INT8, batches), 1).call
    assert isinstance(call, torch.nn.Module)
    exported = torch.export.export(call, inputs)
    with torch.no_grad():
        theirs = call(*inputs)
    return tersor.from_torch(exported), tersor.compile(exported, check=False).flat(*inputs)[0], theirs


def _qdq_in(name: str, folder: Path) -> tuple[Graph, torch.Tensor, torch.Tensor]:
    module, inputs, batches = _loaded(name)
    operators = ("MatMul", "Gemm") if name in PRODUCTS_ONLY else ()
    OnnxRuntimeInt8(Network(module, inputs, folder, Precision.INT8, batches), 1, operators)
    (path,) = folder.rglob("quantized.onnx")
    graph = tersor.from_onnx(path)
    return graph, tersor.compile(graph, check=False).flat(*inputs)[0], _run(path, inputs)


def _qdq_out(name: str, folder: Path) -> tuple[Graph, torch.Tensor, torch.Tensor]:
    import onnx

    module, inputs, batches = _loaded(name)
    graph = tersor.from_torch(module, inputs)
    quantized = tersor.run_passes(graph, "O3,quantize{keep=all}", calibration=batches)
    path = folder / "out.onnx"
    quantized.to_onnx(path)
    onnx.checker.check_model(onnx.load(path), full_check=True)
    return tersor.from_onnx(path), quantized.evaluate(*inputs)[0], _run(path, inputs)


def _float64(graph: Graph, inputs: Sequence[torch.Tensor]) -> torch.Tensor:
    """The first output where layers and products sum in float64; everything else is as the interpreter computes it."""

    def compute(op: Op, operands: Sequence[torch.Tensor | None]) -> tuple[torch.Tensor, ...]:
        if isinstance(op, LayerOp | ProductOp) and op.result.type.dtype is DType.F32:
            widened = [one.double() if one is not None and one.is_floating_point() else one for one in operands]
            return (evaluate_op(op, widened)[0].float(),)
        return evaluate_op(op, operands)

    return _first_output(graph, inputs, compute)


def _moved(graph: Graph, inputs: Sequence[torch.Tensor], draw: int) -> torch.Tensor:
    """The first output where results of the interpreter move by a unit in the last place, or do not."""
    generator = torch.Generator().manual_seed(draw)

    def compute(op: Op, operands: Sequence[torch.Tensor | None]) -> tuple[torch.Tensor, ...]:
        results = evaluate_op(op, operands)
        if not op.inputs or is_constant(op.result):
            return results
        return tuple(_nudged(one, generator) if one.dtype is torch.float32 else one for one in results)

    return _first_output(graph, inputs, compute)


def _first_output(
    graph: Graph,
    inputs: Sequence[torch.Tensor],
    compute: Callable[[Op, Sequence[torch.Tensor | None]], tuple[torch.Tensor, ...]],
) -> torch.Tensor:
    """Of a graph whose ops are computed by ``compute``."""
    found = dict(zip(graph.inputs, inputs, strict=True))
    for op in graph.ops:
        results = compute(op, [None if value is None else found[value] for value in op.operands])
        found.update(zip(op.results, results, strict=True))
    return found[graph.outputs[0]]


def _nudged(numbers: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    towards = torch.randint(-1, 2, numbers.shape, generator=generator) * torch.inf
    return torch.where(towards.isnan(), numbers, torch.nextafter(numbers, towards))


_WAYS: dict[str, Callable[[str, Path], tuple[Graph, torch.Tensor, torch.Tensor]]] = {
    "PT2E in": _pt2e,
    "QDQ in": _qdq_in,
    "QDQ out": _qdq_out,
}


def _loaded(name: str) -> tuple[torch.nn.Module, Batch, list[Batch]]:
    """A model, an input, and calibration data: its task's, or numbers from a normal distribution."""
    module, inputs = load(name)
    tasks = {task.model: task for task in TASKS}
    if name in tasks:
        return module, inputs, list(tasks[name].inputs(CALIBRATION, 0))
    generator = torch.Generator().manual_seed(0)
    drawn = [tuple(torch.randn(one.shape, generator=generator) for one in inputs) for _ in range(CALIBRATION)]
    return module, inputs, drawn


def _run(path: Path, inputs: Sequence[torch.Tensor]) -> torch.Tensor:
    """The first output of a file, as ONNX Runtime computes it without optimizations: as the standard says."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    names = [one.name for one in session.get_inputs()]
    return torch.from_numpy(session.run(None, {one: x.numpy() for one, x in zip(names, inputs, strict=True)})[0])


def _distance(found: torch.Tensor, expected: torch.Tensor) -> str:
    """Share within one step, and the largest distance."""
    return f"{100 * _share(expected, found):.1f}, {_steps(found, expected).max():.1f}"


def _share(expected: torch.Tensor, found: torch.Tensor) -> float:
    return (_steps(found, expected) <= 1).double().mean().item()


def _steps(found: torch.Tensor, expected: torch.Tensor) -> torch.Tensor:
    return (found - expected).abs() * 255 / (expected.max() - expected.min())


if __name__ == "__main__":
    app()
