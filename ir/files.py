"""Files that are written as a whole or not at all, and folders for work in progress.

A file is first written in a scratch folder beside its place, is synced to the disk, and is then renamed: whatever kills
the writer, either the old file or the new one is there. A process keeps its scratch folders locked. One that nobody
keeps locked was left by a process that was killed, and is removed when the next one is made in the same place.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import re
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from .errors import TersorError

_PREFIX, _SUFFIX = ".tersor-", ".part"
_SCRATCH = re.compile(rf"{re.escape(_PREFIX)}\w+{re.escape(_SUFFIX)}")
_HERE, _EXCHANGE = -100, 2  # AT_FDCWD and RENAME_EXCHANGE of Linux


class OutputError(TersorError):
    """Something cannot be written where it was asked for."""


def check_writable(path: str | Path, *, folder: bool = False) -> None:
    """Find out, before work is spent, whether an output can go to ``path``.

    Symbolic links are followed. Character devices and named pipes are fine: the finished file is copied into them.

    Parameters
    ----------
    folder
        Whether the output is a folder.

    Raises
    ------
    OutputError
        When ``path`` is of another kind, is write-protected, or its folder is missing or read-only.
    """
    path = Path(path)
    with writing(path):
        mode = _mode(path)
    if mode and stat.S_ISDIR(mode) and not folder:
        raise OutputError(f"{path} is a directory; give the name of a file")
    if mode and not (stat.S_ISDIR(mode) if folder else stat.S_ISREG(mode) or _is_stream(mode)):
        raise OutputError(f"{path} is in the way; remove it, or choose another output path")
    if mode and not os.access(path, os.W_OK):
        raise OutputError(f"cannot write {path}: it is write-protected; choose another output path")
    place = _place(path).parent
    if mode and _is_stream(mode):
        return
    if not place.is_dir():
        raise OutputError(f"cannot write {path}: {path.parent} is not an existing directory; create it first")
    if not os.access(place, os.W_OK):
        raise OutputError(f"cannot write {path}: {path.parent} is read-only; choose another output path")


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Errors of the operating system within the block become an OutputError about ``path``."""
    try:
        yield
    except OSError as error:
        named = str(error.filename or "")
        elsewhere = f" ({named})" if named and _SUFFIX not in named and named != str(path) else ""
        reason = f"{error.strerror or error}{elsewhere}"
        raise OutputError(f"cannot write {path}: {reason}; choose another output path") from error


def make_folder(path: Path) -> None:
    """Make a folder, and those above it, if they are not there; raises OutputError when that is impossible."""
    with writing(path):
        path.mkdir(parents=True, exist_ok=True)


def cache_folder() -> Path:
    """Where Tersor keeps what it could make again: ``$XDG_CACHE_HOME/tersor``, by default ``~/.cache/tersor``.

    A user without a home has a folder among the temporary files.
    """
    if named := os.environ.get("XDG_CACHE_HOME"):
        return Path(named) / "tersor"
    try:
        return Path.home() / ".cache" / "tersor"
    except RuntimeError:  # as in containers that run under any user's number
        return Path(tempfile.gettempdir()) / f"tersor-{os.geteuid()}"


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Where to write the file that takes the place of ``path`` when the block has ended; see `put`.

    Raises
    ------
    OutputError
        When the operating system refuses something within the block or at its end; ``path`` is as it was then.
    """
    path = Path(path)
    check_writable(path)
    with writing(path), scratch_folder(beside=path) as folder:
        fresh = folder / path.name
        yield fresh
        put(fresh, path)


def write_text(path: str | Path, text: str) -> None:
    """Write a file of text as a whole or not at all; raises OutputError when that is impossible."""
    with replacing(path) as fresh:
        fresh.write_text(text, encoding="utf-8")


@contextmanager
def temporary_folder() -> Iterator[Path]:
    """A scratch folder among the temporary files; raises OutputError for OSErrors within the block."""
    try:
        with _scratch(Path(tempfile.gettempdir())) as folder:
            yield folder
    except OSError as error:
        reason = error.strerror or error
        raise OutputError(f"no temporary files can be written: {reason}; make room, or set TMPDIR") from error


@contextmanager
def scratch_folder(beside: Path) -> Iterator[Path]:
    """A folder on the file system of an output, from which `put` can move it into its place."""
    mode = _mode(beside)
    place = Path(tempfile.gettempdir()) if mode and _is_stream(mode) else _place(beside).parent
    with _scratch(place) as folder:
        yield folder


def put(fresh: Path, path: Path) -> None:
    """Put a complete file or folder into the place of ``path`` at once.

    A symbolic link stays, and what it leads to is replaced. A character device or a named pipe stays too, and gets the
    bytes.

    Parameters
    ----------
    fresh
        In the folder that `scratch_folder` made for ``path``; gone afterwards, or exchanged for the old one.

    Raises
    ------
    OSError
        When that is impossible; ``path`` is as it was then.
    """
    mode = _mode(path)
    if mode and _is_stream(mode):
        with fresh.open("rb") as source, path.open("wb") as sink:
            shutil.copyfileobj(source, sink)
        return
    place = _place(path)
    for part in (*fresh.rglob("*"), fresh) if fresh.is_dir() else (fresh,):
        _sync(part)
    if mode and stat.S_ISDIR(mode):
        _exchange(fresh, place)
    else:
        if mode:
            fresh.chmod(stat.S_IMODE(mode))
        fresh.replace(place)
    _sync(place.parent)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Others that ask for the same lock wait until the block has ended; never for a scratch folder, which is locked."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        with suppress(OSError):  # file systems without locks
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)  # and unlocks


def _mode(path: Path) -> int:
    """The type and permissions of what a path leads to; 0 if there is nothing."""
    try:
        return path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        return 0


def _is_stream(mode: int) -> bool:
    return stat.S_ISCHR(mode) or stat.S_ISFIFO(mode)


def _place(path: Path) -> Path:
    return Path(os.path.realpath(path))


@contextmanager
def _scratch(place: Path) -> Iterator[Path]:
    _remove_abandoned(place)
    folder, lock = _make_locked(place)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(lock)


def _make_locked(place: Path) -> tuple[Path, int]:
    """A new folder and the descriptor that holds its lock; made again if it was removed before it was locked."""
    while True:
        folder = Path(tempfile.mkdtemp(_SUFFIX, _PREFIX, place))
        with suppress(FileNotFoundError):
            lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
            with suppress(OSError):  # file systems without locks, where nobody removes anything
                fcntl.flock(lock, fcntl.LOCK_EX)
            if folder.exists():
                return folder, lock
            os.close(lock)


def _remove_abandoned(place: Path) -> None:
    """Remove the scratch folders of this user's dead processes."""
    for path in place.glob(f"{_PREFIX}*{_SUFFIX}"):
        if not _SCRATCH.fullmatch(path.name):
            continue
        with suppress(OSError):  # another user's, in use, or removed meanwhile
            lock = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
            try:
                if os.fstat(lock).st_uid == os.geteuid():
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    shutil.rmtree(path, ignore_errors=True)
            finally:
                os.close(lock)


def _exchange(fresh: Path, place: Path) -> None:
    """Exchange two folders at once; one after the other where the file system cannot."""
    names = os.fsencode(fresh), os.fsencode(place)
    if ctypes.CDLL(None).renameat2(_HERE, names[0], _HERE, names[1], _EXCHANGE):
        place.rename(fresh.with_name(f"{fresh.name}.old"))
        fresh.rename(place)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
