"""The commands ``tersor log …``: look at records of measurements, merge and prune them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from ..targets.tuning import DEFAULT_LOG_DIR
from .options import JsonOption, print_json
from .tables import new_table, print_table

if TYPE_CHECKING:
    from ..ir.foreign import Json
    from ..targets.templates.option import Workload
    from ..targets.tuning.records import Record
    from .log_management import Statistics

log = typer.Typer(name="log", help="Look at tuning records, merge and prune them.", no_args_is_help=True)

LogDirArgument = Annotated[Path, typer.Argument(metavar="LOG_DIR", help="Folder of records.")]
TargetOption = Annotated[str | None, typer.Option(help="Only records for this machine; see `tersor targets`.")]


@log.command()
def stats(log_dir: LogDirArgument = DEFAULT_LOG_DIR, target: TargetOption = None, as_json: JsonOption = False) -> None:
    """Count records, how they ended, and what they gain, for each target and number of threads.

    \b
    Examples:
      tersor log stats
      tersor log stats logs --target x86:znver4 --json
    """
    from ..targets.tuning.log import read_log
    from .log_management import statistics_of

    content = read_log(_existing(log_dir), _target_name(target))
    rows = statistics_of(content.records)
    if as_json:
        print_json({"targets": [vars(row) for row in rows], **_unused(content.ignored, content.problems)})
        return
    print_table(_statistics_table(rows))
    _print_unused(_console(), sum((row.ignored for row in rows), content.ignored), content.problems)


@log.command()
def best(
    log_dir: LogDirArgument = DEFAULT_LOG_DIR,
    target: Annotated[str, typer.Option(help="Machine to use records for; see `tersor targets`.")] = "x86:native",
    threads: Annotated[
        int | None, typer.Option(min=1, help="Threads of one call; the target's cores if omitted.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Show the options that a compiler uses instead of its analytic defaults.

    \b
    Examples:
      tersor log best
      tersor log best logs --target x86:znver4 --threads 1
    """
    from dataclasses import replace

    from ..targets.machines.catalog import resolve_cpu
    from ..targets.tuning import records
    from ..targets.tuning.log import read_log

    machine = resolve_cpu(target)
    if threads is not None:
        machine = replace(machine, cores=threads)
    content = read_log(_existing(log_dir), machine.name)
    fit = records.fitting(content.records, machine)
    chosen = records.best(fit.records)
    if as_json:
        rows = [_describe(workload, record) for workload, record in chosen.items()]
        print_json({"best": rows, **_unused(content.ignored + fit.ignored, content.problems)})
        return
    console = _console()
    for line in _best_lines(chosen, machine.name, machine.cores):
        console.print(line)
    _print_unused(console, content.ignored + fit.ignored, content.problems)


@log.command()
def merge(
    sources: Annotated[list[Path], typer.Argument(metavar="SOURCE...", help="Folders of records, or .jsonl files.")],
    into: Annotated[Path, typer.Option(help="Folder to add the records to.")] = DEFAULT_LOG_DIR,
    as_json: JsonOption = False,
) -> None:
    """Add the records of other folders or files to a folder, each record once.

    \b
    Examples:
      tersor log merge /mnt/board1/logs /mnt/board2/logs --into tuning_logs
      tersor log merge records.jsonl
    """
    from . import log_management as manage

    merged = manage.merge(sources, into)
    if as_json:
        counts = {"added": merged.added, "known": merged.known}
        print_json(counts | _unused(merged.log.ignored, merged.log.problems))
        return
    console = _console()
    console.print(f"added {merged.added} records to {into}, which had {merged.known} of them already")
    _print_unused(console, merged.log.ignored, merged.log.problems)


