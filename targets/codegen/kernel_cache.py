"""Compiled kernels on disk: a folder of object files, each under the digest of what it was compiled from.

Processes may use a folder at the same time: a file is written beside its place and renamed, and is never changed. Each
begins with a digest of its name and its code, so that a file that is torn or damaged counts as missing. When the folder
grows beyond its limit, the files that were not used for longest are removed. What others may write to is not trusted,
since code is run: the folder must belong to this user alone.
"""

from __future__ import annotations

import hashlib
import os
import re
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from ...ir import TersorError
from ...ir.files import cache_folder

LIMIT = 512 << 20  # bytes of a folder: some twenty thousand kernels
_LEFT = 0.8  # of the limit, when files are removed
_SUFFIX, _UNFINISHED = ".kernel", ".part"
_KEY = re.compile("[0-9a-f]{64}")
_DIGEST_BYTES = hashlib.sha256().digest_size
_ABANDONED = 3600.0  # seconds after which an unfinished file has no writer any more
_RECENT = 3600.0  # seconds within which a use is not noted again
_OTHERS = 0o022  # permission to write for the group and for all


class KernelCacheError(TersorError):
    """The folder of compiled kernels cannot be used."""


@dataclass(frozen=True)
class CacheUse:
    """What a folder holds: the number of kernels, and their bytes."""

    kernels: int
    bytes: int


@dataclass(frozen=True)
class KernelCache:
    """A folder of compiled kernels; it is made when the first one is kept.

    Attributes
    ----------
    folder
        Where they are.
    limit
        Bytes that they may take.
    """

    folder: Path
    limit: int = LIMIT

    @classmethod
    def of_user(cls) -> KernelCache:
        """The folder in this user's cache."""
        return cls(cache_folder() / "kernels")

    def read(self, key: str) -> bytes | None:
        """The code that was kept under a key; None where there is none, or a damaged one."""
        path = self._path(key)
        try:
            content = path.read_bytes()
        except OSError:
            return None
        code = content[_DIGEST_BYTES:]
        if content[:_DIGEST_BYTES] != _digest(key, code):
            return None
        with suppress(OSError):
            if time.time() - path.stat().st_mtime > _RECENT:
                os.utime(path)  # so that it is not among those that are removed
        return code

    def is_trusted(self) -> bool:
        """Whether only this user can have written what the folder holds."""
        try:
            status = self.folder.stat()
        except OSError:
            return False
        return status.st_uid == os.geteuid() and not status.st_mode & _OTHERS

    def write(self, codes: Mapping[str, bytes]) -> None:
        """Keep codes under their keys, hexadecimal digests.

        Raises
        ------
        KernelCacheError
            When the folder cannot be written; what it held is unchanged.
        """
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            if not self.is_trusted():
                raise KernelCacheError(
                    f"{self.folder}: compiled kernels are not kept, since others may write to this folder; make it"
                    " yours alone (chmod 700), or set XDG_CACHE_HOME to another place"
                )
            for key, code in codes.items():
                self._write(key, code)
            self._make_room()
        except OSError as error:
            reason = error.strerror or error
            raise KernelCacheError(f"{self.folder}: compiled kernels cannot be kept ({reason})") from error

    def use(self) -> CacheUse:
        """What the folder holds."""
        sizes = [status.st_size for _, status in self._files()]
        return CacheUse(len(sizes), sum(sizes))

    def clear(self) -> CacheUse:
        """Remove all kernels, and tell what they were; raises KernelCacheError where one cannot be removed."""
        removed = CacheUse(0, 0)
        try:
            self._remove_abandoned()
            for path, status in list(self._files()):
                path.unlink(missing_ok=True)
                removed = CacheUse(removed.kernels + 1, removed.bytes + status.st_size)
        except OSError as error:
            raise KernelCacheError(f"{error.filename or self.folder} cannot be removed ({error.strerror})") from error
        return removed

    def _path(self, key: str) -> Path:
        assert _KEY.fullmatch(key), "keys are SHA-256 digests"
        return self.folder / f"{key}{_SUFFIX}"

    def _write(self, key: str, code: bytes) -> None:
        descriptor, name = tempfile.mkstemp(_UNFINISHED, dir=self.folder)
        os.close(descriptor)
        fresh = Path(name)
        try:
            fresh.write_bytes(_digest(key, code) + code)
            fresh.replace(self._path(key))
        except OSError:
            fresh.unlink(missing_ok=True)
            raise

    def _remove_abandoned(self) -> None:
        """Remove what killed writers left."""
        for path, status in self._files(_UNFINISHED):
            if time.time() - status.st_mtime > _ABANDONED:
                path.unlink(missing_ok=True)

    def _make_room(self) -> None:
        """Remove what was not used for longest, where there is too much."""
        self._remove_abandoned()
        files = sorted(self._files(), key=lambda one: one[1].st_mtime)
        size = sum(status.st_size for _, status in files)
        if size <= self.limit:
            return
        for path, status in files:
            if size <= _LEFT * self.limit:
                return
            path.unlink(missing_ok=True)
            size -= status.st_size

    def _files(self, suffix: str = _SUFFIX) -> Iterator[tuple[Path, os.stat_result]]:
        """Files of a kind, those apart that another process has just removed."""
        with suppress(FileNotFoundError), os.scandir(self.folder) as entries:
            for entry in entries:
                if entry.name.endswith(suffix):
                    with suppress(FileNotFoundError):
                        yield Path(entry.path), entry.stat(follow_symlinks=False)


def _digest(key: str, code: bytes) -> bytes:
    return hashlib.sha256(key.encode() + code).digest()
