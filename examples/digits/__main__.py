"""``python -m examples.digits``: train the three networks, compress them, and show what it costs and what it gains.

::

    python -m examples.digits train       # minutes the first time; later everything comes from the cache
    python -m examples.digits int8        # 8-bit integers
    python -m examples.digits prune       # half of the multiply-adds by fewer channels, beside random channels
    python -m examples.digits criteria    # half of the multiply-adds by each criterion and by reconstruction, untrained
    python -m examples.digits low-rank    # the VGG-like network at a third of its multiply-adds
    python -m examples.digits few-bits    # weights of 4 bits: rounded, and trained on for three epochs
    python -m examples.digits compose     # pruning and integers together
    python -m examples.digits all         # all of these
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from benchmarks.harness import Schedule
from benchmarks.tables import new_table

from .models import NETWORKS, original
from .report import changes_table, programs_table, save
from .studies import Study, accuracy, compared_criteria, composed, factorized, pruned, quantized
from .studies import few_bits as few_bits_of

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results" / "digits.json"

app = typer.Typer(
    help=__doc__.split("\n\n")[0].replace("``", ""),
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
console = Console()

Rounds = Annotated[int, typer.Option(min=1, help="Blocks of timed calls of each program.")]
Json = Annotated[Path, typer.Option("--json", help="Results are written into this file.")]
Scratch = Annotated[bool, typer.Option(help="Train the small architectures from random weights, too.")]


@app.command()
def train() -> None:
    """Train the networks, or find them in the cache."""
    view = new_table("Trained on two threads", ("network", "parameters", "accuracy %", "seconds"))
    for name, network in NETWORKS.items():
        found = original(name)
        count = sum(parameter.numel() for parameter in found.module.parameters())
        view.add_row(network.title, f"{count:,}", f"{100 * accuracy(found.module):.1f}", f"{found.seconds:.0f}")
    console.print(view)


@app.command()
def int8(rounds: Rounds = 5, json: Json = RESULTS) -> None:
    """Accuracy and latency on 8-bit integers."""
    studies = [quantized(name, _schedule(rounds)) for name in NETWORKS]
    _show("int8", "8-bit integers", studies, json)


@app.command()
def prune(rounds: Rounds = 5, json: Json = RESULTS, scratch: Scratch = True) -> None:
    """Half of the multiply-adds by pruning channels."""
    studies = [pruned(name, _schedule(rounds), scratch) for name in NETWORKS]
    _show("prune", "Half of the multiply-adds by fewer channels", studies, json)


@app.command()
def criteria(
    network: Annotated[str, typer.Argument(help=f"One of {', '.join(NETWORKS)}.")] = "mobilenetv2",
) -> None:
    """Half of the multiply-adds by each criterion, and by reconstruction: accuracy without training."""
    if network not in NETWORKS:
        raise typer.BadParameter(f"{network} is none of {', '.join(NETWORKS)}")
    columns = ("prune-channels{macs=0.5,…}", "multiply-adds", "no training %", "new statistics %")
    view = new_table(f"{NETWORKS[network].title}: half of the multiply-adds", columns)
    for options, macs, raw, reestimated in compared_criteria(network):
        view.add_row(options, f"{macs:.3f}", f"{100 * raw:.1f}", f"{100 * reestimated:.1f}")
    console.print(view)


@app.command()
def low_rank(rounds: Rounds = 5, json: Json = RESULTS) -> None:
    """The VGG-like network with lower ranks."""
    _show("low-rank", "Lower ranks", [factorized(_schedule(rounds))], json)


@app.command()
def few_bits(
    bits: Annotated[int, typer.Option(min=2, max=8, help="Bits of the weights.")] = 4,
    networks: Annotated[str, typer.Option(help="Names, separated by commas.")] = ",".join(NETWORKS),
) -> None:
    """Weights of few bits and 8-bit activations: accuracy of rounding alone, and of training with it."""
    columns = ("network", "float32", "rounded", "gptq", "lsq", "pact", "lsq s", "equal")
    view = new_table(f"Weights of {bits} bits: accuracy and equal results, in percent", columns)
    for name in networks.split(","):
        one = few_bits_of(name, bits)
        shares = (one.exact, one.rounded, one.careful, one.tuned["lsq"], one.tuned["pact"])
        numbers = [f"{100 * share:.1f}" for share in shares]
        view.add_row(one.network, *numbers, f"{one.seconds:.0f}", f"{100 * one.equal:g}")
    console.print(view)


@app.command()
def compose(rounds: Rounds = 5, json: Json = RESULTS) -> None:
    """The VGG-like network pruned and quantized."""
    _show("compose", "Pruned and quantized", [composed(_schedule(rounds))], json)


@app.command("all")
def everything(rounds: Rounds = 5, json: Json = RESULTS, scratch: Scratch = True) -> None:
    """All of these."""
    train()
    int8(rounds, json)
    prune(rounds, json, scratch)
    low_rank(rounds, json)
    compose(rounds, json)


def _schedule(rounds: int) -> Schedule:
    return Schedule(rounds=rounds, block_seconds=0.2, maximum_calls=500, pause_seconds=0.2)


def _show(key: str, title: str, studies: Sequence[Study], json: Path) -> None:
    if any(study.changes for study in studies):
        console.print(changes_table(f"{title}: accuracy", studies))
    console.print(programs_table(f"{title}: compiled, one picture, two threads", studies))
    save(json, {key: studies})


if __name__ == "__main__":
    app()
