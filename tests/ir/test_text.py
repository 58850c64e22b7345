from __future__ import annotations

import math

import pytest
import torch

from tersor.ir import DType, Graph, IRError, TensorType, load_ir, parse, save_ir, structurally_equal, verify
from tersor.ir.ops import ClampOp, Conv2dOp, FullOp, PadOp, ReluOp, WeightOp
from tersor.tests.checks import body
from tersor.tests.random_graphs import GraphBuilder

GOLDEN = """\
graph @net(%x: f32[1,3,8,8], %mask: bool[2]) {
  %0 = weight {id="conv.weight", type=f32[4,3,3,3]} : f32[4,3,3,3]
  %1 = conv2d(%x, %0, _) {padding=[1,1,1,1]} : f32[1,4,8,8]@c16 loc("layer \\"1\\"") rule("test")
  %2 = clamp(%1) {max=6.0} : f32[1,4,8,8]
  %3 = fused(%2) : f32[1,4,8,8] body @body(%a: f32[1,4,8,8]) {
    %0 = full {value=-inf} : f32[]
    %1 = relu(%a) : f32[1,4,8,8]
    %2 = maximum(%1, %0) : f32[1,4,8,8]
    return %2
  }
  return %3, %x
}
"""


def test_golden_text_prints_back_the_same():
    graph = parse(GOLDEN)
    assert str(graph) == GOLDEN
    verify(graph, weights=False)
    conv = graph.ops[1]
    assert isinstance(conv, Conv2dOp)
    assert (conv.location, conv.rule, conv.bias) == ('layer "1"', "test", None)
    assert conv.result.type.channel_block == 16


def test_names_that_text_cannot_hold():
    graph = Graph(
        "my net",
        [("a b", TensorType((1,))), ("a b", TensorType((1,))), ("", TensorType((1,))), ("3", TensorType((1,)))],
    )
    graph.outputs = graph.inputs
    assert body(str(graph)).splitlines()[0] == (
        "graph @my_net(%a_b: f32[1], %a_b.1: f32[1], %arg2: f32[1], %arg3: f32[1]) {"
    )
    assert structurally_equal(parse(str(graph)), graph)


@pytest.mark.parametrize("value", [0.1, 1e-30, 1e20, math.inf, -math.inf, -0.0, 3, True, 2**60])
def test_numbers_round_trip(value):
    b = GraphBuilder({})
    graph = b.done(b.op(FullOp, value=value, shape=(2, 0)))
    again = parse(str(graph)).ops[0].attrs.value
    assert (repr(again), type(again)) == (repr(value), type(value))


def test_nan_round_trips():
    b = GraphBuilder({})
    assert math.isnan(parse(str(b.done(b.op(FullOp, value=math.nan)))).ops[0].attrs.value)


def test_defaults_are_left_out():
    b = GraphBuilder({"x": TensorType((2,))})
    text = str(b.done(b.op(PadOp, b.op(ClampOp, b.graph.inputs[0]), before=(0,), after=(0,))))
    assert "%0 = clamp(%x) : f32[2]" in text
    assert "{before=[0], after=[0]}" in text


