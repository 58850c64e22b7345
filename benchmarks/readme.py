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
from typing import Annotated, Any

import typer

from benchmarks import chart
from benchmarks.peers import Precision
from benchmarks.results import Record, medians, read
from benchmarks.tables import RUNTIMES, TERSOR, milliseconds, times
from tersor.ir.files import write_text

README = Path(__file__).parent / "README.md"
MARKERS = {
    precision: (
        f"<!-- results {precision}: begin, written by python -m benchmarks.readme -->",
        f"<!-- results {precision}: end -->",
    )
    for precision in Precision
}
FAMILIES = 3  # families of kernels named per model
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
    begin, end = markers
    text = path.read_text("utf-8")
    before, found, rest = text.partition(begin)
    _, closed, after = rest.partition(end)
    if not found or not closed:
        raise ValueError(f"{path} lacks the lines '{begin}' and '{end}'")
    write_text(path, f"{before}{begin}\n\n{content}\n{end}{after}")


def _link(target: Path, page: Path) -> str:
    return Path(os.path.relpath(target.resolve(), page.resolve().parent)).as_posix()


def render(content: Record) -> str:
    """All tables of a record that it has data for."""
    models = content["models"]
    parts = [_conditions(content), _latencies(models)]
    if content["precision"] != Precision.FLOAT32:
        parts.append(_differences(models))
    if any(model["left_out"] for model in models):
        parts.append(_left_out(models))
    if any(model["startup"] for model in models):
        parts += ["#### Before the first answer", _startups(models)]
    if any(model["roofline"] for model in models):
        parts += ["#### What remains between us and the limit", _limits(content["probe"]), _remains(content)]
    return "\n\n".join(parts) + "\n"


def _conditions(content: Record) -> str:
    machine = content["machine"]
    versions = ", ".join(f"{name} {version}" for name, version in content["versions"].items())
    return (
        f"{machine['processor']}, {machine['cores']} cores, {machine['memory_gib']} GiB; {machine['system']}, Python "
        f"{machine['python']}; {content['threads']} threads, batch {content['batch']}, {content['precision']}. "
        f"{versions}.\n"
        "Medians in milliseconds. The last columns are ratios: above 1, Tersor is faster."
    )


def _latencies(models: Sequence[Mapping[str, Any]]) -> str:
    present = [name for name in COLUMNS if any(name in medians(model) for model in models)]
    header = ["model", "Tersor", *(COLUMNS[name] for name in present), "PyTorch / Tersor", "best runtime / Tersor"]
    rows = []
    for model in models:
        found = medians(model)
        others = (milliseconds(found[name]) if name in found else "-" for name in present)
        best = f"**{times(model['best_runtime_over_tersor'])}**"
        rows.append(
            [model["model"], milliseconds(found[TERSOR]), *others, times(model["torch_over_tersor"]), best],
        )
    runtimes = ", ".join(COLUMNS[name] for name in RUNTIMES if name in present)
    return f"{markdown_table(header, rows)}\n\nThe best runtime is the fastest of {runtimes}."


def _left_out(models: Sequence[Mapping[str, Any]]) -> str:
    """One line per runtime and reason; the models are named unless it is all of them."""
    found: dict[tuple[str, str], list[str]] = defaultdict(list)
    for model in models:
        for name, reason in model["left_out"].items():
            found[name, reason].append(model["model"])
    return "\n".join(
        f"{COLUMNS[name]} does not run {'any model' if len(names) == len(models) > 1 else ', '.join(names)}: {reason}."
        for (name, reason), names in found.items()
    )


def _differences(models: Sequence[Mapping[str, Any]]) -> str:
    found = [{row["runner"]: row["difference"] for row in model["rows"]} for model in models]
    present = [name for name in (TERSOR, *COLUMNS) if any(name in differences for differences in found)]
    header = ["model", *(COLUMNS.get(name, "Tersor") for name in present)]
    rows = [
        [model["model"], *(f"{differences[name]:.2%}" if name in differences else "-" for name in present)]
        for model, differences in zip(models, found, strict=True)
    ]
    return f"Largest difference to PyTorch in float32, of the output's scale:\n\n{markdown_table(header, rows)}"


def _startups(models: Sequence[Mapping[str, Any]]) -> str:
    header = ["model", "compile s", "peak GiB", "artifact MiB", "imports s", "load s", "first call ms"]
    rows = []
    for model in models:
        start = model["startup"]
        if start is None:
            continue
        peak = start["compile_peak_bytes"]
        rows.append(
            [
                model["model"],
                f"{start['compile_seconds']:.1f}",
                "-" if peak is None else f"{peak / 2**30:.2f}",
                f"{start['artifact_bytes'] / 2**20:.1f}",
                f"{start['import_seconds']:.2f}",
                f"{start['load_seconds']:.3f}",
                milliseconds(start["first_call_seconds"]),
            ]
        )
    return f"Compiled in one new process, loaded and called in another.\n\n{markdown_table(header, rows)}"


def _limits(probe: Mapping[str, Any]) -> str:
    return (
        f"Probed in the same run, {probe['threads']} threads: {probe['gflops']:.0f} GFLOP/s of float32 multiply-adds "
        f"(one thread: {probe['one_thread_gflops']:.0f}); reading from L2 {probe['l2_gbytes']:.0f} GB/s, from L3 "
        f"{probe['l3_gbytes']:.0f} GB/s, from memory {probe['memory_gbytes']:.0f} GB/s."
    )


def _remains(content: Record) -> str:
    header = ["model", "kernels ms", "limit ms", "of limit", "between kernels", "where the time goes"]
    rows = []
    for model in content["models"]:
        roofline = model["roofline"]
        if roofline is None:
            continue
        kernels = sum(family["seconds"] for family in roofline["families"])
        largest = roofline["families"][:FAMILIES]
        rows.append(
            [
                model["model"],
                milliseconds(kernels),
                milliseconds(roofline["limit_seconds"]),
                f"{roofline['limit_seconds'] / kernels:.0%}",
                f"{roofline['between_kernels_seconds'] / roofline['seconds']:.0%}",
                "; ".join(_family(family, kernels, content["probe"]["gflops"]) for family in largest),
            ]
        )
    return markdown_table(header, rows, text_columns=(0, 5))


def _family(family: Mapping[str, Any], kernels: float, peak: float) -> str:
    share = f"{family['name']} {family['seconds'] / kernels:.0%}"
    if family["operations"]:
        return f"{share} at {family['gflops'] / peak:.0%} of peak"
    return f"{share} at {family['gbytes']:.0f} GB/s"


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[str]], text_columns: Sequence[int] = (0,)) -> str:
    """A table in Markdown; numbers are aligned to the right."""
    rule = ["---" if index in text_columns else "--:" for index in range(len(header))]
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
