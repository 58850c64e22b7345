"""What the command line shows: progress of long work, and tables of results."""

from __future__ import annotations

import math
import sys
import textwrap
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    import torch

    from ..compression.result import Compressed
    from ..ir.foreign import Json
    from ..passes import Culprit, PassInfo, PassOption, PassOutcome, Report
    from ..passes.report import LayerPrecision
    from ..targets import Target
    from ..targets.runtime.executable import KernelTime
    from ..targets.runtime.model_info import ModelInfo, Port
    from .peers import Comparison


_WIDE = 110  # columns of a terminal in which names of layers are not shortened
_NAME = 20
_UNLIMITED = 10_000  # characters of a line that is not for a terminal
_DOT_PRODUCTS = {"avx512_vnni": "VNNI", "avx_vnni": "VNNI", "avx512_bf16": "BF16", "amx_tile": "AMX", "asimddp": "SDOT"}


class Progress:
    """Says on stderr which stage of a job is running, and how long each took.

    A terminal shows the stage that is running and keeps lines of those that ended. A pipe or a file gets one line for
    each stage, when it begins: so a long one is seen to be at work.
    """

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._console = Console(stderr=True, highlight=False, markup=False)
        self._status = self._console.status("starting")
        self._stage = ""
        self._started = 0.0

    def begin(self, stage: str) -> None:
        """End the current stage and begin another."""
        self._finish()
        self._stage, self._started = stage, time.perf_counter()
        self._announce(stage)

    def show(self, stage: str) -> None:
        """Show what is going on, without a line of its own when it ends."""
        self._finish()
        self._stage = ""
        self._announce(stage)

    def say(self, line: str) -> None:
        """Print a line that stays."""
        self._finish()
        self._stage = ""
        self._console.print(line, markup=False, soft_wrap=True)

    def _announce(self, stage: str) -> None:
        if self._console.is_terminal:
            self._status.update(Text(f"{stage} …"))  # no markup: pipelines have lists in brackets
        else:
            announce(stage)

    def _finish(self) -> None:
        if self._stage:
            elapsed = time.perf_counter() - self._started
            self.seconds[self._stage] = self.seconds.get(self._stage, 0.0) + elapsed
            if self._console.is_terminal:
                self._console.print(f"{self._stage}: {elapsed:.2f} s", style="dim")


def announce(stage: str) -> None:
    """Say at once that a stage begins, where stderr is a pipe or a file."""
    if not sys.stderr.isatty():
        print(f"{stage} …", file=sys.stderr, flush=True)


@contextmanager
def progress() -> Iterator[Progress]:
    """Show progress for the duration of a block; use its `Progress.begin`."""
    shown = Progress()
    with shown._status:
        yield shown
        shown._finish()


def steps_table(compressed: Compressed) -> Table:
    """Size, operations, time, error and score after each step; a star marks the one that is kept."""
    from ..compression.result import score_text

    byte_unit, byte_scale = ("MB", 1e6) if compressed.original.weight_bytes >= 1e6 else ("kB", 1e3)
    mac_unit, mac_scale = ("M", 1e6) if compressed.original.macs >= 1e6 else ("k", 1e3)
    columns = [f"size\n{byte_unit}", f"macs\n{mac_unit}", "call\nms", "speed-\nup", "error"]
    has_score = compressed.original.score is not None
    title = f"{compressed.setting.model} on {compressed.setting.target}"
    table = new_table("step", *columns, *(["score"] if has_score else []), title=title)
    for index, step in enumerate(compressed.steps):
        seconds, kept = compressed.seconds(step), index == compressed.kept
        table.add_row(
            f"{step.short_name}{' *' if kept else ''}".replace(",", ",\n"),
            f"{step.weight_bytes / byte_scale:.4g}",
            f"{step.macs / mac_scale:.4g}",
            "-" if seconds is None else f"{seconds * 1e3:.3g}",
            "-" if step.latency is None else f"{step.latency.speedup:.2f}x",
            f"{step.error:.1g}",
            *([score_text(step.score)] if has_score else []),
            style="bold" if kept else "",
        )
    return table


