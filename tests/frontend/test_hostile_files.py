"""Model files that were made to run code, to hang, or to be taken for something else; and files with flipped bytes."""

from __future__ import annotations

import io
import json
import os
import random
import socket
import struct
import sys
import warnings
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import suppress
from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tersor import ir
from tersor.cli.main import main
from tersor.frontend import load_model
from tersor.ir import TersorError, TersorWarning
from tersor.passes.numeric import seeded_inputs
from tersor.targets.packaging.artifact import is_artifact

MODULE = "tersor_hostile_module"
FLIPS = 400


class Net(nn.Module):
    """Has every kind of input, result and tensor that a file can hold."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleDict({"first layer": nn.Linear(4, 4)})
        self.register_buffer("shift", torch.ones(4), persistent=False)
        self.register_buffer("scale", torch.ones(4))

    def forward(self, x, pair, *, y, mode="plain"):
        with torch.no_grad():
            shifted = x + self.shift + torch.tensor([1.0, 2.0, 3.0, 4.0])
        left, _ = torch.split(pair["k"][0], 2, 1)
        hidden = nn.functional.gelu(self.layers["first layer"](shifted), approximate="tanh")
        return {"a": hidden * self.scale, "b": (left, [y + 1])}


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("hostile") / "net.pt2"
    x = torch.ones(2, 4)
    program = torch.export.export(Net().eval(), (x, {"k": (x,)}), {"y": x, "mode": "fast"})
    torch.export.save(program, path)
    return path.read_bytes()


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A small program, which needs no decomposition."""
    path = tmp_path_factory.mktemp("plain") / "net.pt2"
    torch.export.save(torch.export.export(nn.Sequential(nn.Linear(4, 3), nn.ReLU()), (torch.ones(2, 4),)), path)
    return path.read_bytes()


