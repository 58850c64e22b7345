"""If, Loop and Scan of ONNX files, where what decides is known; and inputs that are made constants."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from tersor import ir
from tersor.frontend import from_onnx
from tersor.frontend.onnx.file import OnnxError

X = np.random.default_rng(0).standard_normal((2, 3)).astype(np.float32)


def saved(path: Path, text: str) -> Path:
    """A model in ONNX's own text form, as a file."""
    model = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["" : 18]>\n{text}')
    onnx.checker.check_model(model)
    onnx.save(model, path / "net.onnx")
    return path / "net.onnx"


def check(path: Path, inputs: dict[str, np.ndarray], constants: dict[str, object] | None = None) -> ir.Graph:
    """Import a file, and compare with ONNX Runtime; returns the graph."""
    runtime = pytest.importorskip("onnxruntime")  # ONNX's own evaluator does not stack what steps give
    graph = from_onnx(path, constants=constants)
    ir.verify(graph)
    known = {name: np.array(value) for name, value in (constants or {}).items()}
    session = runtime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    expected = session.run(None, inputs | known)
    results = graph.evaluate(*map(torch.from_numpy, inputs.values()))
    for result, one in zip(results, expected, strict=True):
        assert result.numpy().shape == one.shape
        np.testing.assert_allclose(result.numpy(), one, rtol=1e-5, atol=1e-5)
    return graph


# As in silero-vad: one network for each sampling rate.
RATES = """
net (float[2,3] x, int64 sr) => (float[2,3] y) {
  rate = Constant <value = int64 {16000}> ()
  same = Equal (sr, rate)
  y = If (same) <
    then_branch = fast () => (float[2,3] a) { a = Relu (x) },
    else_branch = slow () => (float[2,3] b) { b = Neg (x) }
  >
}
"""


def test_a_constant_input_decides(tmp_path):
    path = saved(tmp_path, RATES)
    assert [op.name for op in check(path, {"x": X}, {"sr": np.int64(16000)}).ops] == ["relu"]
    graph = check(path, {"x": X}, {"sr": np.int64(8000)})
    assert [op.name for op in graph.ops] == ["neg"]
    assert [value.name for value in graph.inputs] == ["x"]
    assert from_onnx(path, constants={"sr": torch.tensor(16000)}).ops[0].name == "relu"


def test_what_decides_is_named(tmp_path):
    with pytest.raises(OnnxError) as caught:
        from_onnx(saved(tmp_path, RATES))
    (problem,) = caught.value.problems
    assert problem == (
        "If at 'y' is not supported: its condition depends on the data; fix what decides, by constants={'sr': …} or "
        "--constant sr=…"
    )
    by_numbers = RATES.replace("Equal (sr, rate)", "Equal (n, n)")
    by_numbers = by_numbers.replace("rate =", "n = ReduceSum<keepdims=0>(x)\nrate =")
    with pytest.raises(OnnxError) as caught:
        from_onnx(saved(tmp_path, by_numbers), constants={"sr": 1})
    assert caught.value.problems == ("If at 'y' is not supported: its condition depends on the data",)


@pytest.mark.parametrize(
    ("constants", "problem"),
    [
        ({"rate": 1}, "has no input 'rate'; known: sr, x"),
        ({"sr": "fast"}, "the constant for input 'sr' is not a number or an array of them"),
        ({"sr": 0.5}, "the constant for input 'sr' is no i64"),
        ({"sr": [1, 2]}, "input 'sr' is [], which the shape [2] does not fit"),
    ],
    ids=str,
)
def test_other_constants(constants, problem, tmp_path):
    with pytest.raises(OnnxError) as caught:
        from_onnx(saved(tmp_path, RATES), constants=constants)
    assert problem in caught.value.problems


LOOP = """
net (float[2,3] x) => (float[2,3] y, float[3,2,3] all) {
  n = Constant <value = int64 {3}> ()
  go = Constant <value = bool {1}> ()
  two = Constant <value = float {2.0}> ()
  y, all = Loop (n, go, x) <body = step (int64 i, bool c, float[2,3] a) => (bool d, float[2,3] b, float[2,3] s) {
    k = CastLike (i, a)
    t = Mul (a, two)
    b = Add (t, k)
    s = Sub (b, x)
    d = Identity (c)
  }>
}
"""


def test_a_loop_is_unrolled(tmp_path):
    check(saved(tmp_path, LOOP), {"x": X})


def test_a_loop_ends_when_its_condition_says_so(tmp_path):
    ending = LOOP.replace("d = Identity (c)", "one = Constant <value = int64 {1}> ()\nd = Less (i, one)")
    check(saved(tmp_path, ending.replace("float[3,2,3] all", "float[2,2,3] all")), {"x": X})


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        ("int64 {3}", "int64 {1000}", "Loop at 'y' is not supported: it has more than 256 steps"),
        ("int64 {3}", "int64 {0}", "it has no steps, so the shapes of its results are unknown"),
        ("d = Identity (c)", "u = ReduceMax<keepdims=0>(b)\nd = Less (u, two)", "when it ends depends on the data"),
        (
            "float[2,3] x)",
            "float[2,3] x, int64 n)",
            "the number of its steps depends on the data; fix what decides, by c",
        ),
        ("CastLike (i, a)", "Bernoulli (a)", "operator Bernoulli is not supported (at 'k')"),
    ],
)
def test_loops_that_are_not_known(old, new, problem, tmp_path):
    text = LOOP.replace(old, new, 1)
    text = text.replace("  n = Constant <value = int64 {3}> ()\n", "") if "int64 n" in new else text
    with pytest.raises(OnnxError) as caught:
        from_onnx(saved(tmp_path, text))
    (found,) = caught.value.problems
    assert problem in found


def test_a_scan_is_unrolled(tmp_path):
    check(
        saved(
            tmp_path,
            """
net (float[2] h, float[4,2] x) => (float[2] last, float[4,2] all) {
  last, all = Scan <num_scan_inputs = 1, body = step (float[2] a, float[2] v) => (float[2] b, float[2] w) {
    s = Add (a, v)
    b = Tanh (s)
    w = Neg (b)
  }> (h, x)
}
""",
        ),
        {"h": X[0, :2], "x": np.random.default_rng(1).standard_normal((4, 2)).astype(np.float32)},
    )


def test_what_keeps_some_boxes_is_refused_with_a_way_out(tmp_path):
    boxes = """
net (float[1,6,4] boxes, float[1,1,6] scores) => (int64[n,3] kept) { kept = NonMaxSuppression (boxes, scores) }
"""
    with pytest.raises(OnnxError, match=r"NonMaxSuppression is not supported: how many .* cut the model off before it"):
        from_onnx(saved(tmp_path, boxes))
