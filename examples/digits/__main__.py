"""``python -m examples.digits``: train the three networks, compress them, and show what it costs and what it gains.

::

    python -m examples.digits train       # minutes the first time; later everything comes from the cache
    python -m examples.digits int8        # 8-bit integers
    python -m examples.digits prune       # half of the multiply-adds by fewer channels, beside random channels
    python -m examples.digits criteria    # half of the multiply-adds by each criterion and by reconstruction, untrained
    python -m examples.digits curves      # each criterion at several ratios of the multiply-adds, and a chart
    python -m examples.digits budgets     # pruned and fine-tuned, beside training from scratch for equal epochs
    python -m examples.digits blocks      # ResNet-20 without some of its residual blocks
    python -m examples.digits exits       # ResNet-20 with early exits
    python -m examples.digits low-rank    # the VGG-like network at a third of its multiply-adds
    python -m examples.digits few-bits    # weights of 4 bits: rounded, and trained on for three epochs
    python -m examples.digits compose     # pruning and integers together
    python -m examples.digits all         # train, int8, prune, low-rank and compose
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from benchmarks.harness import Schedule
from benchmarks.tables import new_table

from . import chart
from .blocks import COUNTS, PREPARATIONS, without_blocks
from .budgets import EPOCHS, budgets_of
from .curves import RATIOS, STAGES, curves_of
from .exits import exits_of_resnet
from .models import NETWORKS, original
from .report import budgets_table, changes_table, curves_table, exits_table, programs_table, save
from .studies import Study, accuracy, compared_criteria, composed, factorized, pruned, quantized
from .studies import few_bits as few_bits_of

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results" / "digits.json"
CURVES = RESULTS.with_name("digits-curves.svg")

app = typer.Typer(
    help=__doc__.split("\n\n")[0].replace("``", ""),
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
console = Console()


def _joined(numbers: Iterable[float]) -> str:
    return ",".join(f"{number:g}" for number in numbers)


Rounds = Annotated[int, typer.Option(min=1, help="Blocks of timed calls of each program.")]
Json = Annotated[Path, typer.Option("--json", help="Results are written into this file.")]
Epochs = Annotated[int, typer.Option(min=1, help="Epochs of fine-tuning.")]
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
    _names(network)
    columns = ("prune-channels{macs=0.5,…}", "multiply-adds", "no training %", "new statistics %")
    view = new_table(f"{NETWORKS[network].title}: half of the multiply-adds", columns)
    for options, macs, raw, reestimated in compared_criteria(network):
        view.add_row(options, f"{macs:.3f}", f"{100 * raw:.1f}", f"{100 * reestimated:.1f}")
    console.print(view)


@app.command()
def curves(
    networks: Annotated[str, typer.Option(help="Names, separated by commas.")] = "resnet20,mobilenetv2",
    ratios: Annotated[str, typer.Option(help="Of multiply-adds left, the largest first.")] = _joined(RATIOS),
    epochs: Epochs = 1,
    scratch: Annotated[str, typer.Option(help="Ratios at which to train from random weights, too.")] = "",
    drawing: Annotated[Path, typer.Option("--chart", help="The chart is written into this file.")] = CURVES,
    json: Json = RESULTS,
) -> None:
    """Accuracy against operations, by each criterion and by reconstruction."""
    names, asked, again = _names(networks), _ratios(ratios), _ratios(scratch) if scratch else ()
    found = [curves_of(name, asked, epochs, again) for name in names]
    for one in found:
        for stage in STAGES:
            console.print(curves_table(one, stage))
            for name, where in one.not_above_random(STAGES[stage]).items():
                console.print(f"{name} is not above random at {', '.join(f'{ratio:g}' for ratio in where)}")
    chart.draw(found, drawing)
    save(json, "curves", found)


@app.command()
def budgets(
    networks: Annotated[str, typer.Option(help="Names, separated by commas.")] = "resnet20,mobilenetv2",
    epochs: Annotated[str, typer.Option(help="Of fine-tuning, and from random weights.")] = _joined(EPOCHS),
    whole: Annotated[bool, typer.Option(help="From random weights also with the epochs of the network.")] = False,
    json: Json = RESULTS,
) -> None:
    """Half of the multiply-adds, fine-tuned and from random weights for equal epochs."""
    counts = _counts(epochs, "epochs", EPOCHS)
    found = [budgets_of(name, counts, whole) for name in _names(networks)]
    for one in found:
        console.print(budgets_table(one))
    save(json, "budgets", found)


@app.command()
def blocks(
    counts: Annotated[str, typer.Option(help="How many blocks go.")] = _joined(COUNTS),
    epochs: Epochs = 1,
    rounds: Rounds = 5,
    latency: Annotated[bool, typer.Option(help="Compile and time them, too.")] = True,
    json: Json = RESULTS,
) -> None:
    """ResNet-20 without residual blocks, trained for it or not."""
    numbers = _counts(counts, "blocks", COUNTS)
    schedule = _schedule(rounds) if latency else None
    studies = [without_blocks(name, numbers, epochs, schedule) for name in PREPARATIONS]
    _show("blocks", "Fewer residual blocks", studies, json)


@app.command()
def exits(json: Json = RESULTS) -> None:
    """ResNet-20 with two exits on the way."""
    study = exits_of_resnet()
    console.print(exits_table(study))
    save(json, "exits", [study])


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
    for name in _names(networks):
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
    """Train, int8, prune, low-rank and compose."""
    train()
    int8(rounds, json)
    prune(rounds, json, scratch)
    low_rank(rounds, json)
    compose(rounds, json)


def _names(text: str) -> list[str]:
    names = text.split(",")
    if unknown := [name for name in names if name not in NETWORKS]:
        raise typer.BadParameter(f"{unknown[0]} is none of {', '.join(NETWORKS)}")
    return names


def _counts(text: str, what: str, example: Sequence[int]) -> tuple[int, ...]:
    if not all(one.isdigit() and int(one) for one in text.split(",")):
        raise typer.BadParameter(f"{text} is no list of numbers of {what}, such as {_joined(example)}")
    return tuple(map(int, text.split(",")))


def _ratios(text: str) -> tuple[float, ...]:
    try:
        ratios = tuple(map(float, text.split(",")))
    except ValueError:
        ratios = ()
    if not ratios or not all(0 < ratio < 1 for ratio in ratios):
        raise typer.BadParameter(f"{text} is no list of ratios between 0 and 1, such as {_joined(RATIOS)}")
    return ratios


def _schedule(rounds: int) -> Schedule:
    return Schedule(rounds=rounds, block_seconds=0.2, maximum_calls=500, pause_seconds=0.2)


def _show(key: str, title: str, studies: Sequence[Study], json: Path) -> None:
    if any(study.changes for study in studies):
        console.print(changes_table(f"{title}: accuracy at once, with new statistics, and fine-tuned", studies))
    if any(study.programs for study in studies):
        console.print(programs_table(f"{title}: compiled, one picture, two threads", studies))
    save(json, key, studies)


if __name__ == "__main__":
    app()
