"""Measured times of graphs on disk: lines of JSON, one a measurement, which are appended and never changed.

A time is looked up by a digest of what changes it: the graphs' work, and a context, in which whoever measures describes
the machine and what compiles. A damaged line counts as missing.
"""

from __future__ import annotations

import hashlib
import json
import math
import warnings
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from ...ir import TersorError, TersorWarning
from ...ir.files import write_text
from ..codegen.identity import code_identity
from ..machines.catalog import processor_name
from ..machines.target import Cpu
from .log import LogError, append_lines
from .tuned import Tuned

FILE = "measured.times"
MOST_NOISE = 0.05  # of a time that is kept; others are measured again
MOST_LINES = 50_000  # of a file; the older half goes then


@dataclass(frozen=True)
class GraphTimes:
    """Seconds of one execution of graphs, timed alternately, and the share of a time that chance explains."""

    seconds: tuple[float, ...]
    noise: float


class KeptTimes:
    """The times of one context in a file.

    Parameters
    ----------
    path
        Of the file; it need not exist.
    context
        Describes everything besides the graphs that times depend on.
    """

    def __init__(self, path: Path, context: str) -> None:
        self._path: Path | None = path
        self._context = context
        self._known: dict[str, GraphTimes] | None = None

    def find(self, works: Sequence[str]) -> GraphTimes | None:
        """The times of graphs that do this work."""
        if self._known is None:
            self._known = {} if self._path is None else _read(self._path)
        return self._known.get(self._key(works))

    def add(self, works: Sequence[str], times: GraphTimes) -> None:
        """Keep a measurement, unless it is too noisy to be relied on another day."""
        if self._path is None or times.noise > MOST_NOISE:
            return
        line = {"key": self._key(works), "seconds": times.seconds, "noise": times.noise}
        try:
            append_lines(self._path, [json.dumps(line, separators=(",", ":"))])
        except LogError as error:
            self._path = None
            warnings.warn(f"{error}; going on without keeping measured times", TersorWarning, stacklevel=2)

    def _key(self, works: Sequence[str]) -> str:
        return hashlib.sha256("\n".join((self._context, *works)).encode()).hexdigest()


def kept_times(folder: Path, target: Cpu, threads: int, tuned: Tuned) -> KeptTimes | None:
    """Times measured on such a machine before, of programs made by the same compiler; None where this is not known.

    Parameters
    ----------
    folder
        Where they are kept.
    target, threads, tuned
        What programs are compiled for, how many threads a call has, and what is asked for kernels.
    """
    identity = code_identity()
    if identity is None:
        return None
    machine = (processor_name(), repr(target), json.dumps(target.tvm_target(), sort_keys=True), str(threads))
    return KeptTimes(folder / FILE, "\n".join((identity, *machine, tuned.digest)))


def count_times(path: Path) -> int:
    """How many measurements a file holds."""
    return len(_read(path))


def _read(path: Path) -> dict[str, GraphTimes]:
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return {}
    if len(lines) > MOST_LINES:
        lines = lines[-MOST_LINES // 2 :]
        with suppress(TersorError):  # it goes on growing where it may
            write_text(path, "".join(f"{line}\n" for line in lines))
    return dict(filter(None, map(_entry, lines)))


def _entry(line: str) -> tuple[str, GraphTimes] | None:
    try:
        value = json.loads(line)
        times = GraphTimes(tuple(map(float, value["seconds"])), float(value["noise"]))
        key = value["key"]
    except (ValueError, TypeError, KeyError, RecursionError):
        return None
    whole = isinstance(key, str) and times.seconds and all(math.isfinite(one) and one > 0 for one in times.seconds)
    return (key, times) if whole and 0 <= times.noise <= MOST_NOISE else None
