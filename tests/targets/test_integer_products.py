"""Compiled products of two activations of 8-bit integers, attention among them: bit for bit as interpreted."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tersor.ir import DType, Graph, IRError, TensorType, Value, ops
from tersor.ir.ops.integers import softmax_shares
from tersor.tests import emulated_x86
from tersor.tests.integer_graphs import IntegerBuilder

from .compiled import lowered, templates
from .test_integers import TARGETS, check_exact

INTEGERS = {DType.U8: (0, 255), DType.I8: (-128, 127)}
VNNI, PAIRS = TARGETS[1], TARGETS[2]
QUICK = settings(max_examples=3, deadline=None, derandomize=True)
DRAWN = settings(max_examples=60, deadline=None)
EXTREMES = st.sampled_from(("random", "smallest", "largest", "either"))
KINDS = st.sampled_from((DType.U8, DType.I8))


@pytest.fixture(autouse=True, scope="module")
def on_any_processor():
    with pytest.MonkeyPatch.context() as patch:
        emulated_x86.run_all_targets_here(patch)
        yield


def integers(type: TensorType, how: str = "random", seed: int = 0) -> torch.Tensor:
    """Numbers of an 8-bit type, or the outermost ones only, so that sums are as large as they can be."""
    low, high = INTEGERS[type.dtype]
    generator = torch.Generator().manual_seed(seed)
    if how == "random":
        return torch.randint(low, high + 1, type.shape, generator=generator).to(type.dtype.torch)
    ends = {"smallest": (low, low), "largest": (high, high), "either": (low, high)}[how]
    return torch.tensor(ends)[torch.randint(0, 2, type.shape, generator=generator)].to(type.dtype.torch)


def zero_points(kind: DType) -> st.SearchStrategy[int]:
    low, high = INTEGERS[kind]
    return st.one_of(st.sampled_from((low, high, low + 128)), st.integers(low, high))


# Matrix products ------------------------------------------------------------------------------------------------------


def product(kind: DType, *shapes: tuple[int, ...], transposed: bool = False, zeros: tuple[int, int] = (3, 7)) -> Graph:
    """A product whose sums are returned, and quantized."""
    b = IntegerBuilder({"x": TensorType(shapes[0], kind), "y": TensorType(shapes[1], kind)})
    sums = b.op(ops.MatmulOp, *b.graph.inputs, transpose_rhs=transposed, lhs_zero=zeros[0], rhs_zero=zeros[1])
    number = b.op(ops.DequantizeOp, sums, b.number(3e-4))
    return b.done(sums, b.quantize(number, scale=0.05))


@st.composite
def products(draw) -> tuple[Graph, str]:
    kind, transposed = draw(KINDS), draw(st.booleans())
    rows, columns, terms = (draw(st.integers(1, 70)) for _ in range(3))
    batch = draw(st.sampled_from(((), (3,), (2, 2))))
    right = (columns, terms) if transposed else (terms, columns)
    zeros = draw(zero_points(kind)), draw(zero_points(kind))
    graph = product(kind, (*batch, rows, terms), (*batch, *right), transposed=transposed, zeros=zeros)
    return graph, draw(EXTREMES)


def check_drawn(case: tuple[Graph, str], target: str) -> None:
    graph, how = case
    check_exact(graph, *(integers(v.type, how, seed) for seed, v in enumerate(graph.inputs)), target=target)


@pytest.mark.parametrize("target", [VNNI, PAIRS])
@QUICK
@given(case=products())
def test_drawn_products(target: str, case: tuple[Graph, str]):
    check_drawn(case, target)


@pytest.mark.slow
@pytest.mark.parametrize("target", TARGETS)
@DRAWN
@given(case=products())
def test_many_drawn_products(target: str, case: tuple[Graph, str]):
    check_drawn(case, target)


@pytest.mark.parametrize("dims", [(1, 0), (0, 1)])
def test_operands_are_read_through_strides(dims: tuple[int, int]):
    """Heads split from one tensor, and a left-hand side whose rows are not contiguous."""
    b = IntegerBuilder({"x": TensorType((2, 9, 3 * 20), DType.U8)})
    heads = b.op(ops.PermuteOp, b.op(ops.ReshapeOp, b.graph.inputs[0], shape=(2, 9, 3, 20)), dims=(0, 2, 1, 3))
    left = heads if dims == (0, 1) else b.op(ops.PermuteOp, heads, dims=(0, 1, 3, 2))
    sums = b.op(ops.MatmulOp, left, heads, transpose_rhs=dims == (0, 1), lhs_zero=100, rhs_zero=30)
    check_exact(b.done(sums), integers(b.graph.inputs[0].type), target=VNNI)


def test_broadcast_operands():
    graph = product(DType.U8, (4, 1, 6, 12), (5, 12, 21))
    check_exact(graph, *(integers(value.type) for value in graph.inputs), target=VNNI)


def test_which_template_computes_them():
    graph = product(DType.I8, (2, 8, 16), (2, 16, 8))
    for target in TARGETS:
        assert templates(lowered(graph, "fuse,layout", target))[0] == "matmul_int8_activations"


def test_products_that_may_overflow_are_refused():
    with pytest.raises(IRError, match="sums of 40000 products may not fit into i32"):
        product(DType.U8, (1, 40000), (40000, 1))
    product(DType.I8, (1, 40000), (40000, 1), zeros=(0, 0))
    with pytest.raises(IRError, match="zero point 300 does not fit u8; it must lie in 0 to 255"):
        product(DType.U8, (4, 4), (4, 4), zeros=(300, 0))
    b = IntegerBuilder({"x": TensorType((4, 4))})
    with pytest.raises(IRError, match="zero point 5 does not fit f32"):
        b.op(ops.MatmulOp, *[b.graph.inputs[0]] * 2, lhs_zero=5)


# Attention ------------------------------------------------------------------------------------------------------------


def attention(
    kind: DType,
    sizes: tuple[int, int, int, int],
    *,
    batch: tuple[int, ...] = (2, 3),
    scale: float = 2e-4,
    zeros: tuple[int, int] = (0, 0),
    mask: TensorType | None = None,
    causal: bool = False,
) -> Graph:
    """An attention of so many queries, keys, elements of a key and of a value: its result, and quantized."""
    queries, keys, width, value_width = sizes
    inputs = {
        "q": TensorType((*batch, queries, width), kind),
        "k": TensorType((*batch, keys, width), kind),
        "v": TensorType((*batch, keys, value_width), kind),
    }
    b = IntegerBuilder(inputs | ({} if mask is None else {"mask": mask}))
    query_zero, value_zero = zeros
    result = b.op(
        ops.AttentionOp, *b.graph.inputs, scale=scale, query_zero=query_zero, value_zero=value_zero, causal=causal
    )
    return b.done(result, b.quantize(result, scale=0.31, zero_point=101))


@st.composite
def attentions(draw) -> tuple[Graph, str]:
    kind = draw(KINDS)
    sizes = tuple(draw(st.integers(1, 75)) for _ in range(4))
    zeros = draw(zero_points(kind)), draw(zero_points(kind))
    scale = draw(st.sampled_from((1e-6, 3e-5, 2e-4, 0.01)))
    batch = draw(st.sampled_from(((), (3,), (2, 2))))
    causal = draw(st.booleans())
    return attention(kind, sizes, batch=batch, scale=scale, zeros=zeros, causal=causal), draw(EXTREMES)


@pytest.mark.parametrize("target", [VNNI, PAIRS])
@QUICK
@given(case=attentions())
def test_drawn_attention(target: str, case: tuple[Graph, str]):
    check_drawn(case, target)


@pytest.mark.slow
@pytest.mark.parametrize("target", TARGETS)
@DRAWN
@given(case=attentions())
def test_many_drawn_attentions(target: str, case: tuple[Graph, str]):
    check_drawn(case, target)


@pytest.mark.parametrize("dtype", [DType.BOOL, DType.F32])
def test_masks(dtype: DType):
    """A key that is not seen has a weight of 0, and a query that sees none a result of 0."""
    graph = attention(DType.U8, (11, 21, 16, 8), zeros=(120, 131), mask=TensorType((2, 1, 11, 21), dtype))
    seen = torch.rand(2, 1, 11, 21, generator=torch.Generator().manual_seed(1)) < 0.7
    seen[0, 0, 4] = False
    mask = seen
    if dtype is DType.F32:
        mask = torch.randn(seen.shape, generator=torch.Generator().manual_seed(2)).masked_fill(~seen, -math.inf)
        mask[0, 0, 5, 3] = math.nan
    inputs = [integers(value.type, seed=seed) for seed, value in enumerate(graph.inputs[:3])]
    check_exact(graph, *inputs, mask, target=VNNI)
    result = graph.evaluate(*inputs, mask)[0]
    assert (result[0, :, 4] == 0).all() and result.isfinite().all()


def test_heads_of_one_buffer():
    """Query, key and value are slices of what one layer makes, and heads are merged again."""
    b = IntegerBuilder({"x": TensorType((2, 13, 3 * 48), DType.U8)})

    def heads(part: int) -> Value:
        cut = b.op(ops.SliceOp, b.graph.inputs[0], axis=2, start=48 * part, stop=48 * (part + 1))
        return b.op(ops.PermuteOp, b.op(ops.ReshapeOp, cut, shape=(2, 13, 3, 16)), dims=(0, 2, 1, 3))

    found = b.op(ops.AttentionOp, heads(0), heads(1), heads(2), scale=1e-4, query_zero=128, value_zero=128)
    q = b.quantize(found, zero_point=128, scale=0.5)
    merged = b.op(ops.ReshapeOp, b.op(ops.PermuteOp, q, dims=(0, 2, 1, 3)), shape=(2, 13, 48))
    graph = b.done(merged)
    assert templates(lowered(graph, "fuse,layout", VNNI)) == ["attention_int8"]
    check_exact(graph, integers(b.graph.inputs[0].type), target=VNNI)


def test_queries_whose_elements_are_apart_are_copied():
    b = IntegerBuilder({"x": TensorType((2, 16, 9), DType.I8)})
    turned = b.op(ops.PermuteOp, b.graph.inputs[0], dims=(0, 2, 1))
    check_exact(b.done(b.op(ops.AttentionOp, turned, turned, turned, scale=1e-4)), integers(b.graph.inputs[0].type))


def test_weights_are_those_of_softmax():
    """As near as 255 steps are; a score of 0 beside a peak of 255 / 2 steps is rounded to even."""
    scores = torch.linspace(-12, 0, 4001).reshape(1, -1)
    exact = 255 * scores.double().exp()
    shares = softmax_shares(scores)
    assert (shares - exact).abs().max() < 0.53  # half a step, and the error of the polynomial
    assert shares[0, -1] == 255
    assert softmax_shares(torch.full((1, 3), -math.inf)).eq(0).all()
    assert softmax_shares(torch.tensor([[math.nan, 0.0, -math.inf]])).tolist() == [[0, 255, 0]]


def test_integers_stand_for_what_attention_computes():
    """Within the rounding of the operands, the result is that of floating-point numbers."""
    generator = torch.Generator().manual_seed(0)
    numbers = [torch.randn(2, 4, 50, 32, generator=generator) for _ in range(3)]
    step, zero = 0.04, 120
    rounded = [torch.round(one / step).clamp(-zero, 255 - zero) for one in numbers]
    graph = attention(DType.U8, (50, 50, 32, 32), batch=(2, 4), scale=32**-0.5 * step**2, zeros=(zero, zero))
    found = graph.evaluate(*((one + zero).to(torch.uint8) for one in rounded))[0] * step
    wanted = torch.nn.functional.scaled_dot_product_attention(*(one * step for one in rounded))
    assert (found - wanted).abs().max() < 0.01 * wanted.abs().max()


def test_more_keys_than_sums_have_room_for_are_refused():
    with pytest.raises(IRError, match="sums of 40000 products may not fit into i32"):
        attention(DType.U8, (1, 40000, 1, 1), batch=())
