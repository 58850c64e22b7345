"""Loading what a command line names, and every way in which that can go wrong."""

from __future__ import annotations

import io
import json
import sys
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from torch import nn

from tersor import ir
from tersor.frontend import from_torch, load_model
from tersor.frontend.load import example_tensors
from tersor.ir import DType, TensorType, TersorError

X = torch.randn(2, 4, generator=torch.Generator().manual_seed(0))


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 3)
        self.register_buffer("shift", torch.ones(3), persistent=False)

    def forward(self, x):
        return torch.relu(self.linear(x)) + self.shift


@pytest.fixture
def program():
    torch.manual_seed(0)
    return torch.export.export(Net().eval(), (X,))


@pytest.fixture
def pt2(program, tmp_path) -> Path:
    path = tmp_path / "net.pt2"
    torch.export.save(program, path)
    return path


def rewrite(path: Path, change) -> Path:
    """Pass every member of the archive, as (name without the top folder, bytes), through ``change``."""
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    changed = {}
    for name, data in members.items():
        top, _, inner = name.partition("/")
        changed.update({f"{top}/{new_name}": new_data for new_name, new_data in change(inner, data).items()})
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for name, data in changed.items():
            archive.writestr(name, data)
    return path


class Bomb:
    """Runs code when it is unpickled: sets a flag on `sys`."""

    def __reduce__(self):
        return exec, ("import sys; sys.tersor_bomb_went_off = True",)


@pytest.fixture
def no_bomb():
    yield
    exploded = hasattr(sys, "tersor_bomb_went_off")
    if exploded:
        del sys.tersor_bomb_went_off
    assert not exploded, "code from a file was run"


# Good input ------------------------------------------------------------------------------------------------------


def test_exported_program_with_its_inputs(pt2, program, same):
    loaded = load_model(str(pt2))
    (x,) = loaded.example_inputs
    assert torch.equal(x, X)
    same(loaded.to_graph().evaluate(x)[0], program.module()(X).detach())
    assert ir.structurally_equal(loaded.to_graph(), from_torch(program))


def test_exported_program_without_inputs(program, tmp_path):
    path = tmp_path / "net.pt2"
    program.example_inputs = None
    torch.export.save(program, path)
    loaded = load_model(str(path))
    assert [tuple(x.shape) for x in loaded.example_inputs] == [(2, 4)]
    loaded.to_graph().evaluate(*loaded.example_inputs)


def test_exported_program_with_named_inputs(tmp_path):
    class Named(nn.Module):
        def forward(self, *, x):
            return x * 2

    path = tmp_path / "net.pt2"
    torch.export.save(torch.export.export(Named(), (), {"x": X}), path)
    assert torch.equal(load_model(str(path)).example_inputs["x"], X)


def test_programs_loaded_by_several_threads(pt2):
    with ThreadPoolExecutor(4) as pool:
        loaded = list(pool.map(load_model, [str(pt2)] * 8))
    assert all(torch.equal(one.example_inputs[0], X) for one in loaded)


def test_module_names_and_structures_of_all_kinds(tmp_path, same):
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.parts = nn.ModuleDict({"1x1": nn.Linear(4, 4), "a b": nn.Linear(4, 4), "a-b/c": nn.Linear(4, 4)})
            self.parts["a b"].weight = self.parts["1x1"].weight
            self.register_buffer("shift", torch.arange(4.0).expand(2, 4))
            self.constant = torch.ones(4)

        def forward(self, x, pair, *, scale, kind="plain", factor=2.0):
            for part in self.parts.values():
                x = part(x) + torch.tensor([1.0, 2.0, 3.0, 4.0])
            y = (x + self.shift + self.constant) * scale * factor
            return {"out": (y, [pair["left"][0] + 1]), 3: torch.relu(x), "none": None}

    path = tmp_path / "odd.pt2"
    module, other = Odd().eval(), torch.ones(2, 4)
    torch.export.save(torch.export.export(module, (X, {"left": (other,)}), {"kind": "it is", "scale": other}), path)
    graph = load_model(str(path)).to_graph()
    expected = module(X, {"left": (other,)}, scale=other, kind="it is")
    actual = graph.evaluate(X, other, other)
    for one, value in zip(actual, (*expected["out"][:1], expected["out"][1][0], expected[3]), strict=True):
        same(one, value.detach())
    assert {op.location for op in graph.ops if op.name == "linear"} == {"parts.1x1", "parts.a b", "parts.a-b/c"}


