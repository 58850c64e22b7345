"""The report as one page of HTML that needs no other file: what was gained, by which step, and every decision."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template

from ..ir.files import write_text
from ..passes.report import LayerPrecision, worst_first
from .charts import Chart
from .result import Compressed, End, score_change, score_text


def write_page(compressed: Compressed, path: Path) -> Path:
    """Write the page; raises TersorError where that is not possible."""
    write_text(path, render(compressed))
    return path


def render(compressed: Compressed) -> str:
    """The page as text: ``page.html``."""
    return template("page.html").render(
        result=compressed,
        notices=_notices(compressed),
        styles=[_style(compressed, index) for index in range(len(compressed.steps))],
        charts=_charts(compressed),
    )


def template(name: str) -> Template:
    """A page by its path in this folder; it turns everything that is not its own into harmless text."""
    templates = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    templates.filters |= {"score": score_text, "score_change": score_change, "noisiest_first": _noisiest_first}
    return templates.get_template(name)


def _noisiest_first(layers: Sequence[LayerPrecision]) -> list[LayerPrecision]:
    worst, others = worst_first(layers)
    return [*worst, *others]


def _notices(compressed: Compressed) -> Iterator[str]:
    if compressed.end is not End.COMPLETE:
        yield f"Stopped: {compressed.reason}"
    elif compressed.kept == 0:
        yield "No step made the model faster: the original is kept, compiled but not compressed."
    elif compressed.kept < len(compressed.steps) - 1:
        yield f"The model after {compressed.best.name} is kept: later steps are slower."
    if compressed.original.latency is None:
        yield f"Not measured: code for {compressed.setting.target} does not run on this machine."
    if compressed.advice:
        yield f"Advice: {compressed.advice}."
    if not compressed.setting.data:
        yield "No data was given: outputs were compared on random inputs."


def _style(compressed: Compressed, index: int) -> str:
    """What became of a step: it is the one that is kept, or the one that went too far."""
    if index == compressed.kept:
        return "kept"
    return "beyond" if compressed.end is End.DROP and index == len(compressed.steps) - 1 else ""


def _charts(compressed: Compressed) -> Iterator[Chart]:
    steps, setting, original = compressed.steps, compressed.setting, compressed.original.score
    seconds = map(compressed.seconds, steps)
    yield Chart("Latency (ms)", tuple(None if one is None else one * 1e3 for one in seconds))
    yield Chart("Size of the weights (MB)", tuple(step.weight_bytes / 1e6 for step in steps))
    yield Chart("Multiply-adds (million)", tuple(step.macs / 1e6 for step in steps))
    if original is None:
        yield Chart("Output error, relative", tuple(step.error for step in steps), "{:.2g}".format)
    else:
        limit = None if setting.max_drop is None else original - setting.max_drop
        scores = tuple(step.score for step in steps)
        yield Chart(f"Score by {setting.evaluate}", scores, score_text, is_scale=True, limit=limit)
