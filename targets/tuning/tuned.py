"""What the compiler asks: the option that records say is the fastest for a workload."""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
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
_NOTHING = Log((), (), Counter())


class Tuned:
    """Answers `tersor.targets.codegen.lowering.lower` from records.

    Parameters
    ----------
    records
        For each workload the record whose option is used.
    relative
        What decides where nothing was measured for a workload.
    """

    def __init__(
        self,
        records: Mapping[Workload, Record],
        relative: RelativeRecords | None = None,
    ) -> None:
        self.records = records
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


def load_tuned(target: Cpu, log_dir: str | Path | None = None, *, shipped: bool = True) -> Tuned:
    """What the records of ``log_dir`` say, and those that ship with Tersor, see `read_records` and `tuned_from`."""
    return tuned_from(read_records(target, log_dir, shipped=shipped), log_dir, shipped=shipped)


def tuned_by(records: Iterable[Record], target: Cpu, log_dir: str | Path | None = None) -> Tuned:
    """What the records that a tuning session ends with say."""
    return tuned_from(KnownRecords(target, Log(tuple(records), (), Counter()), _NOTHING), log_dir)


def tuned_from(records: KnownRecords, log_dir: str | Path | None = None, *, shipped: bool = True) -> Tuned:
    """What records say.

    For float32 workloads without any measurement, records of the target's relative decide (`Family.relatives`), those
    of ``log_dir`` and those that ship; tuning does not learn from them.
    """
    relative = relative_of(records.target)
    others = None if relative is None else RelativeRecords(records, read_records(relative, log_dir, shipped=shipped))
    return Tuned(records, others)


def read_records(target: Cpu, log_dir: str | Path | None = None, *, shipped: bool = True) -> KnownRecords:
    """The records of ``log_dir``, and those that ship with Tersor.

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
    own = _NOTHING if log_dir is None else read_log(log_dir, target.name)
    is_shipped = log_dir is not None and Path(log_dir).resolve() == shipped_log_dir().resolve()
    others = read_log(shipped_log_dir(), target.name) if shipped and not is_shipped else _NOTHING
    return KnownRecords(target, own, others)


class KnownRecords(Mapping[Workload, Record]):
    """The record whose option is used, for each workload that another option than the default is used for.

    Whether records hold for the target is found out workload by workload, when the compiler asks: where the target's
    caches differ from those of the records, it takes milliseconds for each.

    Parameters
    ----------
    target
        What is compiled for.
    own, shipped
        The logs of the user's folder, and of those that ship.
    """

    def __init__(self, target: Cpu, own: Log, shipped: Log) -> None:
        self.target = target
        self._own, self._shipped = own, shipped
        self._logged: defaultdict[Workload, tuple[list[Record], list[Record]]] = defaultdict(lambda: ([], []))
        for index, log in enumerate((own, shipped)):
            for record in log.records:
                self._logged[record.workload][index].append(record)
        self._known: dict[Workload, tuple[Record, ...]] = {}
        self._best: dict[Workload, Record | None] = {}

    def __getitem__(self, workload: Workload) -> Record:
        if workload not in self._best:
            self._best[workload] = best(self.known(workload)).get(workload)
        found = self._best[workload]
        if found is None:
            raise KeyError(workload)
        return found

    def __iter__(self) -> Iterator[Workload]:
        return (workload for workload in self._logged if workload in self)

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def known(self, workload: Workload) -> tuple[Record, ...]:
        """The records of a workload that hold for the target, those that ship first."""
        if workload not in self._logged:
            return ()
        if workload not in self._known:
            self._known[workload] = _known(*self._logged[workload], self.target)
        return self._known[workload]

    def all_known(self) -> tuple[Record, ...]:
        """The records of all workloads that hold for the target."""
        return tuple(record for workload in self._logged for record in self.known(workload))

    def logged(self, workload: Workload) -> tuple[Record, ...]:
        """The records of a workload, whether they hold or not."""
        return tuple(record for part in self._logged.get(workload, ()) for record in part)

    @property
    def workloads(self) -> tuple[Workload, ...]:
        """All that there are records of."""
        return tuple(self._logged)

    @property
    def notes(self) -> tuple[str, ...]:
        """One line for each reason why the user's records do not count, and for each of the first damaged lines."""
        ignored = self._own.ignored + fitting(self._own.records, self.target).ignored
        problems = self._own.problems + self._shipped.problems
        counts = (f"ignored {count} record{'s' * (count != 1)}: {why}" for why, count in sorted(ignored.items()))
        more = len(problems) - MOST_PROBLEMS
        rest = (f"{more} more lines cannot be read",) if more > 0 else ()
        return (*counts, *problems[:MOST_PROBLEMS], *rest)


def _known(own: Iterable[Record], shipped: Iterable[Record], target: Cpu) -> tuple[Record, ...]:
    """The records that hold for a target."""
    ours, theirs = fitting(own, target).records, fitting(shipped, target).records
    samples = Counter((record.workload, record.option) for record in ours if record.is_measured)
    others = [
        replace(record, is_shipped=True)
        for record in theirs
        if samples[record.workload, record.option] <= CONFIRMATIONS
    ]
    return (*others, *ours)


class RelativeRecords:
    """Records of a target with the same float32 kernels (`Family.relatives`), for workloads that nothing is known of.

    Parameters
    ----------
    own
        Of the target that is compiled for.
    others
        Of its relative, with the same caches and cores.
    """

    def __init__(self, own: KnownRecords, others: KnownRecords) -> None:
        self._own, self._others = own, others
        self._best: dict[Workload, Record | None] = {}

    def best(self, workload: Workload) -> Record | None:
        """A record whose option, and the default beside which it was timed, are the same kernels on both targets."""
        if workload not in self._best:
            self._best[workload] = self._find(workload)
        return self._best[workload]

    def _find(self, workload: Workload) -> Record | None:
        if not _is_float32(workload) or any(record.is_measured for record in self._own.known(workload)):
            return None
        found = self._others.get(workload)
        if found is None:
            return None
        here, there = (Options(workload, one.target) for one in (self._own, self._others))
        return found if found.option in here and here.default == there.default else None

    def __str__(self) -> str:
        """Text that differs where other records decide."""
        parts = (self._others.logged(one) for one in self._others.workloads if _is_float32(one))
        return "\n".join(f"{one.provenance.time} {one.outcome.ratio} {one.option}" for part in parts for one in part)


def _is_float32(workload: Workload) -> bool:
    return getattr(workload.spec, "dtype", "") == "float32"