def decision_lines(compressed: Compressed, *, verbose: bool) -> Iterator[str]:
    """What the referee decided in each pass: how many rewrites stay, and what all together do; or all notes."""
    from ..passes.report import staircase_lines

    for record in (record for step in compressed.steps for record in step.records):
        yield from staircase_lines(record.staircases)
        if verbose:
            yield from (f"{record.name}: {note}" for note in record.notes)
            continue
        layers = [verdict for verdict in record.verdicts if not verdict.is_whole]
        if layers:
            undone = sum(not verdict.stays for verdict in layers)
            yield f"{record.name}: {len(layers) - undone} of {len(layers)} rewrites are faster, {undone} undone"
        yield from (f"{record.name}: {verdict.note}" for verdict in record.verdicts if verdict.is_whole)


def print_precisions(report: Report, *, verbose: bool) -> None:
    """For each pass that chose precisions: the layers that read the noisiest numbers, or all of them, and advice."""
    from ..passes.report import worst_first

    for record in report.records:
        if record.layers:
            worst, others = worst_first(record.layers)
            shown = [*worst, *others] if verbose or not worst else worst
            title = f"{record.name}: {len(shown)} of {len(record.layers)} layers, the noisiest first"
            print_table(precision_table(title, shown))
            for one in worst:
                if one.advice:
                    console().print(f"{one.name}: {one.advice}", soft_wrap=True)


def precision_table(title: str, layers: Sequence[LayerPrecision]) -> Table:
    """In which precision layers are computed, on at most 80 columns of a terminal.

    ``bits`` are those of a weight and of an activation, ``step`` the distance between neighbouring activations, ``cut``
    the share beyond the integers' range, ``dB`` the signal-to-noise ratio of what the layer reads; times are of the
    layer alone, in float32 and now.
    """
    headers = ("layer", "on", "method", "bits", "step", "cut", "dB", "ms", "now")
    table = new_table(*headers, title=title, text_columns=3, gap=1)
    narrow = console().width < _WIDE
    for one in layers:
        times = ("-", "-") if one.times is None else (f"{one.times.before * 1e3:.3g}", f"{one.times.after * 1e3:.3g}")
        table.add_row(
            shorten_left(one.name, _NAME) if narrow else one.name,
            one.computes,
            one.method or "-",
            one.bits.replace(" ", ""),
            _or_dash(one.scale, "{:.2g}"),
            _or_dash(one.saturated, "{:.1%}"),
            _or_dash(one.sqnr, "{:.1f}"),
            *times,
        )
    return table


def _or_dash(number: float | None, form: str) -> str:
    return "-" if number is None else form.format(number)


def shorten_left(text: str, width: int) -> str:
    """The end of a text that is too long, which tells layers apart."""
    return text if len(text) <= width else f"…{text[1 - width :]}"


def known_passes_text(passes: Sequence[PassInfo], presets: Mapping[str, str]) -> str:
    """All passes by purpose, each with its summary below its name, and the presets."""
    from ..passes.registry import PURPOSES

    lines = []
    for purpose in PURPOSES:
        members = [info for info in passes if info.purpose == purpose]
        if members:
            lines += [purpose.capitalize(), ""]
        for info in members:
            lines += [f"  {info.name} ({info.exactness.value})", *_wrapped(info.summary, 6), ""]
    lines += ["Presets", ""]
    for name, text in presets.items():
        lines += [f"  {name}", *_wrapped(text.replace(",", ", ") or "nothing", 6), ""]
    lines += _wrapped("`tersor passes NAME` shows the options of one pass, and an example.", 0)
    return "\n".join(lines)


def pass_text(info: PassInfo, steps: str) -> str:
    """One pass: what it does, what it keeps, its options with defaults and choices, and an example."""
    lines = [info.name, *_wrapped(info.summary, 2), *_wrapped(f"Keeps: {_KEEPS[info.exactness.value]}.", 2)]
    if steps:
        lines += _wrapped(f"Short for: {steps.replace(',', ', ')}.", 2)
    lines += ["", "Options" if info.options else "It has no options."]
    for option in info.options:
        shown = "must be given" if option.required else f"= {_default(option)}"
        lines += ["", f"  {option.name}: {option.type} {shown}", *_wrapped(option.summary, 6)]
        if option.choices:
            lines += _wrapped(f"One of: {', '.join(option.choices)}.", 6)
    given = [option for option in info.options[:2] if not option.required and option.default is not None]
    shown = ",".join(f"{option.name}={_default(option)}" for option in given)
    example = f"{info.name}{{{shown}}}" if shown else info.name
    return "\n".join([*lines, "", "Example", "", f'  tersor opt model.ir -p "{example}"'])


