"""The container of an artifact: a zip whose members are stored uncompressed and aligned, so that they can be mapped.

Any zip tool can list and unpack it. `Archive` trusts nothing that it reads: every size and offset is checked against
the file before it is used. The SHA-256 of the index member stands in the zip's comment; the index holds digests of the
other members. A digest is the SHA-256 of the SHA-256s of a member's chunks, so that all cores check a large member at
once.
"""

from __future__ import annotations

import hashlib
import mmap
import struct
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import IO

from .manifest import ArtifactError, Member

ALIGNMENT = 64  # bytes, of every member's first byte within the file
DAMAGED = "the file is damaged; copy it again, or compile the model again"

_LOCAL_HEADER = struct.Struct("<4s22xHH")  # signature; lengths of the name and of the extra field
_LOCAL_SIGNATURE = b"PK\x03\x04"
_EXTRA_HEADER = struct.Struct("<HH")  # id and length of one extra field
_PADDING_ID = 0xD935  # the id that Android's zipalign pads with
_ZIP64_EXTRA_BYTES = 20  # what zipfile appends to the local header of a large member
_ZIP64_THRESHOLD = 1 << 30
_COMMENT = "tersor sha256 "
_ENCRYPTED = 0x1
_LARGEST_INDEX = 64 << 20  # bytes
_CHUNK_BYTES = 8 << 20  # part of the format: other chunks have other digests


class ArchiveWriter:
    """Writes one archive; a context manager.

    Parameters
    ----------
    path
        The file, which is overwritten.
    """

    def __init__(self, path: Path) -> None:
        self._file = path.open("wb")
        self._zip = zipfile.ZipFile(self._file, "w", zipfile.ZIP_STORED)

    def __enter__(self) -> ArchiveWriter:
        return self

    def __exit__(self, *error: object) -> None:
        try:
            self._zip.close()
        finally:
            self._file.close()

    def add(self, name: str, size: int, chunks: Iterable[bytes | bytearray | memoryview]) -> Member:
        """Append a member of ``size`` bytes that come as buffers; returns its size and digest."""
        digest = _StreamDigest()
        large = size >= _ZIP64_THRESHOLD
        with self._zip.open(self._aligned(name, large), "w", force_zip64=large) as stream:
            for chunk in chunks:
                digest.update(chunk)
                stream.write(chunk)
        return Member(size, digest.finish())

    def add_index(self, name: str, data: bytes) -> None:
        """Append the member that describes the others; its hash becomes the comment of the zip."""
        self.add(name, len(data), [data])
        self._zip.comment = (_COMMENT + hashlib.sha256(data).hexdigest()).encode()

    def _aligned(self, name: str, large: bool) -> zipfile.ZipInfo:
        info = zipfile.ZipInfo(name)  # dated 1980, so that equal models give equal bytes
        info.external_attr = 0o644 << 16
        header = _LOCAL_HEADER.size + len(name) + _EXTRA_HEADER.size + (_ZIP64_EXTRA_BYTES if large else 0)
        padding = -(self._file.tell() + header) % ALIGNMENT
        info.extra = _EXTRA_HEADER.pack(_PADDING_ID, padding) + bytes(padding)
        return info


class Archive:
    """An archive mapped into memory, private to this process.

    Parameters
    ----------
    path
        The file.

    Raises
    ------
    ArtifactError
        When there is no such file, or it is not a well-formed archive. No message of this class names the file.
    """

    def __init__(self, path: Path) -> None:
        if path.exists() and not path.is_file():
            raise ArtifactError("is not a file; give a file that `tersor compile` wrote")
        try:
            with path.open("rb") as file:
                # Copy on write: PyTorch wants writable memory, the file must stay as it is.
                self._bytes = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY))
                self._infos, self._comment = _directory(file, self._bytes)
        except FileNotFoundError:
            raise ArtifactError("no such file") from None
        except OSError as error:
            raise ArtifactError(f"not readable ({error.strerror}); check its permissions") from error
        except ValueError as error:  # mmap's, for an empty file
            raise ArtifactError("not a .tersor artifact, it is empty; compile the model again") from error

    @property
    def names(self) -> frozenset[str]:
        """Names of all members."""
        return frozenset(self._infos)

    def index(self, name: str) -> bytes:
        """The bytes of the index member, after a check of its hash against the comment."""
        if name not in self._infos:
            raise ArtifactError(f"no {name} in this zip; it is not a .tersor artifact")
        if self._infos[name].file_size > _LARGEST_INDEX:
            raise ArtifactError(f"{name} has an impossible size, {self._infos[name].file_size} bytes; {DAMAGED}")
        data = bytes(self[name])
        if self._comment != (_COMMENT + hashlib.sha256(data).hexdigest()).encode():
            raise ArtifactError(f"{name} was altered (its SHA-256 is not the recorded one); {DAMAGED}")
        return data

    def __getitem__(self, name: str) -> memoryview:
        """The bytes of a stored member, in place."""
        return _stored_bytes(self._bytes, self._infos[name])

    def check(self, members: Mapping[str, Member]) -> None:
        """Compare members with their recorded sizes and digests; raises ArtifactError that names one that differs."""
        views = {name: self[name] for name in members}
        for name, member in members.items():
            if len(views[name]) != member.size:
                raise ArtifactError(f"{name} has {len(views[name])} bytes, not {member.size}; {DAMAGED}")
        with ThreadPoolExecutor() as pool:  # hashing releases the interpreter's lock
            hashes = {name: pool.map(_sha256, _chunks(view)) for name, view in views.items()}
            digests = {name: _sha256(b"".join(parts)).hex() for name, parts in hashes.items()}
        for name, member in members.items():
            if digests[name] != member.digest:
                raise ArtifactError(f"{name} was altered (its SHA-256 is not the recorded one); {DAMAGED}")


