"""The record of a benchmark run: what the JSON file contains, from which chart and tables are made."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from benchmarks.harness import Comparison, Schedule, machine, versions
from benchmarks.probe import Probe
from benchmarks.roofline import KernelUse, Roofline
from benchmarks.startup import Startup
from benchmarks.tables import RUNTIMES, TERSOR
from tersor.ir.files import write_text
from tersor.ir.foreign import Json

SCHEMA = 2
DIGITS = 5  # significant digits of every number in the file

Record = dict[str, Json]


@dataclass(frozen=True)
class ModelResult:
    """All that was measured of one model.

    Attributes
    ----------
    comparison
        Latencies of all runners.
    left_out
        Runners that cannot run the model, with the reason.
    roofline, startup
        None when not asked for.
    """

    comparison: Comparison
    left_out: Mapping[str, str] = field(default_factory=dict)
    roofline: Roofline | None = None
    startup: Startup | None = None


def record(results: Sequence[ModelResult], schedule: Schedule, probe: Probe | None = None) -> Record:
    """Return all results with what is needed to judge them, ready for JSON.

    Parameters
    ----------
    results
        One per model; the first tells the thread count and the precision.
    schedule
        How they were measured.
    probe
        The machine's limits, if there are rooflines.
    """
    content = {
        "schema": SCHEMA,
        "machine": machine(),
        "threads": results[0].comparison.threads,
        "batch": results[0].comparison.batch,
        "precision": results[0].comparison.precision.value,
        "versions": versions(),
        "schedule": asdict(schedule),
        "probe": None if probe is None else asdict(probe),
        "models": [_model(result) for result in results],
    }
    return _rounded(content)


def _model(result: ModelResult) -> Record:
    comparison = result.comparison
    return {
        "model": comparison.model,
        "rows": [asdict(row) for row in comparison.rows],
        "left_out": dict(result.left_out),
        "torch_over_tersor": comparison.speedup(TERSOR, over=("torch",)),
        "best_runtime": comparison.fastest(RUNTIMES),
        "best_runtime_over_tersor": comparison.speedup(TERSOR, over=RUNTIMES),
        "startup": None if result.startup is None else asdict(result.startup),
        "roofline": None if result.roofline is None else _roofline(result.roofline),
    }


def _roofline(roofline: Roofline) -> Record:
    return {
        "seconds": roofline.seconds,
        "limit_seconds": roofline.limit_seconds,
        "between_kernels_seconds": roofline.between_seconds,
        "families": [_use(use) for use in roofline.families],
        "kernels": [_use(use) for use in roofline.kernels],
    }


def _use(use: KernelUse) -> Record:
    rates = {"gflops": use.gflops, "gbytes": use.gbytes, "of_limit": use.of_limit}
    return asdict(use) | rates


def medians(model: Mapping[str, Json]) -> dict[str, float]:
    """Median seconds by runner, of one of a record's ``models``."""
    return {row["runner"]: row["latency"]["median"] for row in model["rows"]}


def write(content: Record | list[Record], path: Path) -> None:
    """Write a record, or several as a list, making the folder if need be."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps(content, indent=1) + "\n")


def read(path: Path) -> Record:
    """Read a record.

    Raises
    ------
    ValueError
        If the file was written with another schema.
    """
    content = json.loads(path.read_text("utf-8"))
    if content.get("schema") != SCHEMA:
        raise ValueError(f"{path} has schema {content.get('schema')}, this is {SCHEMA}; measure again")
    return content


def _rounded(value: Json) -> Json:
    """The same JSON value with every float cut to `DIGITS` significant digits."""
    if isinstance(value, float):
        return float(f"{value:.{DIGITS}g}")
    if isinstance(value, Mapping):
        return {key: _rounded(item) for key, item in value.items()}
    return [_rounded(item) for item in value] if isinstance(value, list | tuple) else value