_KEEPS = {
    "exact": "the same operations on the same numbers",
    "close": "the same numbers up to rounding, since floating-point operations are reordered",
    "approximate": "another function, that is close to the model's; its report says how close",
}


def _default(option: PassOption) -> str:
    from ..passes.options import print_value

    return print_value(option.default)


def _wrapped(text: str, indent: int) -> list[str]:
    """Lines of at most the terminal's width; one line in a pipe or a file."""
    width = console().width
    return textwrap.wrap(
        text, width, initial_indent=" " * indent, subsequent_indent=" " * indent, break_long_words=False
    )


def describe_passes(passes: Sequence[PassInfo]) -> list[dict[str, Json]]:
    """`known_passes_text` as JSON types."""
    return [
        asdict(info) | {"exactness": info.exactness.value, "options": list(map(_describe_option, info.options))}
        for info in passes
    ]


def _describe_option(option: PassOption) -> dict[str, Json]:
    default = option.default.value if isinstance(option.default, Enum) else option.default
    return asdict(option) | {"default": default, "choices": list(option.choices)}


def describe_outcome(outcome: PassOutcome, output: Path | None) -> dict[str, Json]:
    """What passes did, and the IR or the file that it was written to, as JSON types."""
    result = {"ir": str(outcome.graph)} if output is None else {"output": str(output)}
    return {"passes": outcome.report.to_json(), **result}


def describe_bisection(culprit: Culprit | None) -> dict[str, Json] | None:
    """What bisection found, as JSON types; None if all is right."""
    if culprit is None:
        return None
    return {("pass" if name == "one" else name): value for name, value in vars(culprit).items()}


def kernels_table(kernels: Sequence[KernelTime]) -> Table:
    """The profile of a model, the slowest kernels first."""
    total = sum(kernel.seconds for kernel in kernels)
    title = f"kernels: {len(kernels)} calls, {total * 1e3:.3f} ms together"
    table = new_table("location", "op", "us", "share", "GFLOP/s", "GB/s", title=title, text_columns=2)
    for timed in sorted(kernels, key=lambda kernel: kernel.seconds, reverse=True):
        table.add_row(
            timed.kernel.location or "-",
            timed.kernel.op,
            f"{timed.seconds * 1e6:.1f}",
            f"{timed.seconds / total:.1%}",
            f"{timed.gflops:.1f}",
            f"{timed.gbytes:.1f}",
        )
    return table


def outputs_table(ports: Sequence[Port], outputs: Sequence[torch.Tensor]) -> Table:
    """Names, types and ranges of a model's outputs."""
    table = new_table("output", "type", "min", "mean", "max", "largest at", title="outputs", text_columns=2)
    for row in describe_outputs(ports, outputs):
        numbers = ("-" if row[key] is None else f"{row[key]:.6g}" for key in ("min", "mean", "max"))
        table.add_row(row["name"], row["type"], *numbers, str(row["largest_at"]))
    return table


def describe_outputs(ports: Sequence[Port], outputs: Sequence[torch.Tensor]) -> list[dict[str, Json]]:
    """`outputs_table` as JSON types; a number that is not finite is None."""
    return [_describe_output(port, tensor) for port, tensor in zip(ports, outputs, strict=True)]


