"""What the compiler asks: the option that records say is the fastest for a workload."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from functools import cached_property
from pathlib import Path

from ...ir.codec import encode
from ..codegen.options import Options
from ..machines.target import Cpu
from ..templates.option import Option, Workload
from .log import Log, read_log, shipped_log_dir
from .records import CONFIRMATIONS, Record, best, fitting

MOST_PROBLEMS = 5  # lines of a damaged log that are named one by one


class Tuned:
    """Answers `tersor.targets.codegen.lowering.lower` from records.

    Parameters
    ----------
    records
        For each workload the record whose option is used.
    known
        All records that hold for the target, those included.
    ignored
        How many of the user's records do not hold, by reason.
    problems
        ``file:line: reason`` for each line of a log that is no record.
    """

    def __init__(
        self,
        records: Mapping[Workload, Record],
        known: tuple[Record, ...] = (),
        ignored: Counter[str] | None = None,
        problems: tuple[str, ...] = (),
    ) -> None:
        self.records = dict(records)
        self.known = known
        self.ignored: Counter[str] = Counter(ignored)
        self.problems = problems

    def __call__(self, workload: Workload, options: Options) -> Option | None:
        """The recorded option, or None for the default: without a record, or when the option is not offered here."""
        record = self.records.get(workload)
        if record is None or record.option not in options:
            return None
        return record.option

    @cached_property
    def digest(self) -> str:
        """Differs where another option is used for some workload."""
        used = sorted(f"{workload} {encode(record.option)}" for workload, record in self.records.items())
        return hashlib.sha256("\n".join(used).encode()).hexdigest()

    @property
    def notes(self) -> tuple[str, ...]:
        """One line for each reason why records were ignored, and for each of the first damaged lines."""
        counts = (f"ignored {count} record{'s' * (count != 1)}: {why}" for why, count in sorted(self.ignored.items()))
        more = len(self.problems) - MOST_PROBLEMS
        rest = (f"{more} more lines cannot be read",) if more > 0 else ()
        return (*counts, *self.problems[:MOST_PROBLEMS], *rest)


def load_tuned(target: Cpu, log_dir: str | Path | None = None, *, shipped: bool = True) -> Tuned:
    """What the records of ``log_dir`` say, and those that ship with Tersor.

    Of an option that ``log_dir`` has enough measurements of to decide by them alone, no others are used.

    Parameters
    ----------
    target
        The machine; ``target.cores`` is the number of threads.
    log_dir
        A folder of records, or None; it need not exist.
    shipped
        Whether to use those that ship with Tersor.

    Raises
    ------
    LogError
        When a log cannot be read.
    """
    nothing = Log((), (), Counter())
    own = nothing if log_dir is None else read_log(log_dir, target.name)
    is_shipped = log_dir is not None and Path(log_dir).resolve() == shipped_log_dir().resolve()
    other = read_log(shipped_log_dir(), target.name) if shipped and not is_shipped else nothing
    ours, theirs = fitting(own.records, target), fitting(other.records, target)
    samples = Counter((record.workload, record.option) for record in ours.records if record.is_measured)
    others = [
        replace(record, is_shipped=True)
        for record in theirs.records
        if samples[record.workload, record.option] <= CONFIRMATIONS
    ]
    known = (*others, *ours.records)
    return Tuned(best(known), known, own.ignored + ours.ignored, own.problems + other.problems)