@log.command()
def prune(
    log_dir: LogDirArgument = DEFAULT_LOG_DIR,
    keep: Annotated[int, typer.Option(min=1, help="Fastest options of each problem to keep.")] = 16,
    target: TargetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Drop damaged lines, duplicates, records of other versions, failures and slow candidates.

    \b
    Examples:
      tersor log prune
      tersor log prune logs --keep 4 --target x86:znver4
    """
    from . import log_management as manage

    pruned = manage.prune(_existing(log_dir), keep, _target_name(target))
    if as_json:
        print_json({"kept": pruned.kept, "dropped": dict(pruned.dropped)})
        return
    console = _console()
    console.print(f"kept {pruned.kept} records, dropped {pruned.dropped.total()}")
    for reason, count in sorted(pruned.dropped.items()):
        console.print(f"  {count} {reason}")


@log.command()
def pack(log_dir: LogDirArgument = DEFAULT_LOG_DIR, target: TargetOption = None, as_json: JsonOption = False) -> None:
    """Join each target's files into one that takes a few percent of the room, to ship it.

    Compiling and the other commands read it, and new records are written beside it.

    \b
    Examples:
      tersor log pack logs
      zcat logs/x86-znver4/records.jsonl.gz
    """
    from ..targets.tuning.log import pack as pack_files

    sizes = {str(path): path.stat().st_size for path in pack_files(_existing(log_dir), _target_name(target))}
    if as_json:
        print_json({"packed": sizes})
        return
    console = _console()
    for path, size in sizes.items():
        console.print(f"{path}: {size / 1024:.0f} KiB")
    if not sizes:
        console.print(f"{log_dir} holds no records")


def _target_name(target: str | None) -> str | None:
    from ..targets import resolve_target

    return None if target is None else resolve_target(target).name


def _existing(log_dir: Path) -> Path:
    from ..ir import TersorError

    if not log_dir.is_dir():
        raise TersorError(f"{log_dir}: no such folder; `tersor tune` makes one")
    return log_dir


def _describe(workload: Workload, record: Record) -> dict[str, Json]:
    from ..ir.codec import encode

    outcome = record.outcome
    return {
        "workload": encode(workload),
        "option": encode(record.option),
        "seconds": outcome.seconds,
        "default_seconds": outcome.baseline,
        "gain": 1 / outcome.ratio,
    }


def _statistics_table(rows: Sequence[Statistics]) -> Table:
    columns = ("target", "threads", "records", "ok", "failed", "problems", "improved", "gain")
    table = new_table(*columns, title="tuning records")
    for row in rows:
        ok = row.statuses["ok"]
        failed = ", ".join(f"{count} {status}" for status, count in sorted(row.statuses.items()) if status != "ok")
        numbers = (row.threads, row.records, ok, failed or 0, row.workloads, row.improved)
        table.add_row(row.target, *map(str, numbers), f"{row.gain:.3f}")
    return table


def _best_lines(chosen: dict[Workload, Record], target: str, threads: int) -> Iterator[str]:
    """The options in use, the greatest gain first: what they gain on one line, what they are below it."""
    yield f"chosen on {target}, {threads} threads: {len(chosen) or 'no'} options that were measured faster"
    for workload, record in sorted(chosen.items(), key=lambda item: item[1].outcome.ratio):
        outcome = record.outcome
        yield f"{1 / outcome.ratio:.3f} times faster, {outcome.seconds * 1e6:.1f} us: {record.task.location}"
        yield f"    {workload}"
        yield f"    {record.option}"


def _unused(ignored: Counter[str], problems: Sequence[str]) -> dict[str, Json]:
    """Records that do not hold, and lines that are none, as JSON types."""
    return {"ignored": dict(ignored), "problems": list(problems)}


def _print_unused(console: Console, ignored: Counter[str], problems: Sequence[str]) -> None:
    for reason, count in sorted(ignored.items()):
        console.print(f"ignored {count} record{'s' * (count != 1)}: {reason}")
    for problem in problems:
        console.print(problem)


def _console() -> Console:
    return Console(highlight=False, soft_wrap=True, markup=False)
