"""What weights of 4 and 8 bits are worth: time at batch 1, beside what memory allows, and how near embeddings stay.

::

    python -m benchmarks.few_bits layers                         # VGG-16's linear layers alone, and the probed memory
    python -m benchmarks.few_bits networks --models minilm,gpt   # whole networks, each layer where it is faster
    python -m benchmarks.few_bits accuracy                       # MiniLM: rounding beside GPTQ

Programs of one network are timed by turns in one process.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from itertools import pairwise, starmap
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console
from torch import nn
from torch.nn import functional

import tersor
from benchmarks.harness import ExecutableRunner, Schedule, measure
from benchmarks.models import load, minilm, minilm_tokenizer
from benchmarks.probe import probe
from benchmarks.tables import milliseconds, new_table
from tersor.ir import Graph
from tersor.ir.ops import LayerOp, LinearOp, PackedLinearOp

PACK = "O3,quantize-weights{{method=round,{}}}"
FORMS = {
    "float32": "O3",
    "int8": "O3,quantize{keep=all,accuracy=[]}",
    "8-bit weights": PACK.format("bits=8,keep=all"),
    "4-bit weights": PACK.format("keep=all"),
    "4 bits, integer rows": PACK.format("activations=i8,keep=all"),
    "4 bits of 128": PACK.format("group=128,activations=i8,keep=all"),
}
NETWORKS = {
    "float32": "O3",
    "4-bit weights": PACK.format("bits=4"),
    "8 bits, integer rows": PACK.format("bits=8,group=0,activations=i8"),
    "4 bits, integer rows": PACK.format("activations=i8"),
}
VGG_LAYERS = {
    "25088 -> 4096": (25088, 4096),
    "4096 -> 4096, 16 in a row": (4096,) * 17,
}  # in no cache, at 4 bits either
ACCURACY = ("method=round,keep=all", "keep=all", "group=32,keep=all", "activations=i8,keep=all", "bits=8,keep=all")
DOCUMENTS = Path(__file__).parent.parent / "docs"
TOKENS = 32  # of a sentence, padding included
SENTENCES = 60  # to calibrate with, and as many others to look at

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
console = Console()
Threads = Annotated[int, typer.Option(min=1, help="Threads of one call.")]
Rounds = Annotated[int, typer.Option(min=1, help="Blocks of calls for each program.")]


class DecoderBlock(nn.Module):
    """One layer of a decoder, for one token."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.before_attention, self.before_units = nn.LayerNorm(width), nn.LayerNorm(width)
        self.joined, self.projection = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.wider, self.narrower = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
        """``x`` [1, width], ``keys`` and ``values`` [heads, tokens, width of a head]."""
        query, key, value = self.joined(self.before_attention(x)).reshape(3, self.heads, 1, -1).unbind(0)
        past = (torch.cat((keys, key), 1), torch.cat((values, value), 1))
        x = x + self.projection(functional.scaled_dot_product_attention(query, *past).reshape(x.shape))
        units: torch.Tensor = self.narrower(functional.gelu(self.wider(self.before_units(x))))
        return x + units


