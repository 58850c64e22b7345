"""Artifacts: what comes back is what was saved, and whatever cannot be run is refused before any code is mapped."""

from __future__ import annotations

import json
import subprocess
import sys
import zipfile
from collections.abc import Callable
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import tersor
from tersor.ir import Graph, TersorWarning, structurally_equal
from tersor.ir.codec import encode
from tersor.targets import Cpu, Executable, Gpu, list_targets
from tersor.targets.machines.catalog import TARGETS, resolve_cpu
from tersor.targets.machines.features import required_features
from tersor.targets.packaging import archive as archive_module
from tersor.targets.packaging import artifact as artifact_module
from tersor.targets.packaging.archive import ALIGNMENT, Archive, ArchiveWriter
from tersor.targets.packaging.artifact import CODE, CONSTANTS, GRAPH, MANIFEST, WEIGHTS, load_graph
from tersor.targets.packaging.checks import check_target
from tersor.targets.packaging.manifest import SCHEMA, ArtifactError, Manifest
from tersor.targets.runtime.virtual_machine import LinkedCode

from .forged import contents, read_manifest, rewrite

MEMBERS = (CODE, CONSTANTS, GRAPH, WEIGHTS)


def keep(manifest: dict[str, Any]) -> None:
    """Change nothing."""


@pytest.fixture
def refused(monkeypatch: pytest.MonkeyPatch) -> Callable[[Path], str]:
    """Loads a file, sees that it is refused before any code is mapped, and returns the one-line message."""

    def fail(path: Path) -> None:
        raise AssertionError("code was mapped")

    def check(path: Path) -> str:
        monkeypatch.setattr(LinkedCode, "load", fail)
        with pytest.raises(ArtifactError) as caught:
            tersor.load(path)
        message = str(caught.value)
        assert "\n" not in message
        assert str(path) in message
        return message

    return check


# Round trip -------------------------------------------------------------------------------------------------------


def test_a_loaded_model_gives_the_same_numbers(artifact: Path, executable: Executable, example: torch.Tensor) -> None:
    loaded = tersor.load(artifact, threads=1)
    assert loaded.threads == 1
    assert loaded.info == executable.info
    assert torch.equal(loaded(example), executable(example))
    assert all(torch.equal(a, b) for a, b in zip(loaded.model.constants, executable.model.constants, strict=True))