def test_ir_text(program, tmp_path, same):
    graph = from_torch(program)
    path = tmp_path / "net.tir"
    ir.save_ir(graph, path)
    loaded = load_model(str(path))
    assert ir.structurally_equal(loaded.to_graph(), graph)
    (x,) = loaded.example_inputs
    same(loaded.to_graph().evaluate(x)[0], graph.evaluate(x)[0])


def test_example_tensors_fit_every_type():
    types = [TensorType((2, 3), dtype) for dtype in DType]
    tensors = example_tensors(types)
    assert [TensorType(tuple(x.shape), DType.from_torch(x.dtype)) for x in tensors] == types
    assert not tensors[list(DType).index(DType.I64)].any()
    assert tensors[list(DType).index(DType.BOOL)].all()


@pytest.fixture
def project(tmp_path, monkeypatch) -> Iterator[Path]:
    """A current directory with a package that is not on the path."""
    package = tmp_path / "tersor_zoo"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "nets.py").write_text(
        """
import torch
from torch import nn

def tiny():
    return nn.ReLU(), torch.zeros(2, 3)

def named():
    return nn.ReLU(), {"input": torch.zeros(2, 3)}

def only_module():
    return nn.ReLU()

def wrong_order():
    return (torch.zeros(1),), nn.ReLU()

def bad_inputs():
    return nn.ReLU(), 3

def broken():
    raise ValueError("no weights\\nhere")

constant = nn.ReLU()
"""
    )
    (package / "needs.py").write_text("import a_module_that_is_not_there\n")
    (package / "syntax.py").write_text("def (:\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield package
    for name in [name for name in sys.modules if name.partition(".")[0] == "tersor_zoo"]:
        del sys.modules[name]


def test_factory_from_the_current_directory(project):
    loaded = load_model("tersor_zoo.nets:tiny")
    assert isinstance(loaded.model, nn.ReLU)
    assert [tuple(x.shape) for x in loaded.example_inputs] == [(2, 3)]
    assert [op.name for op in loaded.to_graph().ops] == ["relu"]


def test_factory_with_named_inputs(project):
    loaded = load_model("tersor_zoo.nets:named")
    assert list(loaded.example_inputs) == ["input"]
    assert [op.name for op in loaded.to_graph().ops] == ["relu"]


# Bad factories ---------------------------------------------------------------------------------------------------

FACTORY_ERRORS = {
    "tersor_zoo.nets:tinny": "module tersor_zoo.nets has no 'tinny'; did you mean 'tiny'?",
    "tersor_zoo.net:tiny": "no module named 'tersor_zoo.net'; did you mean 'tersor_zoo.nets'?",
    "tersor_zo:tiny": "no module named 'tersor_zo'; did you mean 'tersor_zoo'?",
    "tersor_zoo.nets:only_module": r"must return (module, example_inputs), not a ReLU",
    "tersor_zoo.nets:wrong_order": r"must return (module, example_inputs), but the first is a tuple of 1",
    "tersor_zoo.nets:bad_inputs": "must be a tensor, a tuple of tensors or a dict of named ones, not int",
    "tersor_zoo.nets:broken": "calling it raised ValueError: no weights here",
    "tersor_zoo.nets:constant": "is a ReLU; name a function that returns (module, example_inputs)",
    "tersor_zoo.nets:torch": "is a module; name a function",
    "tersor_zoo.needs:x": "needs module 'a_module_that_is_not_there', which is not installed",
    "tersor_zoo.syntax:x": "importing tersor_zoo.syntax raised SyntaxError",
    "tersor_zoo/nets.py:tiny": "no such file, and not of the form package.module:factory",
    ":tiny": "no such file, and not of the form package.module:factory",
    "tersor_zoo.nets.tiny": "no such file; name a .pt2 file, an .onnx file, an IR text file or package.module:factory",
    "tersor_zoo": "is a directory; name a .pt2 file",
}


@pytest.mark.parametrize("spec", FACTORY_ERRORS)
def test_bad_factory(spec, project):
    with pytest.raises(TersorError) as caught:
        load_model(spec)
    message = str(caught.value)
    assert message.startswith(spec)
    assert FACTORY_ERRORS[spec] in message
    assert "\n" not in message


# Bad files -------------------------------------------------------------------------------------------------------


def refusal(path: Path) -> str:
    with pytest.raises(TersorError) as caught:
        load_model(str(path))
    message = str(caught.value)
    assert message.startswith(str(path))
    assert "\n" not in message
    return message


def test_missing_file(tmp_path):
    assert "no such file; name a .pt2 file" in refusal(tmp_path / "absent.pt2")


def test_state_dict(tmp_path, no_bomb):
    path = tmp_path / "weights.pt"
    torch.save({"x": X}, path)
    assert "is a file of torch.save (weights or a pickled module), not an exported program; save the" in refusal(path)


@pytest.mark.parametrize("name", ["net.pt", "net.pt2"])
def test_pickled_module(tmp_path, no_bomb, name):
    path = tmp_path / name
    torch.save([Bomb()], path)
    assert "is a file of torch.save" in refusal(path)


def test_plain_pickle(tmp_path, no_bomb):
    import pickle

    path = tmp_path / "net.pt"
    path.write_bytes(pickle.dumps(Bomb()))
    assert "is a pickle, which can run code when loaded, so it is refused" in refusal(path)


@pytest.mark.parametrize("size", [0, 3, 100, 1000, -300, -1])
def test_truncated_program(pt2, size):
    data = pt2.read_bytes()
    pt2.write_bytes(data[:size])
    assert "is truncated, or not an exported program" in refusal(pt2)


def test_other_zip(tmp_path):
    path = tmp_path / "net.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("readme.txt", "hello")
    assert "is a zip file, but not an exported program" in refusal(path)


def test_compiled_artifact(tmp_path):
    path = tmp_path / "model.tersor"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("manifest.json", "{}")
    assert "is a compiled model already; use it with `tersor run`" in refusal(path)


@pytest.mark.parametrize("content", [b"", b"hello", b"import torch\n", b"\x7fELF\x02\x01\x00\x00", b"\xff\xfe\x00"])
def test_other_file(tmp_path, content):
    path = tmp_path / "net.txt"
    path.write_bytes(content)
    assert "is neither an exported program nor IR text; save the model with torch.export.save" in refusal(path)


def test_malformed_ir(tmp_path):
    path = tmp_path / "net.tir"
    path.write_text("# tersor ir 1\ngraph @g(%x: f32[2]) {\n  %0 = rellu(%x) : f32[2]\n  return %0\n}\n")
    assert "line 3, column 8: unknown op 'rellu'; did you mean 'relu'?" in refusal(path)


def test_ir_without_weights(program, tmp_path):
    path = tmp_path / "net.tir"
    ir.save_ir(from_torch(program), path)
    path.with_suffix(".safetensors").unlink()
    assert "no such weights file" in refusal(path)


def test_unreadable_file(pt2, monkeypatch):
    def deny(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", deny)
    assert "cannot be read (Permission denied)" in refusal(pt2)


# Archives that would run code ------------------------------------------------------------------------------------


def pickled(value: object) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def test_archive_with_pickled_example_inputs(pt2, no_bomb):
    rewrite(pt2, lambda name, data: {name: pickled([Bomb()]) if name.startswith("data/sample") else data})
    assert "its example inputs are a pickle of more than tensors" in refusal(pt2)


@pytest.mark.parametrize("kind", ["weights", "constants"])
def test_archive_with_pickled_tensors(pt2, no_bomb, kind):
    def plant(name, data):
        if not name.startswith(f"data/{kind}/"):
            return {name: data}
        if not name.endswith(".json"):
            return {name: pickled(Bomb())}
        config = json.loads(data)
        for payload in config["config"].values():
            payload["use_pickle"] = True
        return {name: json.dumps(config)}

    rewrite(pt2, plant)
    assert "is stored as a pickle, which can run code when loaded, so it is refused" in refusal(pt2)


def test_archive_with_a_custom_object(pt2, no_bomb):
    def plant(name, data):
        if name != "data/constants/model_constants_config.json":
            return {name: data}
        config = json.loads(data)
        payload = dict(next(iter(config["config"].values())), path_name="opaque_obj_0")
        config["config"]["object"] = payload
        return {name: json.dumps(config), "data/constants/opaque_obj_0": pickled(Bomb())}

    rewrite(pt2, plant)
    assert "'object' is stored as a pickle" in refusal(pt2)


def test_archive_in_the_older_format(pt2, no_bomb):
    rewrite(pt2, lambda name, data: {name: data, "data/weights/model.pt": pickled(Bomb())})
    assert "is in an older format with pickled weights" in refusal(pt2)


def test_archive_with_compiled_code(pt2):
    rewrite(pt2, lambda name, data: {name: data, "data/aotinductor/model/code.so": b"\x7fELF"})
    assert "contains compiled code, which is refused" in refusal(pt2)


def test_archive_with_a_foreign_function(pt2):
    def plant(name, data):
        return {name: data.replace(b"torch.ops.aten.relu.default", b"torch.os.abort")}

    rewrite(pt2, plant)
    assert "calls 'torch.os.abort', which a graph cannot hold" in refusal(pt2)


@pytest.mark.parametrize("name", ["models/model.json", "data/weights/model_weights_config.json", "archive_format"])
@pytest.mark.parametrize("data", [b"", b"{", b'{"config": {}}', b"[]"])
def test_damaged_archive(pt2, name, data):
    rewrite(pt2, lambda member, old: {member: data if member == name else old})
    assert "exported program" in refusal(pt2)


def test_another_version_is_named_where_it_cannot_be_read(pt2):
    def plant(name, data):
        if name != "models/model.json":
            return {name: data}
        program = json.loads(data) | {"torch_version": "2.99.1"}
        program["graph_module"]["graph"]["nodes"][0]["target"] = "torch.ops.aten.later.default"
        return {name: json.dumps(program).encode()}

    rewrite(pt2, plant)
    message = refusal(pt2)
    assert f"was written by PyTorch 2.99.1, and cannot be read by PyTorch {torch.__version__}: it calls " in message
    assert "'torch.ops.aten.later.default', which a graph cannot hold" in message


@pytest.mark.parametrize("said", ["2.5.1", ""])
def test_the_format_of_older_versions(said, tmp_path):
    path = tmp_path / "net.pt2"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("version", "8.2")
        version = f', "torch_version": "{said}"' if said else ""
        archive.writestr("serialized_exported_program.json", f'{{"graph_module": {{}}{version}}}')
        archive.writestr("serialized_state_dict.pt", b"")
    message = refusal(path)
    assert f"was written by PyTorch {said or 'of an older version'}, in a format with pickles" in message
    assert f"PyTorch {torch.__version__} no longer writes" in message


def test_archive_of_another_version(pt2):
    rewrite(pt2, lambda name, data: {name: b"999" if name == "archive_version" else data})
    assert "was written by PyTorch" in refusal(pt2)
