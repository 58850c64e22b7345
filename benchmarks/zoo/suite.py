"""Each model in a process of its own, and what became of it in a file that grows."""

from __future__ import annotations

import json
import multiprocessing
from collections.abc import Callable, Iterable
from enum import StrEnum
from pathlib import Path

from benchmarks.harness import machine
from tersor.ir.foreign import Json

from .entry import Entry
from .stages import Record, examine

RESULTS = Path(__file__).parents[1] / "results" / "zoo.jsonl"
TRAINED_RESULTS = RESULTS.with_name("zoo-trained.jsonl")
PRUNED_RESULTS = RESULTS.with_name("zoo-pruned.jsonl")
Examine = Callable[[Entry, StrEnum, Callable[[Record], None]], None]  # see `stages.examine`


def read_results(path: Path) -> dict[str, Record]:
    """The last record of each model; none if there is no file."""
    lines = path.read_text("utf-8").splitlines() if path.is_file() else []
    return {record["model"]: record for record in map(json.loads, lines)}


def is_done(record: Record | None, stage: StrEnum) -> bool:
    """Whether a model has failed or reached a stage."""
    if record is None or "failed" in record:
        return record is not None
    return _place(type(stage), record["stage"]) >= _place(type(stage), stage)


def _place(stages: type[StrEnum], name: Json) -> int:
    """Of a stage among all; -1 for none."""
    return -1 if name is None else list(stages).index(stages(name))


def in_one_line(record: Record) -> str:
    """What became of a model, for a terminal."""
    what = f"{record['failed']} fails: {record['why']}" if "failed" in record else f"{record['stage']} done"
    return f"[zoo] {record['model']}: {what[:150]}"


def try_model(entry: Entry, stage: StrEnum, seconds: float, examine: Examine = examine) -> Record:
    """What ``examine`` finds out in a new process, up to its end; each of its stages may take so many seconds."""
    context = multiprocessing.get_context("fork")  # a new interpreter would take seconds to import PyTorch and TVM
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=examine, args=(entry, stage, sender.send))
    process.start()
    sender.close()
    known: Record = {"stage": None}
    why = f"it took more than {seconds:g} s"
    try:
        while receiver.poll(seconds):
            known = receiver.recv()
    except EOFError:
        process.join()
        why = f"its process ended with {process.exitcode}"
    process.kill()
    process.join()
    reached = _place(type(stage), known["stage"])
    if "failed" not in known and reached < _place(type(stage), stage):
        known |= {"failed": list(type(stage))[reached + 1].value, "why": why}
    return {"model": entry.name, "family": entry.family} | known


def run(
    entries: Iterable[Entry],
    stage: StrEnum,
    path: Path,
    seconds: float,
    say: Callable[[Record], None],
    again: bool = False,
    examine: Examine = examine,
) -> dict[str, Record]:
    """Try all that a file has no result of, append what is found, and return the last record of each.

    Parameters
    ----------
    entries, stage
        What to try, and how far.
    path
        The file; it need not exist.
    seconds
        Limit of each stage of a model.
    say
        Told each new record.
    again
        Try those too that have failed or reached the stage.
    examine
        Goes through the stages.
    """
    results, here = read_results(path), str(machine()["processor"])
    for entry in entries:
        if is_done(results.get(entry.name), stage) and not again:
            continue
        results[entry.name] = record = try_model(entry, stage, seconds, examine) | {"machine": here}
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")
        say(record)
    return results
