"""Logs of measurements on disk: ``<log_dir>/<target>/*.jsonl``, one self-contained line a measurement.

Lines of one layer differ little, so a log that ships is packed: a file ``*.jsonl.gz``, to which nothing is appended.

A target's folder is its name with ``-`` for ``:``, for example ``x86-znver4``. Lines are only ever appended, each by
one write to a file opened for appending, under a lock, and synced to the disk: whatever kills the writer, at most the
line being written is torn, and the next writer ends it before it begins its own.
"""

from __future__ import annotations

import gzip
import json
import os
import sys
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import lru_cache
from itertools import groupby
from pathlib import Path
from typing import TextIO

from ...ir import TersorError
from ...ir.codec import CodecError, UnknownNameError, decode, encode
from ...ir.foreign import Json
from ..templates.registry import TEMPLATES, template_version
from .records import SCHEMA, Record

if sys.platform != "win32":
    import fcntl

RECORDS_FILE = "records.jsonl"
_PACKED = ".gz"


class LogError(TersorError):
    """A log that cannot be read or written."""


@dataclass(frozen=True)
class Log:
    """What was read.

    Attributes
    ----------
    records
        In the order of the files, and of the lines in each.
    problems
        ``file:line: reason`` for each line that is no record.
    ignored
        How many lines were written by other versions of Tersor or of its templates, by reason.
    """

    records: tuple[Record, ...]
    problems: tuple[str, ...]
    ignored: Counter[str]


@dataclass(frozen=True)
class Line:
    """One line of a file: a record, or why it is none.

    Attributes
    ----------
    number, text
        Counted from 1, and without its end.
    record
        What it holds, or None.
    ignored
        Why another version of Tersor wrote it; empty for records and for damaged lines.
    is_later
        Whether that version is a later one.
    problem
        What is wrong with a damaged line.
    """

    number: int
    text: str
    record: Record | None = None
    ignored: str = ""
    is_later: bool = False
    problem: str = ""


def target_folder(log_dir: str | Path, target_name: str) -> Path:
    """Where the records of a target are: ``<log_dir>/x86-znver4``."""
    return Path(log_dir) / target_name.replace(":", "-")


def append(log_dir: str | Path, records: Iterable[Record]) -> None:
    """Append records to ``<log_dir>/<target>/records.jsonl``; they are on the disk when this returns.

    Raises
    ------
    LogError
        When the disk is full or the folder not writable; the log stays readable, and what was written before is kept.
    """
    by_folder = groupby(records, key=lambda record: target_folder(log_dir, record.task.target.name))
    for folder, group in by_folder:
        append_lines(folder / RECORDS_FILE, [record_line(record) for record in group])


def record_line(record: Record) -> str:
    """A record as it stands in a log."""
    return json.dumps({"schema": SCHEMA, **encode(record)}, separators=(",", ":"))


class LogWriter:
    """Appends records to a log for as long as that is possible.

    Parameters
    ----------
    log_dir
        The log's folder; None to write nothing.
    say
        Told once when a record cannot be written; what is measured from then on is lost with the process.
    """

    def __init__(self, log_dir: Path | None, say: Callable[[str], None]) -> None:
        self._log_dir = log_dir
        self._say = say

    def add(self, record: Record) -> None:
        """Append a record, which is on the disk when this returns."""
        if self._log_dir is None:
            return
        try:
            append(self._log_dir, [record])
        except LogError as error:
            self._log_dir = None
            self._say(f"{error}; going on without writing the log")


def append_lines(path: Path, lines: Iterable[str]) -> None:
    """Append lines to a file and sync it; raises LogError when that is impossible."""
    with _errors_named(path), _locked(path) as descriptor:
        for line in lines:
            _append_line(descriptor, line.encode() + b"\n")
        os.fsync(descriptor)


