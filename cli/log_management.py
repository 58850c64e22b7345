"""What `tersor log` does: count, merge and prune records."""

from __future__ import annotations

import math
import statistics
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..targets.codegen.options import Options
from ..targets.templates.option import Option, Workload
from ..targets.tuning.log import (
    Line,
    Log,
    LogError,
    append,
    files_in,
    log_files,
    read_files,
    record_line,
    replace_lines,
)
from ..targets.tuning.records import Record, best, why_ignored

Problem = tuple[str, Workload, int]  # of a target, with so many threads


@dataclass(frozen=True)
class Statistics:
    """What a log holds for one target and one number of threads.

    Attributes
    ----------
    target, threads
        What the records are for.
    records
        That this version can use.
    statuses
        How the measurements ended.
    workloads
        Distinct problems.
    improved
        How many of them have an option that is used instead of the default.
    gain
        Geometric mean of the speed-ups of those over the default, 1 if there are none.
    ignored
        Records that cannot be used, by reason.
    """

    target: str
    threads: int
    records: int
    statuses: Counter[str]
    workloads: int
    improved: int
    gain: float
    ignored: Counter[str]


def statistics_of(records: Iterable[Record]) -> list[Statistics]:
    """Count records for each target and number of threads."""
    groups: dict[tuple[str, int], list[Record]] = defaultdict(list)
    for record in records:
        groups[record.task.target.name, record.task.threads].append(record)
    return [_statistics(*key, group) for key, group in sorted(groups.items())]


def _statistics(target: str, threads: int, records: Sequence[Record]) -> Statistics:
    reasons = [why_ignored(record, record.task.target) for record in records]
    usable = [record for record, reason in zip(records, reasons, strict=True) if not reason]
    gains = [1 / record.outcome.ratio for record in best(usable).values()]
    return Statistics(
        target,
        threads,
        len(usable),
        Counter(record.outcome.status for record in usable),
        len({record.workload for record in usable}),
        len(gains),
        statistics.geometric_mean(gains) if gains else 1.0,
        Counter(reason for reason in reasons if reason),
    )


@dataclass(frozen=True)
class Merged:
    """How many records were added to a log, how many it had already, and what of the sources could not be read."""

    added: int
    known: int
    log: Log


def merge(sources: Sequence[Path], into: Path) -> Merged:
    """Append the records of ``sources``, folders or files, that the log folder ``into`` does not hold yet.

    Raises
    ------
    LogError
        When a source does not exist or holds no records, or something cannot be read or written.
    """
    files = [file for source in sources for file in _files(source)]
    log = read_files(files)
    known = {record_line(record) for record in read_files(log_files(into)).records}
    lines = dict(zip(map(record_line, log.records), log.records, strict=True))
    fresh = [record for line, record in lines.items() if line not in known]
    append(into, sorted(fresh, key=lambda record: record.task.target.name))
    return Merged(len(fresh), len(log.records) - len(fresh), log)


def _files(source: Path) -> list[Path]:
    if not source.exists():
        raise LogError(f"{source}: no such file or folder")
    if not source.is_dir():
        return [source]
    files = log_files(source) or files_in(source)  # a log, or the folder of one target in it
    if not files:
        raise LogError(f"{source}: holds no records; name a log folder, the folder of a target in it, or .jsonl files")
    return files


@dataclass(frozen=True)
class Pruned:
    """How many lines were kept and dropped; the dropped ones by reason."""

    kept: int
    dropped: Counter[str]


def prune(log_dir: Path, keep: int, target_name: str | None = None) -> Pruned:
    """Drop damaged lines, duplicates, records of other versions, and all but the fastest options of each workload.

    Lines of later versions of Tersor stay.

    Parameters
    ----------
    keep
        Options of each workload to keep, besides the analytic default and those measured to be used.

    Raises
    ------
    LogError
        When a file cannot be read or written; it is unchanged then.
    """
    files = log_files(log_dir, target_name)
    known = read_files(files).records
    wanted = _wanted(known, keep)
    lines = set(map(record_line, known))
    dropped: Counter[str] = Counter()
    seen: set[str] = set()
    kept = 0

    def reason_to_drop(line: Line) -> str:
        if line.is_later:
            return ""
        if line.record is None:
            return line.ignored or "damaged"
        if line.text in seen:
            return "duplicate"
        seen.add(line.text)
        reason = why_ignored(line.record, line.record.task.target)
        is_new = record_line(line.record) not in lines  # appended by a session since `wanted` was made
        if not reason and not is_new and line.record.option not in wanted[_problem(line.record)]:
            return "slow" if line.record.outcome.ok else line.record.outcome.status
        return reason

    def change(lines: list[Line]) -> list[str]:
        nonlocal kept
        reasons = [reason_to_drop(line) for line in lines]
        dropped.update(reason for reason in reasons if reason)
        kept += sum(not reason for reason in reasons)
        return [line.text for line, reason in zip(lines, reasons, strict=True) if not reason]

    for file in files:
        replace_lines(file, change)
    return Pruned(kept, dropped)


def _problem(record: Record) -> Problem:
    return record.task.target.name, record.workload, record.task.threads


def _wanted(records: Iterable[Record], keep: int) -> dict[Problem, set[Option]]:
    """The options whose records stay: the fastest of each problem, the one that is used, and the default."""
    of_problem: dict[Problem, list[Record]] = defaultdict(list)
    for record in records:
        if not why_ignored(record, record.task.target):
            of_problem[_problem(record)].append(record)
    return {problem: _wanted_of(some, keep) for problem, some in of_problem.items()}


def _wanted_of(records: Sequence[Record], keep: int) -> set[Option]:
    """The same for one problem."""
    ratios: dict[Option, list[float]] = defaultdict(list)
    for record in records:
        if record.outcome.ok:
            ratio = record.outcome.ratio
            ratios[record.option].append(ratio if math.isfinite(ratio) else 1.0)
    ranked = sorted(ratios, key=lambda option: statistics.median(ratios[option]))
    used = [record.option for record in best(records).values()]
    return {Options(records[0].workload, records[0].task.target).default, *ranked[:keep], *used}
