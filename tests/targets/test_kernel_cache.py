"""Compiled kernels on disk: taken again, never wrongly, and no obstacle whatever becomes of the folder."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
import torch
import tvm_ffi
from tvm import tirx

import tersor
from tersor.ir import Graph, TensorType, TersorError, TersorWarning
from tersor.ir.ops import ReluOp
from tersor.passes import run_passes
from tersor.targets import Executable, compile_graph
from tersor.targets.codegen import identity, kernel, objects
from tersor.targets.codegen.interruptible import call_in_parallel
from tersor.targets.codegen.kernel_cache import KernelCache
from tersor.targets.codegen.lowering import lower
from tersor.targets.codegen.objects import compile_kernels
from tersor.targets.machines.catalog import resolve_cpu
from tersor.targets.machines.target import Cpu
from tersor.tests.random_graphs import GraphBuilder, random_graph

ARM_OBJECT = b"\x7fELF\x02\x01\x01" + bytes(9) + b"\x01\x00\xb7\x00"  # 64 bits, little-endian, relocatable, AArch64
NATIVE = resolve_cpu("x86:native")
X = torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(3))


@pytest.fixture
def cache(tmp_path: Path) -> KernelCache:
    return KernelCache(tmp_path / "kernels")


@pytest.fixture(scope="module")
def graph() -> Graph:
    return two_layers(seed=0)


def two_layers(seed: int) -> Graph:
    b = GraphBuilder({"x": TensorType((1, 3, 8, 8))}, seed)
    y = b.op(ReluOp, b.conv(b.graph.inputs[0], 16))
    return run_passes(b.done(b.conv(y, 8)), "O3,layout", target=NATIVE)


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the kernels that LLVM has compiled, templates only."""
    names: list[str] = []
    original = objects.compile_kernel

    def compile_kernel(function: tirx.PrimFunc, kernel: objects.KernelObject, target: Cpu) -> None:
        names.append(kernel.name.rpartition("_")[0])
        original(function, kernel, target)

    monkeypatch.setattr(objects, "compile_kernel", compile_kernel)
    return names


def check(executable: Executable, graph: Graph) -> None:
    torch.testing.assert_close(executable(X), graph.evaluate(X)[0], rtol=1e-5, atol=1e-5)


def test_a_second_compilation_compiles_no_kernel(cache: KernelCache, graph: Graph, compiled: list[str]):
    first = compile_graph(graph, NATIVE, cache=cache)
    distinct = {one.function for one in first.info.kernels}
    assert len(compiled) == len(distinct) == cache.use().kernels
    second = compile_graph(graph, NATIVE, cache=cache)
    assert len(compiled) == len(distinct)
    assert second.info.kernels == first.info.kernels
    check(second, graph)
    compile_graph(graph, NATIVE)
    assert len(compiled) == 2 * len(distinct), "without a cache nothing is looked up"


def test_kernels_serve_networks_with_other_weights(cache: KernelCache, graph: Graph, compiled: list[str]):
    compile_graph(graph, NATIVE, cache=cache)
    compiled.clear()
    other = two_layers(seed=1)
    check(compile_graph(other, NATIVE, cache=cache), other)
    assert compiled == []