def replace_lines(path: Path, change: Callable[[list[Line]], Iterable[str]]) -> None:
    """Rewrite a file at once: whatever happens, either the old or the new lines are there.

    Parameters
    ----------
    change
        Makes the new lines of the old ones; nobody appends meanwhile.

    Raises
    ------
    LogError
        When the file cannot be written; it is unchanged then.
    """
    with _errors_named(path), _locked(path):
        _replace(path, change(list(read_lines(path))))


def pack(log_dir: str | Path, target_name: str | None = None) -> list[Path]:
    """Join the files of each target into one that takes a few percent of the room; returns those files.

    Nobody appends meanwhile. If the process ends between two steps, lines may stand in both files, but none is lost.

    Raises
    ------
    LogError
        When a file cannot be read or written.
    """
    by_folder = groupby(log_files(log_dir, target_name), key=lambda path: path.parent)
    return [_pack(folder, list(paths)) for folder, paths in by_folder]


def _pack(folder: Path, paths: list[Path]) -> Path:
    path = folder / f"{RECORDS_FILE}{_PACKED}"
    with _errors_named(path), ExitStack() as locks:
        for one in paths:
            locks.enter_context(_locked(one))
        texts = dict.fromkeys(text for one in paths for text in _texts(one))
        _replace(path, texts)
        for one in paths:
            if one != path:
                one.unlink()
    return path


def _texts(path: Path) -> Iterator[str]:
    """All lines of a file; raises LogError when some of them cannot be reached."""
    for line in read_lines(path):
        if not line.text:
            raise LogError(f"{path}: {line.problem}; `tersor log prune` keeps what stands before")
        yield line.text


def _replace(path: Path, lines: Iterable[str]) -> None:
    """Put a file of lines, packed if its name says so, in place of the one that is there, if any."""
    fresh = path.with_suffix(".new")
    try:
        _write(fresh, lines, packed=path.suffix == _PACKED)
        fresh.replace(path)
    finally:
        fresh.unlink(missing_ok=True)


def _write(path: Path, lines: Iterable[str], *, packed: bool) -> None:
    """A new file of lines, which is on the disk when this returns; equal lines make equal files."""
    with path.open("wb") as file:
        # Neither a name nor a time goes into a packed file.
        stream = gzip.GzipFile(filename="", mode="wb", fileobj=file, mtime=0) if packed else file
        for line in lines:
            stream.write(f"{line}\n".encode())
        if packed:
            stream.close()
        file.flush()
        os.fsync(file.fileno())


