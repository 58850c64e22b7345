"""The CUDA templates, run thread by thread under the emulator, against PyTorch."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import product as product_of

import pytest
import torch
from torch.nn import functional

from tersor.ir import DType, TensorType
from tersor.ir.ops import AddOp, CastOp, ClampOp, LinearOp, MulOp, PowOp, RsqrtOp, SiluOp, SqrtOp
from tersor.ir.ops.arithmetic import BinaryOp
from tersor.passes import run_passes
from tersor.targets.codegen.group import Group
from tersor.targets.cuda import templates
from tersor.targets.cuda.epilogue import EXPRESSIONS, Reach, make_epilogue, number, scaled
from tersor.targets.cuda.kernel import Buffer, CudaKernel
from tersor.targets.cuda.templates import TILES, Cut, Extents, Product
from tersor.tests.random_graphs import GraphBuilder

from .cuda_emulator import COMPILER, build, emulate
from .cuda_reference import gpu

pytestmark = pytest.mark.skipif(COMPILER is None, reason="no g++ to build the emulator with")

TARGET = gpu("cuda:sm_90")
SUMS = scaled("float32", 1.0)
TOLERANCE = 1e-5  # of the largest sum: only the order of additions differs


def halves(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).half()


@dataclass(frozen=True)
class Case:
    """A kernel, what it reads, and what it is to write."""

    kernel: CudaKernel
    inputs: tuple[torch.Tensor, ...]
    expected: torch.Tensor


def run(kernel: CudaKernel, inputs: tuple[torch.Tensor, ...], shape: tuple[int, ...]) -> torch.Tensor:
    output = torch.full(kernel.output.shape or shape, torch.nan, dtype=getattr(torch, kernel.output.dtype))
    emulate(kernel, inputs, output)
    return output if kernel.then is None else run(kernel.then, (output,), shape)


def check(*cases: Case) -> None:
    """Compile the kernels of a test at once, and compare each with what is expected."""
    build(kernel for case in cases for kernel in (case.kernel, case.kernel.then) if kernel is not None)
    for case in cases:
        kernel, expected = case.kernel, case.expected.float()
        actual = run(kernel, case.inputs, tuple(expected.shape))
        worst = (actual.float() - expected).abs().max() / expected.abs().max()
        assert worst <= TOLERANCE, f"{kernel.template} {kernel.knobs}: {kernel.call}"


def product(extents: Product, *cut: Cut, inputs: tuple[torch.Tensor, torch.Tensor]) -> Case:
    """A matrix product of ``inputs``."""
    a, b = (matrix.float() for matrix in inputs)
    return Case(templates.matmul(TARGET, extents, SUMS, *cut), inputs, a @ (b.mT if extents.b_rows else b))


def test_products_of_a_batch_in_every_tile():
    cases = []
    for tile, b_rows in product_of(TILES, (True, False)):
        m, n, k = tile.m + 5, tile.n // 2 + 9, 72
        inputs = halves(2, m, k), halves(2, n, k, seed=1) if b_rows else halves(2, k, n, seed=1)
        cases.append(product(Product(2, m, n, k, b_rows, m * k, n * k), Cut(tile), inputs=inputs))
    check(*cases)


def test_extents_that_divide_by_nothing():
    cases = []
    for (m, n, k), b_rows in product_of([(7, 13, 19), (40, 64, 33), (5, 1, 1)], (True, False)):
        inputs = halves(m, k), halves(n, k, seed=1) if b_rows else halves(k, n, seed=1)
        cases.append(product(Product(1, m, n, k, b_rows, 0, 0), Cut(TILES[-1]), inputs=inputs))
    check(*cases)


def test_a_matrix_that_all_of_a_batch_share():
    inputs = halves(3, 20, 16), halves(12, 16, seed=1)
    check(product(Product(3, 20, 12, 16, True, 20 * 16, 0), inputs=inputs))


def test_sums_cut_into_parts():
    inputs = halves(35, 200), halves(40, 200, seed=1)
    extents = Product(1, 35, 40, 200, True, 0, 0)
    cases = {splits: product(extents, Cut(TILES[-1], splits), inputs=inputs) for splits in (2, 5, 8)}
    for splits, case in cases.items():
        assert case.kernel.grid[2] == splits  # 7 slices: of 8 parts the last has none
    check(*cases.values())


def test_few_rows():
    cases = []
    for rows, k in ((1, 512), (3, 77)):
        inputs = halves(rows, k), halves(21, k, seed=1)
        cases.append(product(Product(1, rows, 21, k, True, 0, 0), inputs=inputs))
        assert cases[-1].kernel.template == "gemv"
    check(*cases)


WINDOWS = [  # kernel, stride, padding, dilation
    ((3, 3), (1, 1), (1, 1), (1, 1)),
    ((1, 1), (1, 1), (0, 0), (1, 1)),
    ((5, 2), (2, 3), (2, 0), (1, 1)),
    ((3, 3), (1, 2), (2, 1), (2, 3)),
]


def convolution(window: tuple, channels: int, outputs: int, groups: int, make: Callable[[Extents], CudaKernel]) -> Case:
    """A convolution of two pictures; ``make`` makes its kernel for a window."""
    kernel, stride, padding, dilation = window
    x, weight = halves(2, channels, 9, 11), halves(outputs, channels // groups, *kernel, seed=1)
    expected = functional.conv2d(x.float(), weight.float(), None, stride, padding, dilation, groups)
    extents = Extents(9, 11, channels, *expected.shape[2:], *kernel, *stride, *padding, *dilation)
    filters = weight[:, 0].permute(1, 2, 0) if groups == channels else weight.permute(0, 2, 3, 1)
    inputs = x.permute(0, 2, 3, 1).contiguous(), filters.contiguous()
    return Case(make(extents), inputs, expected.permute(0, 2, 3, 1))


def test_convolutions():
    def case(window: tuple, splits: int) -> Case:
        cut = Cut(TILES[-1], splits)
        return convolution(window, 24, 20, 1, lambda extents: templates.conv2d(TARGET, 2, 20, extents, SUMS, cut))

    check(*(case(window, 1) for window in WINDOWS), case(WINDOWS[-1], 2))


def test_depthwise_convolutions():
    def make(extents: Extents) -> CudaKernel:
        return templates.depthwise(2, extents, SUMS)

    check(*(convolution(window, n, n, n, make) for window, n in zip(WINDOWS, (16, 7, 12, 24), strict=True)))


def test_grouped_convolutions():
    def make(extents: Extents) -> CudaKernel:
        return templates.grouped(2, 8, 4, extents, SUMS)

    check(*(convolution(window, 12, 8, 4, make) for window in WINDOWS[2:]))


# Epilogues ---------------------------------------------------------------------------------------------------------


def linear_group(*behind: type, other: tuple[int, ...] = (6, 24)) -> Group:
    """A linear layer in half precision with elementwise ops behind it; binary ones read an input."""
    b = GraphBuilder({"x": TensorType((6, 16)), "other": TensorType(other)})
    value = b.op(LinearOp, b.graph.inputs[0], b.weight(24, 16), b.weight(24))
    for kind in behind:
        operands = (value, b.graph.inputs[1]) if issubclass(kind, BinaryOp) else (value,)
        value = b.op(kind, *operands)
    (op,) = [op for op in run_passes(b.done(value), "O3,to-fp16").ops if op.body is not None]
    return Group.of(op)


def test_an_epilogue_says_how_operands_are_read_and_what_is_stored():
    group = linear_group(AddOp, SiluOp, MulOp)
    epilogue = make_epilogue(group, -1, bias=group.anchor_operand(2))
    assert epilogue is not None
    assert [reach for _, reach in epilogue.operands] == [Reach.COLUMN, Reach.ELEMENT]
    assert epilogue.dtype == "float32"  # the cast of the graph's output is part of the group


def test_what_no_epilogue_takes():
    assert make_epilogue(linear_group(MulOp, other=(24,)), -1) is not None
    assert make_epilogue(linear_group(MulOp, other=(6, 1)), -1) is None  # one number for each row
    assert make_epilogue(linear_group(PowOp), -1) is None  # no expression


def test_expressions_agree_with_the_interpreter():
    """Column i of one kernel computes expression i."""
    attrs = {CastOp: {"dtype": DType.F32}, ClampOp: {"min": -0.5, "max": 0.75}}
    generator = torch.Generator().manual_seed(3)
    left, right = (4 * torch.rand((64, len(EXPRESSIONS)), generator=generator) - 2 for _ in range(2))
    cases, expected = [], []
    for column, (kind, write) in enumerate(EXPRESSIONS.items()):
        b = GraphBuilder({"x": TensorType((64,)), "y": TensorType((64,))})
        operands = b.graph.inputs if issubclass(kind, BinaryOp) else b.graph.inputs[:1]
        op = b.op(kind, *operands, **attrs.get(kind, {})).op
        assert op is not None
        if kind in (SqrtOp, RsqrtOp):
            left[:, column].abs_()
        names = ("sum", "other")[: len(operands)]
        cases.append(f"case {column}: return {write(op, *names)};")
        expected.append(op.evaluate(*(left[:, column], right[:, column])[: len(operands)]))
    signature = "__device__ float operator()(float sum, int column, long index) const"
    body = f"const float other = e0[index]; switch (column) {{ {' '.join(cases)} default: return 0.0f; }}"
    kernel = CudaKernel(
        template="sum_splits",
        knobs="",
        epilogue=f"struct KERNEL_epilogue {{ const float* e0; {signature} {{ {body} }} }};",
        call=f"tersor::sum_splits(out, parts, KERNEL_epilogue{{other}}, {left.numel()}L, {left.shape[1]}, 1);",
        inputs=(Buffer("parts", (), "float32"), Buffer("other", (), "float32")),
        output=Buffer("out", (), "float32"),
        grid=(-(-left.numel() // 256), 1, 1),
        threads=256,
    )
    torch.testing.assert_close(run(kernel, (left, right), tuple(left.shape)), torch.stack(expected, 1))


@pytest.mark.parametrize("value", [0.0, -1.5, 1e-5, 65504.0, math.inf, -math.inf, math.nan])
def test_numbers_in_cuda_source(value: float):
    text = number(value)
    assert text in ("INFINITY", "(-INFINITY)", "NAN") or float(text.strip("()").removesuffix("f")) == value
