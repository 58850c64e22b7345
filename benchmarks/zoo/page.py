"""``docs/models.md``: what became of every architecture of the zoo."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, Undefined

from tersor.ir import shorten
from tersor.ir.files import write_text
from tersor.ir.foreign import Json

from .catalog import ZOO
from .stages import THREADS, TOLERANCE, Record, Stage

PAGE = Path(__file__).parents[2] / "docs" / "models.md"
REASON = 320  # characters of one
SLOW = 0.8  # of a peer's speed: below it, the page says where the time goes
SHORT = 2e-6  # seconds of a kernel that does little more than being called


def write_page(
    path: Path, results: Mapping[str, Record], trained: Mapping[str, Record], pruned: Mapping[str, Record]
) -> None:
    """Write the page from the last record of each model and of each package, by the template ``models.md.jinja``.

    Parameters
    ----------
    results, trained, pruned
        What `benchmarks.zoo`, `benchmarks.zoo.trained` and `benchmarks.zoo.pruning` found.
    """
    known = [results[name] for name in ZOO if name in results]
    families: dict[str, list[Record]] = {}
    for name, entry in ZOO.items():
        families.setdefault(entry.family, []).append(results.get(name, {"model": name}))
    templates = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=False,  # Markdown
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    templates.filters.update(
        times=_times, reason=_reason, cell=_cell, gap=_gap, short=_short, speed=_speed, spent=_spent
    )
    text = templates.get_template("models.md.jinja").render(
        threads=THREADS,
        count=len(ZOO),
        known=known,
        passed={stage: 0 for stage in Stage} | Counter(stage for record in known for stage in _passed(record)),
        compiled=sum(Stage.COMPILE in _passed(one) or one.get("failed") == Stage.COMPILE for one in known),
        right=sum(record.get("difference", 1.0) <= TOLERANCE for record in known),
        apart=[record for record in known if record.get("difference", 0.0) > TOLERANCE],
        tolerance=TOLERANCE,
        machines=sorted({record["machine"] for record in known}),
        failed=[record for record in known if "failed" in record],
        mean=_geometric_mean([one for record in known if (one := _speed(record)) is not None]),
        compared=sum(_speed(record) is not None for record in known),
        slow=[record for record in known if (_speed(record) or SLOW) < SLOW],
        limit=SLOW,
        families=families,
        trained=list(trained.values()),
        **_of_pruned([pruned[name] for name in ZOO if name in pruned]),
    )
    write_text(path, text)


def _of_pruned(records: list[Record]) -> dict[str, list[Record]]:
    """What the template of pruning asks for."""
    fine = [record for record in records if "failed" not in record]
    return {
        "pruned": records,
        "pruned_failed": [record for record in records if "failed" in record],
        "whole": [record for record in fine if "left" in record and "why_less" not in record],
        "less": [record for record in fine if "left" in record and "why_less" in record],
        "nothing": [record for record in fine if "left" not in record],
        "programs": [record for record in fine if "as_program" in record],
        "unstable": [record for record in fine if "rounding" in record],
    }


def _passed(record: Record) -> list[Stage]:
    stages = list(Stage)
    return [] if record["stage"] is None else stages[: stages.index(Stage(record["stage"])) + 1]


def _speed(record: Record) -> float | None:
    """The peer's time over ours, where both were measured."""
    latency = record.get("latency", {})
    return latency["onnxruntime"] / latency["tersor"] if "onnxruntime" in latency else None


def _geometric_mean(numbers: Sequence[float]) -> float:
    return statistics.geometric_mean(numbers) if numbers else 0.0


def _spent(record: Record) -> str:
    """Where the time of a call goes."""
    kernels = record.get("kernels")
    if kernels is None:
        return "not measured"
    shares = ", ".join(f"{share:.0%} in `{template}`" for template, share in kernels["shares"].items())
    if kernels["median"] > SHORT:
        return shares
    outside = record["latency"]["tersor"] - kernels["seconds"]
    return (
        f"{kernels['count']} kernels, half of them shorter than {kernels['median'] * 1e6:.1f} µs, which is the cost of "
        f"calling one; {max(0.0, outside) * 1e6:.0f} µs outside of kernels; {shares}"
    )


def _times(number: Json, factor: float, digits: int) -> str:
    return "" if number is None or isinstance(number, Undefined) else f"{number * factor:.{digits}f}"


def _gap(number: Json) -> str:
    """A relative difference."""
    return "" if number is None or isinstance(number, Undefined) else f"{number:.1e}"


def _short(text: str) -> str:
    return shorten(text, REASON)


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def _reason(record: Record) -> str:
    reason = "refused: " + ", ".join(record["refused"]) if record.get("refused") else record["why"]
    return _short(_cell(reason))
