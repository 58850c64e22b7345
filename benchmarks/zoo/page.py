"""``docs/models.md``: what became of every architecture of the zoo."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.peers import Precision
from benchmarks.readme import markdown_table
from benchmarks.tables import AGREEMENT, milliseconds
from tersor.ir import shorten
from tersor.ir.files import write_text

from .catalog import ZOO

PAGE = Path(__file__).parents[2] / "docs" / "models.md"
REASON = 240  # characters of one
COLUMNS = (
    "model",
    "M weights",
    "M multiply-adds",
    "ops",
    "import s",
    "compile s",
    "differs by",
    "ms",
    "ONNX Runtime's",
)

INTRODUCTION = """# Models

`make zoo` tries architectures that packages define without downloads (`pytorchcv`, `transformers`), and small
definitions of ours, which are in `benchmarks/zoo/`. All have random weights. Each is tried in a process of its own, in
stages. It is imported. Then it is compiled, and compared with PyTorch on seeded inputs. At last it is timed beside ONNX
Runtime, on {threads} threads. `make zoo ARGS="--stage latency"` goes through all stages; without it, models are only
imported. Results are appended to `benchmarks/results/zoo.jsonl`, and this page is written from there.

Configurations of `transformers` are narrow and mostly two layers deep, and their pictures and ours are small: they show
that an architecture compiles, not how fast one of the usual size is. Networks of `pytorchcv` have their usual size;
those for segmentation and poses get pictures of 256 x 256.
"""
LEGEND = """\
A cell is empty where nothing was measured. "import s" and "compile s" are processor seconds, since wall clock time says
little on a busy machine. "differs by" is the largest difference from PyTorch's result, relative to the result's largest
value. "ONNX Runtime's" is its time of a call over ours: above 1, ours is faster.
"""


def write_page(path: Path, results: Mapping[str, Any], threads: int = 2) -> None:
    """Write the page from the last record of each model."""
    parts = [INTRODUCTION.format(threads=threads), _summary(results), _failures(results), LEGEND]
    families: dict[str, list[str]] = defaultdict(list)
    for name, entry in ZOO.items():
        families[entry.family].append(name)
    for family, names in families.items():
        rows = [_row(name, results.get(name, {})) for name in names]
        parts.append(f"## {family}\n\n{markdown_table(COLUMNS, rows)}\n")
    write_text(path, "\n".join(parts))


def _summary(results: Mapping[str, Any]) -> str:
    known = [results[name] for name in ZOO if name in results]
    stages = Counter(stage for one in known for stage in _passed(one))
    differences = [one["difference"] for one in known if "difference" in one]
    right = sum(difference <= AGREEMENT[Precision.FLOAT32] for difference in differences)
    machines = ", ".join(sorted({one["machine"] for one in known}))
    lines = [
        f"The zoo has {len(ZOO)} configurations. {len(known)} were tried, and {stages['import']} of them import.",
        f"{sum(_tried(one, 'compile') for one in known)} were compiled too: {len(differences)} with success, "
        f"{right} of them within {AGREEMENT[Precision.FLOAT32]:g} of PyTorch.",
        f"{stages['latency']} were timed." if stages["latency"] else "None was timed yet.",
        f"Processor: {machines}.\n",
    ]
    return "\n".join(lines)


def _tried(record: Mapping[str, Any], stage: str) -> bool:
    return stage in _passed(record) or record.get("failed") == stage


def _passed(record: Mapping[str, Any]) -> list[str]:
    stages = ["import", "compile", "latency"]
    return [] if record["stage"] is None else stages[: stages.index(record["stage"]) + 1]


def _failures(results: Mapping[str, Any]) -> str:
    rows = [
        (name, results[name]["failed"], _reason(results[name]))
        for name in ZOO
        if name in results and "failed" in results[name]
    ]
    if not rows:
        return ""
    table = markdown_table(("model", "at", "why"), rows, text_columns=(0, 1, 2))
    return f"## What fails, and why\n\n{table}\n\n## All models\n"


def _reason(record: Mapping[str, Any]) -> str:
    reason = "refused: " + ", ".join(record["refused"]) if record.get("refused") else record["why"]
    return shorten(reason.replace("|", "\\|"), REASON)


def _row(name: str, record: Mapping[str, Any]) -> list[str]:
    latency = record.get("latency", {})
    own, peer = latency.get("tersor"), latency.get("onnxruntime")
    cells = [
        f"{record['parameters'] / 1e6:.2f}" if "parameters" in record else "",
        f"{record['macs'] / 1e6:.1f}" if "macs" in record else "",
        str(record.get("ops", "")),
        f"{record['import_seconds']:.1f}" if "import_seconds" in record else "",
        f"{record['compile_seconds']:.1f}" if "compile_seconds" in record else "",
        f"{record['difference']:.1e}" if "difference" in record else "",
        milliseconds(own) if own else "",
        f"{peer / own:.2f}" if own and peer else "",
    ]
    return [name, *cells]
