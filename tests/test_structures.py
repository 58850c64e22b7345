"""What a model takes and returns around its tensors: from PyTorch through text and artifact to a call."""

from __future__ import annotations

import collections
import subprocess
import sys
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils import _pytree as pytree

import tersor
from tersor import TersorError, ir
from tersor.frontend import load_model
from tersor.ir import IRError, TersorWarning, parse
from tersor.targets import Executable


class Pair(NamedTuple):
    first: Any
    second: Any


@dataclass
class Scores:
    logits: torch.Tensor
    loss: torch.Tensor | None = None


if Scores not in pytree.SUPPORTED_NODES:
    pytree.register_dataclass(Scores)


class Everything(nn.Module):
    """Every kind of structure, on both sides."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("table", torch.arange(4.0))

    def forward(
        self, x: torch.Tensor, parts: Any, mask: torch.Tensor | None = None, *, ids: Any, scale: float = 1.0
    ) -> dict[Any, Any]:
        doubled = x * 2 * scale
        return {
            "pair": Pair(doubled, None),
            "scores": Scores(parts["a"] + parts["b"][0]),
            "more": [x, (self.table, doubled), 3, "text", True, None],
            7: collections.OrderedDict(ids=ids["rows"] + 1, negative=x < 0),
            "size": x.shape,
        }


X, A, B = torch.tensor([[1.0, -2.0], [3.0, 4.0]]), torch.ones(3), torch.full((3,), 2.0)
IDS = {"rows": torch.tensor([3, 1]), "unused": torch.tensor([True])}
EXAMPLE = tersor.Arguments(X, {"a": A, "b": (B,)}, None, ids=IDS, scale=0.5)


def same(left: Any, right: Any) -> bool:
    """Equal structures, classes included, of equal tensors and constants."""
    ours, theirs = pytree.tree_flatten(left), pytree.tree_flatten(right)
    return ours[1] == theirs[1] and all(
        torch.equal(a, b) if isinstance(a, torch.Tensor) else (a, type(a)) == (b, type(b))
        for a, b in zip(ours[0], theirs[0], strict=True)
    )


@pytest.fixture(scope="module")
def executable() -> Executable:
    return tersor.compile(Everything().eval(), EXAMPLE)


def test_a_call_is_that_of_the_model(executable: Executable, tmp_path: Path) -> None:
    x, ids = -X, {"unused": IDS["unused"], "rows": IDS["rows"] * 2}
    expected = Everything()(x, {"a": A, "b": (A,)}, ids=ids, scale=0.5)
    assert "largest difference 0 " in str(executable.report.agreement)
    path, graph = executable.save(tmp_path / "model.tersor"), executable.graph
    for make in (lambda: tersor.load(path), lambda: tersor.compile(parse(str(graph), graph.weights))):
        with pytest.warns(TersorWarning, match=rf"classes that are unknown here \({__name__}\.Pair\)"):
            by_name = make()  # classes are known by name only, and the named tuple's is not registered
        result = by_name(x, {"a": A, "b": (A,)}, ids=ids, scale=0.5)
        assert same(result | {"pair": Pair(*result["pair"])}, expected)
        assert type(result["pair"]) is tuple
    for run in (executable, executable.graph.to_torch()):
        assert same(run(x, {"a": A, "b": (A,)}, None, ids=ids, scale=0.5), expected)
        assert same(run(parts={"b": [A], "a": A}, x=x, scale=0.5, ids=ids), expected)
        assert same(run(x, A, A, ids["rows"], ids["unused"]), expected)  # flat, in the order of the example inputs
    arrays = executable(x.numpy(), {"a": A.numpy(), "b": (A.numpy(),)}, ids=IDS, scale=0.5)
    assert isinstance(arrays["scores"].logits, np.ndarray)


@pytest.mark.parametrize(
    ("args", "kwargs", "message"),
    [
        ((X,), {}, r"takes 5 inputs \(x: f32"),
        ((X, {"a": A, "b": (B,)}), {"scale": 0.5}, "argument 'ids' is missing"),
        ((X, {"a": A}), {"ids": IDS, "scale": 0.5}, "argument 'parts' must be a dict with 'a', 'b', not dict with 'a'"),
        ((X, {"a": A, "b": [B, B]}), {"ids": IDS}, r"argument 'parts'\['b'\] must be a tuple of 1, not list of 2"),
        ((X, {"a": None, "b": [B]}), {"ids": IDS}, r"argument 'parts'\['a'\] must be a tensor, not None"),
        ((X, {"a": A, "b": (B,)}, X), {"ids": IDS}, "'mask' was None in the example inputs, got an array; compile the"),
        ((X, {"a": A, "b": (B,)}), {"ids": IDS, "scale": 2.0}, "'scale' was 0.5 in the example inputs, got 2.0"),
        ((X, {"a": A, "b": (B,)}), {"ids": IDS, "scale": 0.5, "maks": X}, "no argument 'maks'; did you mean 'mask'"),
        ((X, {"a": A, "b": (B,)}, None, 1), {"ids": IDS}, "takes 3 positional arguments, got 4"),
    ],
)
def test_other_calls_are_refused_in_one_line(args: Any, kwargs: Any, message: str, executable: Executable) -> None:
    with pytest.raises(TersorError, match=message) as caught:
        executable(*args, **kwargs)
    assert "\n" not in str(caught.value)


def test_text_keeps_the_structure(executable: Executable) -> None:
    text = str(executable.graph)
    assert text.splitlines()[-1] == (
        '} takes ("x": *, "parts": {"a": *, "b": (*)}, "mask": none) {"ids": {"rows": *, "unused": *}, "scale": 0.5} '
        f'gives {{"pair": "{__name__}.Pair" ("first": *, "second": none), '
        f'"scores": "{__name__}.Scores" {{"logits": *, "loss": none}}, '
        '"more": [*, (*, *), 3, "text", true, none], 7: "collections.OrderedDict" {"ids": *, "negative": *}, '
        '"size": "torch.Size" (2, 2)}'
    )
    again = parse(text, executable.graph.weights)
    assert str(again) == text
    assert ir.structurally_equal(again, executable.graph)
    again.structure = None
    assert not ir.structurally_equal(again, executable.graph)


GRAPH = "graph @net(%x: f32[2]) {\n  return %x\n}"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (f"{GRAPH} takes (*, *) {{}} gives *", "has 2 inputs and 1 outputs"),
        (f"{GRAPH} takes (*) {{}}", "expected 'gives', found 'the end of the text'"),
        (f'{GRAPH} takes ("x": *, "x": none) {{}} gives *', "keys must be different, one for each member"),
        (f"{GRAPH} takes (*) {{}} gives f32[1]", r"'f32\[1\]' is no constant"),
        (f"{GRAPH} takes (*) {{}} gives {'(' * 5000}", "nested too deeply"),
        ('graph @net(%x: f32[2] = "x", %y: f32[2]) {\n  return %x\n}', "input 'y' comes after state"),
        ('graph @net(%x: f32[2] = "x") {\n  return\n}', "an input and an output for each of its states"),
    ],
)
def test_malformed_text(text: str, message: str) -> None:
    with pytest.raises(IRError, match=message):
        ir.verify(parse(text), weights=False)


CHILD = """
import sys, torch, tersor
from tersor.frontend import load_model
for path in sys.argv[1:]:
    if path.endswith(".pt2"):
        loaded = load_model(path)
        executable = tersor.compile(loaded.model, loaded.example_inputs)
        executable.save(path + ".tersor")
    else:
        executable = tersor.load(path)
    print(type(executable(torch.ones(2))).__name__, "transformers" in sys.modules, "tests" in str(sys.modules))
