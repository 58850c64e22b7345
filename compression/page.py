"""The report as one page of HTML that needs no other file: what was gained, by which step, and every decision."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from html import escape
from importlib.resources import files
from pathlib import Path

from ..ir.files import write_text
from .charts import ChartRow, bars, points
from .decisions import decisions
from .result import Compressed, End, score_change, score_text


def write_page(compressed: Compressed, path: Path) -> Path:
    """Write the page; raises TersorError where that is not possible."""
    write_text(path, render(compressed))
    return path


def render(compressed: Compressed) -> str:
    """The page as text."""
    style = (files(__package__) / "page.css").read_text(encoding="utf-8")
    name = escape(compressed.setting.model)
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{name}: {escape(compressed.headline)}</title>\n<style>\n{style}</style>\n</head>\n<body>\n"
        + "\n".join(_body(compressed))
        + "\n</body>\n</html>\n"
    )


def _body(compressed: Compressed) -> Iterator[str]:
    setting = compressed.setting
    threads = f"{setting.threads} thread{'s' * (setting.threads != 1)}"
    yield (
        f'<header><div class="kind">Tersor compression report</div><h1>{escape(setting.model)}</h1>'
        f'<div class="soft">{escape(setting.target)}, {threads}, {escape(setting.date)}</div></header>'
    )
    yield f'<div class="tiles">{"".join(_tiles(compressed))}</div>'
    yield from (f'<div class="notice">{escape(line)}</div>' for line in _notices(compressed))
    yield f"<h2>Step by step</h2>{_steps_table(compressed)}"
    yield f'<h2>Charts</h2><div class="charts">{"".join(_charts(compressed))}</div>'
    yield "<h2>Decisions</h2>"
    yield (
        '<p class="soft">A rewrite stays when the target measures it faster by more than chance explains, which is how'
        " far single measurements were apart. Times are of the layers alone, before and after; errors are root mean"
        " squares of what the rewrite changes in the layer's output, relative to that output.</p>"
    )
    for step in compressed.steps[1:]:
        yield f"<h3><code>{escape(step.name)}</code></h3>" + "".join(decisions(record) for record in step.records)
    yield f"<h2>Setting</h2>{_setting(compressed)}"
    yield (
        "<footer>Each step is timed alternately with the original, in blocks of calls. For both, the median of the"
        " faster half of the blocks counts, and the speedup is their ratio. Latencies are the original's, when the"
        " machine was least disturbed, divided by the speedup.</footer>"
    )


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


def _tiles(compressed: Compressed) -> Iterator[str]:
    first, best = compressed.original, compressed.best
    if first.latency is not None and best.latency is not None:
        change = f"{_ms(compressed.seconds(first))} → {_ms(compressed.seconds(best))}"
        yield _tile(f"{best.latency.speedup:.2f}x", "faster", change)
    change = f"{_bytes(first.weight_bytes)} → {_bytes(best.weight_bytes)}"
    yield _tile(f"{_ratio(first.weight_bytes, best.weight_bytes):.2f}x", "smaller weights", change)
    change = f"{_millions(first.macs)} → {_millions(best.macs)}"
    yield _tile(f"{_ratio(first.macs, best.macs):.2f}x", "fewer multiply-adds", change)
    if first.score is not None and best.score is not None:
        name = compressed.setting.evaluate.rpartition(":")[2]
        change = f"{score_text(first.score)} → {score_text(best.score)}"
        figure, _, unit = score_change(first.score, best.score).partition(" ")
        yield _tile(figure, f"{unit} of {name}".strip(), change)
    else:
        yield _tile(f"{best.error:.2g}", "output error", "root mean square, relative to the original")


def _tile(figure: str, what: str, change: str) -> str:
    return (
        f'<div class="tile"><b>{escape(figure)}</b><span class="what">{escape(what)}</span>'
        f'<br><span class="soft">{escape(change)}</span></div>'
    )


def _steps_table(compressed: Compressed) -> str:
    has_score = compressed.original.score is not None
    heads = ["Step", "Weights", "File", "Multiply-adds", "Latency", "Speedup", "Output error"]
    rows = [_step_row(compressed, index, has_score) for index in range(len(compressed.steps))]
    return _table([*heads, *(["Score"] if has_score else []), "Took"], rows)


def _step_row(compressed: Compressed, index: int, has_score: bool) -> str:
    step = compressed.steps[index]
    latency = step.latency
    cells = [
        f"<code>{escape(step.name)}</code> {_mark(compressed, index)}",
        _bytes(step.weight_bytes),
        "-" if step.artifact_bytes is None else _bytes(step.artifact_bytes),
        _millions(step.macs),
        _ms(compressed.seconds(step)),
        "-" if latency is None else f"{latency.speedup:.2f}x",
        f"{step.error:.2g}",
        *([score_text(step.score)] if has_score else []),
        f"{step.seconds:.1f} s",
    ]
    return _row(cells, "kept" if index == compressed.kept else "")


def _mark(compressed: Compressed, index: int) -> str:
    if index == compressed.kept:
        return '<span class="mark">kept</span>'
    if _is_beyond(compressed, index):
        return '<span class="mark no">drops too far</span>'
    return ""


def _is_beyond(compressed: Compressed, index: int) -> bool:
    return compressed.end is End.DROP and index == len(compressed.steps) - 1


def _charts(compressed: Compressed) -> Iterator[str]:
    times = [None if seconds is None else seconds * 1e3 for seconds in map(compressed.seconds, compressed.steps)]
    yield _figure("Latency (ms)", bars(_rows(compressed, times), _plain))
    sizes = [step.weight_bytes / 1e6 for step in compressed.steps]
    yield _figure("Size of the weights (MB)", bars(_rows(compressed, sizes), _plain))
    macs = [step.macs / 1e6 for step in compressed.steps]
    yield _figure("Multiply-adds (million)", bars(_rows(compressed, macs), _plain))
    scores = [step.score for step in compressed.steps]
    original, max_drop = compressed.original.score, compressed.setting.max_drop
    if original is not None:
        limit = None if max_drop is None else original - max_drop
        title = f"Score by {compressed.setting.evaluate}"
        yield _figure(title, points(_rows(compressed, scores), score_text, limit))
    else:
        errors = [step.error for step in compressed.steps]
        yield _figure("Output error, relative", bars(_rows(compressed, errors), lambda error: f"{error:.2g}"))


def _rows(compressed: Compressed, values: Sequence[float | None]) -> list[ChartRow]:
    return [
        ChartRow(step.name, values[index], _style(compressed, index)) for index, step in enumerate(compressed.steps)
    ]


def _style(compressed: Compressed, index: int) -> str:
    if index == compressed.kept:
        return "kept"
    return "beyond" if _is_beyond(compressed, index) else ""


def _setting(compressed: Compressed) -> str:
    setting = compressed.setting
    entries = {
        "Pipeline": f"<code>{escape(setting.pipeline)}</code>",
        "Target": escape(f"{setting.target}, {setting.threads} threads"),
        "Data": escape(setting.data or "none"),
        "Evaluated by": escape(setting.evaluate or "nothing"),
        "Score may drop by": "anything" if setting.max_drop is None else f"{setting.max_drop:g}",
        "Written to": escape(str(compressed.output or "no file")),
        "Machine": escape(setting.machine),
        "Versions": escape(", ".join(f"{name} {number}" for name, number in setting.versions.items())),
        "Date": escape(setting.date),
    }
    return f"<dl>{''.join(f'<dt>{name}</dt><dd>{text}</dd>' for name, text in entries.items())}</dl>"


def _figure(title: str, svg: str) -> str:
    return f"<figure><figcaption>{escape(title)}</figcaption>{svg}</figure>"


def _table(heads: Sequence[str], rows: Sequence[str]) -> str:
    head = f"<thead><tr>{''.join(f'<th>{escape(name)}</th>' for name in heads)}</tr></thead>"
    return f'<div class="scroll"><table class="steps">{head}<tbody>{"".join(rows)}</tbody></table></div>'


def _row(cells: Sequence[str], style: str) -> str:
    return f'<tr class="{style}">{"".join(f"<td>{cell}</td>" for cell in cells)}</tr>'


def _ms(seconds: float | None) -> str:
    return "not measured" if seconds is None else f"{seconds * 1e3:.4g} ms"


def _bytes(count: int) -> str:
    return f"{count / 1e6:.4g} MB" if count >= 1e6 else f"{count / 1e3:.4g} kB"


def _millions(macs: int) -> str:
    return f"{macs / 1e6:.4g} M"


def _ratio(before: int, after: int) -> float:
    return before / after if after else 1.0


def _plain(value: float) -> str:
    return f"{value:.4g}"