def _describe_output(port: Port, tensor: torch.Tensor) -> dict[str, Json]:
    numbers: dict[str, Json] = {"min": None, "mean": None, "max": None, "largest_at": None}
    if tensor.numel():
        values = tensor.double()
        largest = int(values.argmax())
        strides = [math.prod(tensor.shape[axis + 1 :]) for axis in range(tensor.dim())]
        position = [largest // stride % extent for stride, extent in zip(strides, tensor.shape, strict=True)]
        found = {"min": values.min().item(), "mean": values.mean().item(), "max": values.max().item()}
        numbers = {key: value if math.isfinite(value) else None for key, value in found.items()}
        numbers["largest_at"] = position
    return {"name": port.name, "type": str(port.type), **numbers}


def comparison_table(comparison: Comparison) -> Table:
    """A `benchmarks.harness.Comparison`: latencies in milliseconds, and how far outputs are from the first runner's."""
    title = f"{comparison.model}, {comparison.threads} threads, ms; outputs against {comparison.rows[0].runner}"
    table = new_table("runner", "median", "quartiles", "best", "ratio", "differs by", title=title)
    fastest = min(row.latency.median for row in comparison.rows)
    for row in comparison.rows:
        latency = row.latency
        table.add_row(
            row.runner,
            f"{latency.median * 1e3:.3f}",
            f"{latency.lower_quartile * 1e3:.3f} to {latency.upper_quartile * 1e3:.3f}",
            f"{latency.minimum * 1e3:.3f}",
            f"{latency.median / fastest:.2f}",
            f"{row.difference:.1e}",
            style="bold" if row.runner == "tersor" else "",
        )
    return table


def targets_table(targets: Sequence[Target], host: Target | None) -> Table:
    """All targets; the one that ``x86:native`` stands for is marked, and shown with this machine's caches."""
    from ..targets.machines.families import family_of

    table = new_table("target", "", "vectors", "L1, L2, L3", "dot products", title="targets", text_columns=2)
    for target in targets:
        shown = host if host is not None and host.name == target.name else target
        native = shown is host
        table.add_row(
            target.name,
            "native" if native else family_of(target).status,
            *_facts(shown),
            style="bold" if native else "",
        )
    return table


def _facts(target: Target) -> tuple[str, str, str]:
    """What computes (SMs are a GPU's multiprocessors), the sizes of its caches, and its instructions for products."""
    from ..targets import Cpu, Gpu

    if isinstance(target, Gpu):
        return f"{target.multiprocessors} SMs", _sizes(target.l1_bytes, target.l2_bytes), "tensor cores"
    assert isinstance(target, Cpu)
    return (
        f"{target.vector_registers} x {8 * target.vector_bytes} bit",
        _sizes(target.l1_bytes, target.l2_bytes, target.l3_bytes),
        " ".join(dict.fromkeys(name for feature, name in _DOT_PRODUCTS.items() if feature in target.features)),
    )


def describe_kernels(info: ModelInfo) -> str:
    """How many kernel calls a compiled model makes, and how many of them records of measurements decided."""
    tuned = sum(kernel.tuned for kernel in info.kernels)
    return f"{len(info.kernels)} kernel calls, {tuned} of them chosen by tuning records"


def describe_model(info: ModelInfo) -> dict[str, Json]:
    """Name, inputs, outputs, target and number of kernels of a compiled model, as JSON types."""
    return {
        "name": info.name,
        "target": info.target.name,
        "inputs": [{"name": port.name, "type": str(port.type)} for port in info.user_inputs],
        "outputs": [{"name": port.name, "type": str(port.type)} for port in info.user_outputs],
        "states": list(info.states),
        "kernels": len(info.kernels),
        "tuned_kernels": sum(kernel.tuned for kernel in info.kernels),
    }


def console() -> Console:
    """Where results go: as wide as the terminal; in a pipe or a file no line is cut or wrapped."""
    made = Console(highlight=False, markup=False)
    if not made.is_terminal:
        made.width = _UNLIMITED
    return made


def print_table(table: Table) -> None:
    """Print a table without the spaces that fill its lines up."""
    target = console()
    if target.is_terminal:
        target.print(table)
        return
    with target.capture() as captured:
        target.print(table)
    print("\n".join(line.rstrip() for line in captured.get().splitlines()))


def new_table(*columns: str, title: str, text_columns: int = 1, gap: int = 2) -> Table:
    """A table without lines, whose first columns hold text and whose other columns hold numbers, ``gap`` spaces apart.

    The first column is never cut or broken; other texts are broken where a terminal is too narrow.
    """
    table = Table(title=title, title_justify="left", box=None, pad_edge=False, padding=(0, gap, 0, 0))
    for index, name in enumerate(columns):
        is_text = index < text_columns
        table.add_column(name, justify="left" if is_text else "right", overflow="fold", no_wrap=index == 0)
    return table


def _sizes(*counts: int) -> str:
    """Binary kilo- or megabytes."""
    return ", ".join(f"{count / 2**20:g}M" if count >= 2**20 else f"{count // 2**10}K" for count in counts)
