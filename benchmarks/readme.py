"""Tables in Markdown, written between the markers of ``benchmarks/README.md`` from a record of measurements.

Each precision has its own pair of markers.

::

    python -m benchmarks.readme benchmarks/results/MACHINE.json --chart benchmarks/results/MACHINE.svg
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated

import typer
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from benchmarks import chart
from benchmarks.peers import Precision
from benchmarks.probe import Probe
from benchmarks.results import Record, medians, read
from benchmarks.tables import RUNTIMES, TERSOR, milliseconds, times
from tersor.ir.files import write_text
from tersor.ir.foreign import Json

README = Path(__file__).parent / "README.md"
MARKERS = {
    precision: (
        f"<!-- results {precision}: begin, written by python -m benchmarks.readme -->",
        f"<!-- results {precision}: end -->",
    )
    for precision in Precision
}
COLUMNS = {
    "torch": "PyTorch",
    "torch-compile": "torch.compile",
    "onnxruntime": "ONNX Runtime",
    "openvino": "OpenVINO",
    "ncnn": "ncnn",
}


def update(path: Path, content: Record, picture: Path | None = None) -> None:
    """Replace what stands between the markers of a Markdown file for the record's precision.

    Parameters
    ----------
    path
        The file.
    content
        As `benchmarks.results.record` returns it, with Tersor among the runners.
    picture
        A chart to show above the tables.

    Raises
    ------
    ValueError
        If the file lacks the markers.
    """
    shown = "" if picture is None else f"![How many times longer the others take]({_link(picture, path)})\n\n"
    splice(path, MARKERS[Precision(content["precision"])], f"{shown}{render(content)}")


def splice(path: Path, markers: tuple[str, str], content: str) -> None:
    """Replace what stands between two lines of a file; raises ValueError if it lacks one of them."""
    before, after = _around(path, markers)
    begin, end = markers
    write_text(path, f"{before}{begin}\n\n{content}\n{end}{after}")


def require_markers(path: Path, markers: tuple[str, str]) -> None:
    """Raise typer.BadParameter for a file that `splice` cannot write into: before anything is measured for it."""
    try:
        _around(path, markers)
    except (OSError, ValueError) as error:
        raise typer.BadParameter(str(error)) from None


def _around(path: Path, markers: tuple[str, str]) -> tuple[str, str]:
    """What stands before and behind two lines of a file."""
    begin, end = markers
    before, found, rest = path.read_text("utf-8").partition(begin)
    _, closed, after = rest.partition(end)
    if not found or not closed:
        raise ValueError(f"{path} lacks the lines '{begin}' and '{end}'")
    return before, after


def _link(target: Path, page: Path) -> str:
    return Path(os.path.relpath(target.resolve(), page.resolve().parent)).as_posix()


def render(content: Record) -> str:
    """All tables of a record that it has data for, from the template ``results.md.jinja``."""
    templates = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=False,  # Markdown
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    templates.filters |= {"ms": milliseconds, "times": times, "share": "{:.2%}".format, "peak": _peak}
    present = [name for name in COLUMNS if any(name in medians(model) for model in content["models"])]
    return templates.get_template("results.md.jinja").render(
        record=content,
        medians=medians,
        columns=COLUMNS,
        tersor=TERSOR,
        present=present,
        runtimes=[COLUMNS[name] for name in RUNTIMES if name in present],
        left_out=_left_out(content["models"]),
    )


def _peak(probe: Mapping[str, Json], use: Mapping[str, Json]) -> float:
    """What a record's probe says of the numbers that one of its kernels multiplies."""
    return Probe(**probe).peak(use.get("products", "float32"))


def _left_out(models: Sequence[Mapping[str, Json]]) -> list[str]:
    """One line per runtime and reason; the models are named unless it is all of them."""
    found: dict[tuple[str, str], list[str]] = defaultdict(list)
    for model in models:
        for name, reason in model["left_out"].items():
            found[name, reason].append(model["model"])
    return [
        f"{COLUMNS[name]} does not run {'any model' if len(names) == len(models) > 1 else ', '.join(names)}: {reason}."
        for (name, reason), names in found.items()
    ]


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table in Markdown; numbers, which are all columns but the first, are aligned to the right."""
    rule = ["---", *["--:"] * (len(header) - 1)]
    return "\n".join("| " + " | ".join(row) + " |" for row in (header, rule, *rows))


def main(
    results: Annotated[Path, typer.Argument(help="What benchmarks.cpu --json wrote.")],
    markdown: Annotated[Path, typer.Option(help="The file whose markers enclose the tables.")] = README,
    chart_path: Annotated[Path | None, typer.Option("--chart", help="Draw the chart to this file too.")] = None,
) -> None:
    """Write the tables of a past run, and its chart, without measuring again."""
    content = read(results)
    update(markdown, content, chart_path)
    if chart_path is not None:
        chart.draw(content, chart_path)


if __name__ == "__main__":
    typer.run(main)
