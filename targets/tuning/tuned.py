"""What the compiler asks: the option that records say is the fastest for a workload."""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import cached_property
from pathlib import Path

from ...ir.codec import encode
from ..codegen.options import Options
from ..machines.catalog import relative_of
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
    relative
        What decides where there is no record for a workload.
    """

    def __init__(
        self,
        records: Mapping[Workload, Record],
        known: tuple[Record, ...] = (),
        ignored: Counter[str] | None = None,
        problems: tuple[str, ...] = (),
        relative: RelativeRecords | None = None,
    ) -> None:
        self.records = dict(records)
        self.known = known
        self.ignored: Counter[str] = Counter(ignored)
        self.problems = problems
        self._relative = relative

    def __call__(self, workload: Workload, options: Options) -> Option | None:
        """The recorded option, or None for the default: without a record, or when the option is not offered here."""
        record = self.records.get(workload)
        if record is None and self._relative is not None:
            record = self._relative.best(workload)
        if record is None or record.option not in options:
            return None
        return record.option

    @cached_property
    def digest(self) -> str:
        """Differs where another option is used for some workload."""
        used = sorted(f"{workload} {encode(record.option)}" for workload, record in self.records.items())
        return hashlib.sha256("\n".join([*used, str(self._relative or "")]).encode()).hexdigest()

    @property
    def notes(self) -> tuple[str, ...]:
        """One line for each reason why records were ignored, and for each of the first damaged lines."""
        counts = (f"ignored {count} record{'s' * (count != 1)}: {why}" for why, count in sorted(self.ignored.items()))
        more = len(self.problems) - MOST_PROBLEMS
        rest = (f"{more} more lines cannot be read",) if more > 0 else ()
        return (*counts, *self.problems[:MOST_PROBLEMS], *rest)


def load_tuned(target: Cpu, log_dir: str | Path | None = None, *, shipped: bool = True) -> Tuned:
    """What the records of ``log_dir`` say, and those that ship with Tersor.

    Of an option that ``log_dir`` has enough measurements of to decide by them alone, no others are used. For float32
    workloads without any measurement, records of the target's relative decide (`Family.relatives`); they are not among
    the `Tuned.known`, which tuning learns from.

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
    own, other = _read(target, log_dir, shipped)
    known, ignored = _known(own.records, other.records, target)
    relative = relative_of(target)
    others = None
    if relative is not None:
        measured = frozenset(record.workload for record in known if record.is_measured)
        others = RelativeRecords(target, relative, *_read(relative, log_dir, shipped), measured)
    return Tuned(best(known), known, own.ignored + ignored, own.problems + other.problems, others)


def _read(target: Cpu, log_dir: str | Path | None, shipped: bool) -> tuple[Log, Log]:
    """A target's records of ``log_dir``, and those that ship."""
    nothing = Log((), (), Counter())
    own = nothing if log_dir is None else read_log(log_dir, target.name)
    is_shipped = log_dir is not None and Path(log_dir).resolve() == shipped_log_dir().resolve()
    return own, read_log(shipped_log_dir(), target.name) if shipped and not is_shipped else nothing


def _known(own: Iterable[Record], shipped: Iterable[Record], target: Cpu) -> tuple[tuple[Record, ...], Counter[str]]:
    """The records that hold for a target, and how many of the user's own do not, by reason."""
    ours, theirs = fitting(own, target), fitting(shipped, target)
    samples = Counter((record.workload, record.option) for record in ours.records if record.is_measured)
    others = [
        replace(record, is_shipped=True)
        for record in theirs.records
        if samples[record.workload, record.option] <= CONFIRMATIONS
    ]
    return (*others, *ours.records), ours.ignored


class RelativeRecords:
    """Records of a target with the same float32 kernels (`Family.relatives`), for workloads that nothing is known of.

    Whether they hold is found out workload by workload, when the compiler asks: it takes milliseconds for each.

    Parameters
    ----------
    target, relative
        What is compiled for, and the target of the records, with the same caches and cores.
    own, shipped
        Its records of the user's folder, and those that ship.
    measured
        The workloads that ``target`` has measurements of its own for.
    """

    def __init__(self, target: Cpu, relative: Cpu, own: Log, shipped: Log, measured: frozenset[Workload]) -> None:
        self._target, self._relative = target, relative
        self._records: defaultdict[Workload, tuple[list[Record], list[Record]]] = defaultdict(lambda: ([], []))
        for index, log in enumerate((own, shipped)):
            for record in log.records:
                if getattr(record.workload.spec, "dtype", "") == "float32" and record.workload not in measured:
                    self._records[record.workload][index].append(record)
        self._best: dict[Workload, Record | None] = {}

    def best(self, workload: Workload) -> Record | None:
        """A record whose option, and the default beside which it was timed, are the same kernels on both targets."""
        if workload not in self._best:
            self._best[workload] = self._find(workload) if workload in self._records else None
        return self._best[workload]

    def _find(self, workload: Workload) -> Record | None:
        known, _ = _known(*self._records[workload], self._relative)
        found = best(known).get(workload)
        here, there = Options(workload, self._target), Options(workload, self._relative)
        return found if found is not None and found.option in here and here.default == there.default else None

    def __str__(self) -> str:
        """Text that differs where other records decide."""
        parts = (part for both in self._records.values() for part in both)
        return "\n".join(f"{one.provenance.time} {one.outcome.ratio} {one.option}" for part in parts for one in part)
