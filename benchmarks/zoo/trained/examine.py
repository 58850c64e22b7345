"""One package: the answer of its own runtime beside ours, and how far and how fast each network is."""

from __future__ import annotations

import importlib.metadata

import numpy as np
import torch

from benchmarks.harness import Schedule, difference, measure
from benchmarks.zoo.stages import Record
from tersor.ir import shorten

from .case import Answer, Loaded, Trained
from .sources import THREADS, Call, Programs, Recorded, Source

SCHEDULE = Schedule(rounds=3, block_seconds=0.4, minimum_calls=3, dropped_calls=2)
REASON = 240  # characters of one
CLOSE = 1e-3  # numbers of an answer, relative to their largest


class Replay:
    """All calls that an answer took, again and again: what the harness times."""

    def __init__(self, name: str, call: Call, recorded: Recorded) -> None:
        self.name = name
        self.call, self.recorded = call, recorded

    def run(self, inputs: object = ()) -> list[np.ndarray]:
        self.call.reset()
        return [result for arrays, _ in self.recorded.calls for result in self.call(*arrays)]


def examine(case: Trained, latency: bool) -> Record:
    """What both answer, and what there is to say of each network; a failure is an answer too.

    Parameters
    ----------
    case
        Whose packages are installed.
    latency
        Time both too.
    """
    known: Record = {
        "model": case.name,
        "package": f"{case.package} {importlib.metadata.version(case.package)}",
        "task": case.task,
    }
    try:
        return known | _compared(case.load(), latency)
    except Exception as error:  # of whatever kind: the others go on
        why = shorten(" ".join(f"{type(error).__name__}: {error}".split()), REASON)
        return known | {"theirs": "", "ours": f"fails: {why}", "same": False, "networks": []}


def _compared(loaded: Loaded, latency: bool) -> Record:
    torch.set_num_threads(THREADS)
    recorded = {name: Recorded(source.original()) for name, source in loaded.networks.items()}
    programs = {name: Programs(source) for name, source in loaded.networks.items()}
    theirs, ours = loaded.ask(recorded), loaded.ask(programs)
    return {
        "theirs": theirs.text,
        "ours": ours.text,
        "same": is_same(theirs, ours),
        "networks": [
            {"name": name} | _network(loaded.networks[name], recorded[name], programs[name], latency)
            for name in loaded.networks
        ],
    }


def is_same(theirs: Answer, ours: Answer) -> bool:
    """Whether both say the same, with numbers that are close."""
    shapes = [[one.shape for one in answer.numbers] for answer in (theirs, ours)]
    return (
        theirs.text == ours.text
        and shapes[0] == shapes[1]
        and all(difference([a], [b]) <= CLOSE for a, b in zip(theirs.numbers, ours.numbers, strict=True))
    )


def _network(source: Source, recorded: Recorded, programs: Programs, latency: bool) -> Record:
    original, compiled = Replay("original", recorded.call, recorded), Replay("tersor", programs, recorded)
    expected = [result for _, results in recorded.calls for result in results]
    found: Record = {
        "runtime": source.runtime,
        "calls": len(recorded.calls),
        "difference": max(difference([a], [b]) for a, b in zip(expected, compiled.run(), strict=True)),
        "parameters": source.parameters,
        "macs": sum(programs.macs(arrays) for arrays, _ in recorded.calls),
    }
    if latency:
        times = measure([compiled, original], [], SCHEDULE)
        found["latency"] = {name: one.median for name, one in times.items()}
    return found
