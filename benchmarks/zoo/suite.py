"""Each model in a process of its own, and what became of it in a file that grows."""

from __future__ import annotations

import json
import multiprocessing
from collections.abc import Callable, Iterable
from pathlib import Path

from benchmarks.harness import machine

from .entry import Entry
from .stages import Record, Stage, examine

RESULTS = Path(__file__).parents[1] / "results" / "zoo.jsonl"
TRAINED_RESULTS = RESULTS.with_name("zoo-trained.jsonl")
STAGES = list(Stage)


def read_results(path: Path) -> dict[str, Record]:
    """The last record of each model; none if there is no file."""
    lines = path.read_text("utf-8").splitlines() if path.is_file() else []
    return {record["model"]: record for record in map(json.loads, lines)}


def is_done(record: Record | None, stage: Stage) -> bool:
    """Whether a model has failed or reached a stage."""
    if record is None or "failed" in record:
        return record is not None
    return STAGES.index(Stage(record["stage"])) >= STAGES.index(stage)


def in_one_line(record: Record) -> str:
    """What became of a model, for a terminal."""
    what = f"{record['failed']} fails: {record['why']}" if "failed" in record else f"{record['stage']} done"
    return f"[zoo] {record['model']}: {what[:150]}"


def try_model(entry: Entry, stage: Stage, seconds: float) -> Record:
    """What `examine` finds out in a new process, up to its end; each of its stages may take so many seconds."""
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
    if "failed" not in known and (known["stage"] is None or Stage(known["stage"]) is not stage):
        following = 0 if known["stage"] is None else STAGES.index(Stage(known["stage"])) + 1
        known |= {"failed": STAGES[following].value, "why": why}
    return {"model": entry.name, "family": entry.family} | known


def run(
    entries: Iterable[Entry],
    stage: Stage,
    path: Path,
    seconds: float,
    say: Callable[[Record], None],
    again: bool = False,
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
    """
    results, here = read_results(path), str(machine()["processor"])
    for entry in entries:
        if is_done(results.get(entry.name), stage) and not again:
            continue
        results[entry.name] = record = try_model(entry, stage, seconds) | {"machine": here}
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")
        say(record)
    return results