def test_the_graph_comes_back_when_asked_for(
    artifact: Path, executable: Executable, example: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads: list[object] = []
    read = artifact_module._read_graph

    def counted(*arguments: Any) -> Graph:
        reads.append(arguments)
        return read(*arguments)

    monkeypatch.setattr(artifact_module, "_read_graph", counted)
    loaded = tersor.load(artifact)
    loaded(example)
    assert reads == []
    assert structurally_equal(loaded.graph, executable.graph)
    assert loaded.graph is loaded.graph
    assert len(reads) == 1
    torch.testing.assert_close(loaded.graph.evaluate(example)[0], executable(example), rtol=0, atol=1e-5)


def test_saving_a_loaded_model_gives_the_same_members(artifact: Path, tmp_path: Path) -> None:
    again = contents(tersor.load(artifact).save(tmp_path / "again.tersor"))
    original = contents(artifact)
    assert {name: again[name] for name in MEMBERS} == {name: original[name] for name in MEMBERS}


def test_a_new_process_runs_it(artifact: Path, executable: Executable, example: torch.Tensor, tmp_path: Path) -> None:
    torch.save({"x": example}, tmp_path / "x.pt")
    script = f"""
import torch, tersor
x = torch.load({str(tmp_path / "x.pt")!r}, weights_only=True)["x"]
torch.save({{"y": tersor.load({str(artifact)!r})(x)}}, {str(tmp_path / "y.pt")!r})
"""
    subprocess.run([sys.executable, "-c", script], check=True, cwd=tmp_path, timeout=120)
    result = torch.load(tmp_path / "y.pt", weights_only=True)["y"]
    assert torch.equal(result, executable(example))


def test_constants_are_mapped_and_aligned(artifact: Path) -> None:
    loaded = tersor.load(artifact)
    addresses = [tensor.data_ptr() for tensor in loaded.model.constants]
    assert all(address % ALIGNMENT == 0 for address in addresses)
    spans = [constant.offset for constant in read_manifest(artifact).constants]
    assert [address - addresses[0] for address in addresses] == spans  # one mapping, no copies


def test_the_file_may_be_replaced_or_deleted_while_in_use(
    artifact: Path, executable: Executable, example: torch.Tensor, tmp_path: Path
) -> None:
    path = tmp_path / "model.tersor"
    path.write_bytes(artifact.read_bytes())
    loaded = tersor.load(path)
    loaded.save(path)
    path.unlink()
    assert torch.equal(loaded(example), executable(example))
    assert structurally_equal(loaded.graph, executable.graph)


def test_the_manifest_tells_all(artifact: Path, executable: Executable) -> None:
    manifest = read_manifest(artifact)
    (program,) = manifest.programs
    assert program.model == executable.info
    assert manifest.versions["apache-tvm"] == version("apache-tvm")
    assert set(manifest.members) == set(MEMBERS)
    assert set(manifest.features) >= set(resolve_cpu(executable.info.target).features)
    assert {name: member.size for name, member in manifest.members.items()} == {
        name: len(data) for name, data in contents(artifact).items() if name != MANIFEST
    }


@pytest.mark.parametrize("name", ["cuda:sm_80", "cuda:sm_90"])
def test_older_manifests_that_describe_a_gpu_as_a_processor_are_read(name: str, artifact: Path) -> None:
    tree = json.loads(contents(artifact)[MANIFEST])
    as_it_was = Cpu(name, "cuda", "x86-64", 16, 63, 196608, 41943040, 0, 108, channel_blocks=False)
    for target in (as_it_was, TARGETS[name]):
        tree["programs"][0]["model"]["target"] = encode(target)
        assert Manifest.from_text(json.dumps(tree)).target is TARGETS[name]
    for forged in (replace(as_it_was, name="cuda:sm_99"), Gpu("cuda:sm_99", "cuda", "sm_90", 132, 1, 2)):
        with pytest.raises(ArtifactError, match="cuda:sm_99"):
            check_target(forged)


def test_what_llvm_may_use_by_itself_is_required() -> None:
    by_name = {target.name: target for target in list_targets() if isinstance(target, Cpu)}
    for target in by_name.values():
        assert set(target.features) <= set(required_features(target))
    assert "avx512vbmi" in required_features(by_name["x86:icelake-server"])
    assert "avx512vbmi" not in required_features(by_name["x86:cascadelake"])
    assert "avx512f" not in required_features(by_name["x86:znver3"])


# Damage -----------------------------------------------------------------------------------------------------------


def alter(artifact: Path, member: str, path: Path) -> Path:
    """Write a copy in which one bit of a member is another."""
    data = bytearray(artifact.read_bytes())
    with zipfile.ZipFile(artifact) as archive:
        info = archive.getinfo(member)
    middle = data.index(contents(artifact)[member], info.header_offset) + info.file_size // 2
    data[middle] ^= 1
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("member", [CODE, CONSTANTS, GRAPH, MANIFEST])
def test_an_altered_member_is_named(member: str, artifact: Path, tmp_path: Path, refused: Any) -> None:
    assert f"{member} was altered" in refused(alter(artifact, member, tmp_path / "altered.tersor"))


def test_altered_weights_of_the_graph_are_named_when_it_is_asked_for(
    artifact: Path, executable: Executable, example: torch.Tensor, tmp_path: Path
) -> None:
    path = alter(artifact, WEIGHTS, tmp_path / "altered.tersor")
    loaded = tersor.load(path)
    assert torch.equal(loaded(example), executable(example))
    for read in (lambda: loaded.graph, lambda: load_graph(path), lambda: loaded.save(tmp_path / "again.tersor")):
        with pytest.raises(ArtifactError, match=f"{WEIGHTS} was altered"):
            read()


@pytest.mark.parametrize("sizes", [(), (0,), (5, 3), (7, 1), (8,), (8, 8), (3, 20, 1), (64, 1)], ids=str)
def test_digests_do_not_depend_on_how_the_bytes_come(
    sizes: tuple[int, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(archive_module, "_CHUNK_BYTES", 8)
    pieces = [bytes(range(size)) for size in sizes]
    whole = b"".join(pieces)
    path = tmp_path / "some.zip"
    with ArchiveWriter(path) as archive:
        members = {"a": archive.add("a", len(whole), pieces), "b": archive.add("b", len(whole), [whole])}
    assert members["a"] == members["b"]
    Archive(path).check(members)


@pytest.mark.parametrize("position", [0, 7, 8, 16, 19])
def test_every_chunk_counts(position: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archive_module, "_CHUNK_BYTES", 8)
    data = bytearray(20)
    path = tmp_path / "some.zip"
    with ArchiveWriter(path) as archive:
        before = archive.add("a", len(data), [data])
        data[position] = 1
        archive.add("b", len(data), [data])
    with pytest.raises(ArtifactError, match="b was altered"):
        Archive(path).check({"b": before})


def test_a_truncated_file_is_refused_wherever_it_ends(artifact: Path, tmp_path: Path, refused: Any) -> None:
    data = artifact.read_bytes()
    path = tmp_path / "cut.tersor"
    for size in (4, 100, len(data) // 2, len(data) - 2000, len(data) - 1):
        path.write_bytes(data[:size])
        assert "damaged" in refused(path)


def test_damage_anywhere_is_an_error_or_harmless(
    artifact: Path, executable: Executable, example: torch.Tensor, tmp_path: Path
) -> None:
    data = artifact.read_bytes()
    start = data.index(b"PK\x01\x02")  # of the directory, whose every byte is tried; of the members, some
    path = tmp_path / "damaged.tersor"
    positions = [*range(0, 64), *range(64, start, max(1, start // 100)), *range(start, len(data), 3)]
    for position in positions:
        damaged = bytearray(data)
        damaged[position] ^= 0xFF
        path.unlink(missing_ok=True)
        path.write_bytes(damaged)
        try:
            loaded = tersor.load(path)
        except ArtifactError as error:
            assert "\n" not in str(error)
        else:
            assert torch.equal(loaded(example), executable(example))


def test_files_of_other_kinds_are_refused(tmp_path: Path, refused: Any) -> None:
    assert "no such file" in refused(tmp_path / "nothing.tersor")
    assert "is not a file" in refused(tmp_path)
    path = tmp_path / "other.tersor"
    path.write_bytes(b"")
    assert "it is empty" in refused(path)
    path.write_text("graph @net() {}")
    assert "not a .tersor artifact" in refused(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("readme.txt", "hello")
    assert "not a .tersor artifact" in refused(path)


@pytest.mark.parametrize("member", MEMBERS)
def test_a_missing_member_is_named(member: str, artifact: Path, tmp_path: Path, refused: Any) -> None:
    path = rewrite(artifact, tmp_path / "less.tersor", keep, **{member.replace(".", "_"): None})
    assert f"lacks '{member}'" in refused(path)


@pytest.mark.parametrize("name", ["../evil.so", "/tmp/evil.so", "extra.bin"])
def test_unknown_members_are_refused(name: str, artifact: Path, tmp_path: Path, refused: Any) -> None:
    path = tmp_path / "more.tersor"
    path.write_bytes(artifact.read_bytes())
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(name, "x")
    assert f"unknown member '{name}'" in refused(path)


def test_two_members_of_one_name_are_refused(artifact: Path, tmp_path: Path, refused: Any) -> None:
    path = tmp_path / "twice.tersor"
    path.write_bytes(artifact.read_bytes())
    with zipfile.ZipFile(path, "a") as archive, pytest.warns(UserWarning, match="Duplicate"):
        archive.writestr(CODE, "x")
    assert "two members have one name" in refused(path)


def test_a_directory_that_lies_about_members_is_refused(artifact: Path, tmp_path: Path, refused: Any) -> None:
    data = artifact.read_bytes()
    path = tmp_path / "lying.tersor"
    path.write_bytes(data.replace(GRAPH.encode(), b"groph.ir", 1))  # the first is the local header's
    assert f"{GRAPH} has another name in its own header" in refused(path)
    entries = {name: data.rindex(b"PK\x01\x02", 0, data.rindex(name.encode())) for name in (GRAPH, WEIGHTS)}
    moved = bytearray(data)
    offset = slice(42, 46)  # of the local header, within an entry of the directory
    first = int.from_bytes(data[entries[GRAPH] :][offset], "little")
    moved[entries[WEIGHTS] + 42 : entries[WEIGHTS] + 46] = (first + 8).to_bytes(4, "little")
    path.write_bytes(moved)
    assert "two members share bytes" in refused(path)


def test_a_compressed_member_is_refused(artifact: Path, tmp_path: Path, refused: Any) -> None:
    path = tmp_path / "bomb.tersor"
    with zipfile.ZipFile(artifact) as source, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in source.namelist():
            kind = zipfile.ZIP_DEFLATED if name == CONSTANTS else zipfile.ZIP_STORED
            archive.writestr(name, source.read(name), kind)
        archive.comment = source.comment
    assert f"{CONSTANTS} is compressed" in refused(path)


def test_an_absurd_manifest_is_refused(
    artifact: Path, tmp_path: Path, refused: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(archive_module, "_LARGEST_INDEX", 1000)
    assert "impossible size" in refused(artifact)


def test_code_that_is_no_code_is_an_error(artifact: Path, tmp_path: Path) -> None:
    path = rewrite(artifact, tmp_path / "junk.tersor", keep, model_so=b"junk")
    with pytest.raises(ArtifactError, match="its code cannot be loaded"):
        tersor.load(path)


def test_a_graph_that_is_no_graph_is_an_error(artifact: Path, tmp_path: Path) -> None:
    path = rewrite(artifact, tmp_path / "junk.tersor", keep, graph_ir=b"graph @net(")
    with pytest.raises(ArtifactError, match="the graph in it is not readable"):
        tersor.load(path)


def test_code_for_another_architecture_is_an_error(artifact: Path, tmp_path: Path, refused: Any) -> None:
    code = bytearray(contents(artifact)[CODE])
    code[18:20] = (40).to_bytes(2, "little")  # ELF's number of 32-bit ARM
    assert "it is no library for" in refused(rewrite(artifact, tmp_path / "arm.tersor", keep, model_so=bytes(code)))


def test_code_of_another_model_is_an_error(artifact: Path, tmp_path: Path) -> None:
    other = tersor.compile(torch.nn.Linear(4, 3), (torch.zeros(1, 4),)).save(tmp_path / "other.tersor")
    path = rewrite(artifact, tmp_path / "mixed.tersor", keep, model_so=contents(other)[CODE])
    with pytest.raises(ArtifactError, match="inputs of the manifest are not those of the code"):
        tersor.load(path)
    path = rewrite(artifact, tmp_path / "mixed.tersor", keep, graph_ir=contents(other)[GRAPH])
    with pytest.raises(ArtifactError, match="inputs of the manifest are not those of the graph"):
        tersor.load(path)


def test_targets_under_a_name_of_their_own_are_loaded(
    executable: Executable, example: torch.Tensor, tmp_path: Path
) -> None:
    own = replace(resolve_cpu(executable.info.target), name="x86:mine", vector_registers=16)
    compiled = tersor.compile(executable.graph, target=own)
    assert torch.equal(tersor.load(compiled.save(tmp_path / "own.tersor"))(example), compiled(example))
    taken = Executable(replace(executable.model, info=replace(executable.info, target=replace(own, name="x86:avx2"))))
    with pytest.raises(ArtifactError, match="'x86:avx2' differs from the known one; give it a name of its own"):
        taken.save(tmp_path / "taken.tersor")


def test_models_of_every_kind_fit_their_manifest(tmp_path: Path) -> None:
    class Table(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = torch.nn.Embedding(10, 6)

        def forward(self, rows: torch.Tensor, mask: torch.Tensor) -> tuple[torch.Tensor, ...]:
            return self.table(rows), mask, mask.clone(), rows + 1

    for module, inputs in (
        (Table().eval(), (torch.tensor([[1, 9]]), torch.tensor([[True, False]]))),
        (torch.nn.ReLU(), (torch.randn(3),)),
        (torch.nn.Identity(), (torch.randn(2, 3),)),
    ):
        compiled = tersor.compile(module, inputs)
        loaded = tersor.load(compiled.save(tmp_path / "model.tersor"))
        for one, other in zip(wrapped(loaded(*inputs)), wrapped(compiled(*inputs)), strict=True):
            assert torch.equal(one, other)


def wrapped(outputs: Any) -> tuple[torch.Tensor, ...]:
    """Outputs as a tuple, also when there is one."""
    return outputs if isinstance(outputs, tuple) else (outputs,)


# Manifest ---------------------------------------------------------------------------------------------------------


def test_a_newer_schema_is_refused_whatever_else_it_brings(artifact: Path, tmp_path: Path, refused: Any) -> None:
    def edit(manifest: dict[str, Any]) -> None:
        manifest["schema"] = SCHEMA + 1
        manifest["something new"] = True

    path = rewrite(artifact, tmp_path / "newer.tersor", edit, model_so=None, new_bin=b"x")
    assert f"schema {SCHEMA + 1} is newer than {SCHEMA}" in refused(path)


def test_an_artifact_from_before_structures_and_states(
    executable: Executable, example: torch.Tensor, artifact: Path, tmp_path: Path
) -> None:
    def edit(manifest: dict[str, Any]) -> None:
        manifest["schema"] = 2
        manifest["model"] = manifest.pop("programs")[0]["model"]
        del manifest["model"]["states"]

    text = contents(artifact)["graph.ir"].partition(b" takes ")[0]
    loaded = tersor.load(rewrite(artifact, tmp_path / "older.tersor", edit, graph_ir=text))
    assert loaded.graph.structure is None
    assert torch.equal(loaded(example), executable(example))


def test_states_that_the_graph_lacks_are_refused(artifact: Path, tmp_path: Path, refused: Any) -> None:
    path = rewrite(artifact, tmp_path / "states.tersor", set_at("programs", 0, "model", "states", to=["x"]))
    assert "states of the manifest are not those of the graph" in refused(path)
    text = contents(artifact)["graph.ir"].replace(b"gives *", b"gives (*, *)")
    path = rewrite(artifact, tmp_path / "structure.tersor", lambda manifest: None, graph_ir=text)
    assert "has 1 inputs and 2 outputs" in refused(path)


def test_an_older_schema_is_refused(artifact: Path, tmp_path: Path, refused: Any) -> None:
    path = rewrite(artifact, tmp_path / "older.tersor", set_at("schema", to=1))
    assert "compile the model again" in refused(path)


def test_a_manifest_that_is_not_json_is_refused(artifact: Path, tmp_path: Path, refused: Any) -> None:
    path = tmp_path / "text.tersor"
    for text, message in (
        (b"{", "not JSON"),
        (b"\xff\xfe", "not JSON"),
        (b"[" * 100_000, "not JSON"),
        (b"3", "schema"),
    ):
        with ArchiveWriter(path) as archive:
            archive.add_index(MANIFEST, text)
        assert message in refused(path)


PROGRAM = "manifest.programs[0].model"


def set_at(*keys: str | int, to: Any) -> Callable[[dict[str, Any]], None]:
    """An edit of one field."""

    def edit(manifest: Any) -> None:
        for key in keys[:-1]:
            manifest = manifest[key]
        manifest[keys[-1]] = to

    return edit


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (set_at("schema", to="1"), "no schema version"),
        (set_at("schema", to=True), "no schema version"),
        (set_at("versions", to=[]), "manifest.versions must be an object"),
        (set_at("features", to="avx2"), "manifest.features must be a list"),
        (set_at("features", to=[7]), "manifest.features[0] must be text"),
        (set_at("programs", 0, "model", "name", to=None), f"{PROGRAM}.name must be text"),
        (
            set_at("programs", 0, "model", "inputs", 0, "type", to="f33[1]"),
            "manifest.programs[0].model.inputs[0].type: 'f33[1]' is not a tensor",
        ),
        (
            set_at("programs", 0, "model", "inputs", 0, "shape", to=[1]),
            "manifest.programs[0].model.inputs[0] has an unknown field 'shape'",
        ),
        (
            set_at("programs", 0, "model", "kernels", 0, "macs", to=1.5),
            "manifest.programs[0].model.kernels[0].macs must be a whole number",
        ),
        (
            set_at("programs", 0, "model", "target", "cores", to=True),
            "manifest.programs[0].model.target.cores must be a whole number",
        ),
        (set_at("programs", 0, "model", to={}), f"{PROGRAM} lacks 'name'"),
        (set_at("programs", to=[]), "must have programs for one target"),
        (set_at("programs", 0, "constants", 0, to=10**6), "reads constants that the manifest does not have"),
        (set_at("programs", 0, "constants", 0, to=-1), "reads constants that the manifest does not have"),
        (set_at("programs", 0, "code", to="evil.so"), "lacks 'evil.so'"),
        (set_at("programs", 0, "numbers", to={"n": 3}), "no extent is called 'n'"),
        (set_at("constants", 0, "offset", to=-64), "constant 0 of the manifest is not within constants.bin"),
        (set_at("constants", 0, "count", to=10**18), "constant 0 of the manifest is not within constants.bin"),
        (set_at("constants", 0, "dtype", to="load"), "constant 0 of the manifest is not within constants.bin"),
        (set_at("members", CODE, "size", to=3), f"{CODE} has"),
        (set_at("members", CODE, "digest", to="00"), f"{CODE} was altered"),
        (set_at("members", to={}), "has no hash of"),
        (set_at("members", "evil.so", to={"size": 1, "digest": ""}), "has a hash of an unknown member 'evil.so'"),
    ],
)
def test_wrong_fields_are_named(edit: Any, message: str, artifact: Path, tmp_path: Path, refused: Any) -> None:
    assert message in refused(rewrite(artifact, tmp_path / "wrong.tersor", edit))


# Host -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (set_at("machine", to="aarch64"), "compiled for Linux on aarch64"),
        (set_at("system", to="Plan 9"), "compiled for Plan 9"),
        (set_at("features", to=["avx2", "zz_vectors", "yy_dots"]), "this processor lacks yy_dots, zz_vectors;"),
        (set_at("versions", "apache-tvm", to="0.9"), "compiled with TVM 0.9"),
        (set_at("versions", to={}), "compiled with TVM an unknown version"),
    ],
)
def test_what_cannot_run_here_is_refused_but_keeps_its_graph(
    edit: Any, message: str, artifact: Path, executable: Executable, tmp_path: Path, refused: Any
) -> None:
    path = rewrite(artifact, tmp_path / "foreign.tersor", edit)
    text = refused(path)
    assert message in text
    assert f"tersor compile {path}" in text
    assert structurally_equal(load_graph(path), executable.graph)


# Writing ----------------------------------------------------------------------------------------------------------


def test_a_failed_save_leaves_the_old_file_and_nothing_else(
    artifact: Path, executable: Executable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    path = tmp_path / "model.tersor"
    path.write_bytes(artifact.read_bytes())
    monkeypatch.setattr(ArchiveWriter, "add_index", full)
    with pytest.raises(tersor.TersorError, match=r"cannot write .*No space left on device"):
        executable.save(path)
    assert path.read_bytes() == artifact.read_bytes()
    assert list(tmp_path.iterdir()) == [path]


def test_places_that_cannot_be_written_are_refused(executable: Executable, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(tersor.TersorError, match="nowhere is not an existing directory; create it first"):
        executable.save(tmp_path / "nowhere" / "model.tersor")
    with pytest.raises(tersor.TersorError, match="file is not an existing directory"):
        executable.save(tmp_path / "file" / "model.tersor")
    with pytest.raises(tersor.TersorError, match="is a directory"):
        executable.save(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file"]


def test_members_are_aligned_in_the_file(artifact: Path) -> None:
    data = artifact.read_bytes()
    archive = Archive(artifact)
    for name in archive.names:
        assert data.index(bytes(archive[name])) % ALIGNMENT == 0


# Weights that constants hold --------------------------------------------------------------------------------------


class Large(nn.Module):
    """A table, a convolution and a linear layer, each large enough not to be stored twice."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(1200, 64)
        self.convolution = nn.Conv2d(256, 320, 1)
        self.linear = nn.Linear(64, 1100)

    def forward(self, rows: torch.Tensor, picture: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return self.linear(self.table(rows)), self.convolution(picture)


@pytest.mark.parametrize("pipeline", ["O3", "O3,to-bf16"])
def test_weights_that_constants_hold_are_stored_once(tmp_path: Path, pipeline: str) -> None:
    torch.manual_seed(0)
    module = Large().eval()
    with torch.no_grad():
        module.linear.weight[3, 5] = torch.nan  # bits are compared, not numbers
    inputs = (torch.randint(0, 1200, (2, 9)), torch.randn(1, 256, 4, 4))
    with pytest.warns(TersorWarning, match="NaN"):
        executable = tersor.compile(module, inputs, target="x86:avx2", pipeline=pipeline, check=False)
    path = executable.save(tmp_path / "model.tersor")
    size = sum(weight.nbytes for weight in executable.graph.weights.values())
    assert path.stat().st_size < 1.4 * size + (1 << 18)  # code and padding; all weights twice would be more
    for graph in (load_graph(path), tersor.load(path).graph):
        assert graph.weights.keys() == executable.graph.weights.keys()
        for name, weight in graph.weights.items():
            assert torch.equal(weight.view(torch.uint8), executable.graph.weights[name].view(torch.uint8)), name
    again = tersor.load(path).save(tmp_path / "again.tersor")
    assert {name: contents(again)[name] for name in MEMBERS} == {name: contents(path)[name] for name in MEMBERS}


def test_a_weight_that_is_not_where_the_manifest_says_is_refused(tmp_path: Path) -> None:
    inputs = (torch.zeros(1, 1, dtype=torch.int64), torch.zeros(1, 256, 1, 1))
    path = tersor.compile(Large().eval(), inputs, target="x86:avx2").save(tmp_path / "model.tersor")
    packed = json.loads(contents(path)[MANIFEST])["packed"]
    for field, value, message in (
        ("constant", 99, "is not in its constants"),
        ("shape", [10_000, 64], "does not fit"),
        ("dtype", "float64", "does not fit"),
    ):
        bad = rewrite(path, tmp_path / "bad.tersor", set_at("packed", "table.weight", field, to=value))
        with pytest.raises(ArtifactError, match=message) as caught:
            load_graph(bad)
        assert "compile the model again" in str(caught.value)
    assert set(packed) == {"table.weight", "convolution.weight", "linear.weight"}