@pytest.mark.parametrize(
    "other",
    [
        lambda patch: replace(NATIVE, cores=NATIVE.cores + 1),
        lambda patch: replace(NATIVE, l1_bytes=NATIVE.l1_bytes // 2),
        lambda patch: patch.setattr(Cpu, "tvm_target", lambda one: {"kind": "llvm", "mcpu": one.mcpu, "opt-level": 1}),
        lambda patch: patch.setattr(objects, "code_identity", lambda: "another version"),
    ],
    ids=["cores", "caches", "options of LLVM", "version"],
)
def test_whatever_changes_code_is_in_the_key(
    other: Callable[[pytest.MonkeyPatch], Cpu | None],
    cache: KernelCache,
    graph: Graph,
    compiled: list[str],
    monkeypatch: pytest.MonkeyPatch,
):
    compile_graph(graph, NATIVE, cache=cache)
    count = len(compiled)
    compile_graph(graph, other(monkeypatch) or NATIVE, cache=cache)
    assert len(compiled) == 2 * count


@pytest.mark.parametrize("damage", [lambda data: data[:-1], lambda data: b"", lambda data: data[:-9] + b"123456789"])
def test_damaged_files_are_made_again(
    damage: Callable[[bytes], bytes], cache: KernelCache, graph: Graph, compiled: list[str]
):
    compile_graph(graph, NATIVE, cache=cache)
    paths = sorted(cache.folder.iterdir())
    whole = [path.read_bytes() for path in paths]
    for path, data in zip(paths, whole, strict=True):
        path.write_bytes(damage(data))
    check(compile_graph(graph, NATIVE, cache=cache), graph)
    assert len(compiled) == 2 * len(paths)
    assert [path.read_bytes() for path in paths] == whole


def test_files_under_another_name_are_not_taken(cache: KernelCache):
    one, other = (hashlib.sha256(name).hexdigest() for name in (b"one", b"other"))
    cache.write({one: b"code"})
    (cache.folder / f"{one}.kernel").rename(cache.folder / f"{other}.kernel")
    assert cache.read(other) is None


def test_what_was_not_used_for_longest_goes(tmp_path: Path):
    cache = KernelCache(tmp_path, limit=1000)
    keys = [hashlib.sha256(bytes([index])).hexdigest() for index in range(5)]
    cache.write(dict.fromkeys(keys[:4], bytes(200)))
    for age, key in enumerate(keys[:4]):
        long_ago = time.time() - 1e5 + 1e4 * age
        os.utime(tmp_path / f"{key}.kernel", (long_ago, long_ago))
    assert cache.read(keys[0]) == bytes(200), "which counts as a use"
    cache.write({keys[4]: bytes(200)})
    assert [cache.read(key) is not None for key in keys] == [True, False, False, True, True]
    assert cache.use().bytes <= 1000


def test_what_a_killed_writer_left_goes(cache: KernelCache):
    cache.write({hashlib.sha256().hexdigest(): b"code"})
    left, fresh = cache.folder / "tmpold.part", cache.folder / "tmpnew.part"
    for path in (left, fresh):
        path.write_bytes(b"half")
    os.utime(left, (0, 0))
    cache.write({})
    assert (left.exists(), fresh.exists()) == (False, True)
    assert cache.use().kernels == cache.clear().kernels == 1
    assert list(cache.folder.iterdir()) == [fresh]


def test_a_folder_that_cannot_be_written_is_one_line(
    cache: KernelCache, graph: Graph, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    (tmp_path / "file").write_text("")
    with pytest.warns(TersorWarning, match=r"file/kernels: compiled kernels cannot be kept \(Not a directory\)"):
        check(compile_graph(graph, NATIVE, cache=KernelCache(tmp_path / "file" / "kernels")), graph)

    def refuse(path: Path, target: Path) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch, pytest.warns(TersorWarning, match="cannot be kept .No space left on device"):
        patch.setattr(Path, "replace", refuse)
        executable = compile_graph(graph, NATIVE, cache=cache)
    check(executable, graph)
    assert list(cache.folder.iterdir()) == []


def test_a_folder_that_others_may_write_to_is_not_trusted(cache: KernelCache, graph: Graph, compiled: list[str]):
    compile_graph(graph, NATIVE, cache=cache)
    assert cache.folder.stat().st_mode & 0o777 == 0o700
    count = len(compiled)
    cache.folder.chmod(0o777)
    with pytest.warns(TersorWarning, match="others may write to this folder; make it yours alone"):
        compile_graph(graph, NATIVE, cache=cache)
    assert len(compiled) == 2 * count


def test_users_without_a_home_have_a_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    def home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", home)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    assert tersor.ir.files.cache_folder() == tmp_path / f"tersor-{os.geteuid()}"


def test_kernels_of_plugins_are_not_kept(
    cache: KernelCache, graph: Graph, compiled: list[str], monkeypatch: pytest.MonkeyPatch
):
    """What they write may change without Tersor's sources or version."""
    monkeypatch.setitem(cast(Any, kernel._SELECTORS), Graph, lambda group, context: None)  # a function of this module
    assert identity.code_identity() is None
    check(compile_graph(graph, NATIVE, cache=cache), graph)
    count = len(compiled)
    check(compile_graph(graph, NATIVE, cache=cache), graph)
    assert len(compiled) == 2 * count > 0
    assert cache.use().kernels == 0


EDITED = """
from pathlib import Path
from typing import Any, cast
from tersor.targets.codegen import identity

source = Path("source.py")
print(identity.code_identity() is None)
identity._digest_of_sources.cache_clear()
identity._files = lambda: [source]
identity._ROOT = Path()
source.write_text("edited")
print(identity.code_identity() is None)
"""


def test_nothing_is_kept_where_sources_changed_after_the_process_started(tmp_path: Path):
    command = [sys.executable, "-c", EDITED]
    ended = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True, timeout=60)
    assert ended.stdout.split() == ["False", "True"]


def test_writers_readers_and_clearing_at_once(cache: KernelCache):
    keys = [hashlib.sha256(bytes([index])).hexdigest() for index in range(8)]
    codes = {key: key.encode() * 1000 for key in keys}
    wrong: list[str] = []

    def work(number: int) -> None:
        for turn in range(30):
            try:
                cache.write(codes)
            except TersorError as error:
                wrong.append(str(error))
            wrong.extend(key for key in keys if cache.read(key) not in (None, codes[key]))
            if number == 0 and turn % 5 == 0:
                cache.clear()

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    cache.write(codes)
    assert cache.use().kernels == len(keys)


@pytest.mark.parametrize("seeds", [range(25), pytest.param(range(25, 400), marks=pytest.mark.slow)])
def test_kernels_with_one_key_have_one_code(seeds: range):
    """Kernels are looked up by their keys, before any code is written."""
    written: dict[str, tirx.PrimFunc] = {}
    repeated = 0
    for seed in seeds:
        graph = run_passes(random_graph(seed, 8), "O3,fold-batchnorm,layout", target=NATIVE)
        for call in lower(graph, NATIVE).calls:
            function = call.kernel.build()
            known = written.setdefault(call.kernel.key, function)
            repeated += known is not function
            assert known is function or tvm_ffi.structural_equal(known, function), call.kernel.key
    assert repeated > 10


def test_infinite_constants_are_in_the_key():
    """They make a kernel clear the lanes behind the last channel."""
    keys = []
    for number in (1.0, float("inf")):
        b = GraphBuilder({"x": TensorType((1, 16, 4, 4))})
        scale = b.constant(torch.full((20, 1, 1), number))
        y = b.op(tersor.ir.ops.MaximumOp, b.conv(b.graph.inputs[0], 20), scale)
        graph = run_passes(b.done(b.conv(y, 4)), "O3,layout", target=NATIVE)
        keys.append([call.kernel.key for call in lower(graph, NATIVE).calls if "maximum" in call.kernel.key])
    assert keys[0] != keys[1]


def test_code_for_other_architectures_is_kept_too(cache: KernelCache, compiled: list[str], tmp_path: Path):
    arm = resolve_cpu("arm:cortex-a72")
    b = GraphBuilder({"x": TensorType((1, 3, 8, 8))})
    program = lower(run_passes(b.done(b.conv(b.graph.inputs[0], 8)), "O3,layout", target=arm), arm)
    for folder in (tmp_path / "one", tmp_path / "other"):
        folder.mkdir()
        for one in compile_kernels([program], folder, cache).values():
            assert one.path.read_bytes()[:20] == ARM_OBJECT
    assert len(compiled) == cache.use().kernels


def test_calls_come_in_order_and_end_with_the_first_error():
    assert call_in_parallel((lambda index=index: index for index in range(20)), 3) == list(range(20))
    made: list[int] = []

    def call(index: int) -> None:
        made.append(index)
        time.sleep(0.01)
        if index == 3:
            raise ValueError("three")

    with pytest.raises(ValueError, match="three"):
        call_in_parallel((lambda index=index: call(index) for index in range(200)), 2)
    assert len(made) < 100