@pytest.fixture
def marker(tmp_path, monkeypatch) -> Iterator[Path]:
    """A file that every attack writes if its code runs; importing MODULE writes it too."""
    path = tmp_path / "marker"
    (tmp_path / f"{MODULE}.py").write_text(f"open({str(path)!r}, 'w')\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    yield path
    imported = sys.modules.pop(MODULE, None)
    assert imported is None and not path.exists(), "code from a file was run"


class Bomb:
    """Writes a file when it is unpickled."""

    def __init__(self, path: Path):
        self.path = str(path)

    def __reduce__(self):
        return open, (self.path, "w")


def pickled(value: object) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def members_of(data: bytes) -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def write(path: Path, members: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return path


def with_program(original: bytes, path: Path, program: Any) -> Path:
    members = members_of(original)
    return write(path, members | {"net/models/model.json": json.dumps(program).encode()})


def program_of(original: bytes) -> Any:
    return json.loads(members_of(original)["net/models/model.json"])


def load_fully(path: Path, known: set[str] | None = None) -> str:
    """Load a model, convert it and build its module; returns the error, which must be a TersorError of one line.

    A program that is in ``known`` is not converted again.
    """
    try:
        loaded = load_model(str(path))
        text = f"{loaded.model} {getattr(loaded.model, 'module_call_graph', '')}"
        if known is not None and text in known:
            return ""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", TersorWarning)  # of weights that became NaN
            loaded.to_graph()
    except TersorError as error:
        message = str(error)
        assert "\n" not in message
        assert len(message) < 1500
        return message
    if known is not None:
        known.add(text)
    with suppress(Exception):  # whatever PyTorch says of it: the marker is what matters
        loaded.model.module()  # type: ignore[operator, union-attr]
    return ""


# Known attacks ----------------------------------------------------------------------------------------------------


def signature(program: Any) -> Any:
    return program["graph_module"]["module_call_graph"][0]["signature"]


def code_as_the_name_of_an_input(program: Any, marker: Path) -> None:
    name = f"z=open({str(marker)!r}, 'w')"  # a default, evaluated with the function's definition
    module = program["graph_module"]
    module["graph"]["inputs"].append({"as_tensor": {"name": name}})
    module["graph"]["tensor_values"][name] = module["graph"]["tensor_values"]["x"]
    module["signature"]["input_specs"].append({"user_input": {"arg": {"as_tensor": {"name": name}}}})


def code_as_a_guard(program: Any, marker: Path) -> None:
    program["guards_code"] = [f"open({str(marker)!r}, 'w')"]


def code_as_the_name_of_an_argument(program: Any, marker: Path) -> None:
    # The name is written twice; a string takes all that is in between.
    name = f'x): pass\nopen({str(marker)!r}, \'w\')\n"""\ndef g(self):\n    #'
    signature(program)["forward_arg_names"] = [name]


def an_enumeration_of_a_module(program: Any, marker: Path) -> None:
    context = json.dumps({"__enum__": True, "fqn": f"{MODULE}:Kind", "name": "A"})
    signature(program)["out_spec"] = json.dumps([1, {"type": "builtins.list", "context": context, "children_spec": []}])


def a_dictionary_with_a_factory_of_a_module(program: Any, marker: Path) -> None:
    context = {"default_factory_module": MODULE, "default_factory_name": "make", "dict_context": "[]"}
    spec = {"type": "collections.defaultdict", "context": context, "children_spec": []}
    signature(program)["out_spec"] = json.dumps([1, spec])


def a_call_that_loads_a_library(program: Any, marker: Path) -> None:
    program["graph_module"]["graph"]["nodes"][-1]["target"] = "torch.ops.import_module"


ATTACKS = {
    attack.__name__: attack
    for attack in (
        code_as_the_name_of_an_input,
        code_as_a_guard,
        code_as_the_name_of_an_argument,
        an_enumeration_of_a_module,
        a_dictionary_with_a_factory_of_a_module,
        a_call_that_loads_a_library,
    )
}


@pytest.mark.parametrize("attack", ATTACKS)
def test_program_that_would_run_code(attack, original, marker, tmp_path):
    program = program_of(original)
    ATTACKS[attack](program, marker)
    message = load_fully(with_program(original, tmp_path / "net.pt2", program))
    assert bool(message) == (attack != "code_as_a_guard")  # guards are left out, the rest is refused


def attack_by_two_directories(original: bytes, path: Path, marker: Path) -> Path:
    """A zip file in which Python finds the older format, full of pickles, and PyTorch's reader a program.

    Python looks for the directory right before the end record; others where that record says, which is in its comment.
    """
    program = program_of(original)
    program["schema_version"]["major"] = 999  # PyTorch tries the older format when it fails on the newer
    program_members = members_of(with_program(original, path, program).read_bytes())
    older = {
        "version": f"{torch._export.serde.schema.SCHEMA_VERSION[0]}.1".encode(),
        "serialized_exported_program.json": json.dumps(program_of(original)).encode(),
        **{f"serialized_{kind}.pt": pickled([Bomb(marker)]) for kind in ("state_dict", "constants", "example_inputs")},
        "net/archive_format": b"pt2",
    }
    older |= {f"filler{index}": b"" for index in range(len(program_members) - len(older))}
    stored, directories = b"", []
    for members in (older, program_members):
        entries = []
        for name, data in members.items():
            checks = struct.pack("<III", zlib.crc32(data), len(data), len(data))
            header = struct.pack("<HHHHH", 20, 0, 0, 0, 33) + checks
            entries.append((name.encode(), header, len(stored)))
            stored += b"PK\x03\x04" + header + struct.pack("<HH", len(name), 0) + name.encode() + data
        directories.append(entries)
    sizes = [sum(46 + len(name) for name, _, _ in entries) for entries in directories]
    size = max(sizes)
    found = []
    for entries, own_size, shift in zip(directories, sizes, (size + 22, 0), strict=True):
        directory = b""
        for index, (encoded, header, offset) in enumerate(entries):
            comment = bytes(size - own_size) if index == len(entries) - 1 else b""
            lengths = struct.pack("<HHHHHII", len(encoded), 0, len(comment), 0, 0, 0, offset + shift)
            directory += b"PK\x01\x02" + struct.pack("<H", 20) + header + lengths + encoded + comment
        found.append(directory)
    count, end = len(older), len(stored) + size
    record = struct.pack("<HHHHIIH", 0, 0, count, count, size, end + 22, size)
    path.write_bytes(stored + found[0] + b"PK\x05\x06" + record + found[1])
    return path


def test_archive_with_two_directories(original, marker, tmp_path):
    assert load_fully(attack_by_two_directories(original, tmp_path / "net.pt2", marker))


@pytest.mark.parametrize("attack", [*ATTACKS, "attack_by_two_directories"])
def test_command_line_runs_no_code_of_a_file(attack, original, marker, tmp_path, capsys):
    path = tmp_path / "net.pt2"
    if attack in ATTACKS:
        program = program_of(original)
        ATTACKS[attack](program, marker)
        with_program(original, path, program)
    else:
        attack_by_two_directories(original, path, marker)
    with pytest.raises(SystemExit) as exit:
        main(["compile", str(path), "-p", "O0", "-o", str(tmp_path / "net.tersor")])
    assert exit.value.code == (0 if attack == "code_as_a_guard" else 2)
    assert "Traceback" not in capsys.readouterr().err


def test_weight_with_a_name_that_is_code(plain, marker, tmp_path):
    """PyTorch writes such names into strings of the source text that it makes."""
    hostile = json.dumps(f'0"), open({str(marker)!r}, "w"), getattr(self, "0')[1:-1].encode()
    members = {name: data.replace(b'"0.weight"', b'"%s"' % hostile) for name, data in members_of(plain).items()}
    path = write(tmp_path / "net.pt2", members)
    assert "is damaged or not an exported program" in load_fully(path)
    with suppress(Exception):
        load_model(str(path)).model.module()(torch.ones(2, 4))


def test_example_inputs_with_names_that_are_code(original, marker, tmp_path):
    """PyTorch writes guards from the keys of example inputs, whatever the program says that it takes."""
    x = torch.ones(2, 4)
    samples = ((x, {f"k'] or open({str(marker)!r}, 'w') or L['x": (x,)}), {"y": x, "mode": "fast"})
    members = members_of(original) | {"net/data/sample_inputs/model.pt": pickled(samples)}
    assert "has example inputs that its program does not take" in load_fully(write(tmp_path / "net.pt2", members))


# Every text of a program replaced by code -------------------------------------------------------------------------

PAYLOADS: tuple[Callable[[str, str], str], ...] = (
    lambda old, marker: f"open({marker!r}, 'w')",
    lambda old, marker: f"{old}=open({marker!r}, 'w')",
    lambda old, marker: f"{old}\n    open({marker!r}, 'w')\n    {old}",
    lambda old, marker: f"{old}): pass\nopen({marker!r}, 'w')\ndef f({old}",
    lambda old, marker: f'{old}"), open({marker!r}, "w"), ("{old}',
    lambda old, marker: f"{old}' or open({json.dumps(marker)}, 'w') or '{old}",
    lambda old, marker: f"{MODULE}.Kind",
    lambda old, marker: json.dumps({"__enum__": True, "fqn": f"{MODULE}:Kind", "name": "A"}),
    lambda old, marker: f"[1, {json.dumps({'type': MODULE, 'context': marker, 'children_spec': []})}]",
)

# What the program does not use, so that these texts are replaced too.
UNUSED = {
    ("guards_code",): ["True"],
    ("range_constraints",): {"s0": {"min_val": 0, "max_val": 4}},
    ("verifiers",): ["TRAINING"],
    ("graph_module", "metadata"): {"custom": "{}"},
    ("graph_module", "treespec_namedtuple_fields"): {"Pair": {"field_names": ["a"]}},
    ("graph_module", "graph", "sym_int_values"): {"s0": {"as_expr": {"expr_str": "s0", "hint": {"as_int": 2}}}},
    ("graph_module", "graph", "custom_obj_values"): {"o": {"name": "o", "class_fqn": "o"}},
    ("graph_module", "graph", "nodes", 0, "metadata", "source_fn_stack"): "x,torch.relu",
    ("graph_module", "graph", "nodes", 0, "metadata", "from_node"): "[]",
    ("graph_module", "graph", "nodes", 0, "inputs", 0, "arg"): {"as_operator": "torch.ops.aten.relu.default"},
    ("graph_module", "graph", "nodes", 1, "inputs", 0, "arg"): {"as_custom_obj": {"name": "o", "class_fqn": "o"}},
    ("graph_module", "graph", "nodes", 2, "inputs", 0, "arg"): {"as_string_to_argument": {"k": {"as_string": "v"}}},
}


def texts_of(tree: Any, place: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Places of all texts, and of all keys (those end in None); JSON within a text is followed too."""
    if isinstance(tree, dict):
        for key, value in tree.items():
            yield (*place, key, None)
            yield from texts_of(value, (*place, key))
    elif isinstance(tree, list):
        for index, value in enumerate(tree):
            yield from texts_of(value, (*place, index))
    elif isinstance(tree, str):
        yield place
        if tree.startswith(("[", "{")):
            yield from texts_of(json.loads(tree), (*place, "json"))


def replaced(tree: Any, place: tuple[Any, ...], change: Callable[[str], str]) -> Any:
    """A copy of a tree with the text at a place changed."""
    if not place:
        return change(tree)
    first, *rest = place
    if isinstance(tree, str):
        return json.dumps(replaced(json.loads(tree), tuple(rest), change))
    if rest == [None]:
        return {change(key) if key == first else key: value for key, value in tree.items()}
    copy = tree.copy()
    copy[first] = replaced(tree[first], tuple(rest), change)
    return copy


def planted_programs(original: bytes) -> Iterator[tuple[Any, list[tuple[Any, ...]]]]:
    """Programs, each with the places of its texts, one for each field of the schema."""
    program = program_of(original)
    seen: set[tuple[Any, ...]] = set()

    def fresh(places: Iterator[tuple[Any, ...]]) -> list[tuple[Any, ...]]:
        chosen = []
        for place in places:
            before = ("", *place[:-1])
            kind = tuple(
                "*" if isinstance(part, int) or last == "tensor_values" else part
                for last, part in zip(before, place, strict=True)
            )
            if kind not in seen:
                seen.add(kind)
                chosen.append(place)
        return chosen

    yield program, fresh(texts_of(program))
    for place, value in UNUSED.items():
        changed = deepcopy(program)
        parent = changed
        for part in place[:-1]:
            parent = parent[part]
        parent[place[-1]] = value
        yield (
            changed,
            [place, *fresh(texts_of(value, place))] if isinstance(value, str) else fresh(texts_of(value, place)),
        )


def fuzz_texts(original: bytes, marker: Path, path: Path, every: int) -> int:
    count, known = 0, set[str]()
    for program, places in planted_programs(original):
        for place in places:
            for payload in PAYLOADS:
                count += 1
                if count % every:
                    continue
                hostile = replaced(program, place, partial(payload, marker=str(marker)))
                load_fully(with_program(original, path, hostile), known)
                assert not marker.exists(), (place, payload("x", "marker"))
    return count


def test_some_texts_replaced_by_code(original, marker, tmp_path):
    assert fuzz_texts(original, marker, tmp_path / "net.pt2", every=10) > 1000


@pytest.mark.slow
def test_every_text_replaced_by_code(original, marker, tmp_path):
    fuzz_texts(original, marker, tmp_path / "net.pt2", every=1)


# Damage -----------------------------------------------------------------------------------------------------------


def flip(original: bytes, path: Path, seeds: range, known: set[str] | None = None) -> None:
    """One flipped bit for each seed: in the whole file, or in one of its members with a checksum that fits."""
    for seed in seeds:
        chance = random.Random(seed)
        members = members_of(original)
        name = chance.choice([*members, *["net/models/model.json"] * 6])
        data = bytearray(original if seed % 2 else members[name])
        if data:
            data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
        if seed % 2:
            path.write_bytes(data)
        else:
            write(path, members | {name: bytes(data)})
        load_fully(path, known)


def test_some_flipped_bits(plain, marker, tmp_path):
    flip(plain, tmp_path / "net.pt2", range(FLIPS // 10))


@pytest.mark.slow
def test_flipped_bits(original, plain, marker, tmp_path):
    flip(plain, tmp_path / "net.pt2", range(FLIPS // 10, FLIPS))
    flip(original, tmp_path / "net.pt2", range(FLIPS), known=set())


def test_weights_beyond_their_bytes(original, tmp_path):
    members = members_of(original)
    config = "net/data/weights/model_weights_config.json"

    def message(old: str, new: str) -> str:
        changed = members[config].decode().replace(old, new, 1)
        assert changed.encode() != members[config]
        return load_fully(write(tmp_path / "net.pt2", members | {config: changed.encode()}))

    assert "is larger than what the file holds of it" in message('"sizes": [{"as_int": 4}', '"sizes": [{"as_int": 5}')
    assert "GiB, but this machine has" in message('"sizes": [{"as_int": 4}', '"sizes": [{"as_int": 1099511627776}')
    assert "is not a plain tensor" in message('"storage_offset": {"as_int": 0}', '"storage_offset": {"as_int": -1}')
    assert "declares a type" in message('"sizes": [{"as_int": 4}', '"sizes": [{"as_int": 3}')
    empty = {name: b"" if name.endswith("weight_0") else data for name, data in members.items()}
    assert "has no numbers" in load_fully(write(tmp_path / "net.pt2", empty))


def test_compressed_archive(original, tmp_path):
    with zipfile.ZipFile(tmp_path / "net.pt2", "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members_of(original).items():
            archive.writestr(name, data)
    assert "is compressed" in load_fully(tmp_path / "net.pt2")


def test_archive_with_two_members_of_one_name(original, tmp_path):
    path = write(tmp_path / "net.pt2", members_of(original))
    with zipfile.ZipFile(path, "a") as archive, pytest.warns(UserWarning, match="Duplicate"):
        archive.writestr("net/archive_format", b"pt2")
    assert "is damaged or not an exported program" in load_fully(path)


def test_program_of_another_version(original, tmp_path):
    program = program_of(original)
    program["schema_version"]["major"] += 1
    program["torch_version"] = "9.0"
    message = load_fully(with_program(original, tmp_path / "net.pt2", program))
    assert "was written by PyTorch 9.0, whose files PyTorch" in message


def test_program_with_an_unknown_field(original, tmp_path):
    program = program_of(original) | {"hook": "x"}
    assert "has an unknown field 'hook'" in load_fully(with_program(original, tmp_path / "net.pt2", program))


def test_deeply_nested_program(original, tmp_path):
    members = members_of(original) | {"net/models/model.json": b"[" * 100_000}
    assert "cannot be read as an exported program" in load_fully(write(tmp_path / "net.pt2", members))


# What is no file, or another file than its name says --------------------------------------------------------------


def refusal(path: Path) -> str:
    with pytest.raises(TersorError) as caught:
        load_model(str(path))
    return str(caught.value)


def test_pipes_sockets_and_devices(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # the path of a socket must be short
    os.mkfifo("pipe.pt2")
    os.mkfifo("pipe")
    assert not is_artifact("pipe")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("socket.pt2")
        for path in (Path("pipe.pt2"), Path("socket.pt2"), Path("/dev/zero")):
            assert f"{path}: is not a regular file" in refusal(path)
    with pytest.raises(TersorError, match="not a regular file"):
        ir.load_ir("pipe.pt2")


def test_suffix_of_another_kind_of_file(original, tmp_path):
    text = tmp_path / "net.pt2"
    text.write_text("# tersor ir 1\ngraph @g(%x: f32[2]) {\n  return %x\n}\n")
    assert "is IR text, but its suffix is that of an exported program" in refusal(text)
    assert "give it the suffix .ir" in refusal(text)
    program = tmp_path / "net.ir"
    program.write_bytes(original)
    assert "is an exported program, but its suffix is that of IR text" in refusal(program)
    assert "is an exported program, but its suffix" in refusal(program.rename(tmp_path / "net.tersor"))


@pytest.mark.parametrize("command", ["bench", "compile", "run"])
def test_artifact_with_the_suffix_of_a_program(command, tmp_path, monkeypatch, capsys):
    """It must not be mapped: who names a .pt2 file does not expect native code."""
    monkeypatch.chdir(tmp_path)
    Path("net.ir").write_text("# tersor ir 1\ngraph @g(%x: f32[2]) {\n  %0 = relu(%x) : f32[2]\n  return %0\n}\n")
    with pytest.raises(SystemExit, match="0"):
        main(["compile", "net.ir", "-p", "O0", "-o", "net.tersor"])
    Path("net.tersor").rename("net.pt2")
    capsys.readouterr()
    with pytest.raises(SystemExit, match="2"):
        main([command, "net.pt2", *(["-o", "other.tersor"] if command == "compile" else [])])
    error = capsys.readouterr().err
    assert "net.pt2: is a compiled model" in error
    assert "give it the suffix .tersor" in error


# Text of any size -------------------------------------------------------------------------------------------------


def test_inputs_that_no_machine_can_hold(tmp_path):
    path = tmp_path / "net.ir"
    for extent in ("1099511627776", "9" * 1000, ",".join(["9" * 4000] * 2)):
        path.write_text(f"# tersor ir 1\ngraph @g(%x: f32[{extent}]) {{\n  return %x\n}}\n")
        message = refusal(path)
        assert "the inputs need " in message
        assert len(message) < 300
        with pytest.raises(TersorError, match="the inputs need "):
            seeded_inputs(ir.load_ir(path))


LONG = "x" * 1_000_000


@pytest.mark.parametrize(
    "text",
    [
        f"graph @g(%x: f32[2]) {{\n  %0 = {LONG}(%x) : f32[2]\n  return %0\n}}\n",
        f"graph @g(%x: {LONG}[2]) {{\n  return %x\n}}\n",
        f"graph @g(%x: f32[2]) {{\n  return %{LONG}\n}}\n",
        f"graph @g(%x: f32[2]) {{\n  return %x\n}} {LONG}\n",
        f"graph {LONG}(%x: f32[2]) {{\n  return %x\n}}\n",
        f"graph @g(%x: f32[2]) {{\n  %0 = relu(%x) {{{LONG}=1}} : f32[2]\n  return %0\n}}\n",
        f'graph @g() {{\n  %0 = full() {{value="{LONG}"}} : f32[2]\n  return %0\n}}\n',
        f"graph @g(%x: f32[{'1,' * 100_000}1]) {{\n  %0 = relu(%x) : f32[2]\n  return %0\n}}\n",
    ],
)
def test_messages_about_long_text_are_short(text, tmp_path):
    path = tmp_path / "net.ir"
    path.write_text(f"# tersor ir 1\n{text}")
    with pytest.raises(TersorError) as caught:
        load_model(str(path))
    assert len(str(caught.value)) < 1500


def test_messages_about_long_names_in_a_program_are_short(original, tmp_path):
    program = program_of(original)
    program["graph_module"]["graph"]["nodes"][-1]["target"] = LONG
    assert "calls 'xxx" in load_fully(with_program(original, tmp_path / "net.pt2", program))