class DecoderStep(nn.Module):
    """One token through a decoder of GPT-2's size, with the keys and values of the tokens before it."""

    def __init__(self, width: int = 768, layers: int = 12, heads: int = 12) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(DecoderBlock(width, heads) for _ in range(layers))

    def forward(self, x: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
        """``x`` [1, width], ``keys`` and ``values`` [layers, heads, tokens, width of a head]."""
        for index, block in enumerate(self.blocks):
            x = block(x, keys[index], values[index])
        return x


def gpt() -> tuple[nn.Module, tuple[torch.Tensor, ...]]:
    """A step after 128 tokens, random weights."""
    torch.manual_seed(0)
    past = torch.randn(2, 12, 12, 128, 64)
    return DecoderStep().eval(), (torch.randn(1, 768), past[0], past[1])


@app.command()
def layers(threads: Threads = 2, rounds: Rounds = 5) -> None:
    """Time VGG-16's linear layers alone."""
    limits = probe(threads)
    console.print(
        f"memory {limits.memory_gbytes:.1f}, L3 {limits.l3_gbytes:.1f} 10^9 bytes a second, {threads} threads"
    )
    rows = []
    for name, widths in VGG_LAYERS.items():
        module, x = nn.Sequential(*starmap(nn.Linear, pairwise(widths))), torch.rand(1, widths[0])
        for form, milli, program in _timed(module, (x,), FORMS, threads, rounds):
            size = sum(constant.nbytes for constant in program.model.constants)
            seconds = size / (limits.gbytes(size) * 1e9)
            rows.append((name, form, f"{size / 1e6:.1f}", milliseconds(milli), milliseconds(seconds)))
    console.print(
        new_table("VGG-16's linear layers, batch 1", ("layer", "", "MB", "ms", "ms to read"), rows, text_columns=2)
    )


@app.command()
def networks(
    models: Annotated[str, typer.Option(help="Names of benchmarks.models, and gpt.")] = "minilm,vit_tiny,gpt,vgg16",
    threads: Threads = 2,
    rounds: Rounds = 5,
) -> None:
    """Time networks of which each layer is packed where the referee measures that faster."""
    rows = []
    for name in models.split(","):
        module, inputs = gpt() if name == "gpt" else load(name)
        for form, milli, program in _timed(module, inputs, NETWORKS, threads, rounds):
            rows.append((name, form, _share(program.graph), milliseconds(milli)))
    console.print(new_table("Networks, batch 1", ("network", "", "layers", "ms"), rows, text_columns=2))


@app.command()
def accuracy() -> None:
    """Compare embeddings of sentences by MiniLM with those of float32."""
    module, _ = minilm()
    calibration, others = _sentences()
    graph = tersor.from_torch(module, calibration)
    exact = _embedded(graph, others)
    rows = []
    for options in ACCURACY:
        packed = tersor.run_passes(graph, f"O3,quantize-weights{{{options}}}", calibration=[calibration])
        cosines = (exact * _embedded(packed, others)).sum(1)
        rows.append((options, f"{cosines.mean():.4f}", f"{cosines.min():.4f}"))
    console.print(new_table(f"MiniLM, cosine of {len(exact)} embeddings", ("options", "mean", "least"), rows))


def _timed(
    module: nn.Module, inputs: Sequence[torch.Tensor], forms: dict[str, str], threads: int, rounds: int
) -> Iterator[tuple[str, float, tersor.targets.Executable]]:
    """Programs of a network, and the median seconds of a call."""
    arrays = [one.numpy() for one in inputs]
    programs = {
        name: tersor.compile(
            module.eval(), tuple(inputs), pipeline=pipeline, calibration=[tuple(inputs)], threads=threads, check=False
        )
        for name, pipeline in forms.items()
    }
    found = measure([ExecutableRunner(one, name) for name, one in programs.items()], arrays, Schedule(rounds=rounds))
    for name, program in programs.items():
        yield name, found[name].median, program


def _share(graph: Graph) -> str:
    """How many linear layers are packed, or compute on integers."""
    ops = [op for part in graph.parts for op in part.ops if isinstance(op, LinearOp | PackedLinearOp)]
    packed = sum(not isinstance(op, LayerOp) or not op.weight.type.dtype.is_floating for op in ops)
    return f"{packed}/{len(ops)}"


def _sentences() -> tuple[tuple[torch.Tensor, ...], tuple[torch.Tensor, ...]]:
    """Token ids and masks of sentences of this project's pages: to calibrate with, and others."""
    tokenizer = minilm_tokenizer()
    tokenizer.enable_padding(length=TOKENS)
    tokenizer.enable_truncation(TOKENS)
    text = "\n".join(path.read_text("utf-8") for path in sorted(DOCUMENTS.glob("*.md")))
    found = re.findall(r"(?<=[.:] )[A-Z][a-z][^.:|`*\n]{30,120}\.", text)
    encoded = tokenizer.encode_batch(found[: 2 * SENTENCES])
    numbers = [torch.tensor([getattr(one, part) for one in encoded]) for part in ("ids", "attention_mask")]
    return tuple(one[::2] for one in numbers), tuple(one[1::2] for one in numbers)


def _embedded(graph: Graph, inputs: tuple[torch.Tensor, ...]) -> torch.Tensor:
    """The mean over tokens, at length 1."""
    (states,) = graph.evaluate(*inputs)
    return functional.normalize((states * inputs[1][..., None]).sum(1))


if __name__ == "__main__":
    app()