@contextmanager
def _errors_named(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        why = error.strerror or str(error)
        raise LogError(f"{path}: cannot be written ({why}); make room, or choose another log folder") from error


@contextmanager
def _locked(path: Path) -> Iterator[int]:
    """The file, made if need be, opened for appending; other writers wait."""
    path.parent.mkdir(parents=True, exist_ok=True)
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            if sys.platform != "win32":
                fcntl.flock(descriptor, fcntl.LOCK_EX)
            if _is_current(descriptor, path):
                yield descriptor
                return
        finally:
            os.close(descriptor)  # and unlocks


def _is_current(descriptor: int, path: Path) -> bool:
    """Whether the file was not replaced by another while this process waited for its lock."""
    return path.exists() and os.path.samestat(os.fstat(descriptor), path.stat())


def _append_line(descriptor: int, data: bytes) -> None:
    """Write one line after the last whole one; a line that does not fit on the disk is taken back."""
    end = os.lseek(descriptor, 0, os.SEEK_END)
    if end and os.pread(descriptor, 1, end - 1) != b"\n":
        data = b"\n" + data  # a killed writer left half a line
    try:
        written = os.write(descriptor, data)
        while written < len(data):
            written += os.write(descriptor, data[written:])
    except OSError:
        os.ftruncate(descriptor, end)
        raise


def read_log(log_dir: str | Path, target_name: str | None = None) -> Log:
    """Read all records of a target, or of all targets.

    Lines that are no records are skipped and named in ``problems``; a folder that does not exist holds none.

    Raises
    ------
    LogError
        When a file cannot be read.
    """
    return read_files(log_files(log_dir, target_name))


def log_files(log_dir: str | Path, target_name: str | None = None) -> list[Path]:
    """The files that `read_log` reads, in order."""
    if target_name is not None:
        return files_in(target_folder(log_dir, target_name))
    return [path for folder in sorted(Path(log_dir).glob("*/")) for path in files_in(folder)]


def files_in(folder: Path) -> list[Path]:
    """The files of one target's folder, in order."""
    return sorted((*folder.glob("*.jsonl"), *folder.glob(f"*.jsonl{_PACKED}")))


def read_files(paths: Iterable[Path]) -> Log:
    """Read records from files; see `read_log`."""
    logs = [_read_file(path, _stamp(path)) for path in paths]
    return Log(
        tuple(record for log in logs for record in log.records),
        tuple(problem for log in logs for problem in log.problems),
        sum((log.ignored for log in logs), Counter()),
    )


def _stamp(path: Path) -> tuple[int, ...]:
    """What changes when a file is appended to or replaced."""
    try:
        status = path.stat()
    except OSError as error:
        raise LogError(f"{path}: cannot be read ({error.strerror})") from error
    return status.st_ino, status.st_size, status.st_mtime_ns


@lru_cache(maxsize=8)
def _read_file(path: Path, stamp: tuple[int, ...]) -> Log:
    """One file; a process that compiles often reads the records of its target once."""
    lines = list(read_lines(path))
    return Log(
        tuple(line.record for line in lines if line.record is not None),
        tuple(f"{path}:{line.number}: {line.problem}" for line in lines if line.record is None and not line.ignored),
        Counter(line.ignored for line in lines if line.ignored),
    )


def read_lines(path: Path) -> Iterator[Line]:
    """The lines of a file that are not empty; raises LogError when it cannot be read."""
    number = 0
    try:
        with _opened(path) as file:
            for number, text in enumerate(file, 1):
                if text.strip():
                    yield _read_line(number, text.strip())
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        yield Line(number + 1, "", problem=f"the packed file is damaged from here on: {error}")
    except OSError as error:
        raise LogError(f"{path}: cannot be read ({error.strerror})") from error


def _opened(path: Path) -> TextIO:
    if path.suffix == _PACKED:
        return gzip.open(path, "rt", encoding="utf-8", errors="replace")
    return path.open(encoding="utf-8", errors="replace")


def _read_line(number: int, text: str) -> Line:
    try:
        value = json.loads(text)
        if reason := _made_by_other_version(value):
            return Line(number, text, ignored=reason, is_later=value["schema"] > SCHEMA)
        del value["schema"]
        return Line(number, text, decode(Record, value, "record"))
    except UnknownNameError as error:
        return Line(number, text, ignored=str(error))
    except (ValueError, OverflowError, RecursionError) as error:  # CodecError and JSONDecodeError are ValueErrors
        return Line(number, text, problem=" ".join(str(error).split()))


def _made_by_other_version(value: Json) -> str:
    """Why a line that another version of Tersor wrote cannot be read here; empty if it can."""
    schema = value.get("schema") if isinstance(value, dict) else None
    if type(schema) is not int:
        raise CodecError("no record: it has no schema version")
    if schema > SCHEMA:
        return f"written by a later version of Tersor (schema {schema})"
    try:
        template = value["outcome"]["option"]["template"]
        made = value["provenance"]["template_version"]
    except (KeyError, TypeError) as error:
        raise CodecError(f"no record: it lacks {error}") from error
    if not isinstance(template, str):
        raise CodecError(f"no record: the template must be a name, not {template!r}")
    if template in TEMPLATES and made != template_version(template):
        return f"made by version {made} of the template {template}"
    return ""


def shipped_log_dir() -> Path:
    """The folder of records that ship with Tersor."""
    return Path(__file__).parents[2] / "tuning_logs"