def test_comments_and_layout_of_the_text_do_not_matter():
    text = "# a comment\ngraph @g(%x: f32[1]) {%0=relu(%x):f32[1] # another\nreturn %0}"
    assert [op.name for op in parse(text).ops] == ["relu"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "line 1, column 1: expected 'graph', found 'the end of the text'"),
        ("grph @g() {}", "line 1, column 1: expected 'graph', found 'grph'"),
        ("graph g() {}", "column 7: expected 'symbol', found 'g'"),
        ("graph @g(%x) {}", "column 12: expected ':', found ')'"),
        ("graph @g(%x: f33[1]) {}", "line 1, column 14: 'f33[1]' is not a tensor type"),
        ("graph @g(%x: f32[1], %x: f32[1]) {}", "two inputs have one name"),
        ("graph @g() {\n  ?\n}", "line 2, column 3: unexpected character '?'"),
        ("graph @g() {\n  return\n} more", "line 3, column 3: unexpected 'more' after the graph"),
        ("graph @g() { return %a }", "column 21: %a is not defined before this line"),
        ("graph @g() {", "found 'the end of the text'"),
        ("X(%x) : f32[2]", "line 2, column 8: unknown op 'X'; known: "),
        ("reluu(%x) : f32[2]", "line 2, column 8: unknown op 'reluu'; did you mean 'relu'?"),
        ("relu(%y) : f32[2]", "line 2, column 13: %y is not defined before this line"),
        ("relu(%x, %x) : f32[2]", "line 2, column 8: relu: takes 1 to 1 operands, got 2"),
        ("relu() : f32[2]", "relu: takes 1 to 1 operands, got 0"),
        ("relu(_) : f32[2]", "relu: operand 'x' is missing"),
        ("relu(%x) : f32[3]", "line 2, column 8: relu gives f32[2], not f32[3]"),
        ("relu(%x) {a=1} : f32[2]", "line 2, column 18: relu has no attribute 'a'"),
        ("clamp(%x) {mn=1.0} : f32[2]", "clamp has no attribute 'mn'; did you mean 'min'?"),
        ('clamp(%x) {min="a"} : f32[2]', "line 2, column 19: attribute 'min' of clamp cannot be \"a\""),
        ("clamp(%x) {min=true} : f32[2]", "attribute 'min' of clamp cannot be true"),
        ("clamp(%x) {min=oops} : f32[2]", "line 2, column 23: 'oops' is not an attribute value"),
        ("reshape(%x) {shape=2} : f32[2]", "attribute 'shape' of reshape cannot be 2"),
        ("reshape(%x) {shape=[2.5]} : f32[2]", "attribute 'shape' of reshape cannot be [2.5]"),
        ("reshape(%x) {shape=[3]} : f32[3]", "f32[2] has 2 elements, not those of [3]"),
        ("reshape(%x) : f32[2]", "attributes of reshape: "),
        ("permute(%x) {dims=[1]} : f32[2]", "[1] is not a permutation of the dimensions of f32[2]"),
        ("conv2d(%x, %x) {stride=[0,1]} : f32[2]", "stride, dilation and groups must be positive"),
        ("conv2d(%x, %x) {stride=[1]} : f32[2]", "attribute 'stride' of conv2d cannot be [1]"),
        ('gelu(%x) {approximate="no"} : f32[2]', "approximate must be 'none' or 'tanh', not 'no'"),
        ('relu(%x) : f32[2] loc("\\q")', "malformed string"),
        ("relu(%x) : f32[2] loc(relu)", "expected 'string', found 'relu'"),
        ("relu(%x) : f32[2]\n  %0 = relu(%x) : f32[2]", "line 3, column 3: %0 is defined twice"),
        ("fused(%x) : f32[2] body @b(%a: f32[3]) { return %a }", "body takes (f32[3]), operands are (f32[2])"),
        ("cast(%x) {dtype=f33} : f32[2]", "'f33' is not an attribute value"),
        ("max_pool2d(%x) {kernel=[2,2], stride=[0,0]} : f32[2]", "kernel, stride and dilation must be positive"),
        ("avg_pool2d(%x) {kernel=[2,2], stride=[1,1], padding=[0,2]} : f32[2]", "padding must be at most half"),
        ("concat(%x, _) {axis=0} : f32[2]", "concat: operand 'parts' is missing"),
        (f"full {{value={'9' * 5000}}} : f32[2]", "integer string conversion"),
        (f"reshape(%x) {{shape=[{'9' * 5000}]}} : f32[2]", "integer string conversion"),
        (f"reshape(%x) {{shape={'[' * 50000}", "nested too deeply"),
        ("full {value=1e30, dtype=i8} : i8[]", "1e+30 is not a number of type i8"),
    ],
)
def test_mistakes_show_line_and_column(text, message):
    if not text.startswith("gr") and text:
        text = f"graph @g(%x: f32[2]) {{\n  %0 = {text}\n  return %0\n}}"
    with pytest.raises(IRError) as caught:
        parse(text)
    assert message in str(caught.value)
    assert str(caught.value).startswith("line ")


def test_files_round_trip(tmp_path):
    b = GraphBuilder({"x": TensorType((1, 4, 6, 6))})
    graph = b.done(b.op(ReluOp, b.conv(b.graph.inputs[0], 4)))
    save_ir(graph, tmp_path / "g.ir")
    again = load_ir(tmp_path / "g.ir")
    assert structurally_equal(again, graph)
    assert (tmp_path / "g.ir").read_text().startswith("# tersor ir 1\n")


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(IRError, match=r"missing\.ir: no such file"):
        load_ir(tmp_path / "missing.ir")
    with pytest.raises(IRError, match="not a regular file; name a file of IR text"):
        load_ir(tmp_path)
    (tmp_path / "binary.ir").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(IRError, match="not readable as IR text"):
        load_ir(tmp_path / "binary.ir")
    (tmp_path / "newer.ir").write_text("# tersor ir 2\ngraph @g() { return }")
    with pytest.raises(IRError, match="IR version 2 is not readable here"):
        load_ir(tmp_path / "newer.ir")


def test_text_without_its_weights(tmp_path):
    b = GraphBuilder({})
    (tmp_path / "g.ir").write_text(str(b.done(b.weight(3))))
    with pytest.raises(IRError, match=r"g\.safetensors: no such weights file; IR text needs its"):
        load_ir(tmp_path / "g.ir")
    assert len(load_ir(tmp_path / "g.ir", require_weights=False).weights) == 0
    (tmp_path / "g.safetensors").write_bytes(b"garbage")
    with pytest.raises(IRError, match="not a readable safetensors file"):
        load_ir(tmp_path / "g.ir", require_weights=False)


def test_weight_is_parsed_with_its_tensor():
    text = 'graph @g() { %0 = weight {id="w", type=i64[2]} : i64[2] return %0 }'
    graph = parse(text, {"w": torch.tensor([1, 2])})
    assert isinstance(graph.ops[0], WeightOp)
    assert graph.ops[0].attrs.type.dtype is DType.I64
    assert torch.equal(graph.evaluate()[0], torch.tensor([1, 2]))


def test_negative_zero_is_not_a_default():
    b = GraphBuilder({"x": TensorType((2,))})
    graph = b.done(b.op(PadOp, b.graph.inputs[0], before=(1,), after=(0,), value=-0.0))
    again = parse(str(graph))
    assert math.copysign(1, again.ops[0].attrs.value) == -1
    assert structurally_equal(again, graph)
