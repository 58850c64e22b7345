"""Outputs appear as a whole or not at all, whatever they replace and whatever kills their writer."""

from __future__ import annotations

import os
import resource
import signal
import socket
import stat
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from tersor.ir import Graph, IRError, WeightStore, load_ir, parse, save_ir, structurally_equal
from tersor.ir import storage as ir_storage
from tersor.ir.files import OutputError, check_writable, put, replacing, scratch_folder, temporary_folder, write_text


def entries(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_file_is_replaced_when_the_block_has_ended(tmp_path: Path) -> None:
    path = tmp_path / "out.txt"
    path.write_text("old")
    path.chmod(0o640)
    with replacing(path) as fresh:
        fresh.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    assert entries(tmp_path) == ["out.txt"]


def test_a_failure_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "out.txt"
    path.write_text("old")
    with pytest.raises(OutputError, match=r"cannot write .*out.txt: File too large; choose another"), largest(1000):
        write_text(path, "x" * 5000)
    with pytest.raises(ZeroDivisionError), replacing(path) as fresh:
        fresh.write_text("half")
        raise ZeroDivisionError
    assert path.read_text() == "old"
    assert entries(tmp_path) == ["out.txt"]


@contextmanager
def largest(size: int) -> Iterator[None]:
    """No file may grow beyond so many bytes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("exists", [True, False])
def test_a_symbolic_link_is_written_through(exists: bool, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    target, link = tmp_path / "data" / "target.txt", tmp_path / "link.txt"
    if exists:
        target.write_text("old")
    link.symlink_to(target)
    write_text(link, "new")
    assert link.is_symlink()
    assert target.read_text() == "new"
    assert entries(tmp_path / "data") == ["target.txt"]


def test_a_named_pipe_gets_the_bytes(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    got: list[str] = []
    reader = threading.Thread(target=lambda: got.append(pipe.read_text()), daemon=True)
    reader.start()
    write_text(pipe, "new" * 1000)
    reader.join(30)
    assert got == ["new" * 1000]
    assert pipe.is_fifo()
    assert entries(tmp_path) == ["pipe"]


def test_a_device_stays_a_device(tmp_path: Path) -> None:
    device = tmp_path / "null"
    try:
        os.mknod(device, 0o666 | stat.S_IFCHR, os.makedev(1, 3))
        device.write_bytes(b"x")
    except OSError as error:
        pytest.skip(f"no device can be made here ({error.strerror}); run this test as root")
    write_text(device, "new")
    save_ir(two_graphs()[0], device)
    assert device.is_char_device()
    assert entries(tmp_path) == ["null"]


def test_what_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "socket"))
    for name, message in {
        "": "is a directory; give the name of a file",
        "nowhere/out": "nowhere is not an existing directory; create it first",
        "file/out": "file is not an existing directory; create it first",
        "socket": "is in the way; remove it, or choose another output path",
        "loop": "Too many levels of symbolic links; choose another output path",
    }.items():
        with pytest.raises(OutputError, match=message):
            check_writable(tmp_path / name)
        with pytest.raises(OutputError, match=message):
            write_text(tmp_path / name, "new")


def test_protected_files_and_folders_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    for denied, message in ((tmp_path, "is read-only"), (tmp_path / "file", "it is write-protected")):
        monkeypatch.setattr(os, "access", lambda path, mode, denied=denied: Path(path) != denied)
        with pytest.raises(OutputError, match=message):
            check_writable(tmp_path / "file")


def test_a_folder_is_exchanged(tmp_path: Path) -> None:
    path = tmp_path / "bundle"
    for content in ("old", "new"):
        with scratch_folder(beside=path) as scratch:
            (scratch / "made").mkdir()
            (scratch / "made" / content).write_text(content)
            put(scratch / "made", path)
        assert entries(path) == [content]
    assert entries(tmp_path) == ["bundle"]


def test_temporary_files_that_cannot_be_written_are_one_line() -> None:
    message = r"no temporary files can be written: File too large; make room, or set TMPDIR"
    with pytest.raises(OutputError, match=message), largest(1000), temporary_folder() as folder:
        (folder / "file").write_bytes(bytes(5000))


def test_scratch_folders_of_dead_processes_are_removed(tmp_path: Path) -> None:
    def write_slowly() -> None:
        with replacing(tmp_path / "other") as fresh:
            fresh.write_text("half")
            (tmp_path / f"begun{os.getpid()}").touch()
            time.sleep(60)

    dead, alive = in_child(write_slowly), in_child(write_slowly)
    (tmp_path / ".tersor-my own.part").mkdir()
    wait_until(lambda: len(list(tmp_path.glob("begun*"))) == 2)
    kill(dead)
    write_text(tmp_path / "file", "new")
    assert len(list(tmp_path.glob(".tersor-*.part"))) == 2  # one is in use, one is not ours
    kill(alive)
    write_text(tmp_path / "file", "newer")
    assert entries(tmp_path) == [".tersor-my own.part", f"begun{min(dead, alive)}", f"begun{max(dead, alive)}", "file"]


def in_child(work: Callable[[], object]) -> int:
    """Do something in another process that ends with it; returns its number."""
    child = os.fork()
    if not child:
        try:
            work()
        finally:
            os._exit(1)
    return child


def kill(child: int) -> None:
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)


def wait_until(condition: Callable[[], bool]) -> None:
    for _ in range(6000):
        if condition():
            return
        time.sleep(0.01)
    raise AssertionError("waited for a minute")


# The two files of a graph -----------------------------------------------------------------------------------------


def two_graphs() -> tuple[Graph, Graph]:
    """Graphs whose weights have one name and type, so that a text can be read with the weights of the other."""
    graphs = []
    for number, op in ((1.0, "relu"), (2.0, "sigmoid")):
        lines = ["graph @g() {", '%w = weight {id="w", type=TYPE} : TYPE', f"%0 = {op}(%w) : TYPE", "return %0", "}"]
        text = "\n".join(lines).replace("TYPE", "f32[200,300]")
        graphs.append(parse(text, WeightStore({"w": torch.full((200, 300), number)})))
    return graphs[0], graphs[1]


def is_one_of(path: Path, graphs: tuple[Graph, Graph]) -> bool:
    loaded = load_ir(path)
    return any(structurally_equal(loaded, graph) for graph in graphs)


@pytest.mark.parametrize("step", range(4))
def test_a_writer_that_ends_at_any_step_leaves_a_pair(
    step: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, new = two_graphs()
    path = tmp_path / "g.ir"
    save_ir(old, path)
    calls = 0

    def count(original: Callable[..., None]) -> Callable[..., None]:
        def counted(*arguments: object) -> None:
            nonlocal calls
            if calls == step:
                raise KeyboardInterrupt
            calls += 1
            original(*arguments)

        return counted

    with monkeypatch.context() as patch:
        patch.setattr(ir_storage, "put", count(ir_storage.put))
        patch.setattr(ir_storage, "write_text", count(ir_storage.write_text))
        if step < 3:
            with pytest.raises(KeyboardInterrupt):
                save_ir(new, path)
        else:
            save_ir(new, path)
    assert structurally_equal(load_ir(path), old if step < 2 else new)
    save_ir(new, path)
    assert entries(tmp_path) == ["g.ir", "g.safetensors"]


def test_a_text_with_the_weights_of_another_is_refused(tmp_path: Path) -> None:
    old, new = two_graphs()
    save_ir(old, tmp_path / "old.ir")
    save_ir(new, tmp_path / "new.ir")
    (tmp_path / "old.safetensors").replace(tmp_path / "new.safetensors")
    with pytest.raises(IRError, match=r"new.safetensors belongs to another text; keep a text and its weights together"):
        load_ir(tmp_path / "new.ir")


def test_weights_that_something_else_wrote_are_read(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    graph, _ = two_graphs()
    save_ir(graph, tmp_path / "g.ir")
    save_file({"w": torch.zeros(200, 300)}, tmp_path / "g.safetensors")
    assert not load_ir(tmp_path / "g.ir").weights["w"].any()


def test_the_suffix_of_weights_is_not_for_texts(tmp_path: Path) -> None:
    with pytest.raises(IRError, match="this suffix is for the weights beside a text"):
        save_ir(two_graphs()[0], tmp_path / "g.safetensors")


@pytest.mark.parametrize("size", [1000, 100_000])
def test_a_full_disk_leaves_the_old_pair(size: int, tmp_path: Path) -> None:
    old, new = two_graphs()
    save_ir(old, tmp_path / "g.ir")
    with pytest.raises(OutputError, match=r"cannot write .*g\.safetensors: .*File too large"), largest(size):
        save_ir(new, tmp_path / "g.ir")
    assert structurally_equal(load_ir(tmp_path / "g.ir"), old)
    assert entries(tmp_path) == ["g.ir", "g.safetensors"]


@pytest.mark.parametrize("kills", [5, pytest.param(100, marks=pytest.mark.slow)])
def test_killed_writers_leave_a_pair(kills: int, tmp_path: Path) -> None:
    graphs, path = two_graphs(), tmp_path / "g.ir"
    save_ir(graphs[0], path)

    def write_for_ever() -> None:
        while True:
            for graph in graphs:
                save_ir(graph, path)

    for index in range(kills):
        child = in_child(write_for_ever)
        time.sleep(0.05 + 0.001 * (index * 7 % 23))
        kill(child)
        assert is_one_of(path, graphs)
    save_ir(graphs[1], path)
    assert entries(tmp_path) == ["g.ir", "g.safetensors"]
