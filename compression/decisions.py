"""What the referee decided in one pass, as HTML: a row for each rewrite, with what it would have changed, and why."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from html import escape

from ..passes.report import PassRecord, Verdict


def decisions(record: PassRecord) -> str:
    """The verdicts, notes and refusals of a pass; empty if it has none."""
    return "".join(_parts(record))


def _parts(record: PassRecord) -> Iterator[str]:
    layers = [verdict for verdict in record.verdicts if not verdict.is_whole]
    wholes = [verdict for verdict in record.verdicts if verdict.is_whole]
    undone = any(not verdict.stays for verdict in wholes)
    yield from (f"<p>{_whole_line(record, verdict)}</p>" for verdict in wholes)
    if layers:
        yield _table(layers, undone)
    said = {verdict.note for verdict in record.verdicts}
    yield _list(f"Notes of {record.name}", [note for note in record.notes if note not in said])
    yield _list(
        f"Left as they were by {record.name}", [f"{refusal.op}: {refusal.reason}" for refusal in record.refused]
    )


def _whole_line(record: PassRecord, verdict: Verdict) -> str:
    mark = '<span class="mark">stays</span>' if verdict.stays else '<span class="mark no">undone</span>'
    return f"{mark} {escape(record.name)}, {escape(verdict.note)}"


def _table(layers: Iterable[Verdict], undone: bool) -> str:
    heads = ("Rewrite", "Decision", "Multiply-adds", "Ratio", "Milliseconds", "Ratio", "Chance", "Error")
    head = "".join(f"<th>{name}</th>" for name in heads)
    rows = "".join(_row(verdict, undone) for verdict in layers)
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>'


def _row(verdict: Verdict, undone: bool) -> str:
    stays = verdict.stays and not undone
    fault = verdict.fault or "with all others"
    mark = '<span class="mark">stays</span>' if stays else f'<span class="mark no">undone: {escape(fault)}</span>'
    times = verdict.times
    cells = [
        f'<td><span class="mono">{escape(verdict.name)}</span></td><td>{mark}</td>',
        f"<td>{verdict.macs_before / 1e6:.4g} → {verdict.macs_after / 1e6:.4g} M</td>",
        f"<td>{_gauge(verdict.macs_before, verdict.macs_after)}</td>",
        "<td>not measured</td><td></td><td></td>"
        if times is None
        else f"<td>{times.before * 1e3:.4g} → {times.after * 1e3:.4g}</td><td>{_gauge(times.before, times.after)}</td>"
        f'<td class="soft">{times.noise:.0%}</td>',
        f"<td>{'-' if verdict.error is None else f'{verdict.error:.2g}'}</td>",
    ]
    return f'<tr class="{"" if stays else "undone"}">{"".join(cells)}</tr>'


def _gauge(before: float, after: float) -> str:
    if not before:
        return "-"
    ratio = after / before
    return f'{ratio:.3f}<span class="gauge"><i style="width:{min(ratio, 1):.0%}"></i></span>'


def _list(title: str, lines: list[str]) -> str:
    if not lines:
        return ""
    items = "".join(f"<li>{escape(line)}</li>" for line in lines)
    return f"<details><summary>{escape(title)} ({len(lines)})</summary><ul>{items}</ul></details>"
