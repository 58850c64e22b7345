"""The runner's readers on forged manifests and arrays, under the sanitizers: each is read right, or refused."""

from __future__ import annotations

import io
import shutil
import struct
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest

from tersor.targets.packaging import bundle

SOURCES = Path(bundle.__file__).parent / "runner"
SANITIZE = ("-fsanitize=address,undefined", "-fno-sanitize-recover=all")
TIMEOUT = 120  # seconds, to compile on a machine that does other things
LARGEST = "64"  # MiB that one allocation may take

MANIFEST = """tersor-bundle 1
model net
target x86:avx2
machine x86_64
feature avx2
file model.so 1000
file constants.bin 256
input int32 2x3 10 rows
output float32 2x5 0 output0
constant float32 0 9
constant int8 64 192
"""
NUMBERS = (
    "-1",
    "0",
    "1",
    "7",
    "255",
    "1000000",
    str(2**31),
    str(2**62),
    str(2**63 - 1),
    str(2**63),
    "9" * 40,
    "x",
    "1.5",
)
LARGE = f"{2**32}x{2**32}"


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Path:
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("needs g++: apt install g++")
    program = tmp_path_factory.mktemp("reader") / "reader"
    source = Path(__file__).with_name("runner_forgeries.cpp")
    command = [
        compiler,
        "-std=c++17",
        "-Wall",
        "-Wextra",
        "-Werror",
        *SANITIZE,
        f"-I{SOURCES}",
        "-o",
        str(program),
        str(source),
    ]
    built = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT, check=False)
    if "cannot find" in built.stderr:
        pytest.skip("needs the sanitizers of g++: apt install libasan8 libubsan1")
    assert built.returncode == 0, built.stderr
    return program


def read(reader: Path, pairs: Sequence[tuple[Path, Path]]) -> list[str]:
    arguments = [str(path) for pair in pairs for path in pair]
    options = {"ASAN_OPTIONS": f"max_allocation_size_mb={LARGEST}"}
    ended = subprocess.run([reader, *arguments], capture_output=True, timeout=TIMEOUT, env=options, check=False)
    assert ended.returncode == 0, ended.stderr[:2000]
    said = ended.stdout.decode(errors="replace").split("\nend\n")[:-1]
    assert len(said) == len(pairs)
    assert max(map(len, said)) < 600
    return said


def npy(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def forged_manifests() -> Iterator[str]:
    """Every word of every line replaced, every line left out, cut or doubled."""
    lines = MANIFEST.splitlines()
    for index, line in enumerate(lines):
        words = line.split(" ")
        others = ["", *words[:-1], f"{line} {line}", *(" ".join(words[:end]) for end in range(1, len(words)))]
        for place in range(len(words)):
            for number in (*NUMBERS, LARGE, f"{LARGE}x0", "float32", "bool", "a" * 1_000_000):
                others.append(" ".join([*words[:place], number, *words[place + 1 :]]))
        for other in others:
            yield "\n".join([*lines[:index], other, *lines[index + 1 :]]) + "\n"


def forged_arrays(array: np.ndarray) -> Iterator[bytes]:
    """The file cut anywhere, with each byte of its header another, with lies about the header's length and contents."""
    whole = npy(array)
    for end in range(0, len(whole), 3):
        yield whole[:end]
    for place in range(130):
        for bit in (0x01, 0x80):
            yield whole[:place] + bytes([whole[place] ^ bit]) + whole[place + 1 :]
    for length in (0, 1, 2**16, 2**31, 2**32 - 1):
        yield b"\x93NUMPY\x02\x00" + struct.pack("<I", length) + whole[10:]
    for text in ("", "'descr':", "'descr': ", "'descr': ,", "'descr': 'x', 'shape': ", "'shape': ()", "(" * 50_000):
        yield b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text.encode()


def test_manifests(reader: Path, tmp_path: Path) -> None:
    (tmp_path / "x.npy").write_bytes(npy(np.zeros((2, 3), np.int32)))
    pairs = []
    for index, text in enumerate([MANIFEST, *forged_manifests()]):
        (tmp_path / f"{index}.txt").write_text(text)
        pairs.append((tmp_path / f"{index}.txt", tmp_path / "x.npy"))
    first, *others = read(reader, pairs)
    assert first == "read"
    assert sum(said.startswith("refused: ") for said in others) > len(others) / 2


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("2x3 10", f"{LARGE} 10", f"an array of {2**32} times {2**32} is too large"),
        ("2x3 10", "-2x-3 10", "'-2' is not a whole number"),
        ("2x3 10", "2x3 -10", "'-10' is not a whole number"),
        ("input int32", "input float32", "row numbers of type float32"),
        ("float32 0 9", "float32 0 65", "a constant is not within constants.bin"),
        ("float32 0 9", f"float32 0 {2**62}", "a constant is not within constants.bin"),
        ("float32 0 9", f"float32 {2**63 - 64} 9", "a constant is not within constants.bin"),
        ("float32 0 9", "float32 4 9", "a constant is not within constants.bin"),
        ("constants.bin 256", f"constants.bin {2**64}", f"'{2**64}' is not a whole number"),
    ],
)
def test_what_is_wrong_is_said(old: str, new: str, message: str, reader: Path, tmp_path: Path) -> None:
    (tmp_path / "manifest.txt").write_text(MANIFEST.replace(old, new))
    (said,) = read(reader, [(tmp_path / "manifest.txt", tmp_path / "x.npy")])
    assert said == f"refused: {tmp_path / 'manifest.txt'}: {message}; copy the bundle again"


def test_arrays(reader: Path, tmp_path: Path) -> None:
    array = np.arange(6, dtype=np.int32).reshape(2, 3)
    (tmp_path / "manifest.txt").write_text(MANIFEST)
    pairs = []
    for index, data in enumerate([npy(array), *forged_arrays(array)]):
        (tmp_path / f"{index}.npy").write_bytes(data)
        pairs.append((tmp_path / "manifest.txt", tmp_path / f"{index}.npy"))
    first, *others = read(reader, pairs)
    assert first == "read"
    assert sum(said.startswith("refused: ") for said in others) > len(others) / 2
