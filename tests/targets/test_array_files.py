"""Files of arrays: what NumPy writes is read, and what is damaged, lies or cannot be used is one line."""

from __future__ import annotations

import random
import struct
import tracemalloc
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from tersor import TersorError
from tersor.targets.runtime.array_files import read_arrays

X = np.arange(24, dtype=np.float32).reshape(2, 3, 4)


@pytest.mark.parametrize(
    "array",
    [
        X,
        np.asfortranarray(X),
        X[::-1],
        X.astype(">f4"),
        np.asfortranarray(X.astype(">i8")),
        X > 3,
        X.astype("u2"),
        X.astype("f2"),
        X.astype("c8"),
        np.float32(3),
        np.zeros((0, 3)),
    ],
    ids=lambda array: f"{array.dtype.str}{list(array.shape)}",
)
def test_what_numpy_writes_is_read(array: np.ndarray, tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", array)
    ((name, tensor),) = read_arrays(tmp_path / "x.npy")
    assert name is None
    assert tensor.is_contiguous()
    np.testing.assert_array_equal(tensor.numpy(), array)
    for save in (np.savez, np.savez_compressed):
        save(tmp_path / "x.npz", x=array, y=X)
        arrays = dict(read_arrays(tmp_path / "x.npz"))
        np.testing.assert_array_equal(arrays["x"].numpy(), array)
        np.testing.assert_array_equal(arrays["y"].numpy(), X)


@pytest.mark.parametrize(
    "array",
    [
        np.array([{}]),
        np.array(["text"]),
        np.zeros(3, "f4,i4"),
        np.zeros(2, "M8[s]"),
        np.zeros(2, "V2"),
        np.zeros(2, "g"),
    ],
    ids=lambda array: str(array.dtype),
)
def test_what_is_no_number_is_refused(array: np.ndarray, tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", array, allow_pickle=True)
    with pytest.raises(TersorError, match=r"x\.npy: not readable as a \.npy file \(.*\); write it again"):
        read_arrays(tmp_path / "x.npy")


@pytest.mark.parametrize("kind", ["npy", "npz"])
def test_announced_sizes_take_no_memory(kind: str, tmp_path: Path) -> None:
    data = npy(f"{{'descr': '<f4', 'fortran_order': False, 'shape': ({1 << 28},)}}", bytes(64))
    path = tmp_path / f"x.{kind}"
    if kind == "npy":
        path.write_bytes(data)
    else:
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("x.npy", data)
        path.write_bytes(lying_about_size(path.read_bytes(), len(data), (1 << 30) + 128))
    tracemalloc.start()
    try:
        with pytest.raises(TersorError, match="not readable"):
            read_arrays(path)
        assert tracemalloc.get_traced_memory()[1] < 64 << 20
    finally:
        tracemalloc.stop()


def lying_about_size(archive: bytes, size: int, announced: int) -> bytes:
    """A zip whose central directory announces another size of its only member."""
    start = archive.index(b"PK\x01\x02") + 24
    assert archive[start : start + 4] == struct.pack("<I", size)
    return archive[:start] + struct.pack("<I", announced) + archive[start + 4 :]


@pytest.mark.parametrize(
    "header",
    [
        "{'descr': '<f4', 'fortran_order': False, 'shape': (-1,)}",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (True,)}",
        "{'descr': '<f4', 'fortran_order': False, 'shape': [2]}",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (0, 10**30)}",
        f"{{'descr': '<f4', 'fortran_order': False, 'shape': (0, {10**30})}}",
        f"{{'descr': '<f4', 'fortran_order': True, 'shape': {(1,) * 80}}}",
        "{'descr': '<f3', 'fortran_order': False, 'shape': (1,)}",
        "{'descr': [('a', '<f4')], 'fortran_order': False, 'shape': (1,)}",
        "{'descr': '<f4', 'shape': (1,)}",
        "__import__('os').abort()",
        "(" * 500,
        "[" * 60000,
        "\x00",
        "",
    ],
    ids=lambda header: header[:70],
)
def test_headers_that_lie_are_refused(header: str, tmp_path: Path) -> None:
    (tmp_path / "x.npy").write_bytes(npy(header, bytes(64)))
    with pytest.raises(TersorError, match=r"x\.npy: not readable as a \.npy file"):
        read_arrays(tmp_path / "x.npy")


def npy(header: str, data: bytes) -> bytes:
    text = header.encode()
    return b"\x93NUMPY\x02\x00" + struct.pack("<I", len(text)) + text + data


def test_encrypted_and_strange_members_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.npz"
    np.savez(path, x=X)
    stored = path.read_bytes()
    local, central = stored.index(b"PK\x03\x04"), stored.index(b"PK\x01\x02")
    for offset, value, message in ((0, 1, "encrypted"), (2, 99, "compression"), (2, 14, "")):
        changed = bytearray(stored)
        changed[local + 6 + offset] = changed[central + 8 + offset] = value
        path.write_bytes(bytes(changed))
        with pytest.raises(TersorError, match=f"not readable as a .npz file .*{message}"):
            read_arrays(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("notes.txt", "no array")
    with pytest.raises(TersorError, match="its first bytes are not those of the format"):
        read_arrays(path)


def test_what_is_no_file_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "x.npy").mkdir()
    with pytest.raises(TersorError, match=r"x\.npy: not a file"):
        read_arrays(tmp_path / "x.npy")


@pytest.mark.parametrize("count", [260, pytest.param(20_000, marks=pytest.mark.slow)])
def test_damaged_files_are_read_or_refused(count: int, tmp_path: Path) -> None:
    files = []
    for name, save in {
        "a.npy": lambda path: np.save(path, X),
        "b.npz": lambda path: np.savez(path, x=X, y=X[0]),
        "c.npz": lambda path: np.savez_compressed(path, x=X, y=X[0]),
        "d.safetensors": lambda path: save_file({"x": torch.from_numpy(X)}, path),
    }.items():
        save(tmp_path / name)
        files.append((tmp_path / name, (tmp_path / name).read_bytes()))
    generator, refused = random.Random(0), 0
    for index in range(count):
        path, whole = files[index % len(files)]
        path.write_bytes(damaged(whole, generator))
        try:
            for _, tensor in read_arrays(path):
                tensor.double()
        except TersorError as error:
            refused += 1
            assert "\n" not in str(error)
    assert refused > count // 4


def damaged(whole: bytes, generator: random.Random) -> bytes:
    """The bytes of a file with some changed, cut off, repeated or taken out; most often near a header."""
    data = bytearray(whole)
    for place in places(len(whole), generator):
        kind = generator.randrange(6)
        if kind < 3:
            data[place] = generator.choice(
                (0, 255, data[place] ^ (1 << generator.randrange(8)), generator.randrange(256))
            )
        elif kind == 3:
            data[place : place + 4] = generator.choice((b"\xff\xff\xff\xff", b"\xff\xff\xff\x7f", bytes(4)))
        elif kind == 4:
            del data[place : place + generator.randrange(1, 40)]
            break
        else:
            del data[place:]
            break
    return bytes(data)


def places(size: int, generator: random.Random) -> Iterator[int]:
    for _ in range(generator.choice((1, 1, 1, 2, 4))):
        near = generator.choice((size, min(size, 128), min(size, 30)))
        yield generator.choice((generator.randrange(near), size - 1 - generator.randrange(near)))