class _StreamDigest:
    """The digest of a member whose bytes come in pieces of any size."""

    def __init__(self) -> None:
        self._hashes: list[bytes] = []
        self._chunk = hashlib.sha256()
        self._missing = _CHUNK_BYTES

    def update(self, data: bytes | bytearray | memoryview) -> None:
        view = memoryview(data).cast("B")
        while len(view) >= self._missing:
            self._chunk.update(view[: self._missing])
            view = view[self._missing :]
            self._next_chunk()
        self._chunk.update(view)
        self._missing -= len(view)

    def finish(self) -> str:
        if self._missing < _CHUNK_BYTES:
            self._next_chunk()
        return _sha256(b"".join(self._hashes)).hex()

    def _next_chunk(self) -> None:
        self._hashes.append(self._chunk.digest())
        self._chunk = hashlib.sha256()
        self._missing = _CHUNK_BYTES


def _chunks(data: memoryview) -> Iterator[memoryview]:
    return (data[start : start + _CHUNK_BYTES] for start in range(0, len(data), _CHUNK_BYTES))


def _sha256(data: bytes | memoryview) -> bytes:
    return hashlib.sha256(data).digest()


def _directory(file: IO[bytes], data: memoryview) -> tuple[dict[str, zipfile.ZipInfo], bytes]:
    """The zip's members by name, and its comment."""
    try:
        with zipfile.ZipFile(file) as archive:
            infos, comment = archive.infolist(), archive.comment
    except (zipfile.BadZipFile, NotImplementedError, UnicodeDecodeError, struct.error) as error:
        if bytes(data[:4]) == _LOCAL_SIGNATURE:
            raise ArtifactError(f"truncated or damaged ({error}); copy it again, or compile the model again") from error
        raise ArtifactError("not a .tersor artifact; give a file that `tersor compile` wrote") from error
    by_name = {info.filename: info for info in infos}
    if len(by_name) != len(infos):
        raise ArtifactError(f"two members have one name; {DAMAGED}")
    spans = sorted((info.header_offset, info.header_offset + info.compress_size) for info in infos)
    if any(start < end for (_, end), (start, _) in pairwise(spans)):
        raise ArtifactError(f"two members share bytes of the file; {DAMAGED}")
    return by_name, comment


def _stored_bytes(data: memoryview, info: zipfile.ZipInfo) -> memoryview:
    name = info.filename
    if info.compress_type != zipfile.ZIP_STORED or info.compress_size != info.file_size or info.flag_bits & _ENCRYPTED:
        raise ArtifactError(f"{name} is compressed or encrypted, which tersor never does; use the original file")
    header_end = info.header_offset + _LOCAL_HEADER.size
    if info.header_offset < 0 or header_end > len(data):
        raise ArtifactError(f"{name} lies outside of the file; {DAMAGED}")
    signature, name_bytes, extra_bytes = _LOCAL_HEADER.unpack_from(data, info.header_offset)
    start = header_end + name_bytes + extra_bytes
    if signature != _LOCAL_SIGNATURE or start + info.file_size > len(data):
        raise ArtifactError(f"{name} lies outside of the file; {DAMAGED}")
    if bytes(data[header_end : header_end + name_bytes]) != name.encode():
        raise ArtifactError(f"{name} has another name in its own header; {DAMAGED}")
    return data[start : start + info.file_size]