"""


class Scored(nn.Module):
    def forward(self, x: torch.Tensor) -> Scores:
        return Scores(x + 1)


def test_files_import_nothing_and_keep_the_names_of_classes(tmp_path: Path) -> None:
    program = torch.export.export(Scored(), (torch.ones(2),))
    name = f"{__name__}.Scores"
    pytree.SUPPORTED_SERIALIZED_TYPES[Scores] = pytree._SerializeNodeDef(Scores, name, None, None)
    pytree.SERIALIZED_TYPE_TO_PYTHON_TYPE[name] = Scores
    torch.export.save(program, tmp_path / "model.pt2")
    tersor.compile(program).save(tmp_path / "model.tersor")
    paths = [tmp_path / "model.tersor", tmp_path / "model.pt2"]
    done = subprocess.run([sys.executable, "-c", CHILD, *paths], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["dict False False"] * 2
    assert done.stderr.count(f"classes that are unknown here ({name}): dicts and tuples come back") == 2
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for path in (*paths[:1], tmp_path / "model.pt2.tersor"):
            assert isinstance(tersor.load(path)(torch.ones(2)), Scores)
        assert isinstance(tersor.compile(load_model(str(paths[1])).model)(torch.ones(2)), Scores)


def test_hugging_face_outputs() -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.BertConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, vocab_size=9
    )
    model = transformers.BertModel(config).eval()
    inputs = {"input_ids": torch.tensor([[1, 2, 3]]), "attention_mask": torch.ones(1, 3, dtype=torch.long)}
    executable = tersor.compile(model, inputs, pipeline="O1")
    result = executable(**inputs)
    with torch.no_grad():
        expected = model(**inputs)
    assert type(result) is type(expected)
    assert result.keys() == expected.keys()
    torch.testing.assert_close(result.last_hidden_state, expected.last_hidden_state, rtol=1e-5, atol=1e-5)


def test_caches_of_hugging_face_come_back_and_go_in(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(n_embd=16, n_layer=2, n_head=2, vocab_size=9, bos_token_id=1, eos_token_id=2)
    model = transformers.GPT2Model(config).eval()
    tokens, following = torch.tensor([[1, 2, 3]]), torch.tensor([[4]])
    first = tersor.compile(model, tokens, pipeline="O1")
    first.save(tmp_path / "first.tersor")
    result = tersor.load(tmp_path / "first.tersor")(tokens)
    cache = result.past_key_values
    assert type(cache) is transformers.DynamicCache
    with torch.no_grad():
        expected = model(tokens)
        torch.testing.assert_close(cache.layers[1].keys, expected.past_key_values.layers[1].keys, rtol=1e-5, atol=1e-5)
        second = tersor.compile(model, tersor.Arguments(following, past_key_values=cache), pipeline="O1")
        longer = second(following, past_key_values=cache)
        torch.testing.assert_close(longer[0], model(following, past_key_values=cache)[0], rtol=1e-5, atol=1e-5)
    assert longer.past_key_values.layers[0].keys.shape[2] == 4
    with pytest.raises(TersorError, match=r"must be .*DynamicCache with 'key_cache', 'value_cache', not"):
        second(following, past_key_values=[cache])
    structure = tersor.ir.parse(str(first.graph), first.graph.weights).structure
    assert structure is not None
    assert structure.result.build(iter(range(5))) == {
        "last_hidden_state": 0,
        "past_key_values": {"key_cache": [1, 2], "value_cache": [3, 4]},
    }
