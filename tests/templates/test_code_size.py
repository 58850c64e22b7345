"""Every template bounds the code that it writes, whatever the extents; loops do the rest."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from tersor.targets import resolve_target
from tersor.targets.codegen.objects import code_size
from tersor.targets.codegen.options import Options
from tersor.targets.templates import elementwise
from tersor.targets.templates.attention.spec import AttentionSpec
from tersor.targets.templates.base import BufferSpec
from tersor.targets.templates.conv2d import depthwise, direct
from tersor.targets.templates.conv2d.spec import Conv2dSpec
from tersor.targets.templates.conv2d.transposed import TransposedSpec
from tersor.targets.templates.conv2d.volume import VolumeSpec
from tersor.targets.templates.loops import AdaptivePoolSpec, IntegerReduceSpec
from tersor.targets.templates.matmul.packed import PackedSpec
from tersor.targets.templates.matmul.spec import ACTIVATION, MatmulSpec
from tersor.targets.templates.moves import channel_gather, row_copy
from tersor.targets.templates.moves.relayout import RelayoutSpec
from tersor.targets.templates.option import Workload
from tersor.targets.templates.recurrent import GATES, RecurrentSpec
from tersor.targets.templates.registry import TEMPLATES
from tersor.targets.templates.rows.layer_norm import LayerNormSpec
from tersor.targets.templates.rows.reduce import ReduceSpec
from tersor.targets.templates.rows.softmax import SoftmaxSpec
from tersor.targets.templates.sparse.spec import SparseConv2dSpec, SparseLinearSpec
from tersor.targets.templates.vector.builder import load
from tersor.targets.templates.windows import pooling

from .window_cases import AVX2, AVX512, depthwise_spec, from_blocked, out_elements, run, to_blocked

MOST_OF_ANY = 300_000  # of what tuning may measure
MOST = 120_000  # of defaults: statements and expressions without an epilogue; LLVM takes seconds for them
QUICK = ("x86:sapphirerapids", "arm:cortex-a76")
OTHERS = ("x86:znver4", "x86:avx2")
TARGETS = [*QUICK, *(pytest.param(name, marks=pytest.mark.slow) for name in OTHERS)]


def window(
    c: int, h: int, w: int, o: int, kernel: tuple[int, int], stride: int = 1, pad: int = 0, dilation: int = 1
) -> Conv2dSpec:
    top, left = (pad if extent > 1 else 0 for extent in kernel)
    return Conv2dSpec(1, c, h, w, o, kernel, (stride, stride), (top, left, top, left), (dilation, dilation))


CONVOLUTIONS = [
    window(16, 64, 64, 16, (31, 31), pad=15),
    window(128, 28, 28, 128, (51, 51), pad=25),
    window(3, 518, 518, 64, (56, 56), stride=56),
    window(3, 997, 997, 32, (7, 7), stride=2, pad=3),
    window(1, 1, 100_000, 8, (1, 1024), stride=512),
    window(64, 4096, 1, 64, (51, 1)),
    window(64, 1, 997, 64, (3, 3), pad=1),
    window(4096, 7, 7, 16, (3, 3), pad=1),
    window(16, 7, 7, 4096, (3, 3), pad=1),
    window(4096, 1, 1, 4096, (1, 1)),
    window(16, 200, 200, 16, (3, 3), pad=50, dilation=50),
    replace(window(64, 56, 56, 64, (3, 3), pad=1), groups=4),
    *(
        replace(one, groups=one.c)
        for one in (
            window(64, 56, 56, 64, (51, 51), pad=25),
            window(16, 1, 4096, 16, (1, 1000)),
            window(32, 997, 997, 32, (3, 3), pad=1),
        )
    ),
]
POOLINGS = [
    pooling.PoolSpec(1, 64, 56, 56, "max", (56, 56), (1, 1)),
    pooling.PoolSpec(1, 64, 19, 19, "max", (13, 13), (1, 1), (6, 6, 6, 6)),
    pooling.PoolSpec(1, 64, 128, 128, "avg", (100, 100), (1, 1), (50, 50, 50, 50)),
    pooling.PoolSpec(1, 64, 1, 1000, "avg", (1, 200), (1, 1), (0, 100, 0, 100)),
    pooling.PoolSpec(1, 64, 1, 100_000, "max", (1, 1024), (1, 512), dtype="uint8"),
    pooling.PoolSpec(1, 64, 997, 997, "avg", (7, 7), (3, 3), (3, 3, 3, 3), dtype="bfloat16"),
]
QUANTIZED = {"rhs": ACTIVATION, "batch": (3, 5), "dtype": "uint8", "zero_point": 100, "rhs_zero_point": 7}
PRODUCTS = [
    MatmulSpec(m, n, k, **options)
    for m, n, k in [(1, 1, 1_000_000), (1_000_000, 1, 1), (31, 33, 3), (997, 997, 997)]
    for options in ({}, {"rhs": ACTIVATION, "batch": (3, 5)}, {"dtype": "bfloat16"}, {"dtype": "uint8"}, QUANTIZED)
]
PACKED = [
    PackedSpec(m, n, k, bits, group, dtype=dtype)
    for m, n, k in [(1, 1, 1_000_000), (100_000, 1, 8), (31, 33, 104), (997, 997, 1000)]
    for bits, group in [(4, 64), (8, 8)]
    for dtype in ("float32", "int8")
]
SPECS: dict[str, list[Any]] = {
    "conv2d": [
        replace(one, dtype=dtype, input_layout=layout)
        for one in CONVOLUTIONS
        for dtype in ("float32", "bfloat16", "uint8")
        for layout in ("blocked", "plain")
    ],
    "conv2d_transposed": [
        TransposedSpec(1, 64, 56, 56, 32, (112, 112)),
        TransposedSpec(1, 56, 60, 60, 1, (180, 180), (9, 9), (3, 3), (4, 4)),
        TransposedSpec(1, 21, 16, 16, 21, (512, 512), (64, 64), (32, 32), (16, 16), dtype="bfloat16"),
        TransposedSpec(2, 3, 200, 1, 64, (997, 7), (31, 7), (5, 1), (15, 0), (1, 3), input_layout="plain"),
        TransposedSpec(1, 64, 9, 9, 64, (19, 19), (3, 3), groups=64),
        TransposedSpec(1, 56, 60, 60, 24, (180, 180), (9, 9), (3, 3), (4, 4), dtype="uint8", zero_point=100),
        TransposedSpec(1, 64, 9, 9, 64, (19, 19), (3, 3), groups=64, dtype="int8"),
    ],
    "conv3d": [
        VolumeSpec(1, 64, 28, 28, 64, (3, 3), padding=(1,) * 4, d=8, depth_kernel=3, depth_padding=(1, 1)),
        VolumeSpec(2, 3, 112, 112, 45, (7, 7), (2, 2), (3,) * 4, input_layout="plain", d=16, depth_kernel=15),
        VolumeSpec(1, 512, 1, 1, 512, d=997, dtype="bfloat16", depth_kernel=5, depth_padding=(500, 1)),
    ],
    "pool2d": POOLINGS,
    "matmul": PRODUCTS,
    "matmul_packed": PACKED,
    "attention": [
        AttentionSpec(batch, queries, keys, width, width, 0.1, dtype=dtype)
        for batch, queries, keys, width in [((8,), 997, 997, 31), ((1, 1), 1, 4096, 128), ((1,), 100, 100, 4096)]
        for dtype in ("float32", "bfloat16", "uint8")
    ],
    "reduce": [
        ReduceSpec(kind, shape, axes)
        for kind in ("sum", "max")
        for shape, axes in [
            ((1_000_003,), (0,)),
            ((1_000_000, 3), (1,)),
            ((3, 1_000_000), (0,)),
            ((2,) * 20, tuple(range(0, 20, 2))),
            ((997, 31), (0,)),
            ((64, 997, 3), (0, 1, 2)),
        ]
    ],
    "softmax": [SoftmaxSpec(1_000_000, 1), SoftmaxSpec(1, 1_000_000), SoftmaxSpec(997, 31)],
    "layer_norm": [LayerNormSpec(1_000_000, 1), LayerNormSpec(1, 1_000_000), LayerNormSpec(997, 31)],
    "relayout": [
        RelayoutSpec(direction, 1, channels, positions, block)
        for direction in ("to_blocked", "to_plain")
        for channels, positions in [(4096, 1), (997, 997), (3, 50_176), (31, 7)]
        for block in (4, 16)
    ],
    "recurrent": [RecurrentSpec(cell, 1000, batch, 1021) for cell in GATES for batch in (1, 64)],
    "sparse_linear": [SparseLinearSpec(997, 1000, 16 * n, k, 5000, m=997) for k in (1, 8) for n in (1, 2)],
    "sparse_conv2d": [
        SparseConv2dSpec(1000, 64, 16 * n, k, 500, n=2, h=997, w=31, stride=stride)
        for k in (1, 4)
        for n in (1, 2)
        for stride in ((1, 1), (2, 3))
    ],
    "adaptive_pool2d": [AdaptivePoolSpec(1, 64, 997, 997, 7, 7, 16)],
    "integer_reduce": [IntegerReduceSpec("max", (4,) * 12, tuple(range(0, 12, 2)), "int32")],
}
CASES = [(kind, spec) for kind, specs in SPECS.items() for spec in specs]


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("kind", SPECS)
def test_the_code_of_a_template_is_bounded(kind, target):
    target = resolve_target(target)
    for spec in SPECS[kind]:
        for algorithm in Options(Workload(kind, spec), target).algorithms:
            knobs = algorithm.module.candidates(algorithm.spec, target)[0]
            assert code_size(algorithm.module.build(algorithm.spec, target, knobs)) <= MOST, (algorithm, knobs)


@pytest.mark.slow
@pytest.mark.parametrize("kind", SPECS)
def test_the_code_of_every_candidate_is_bounded(kind):
    target = resolve_target("x86:znver4")
    for spec in SPECS[kind]:
        for algorithm in Options(Workload(kind, spec), target).algorithms:
            for knobs in algorithm.module.candidates(algorithm.spec, target):
                size = code_size(algorithm.module.build(algorithm.spec, target, knobs))
                assert size <= MOST_OF_ANY, (algorithm, knobs)


def test_every_template_is_looked_at():
    targets = [resolve_target(name) for name in (*QUICK, *OTHERS)]
    cases = [Options(Workload(kind, spec), target) for kind, spec in CASES for target in targets]
    seen = {algorithm.template for options in cases for algorithm in options.algorithms}
    assert seen | {"elementwise"} == set(TEMPLATES)


@pytest.mark.parametrize("shape", [(1_000_003,), (2,) * 20, (997, 31), (1, 1)])
@pytest.mark.parametrize("walk", [elementwise.FLAT, elementwise.COORDINATES])
def test_maps_of_many_operands_are_bounded(shape, walk):
    target = resolve_target("x86:znver4")
    size = torch.Size(shape).numel()
    inputs = tuple(BufferSpec(f"x{index}", size) for index in range(64))
    spec = elementwise.ElementwiseSpec(shape, inputs, walk)

    def total(at, buffers):
        return sum((load(buffer, at.flat, at.lanes) for buffer in buffers[1:]), load(buffers[0], at.flat, at.lanes))

    assert code_size(elementwise.build(spec, target, elementwise.candidates(spec, target)[0], total)) <= MOST


@pytest.mark.parametrize("lanes", [4, 8, 16])
def test_moves_of_many_parts_are_bounded(lanes):
    target = resolve_target({4: "arm:cortex-a76", 8: "x86:avx2", 16: "x86:znver4"}[lanes])
    joined = row_copy.ConcatSpec(997, tuple(range(1, 65)))
    padded = row_copy.PadSpec((2,) * 7, (1,) * 7, (13,) * 7)
    assert code_size(row_copy.build_concat(joined, target)) <= MOST
    assert code_size(row_copy.build_pad(padded, target)) <= MOST
    shuffled = tuple(group * 512 + channel for channel in range(512) for group in range(8))
    gathered = channel_gather.ChannelGatherSpec(1, 49, (4096,), shuffled, lanes)
    assert code_size(channel_gather.build(gathered, target)) <= 20_000  # blocks that take the same lanes are a loop


def test_reductions_of_planes_are_bounded():
    for kind in ("mean", "sum", "max", "min"):
        assert code_size(pooling.build_global(pooling.GlobalPoolSpec(1, 64, 997, 997, kind), AVX512)) <= MOST


# What finds its taps at run time ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("plane", "options"),
    [
        ((19, 20), {"kernel": (17, 17), "stride": (1, 1), "padding": (8, 8, 8, 8)}),  # some tiles have no common tap
        ((30, 60), {"kernel": (17, 17), "stride": (7, 2), "padding": (8, 8, 8, 8), "dilation": (1, 3)}),
        ((3, 90), {"kernel": (1, 40), "stride": (1, 3), "padding": (0, 20, 0, 20), "ceil_mode": True}),
        ((20, 20), {"kernel": (20, 20), "stride": (1, 1)}),
    ],
)
def test_pooling_with_long_windows(plane, options):
    spec = pooling.PoolSpec(1, 16, *plane, **options)
    x = torch.randn(1, 16, *plane, generator=torch.Generator().manual_seed(0))
    expected = F.max_pool2d(
        x, spec.kernel, spec.stride, spec.padding[:2], spec.dilation, options.get("ceil_mode", False)
    )
    function = pooling.build(spec, AVX2, pooling.candidates(spec, AVX2)[0])
    flat = run(function, AVX2, to_blocked(x, 8), out_elements=out_elements(expected.shape, 8))
    torch.testing.assert_close(from_blocked(flat, expected.shape, 8), expected, rtol=0, atol=0)


def test_depthwise_with_a_long_window():
    spec = depthwise_spec(1, 16, 3, 40, (3, 31), (1, 1), (1, 15, 1, 15))
    generator = torch.Generator().manual_seed(0)
    x, weight = torch.randn(1, 16, 3, 40, generator=generator), torch.randn(16, 1, 3, 31, generator=generator)
    knobs = depthwise.candidates(spec, AVX2)[0]
    packed = depthwise.pack_weight(spec, AVX2, knobs, weight)
    function = depthwise.build(spec, AVX2, knobs)
    flat = run(function, AVX2, to_blocked(x, 8), packed, out_elements=out_elements(x.shape, 8))
    expected = F.conv2d(x, weight, padding=(1, 15), groups=16)
    torch.testing.assert_close(from_blocked(flat, x.shape, 8), expected, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("layout", ["blocked", "plain"])
def test_convolution_with_a_long_window(layout):
    spec = Conv2dSpec(1, 3, 12, 30, 8, (5, 21), padding=(20, 10, 20, 10), input_layout=layout)
    generator = torch.Generator().manual_seed(0)
    x, weight = torch.randn(1, 3, 12, 30, generator=generator), torch.randn(8, 3, 5, 21, generator=generator)
    knobs = direct.Conv2dKnobs(vectors=1, rows=2, columns=3)
    packed = direct.pack_weight(spec, AVX2, knobs, weight)
    expected = F.conv2d(x, weight, padding=(20, 10))
    data = to_blocked(x, 8) if layout == "blocked" else x
    size = out_elements(expected.shape, 8)
    flat = run(direct.build(spec, AVX2, knobs), AVX2, data, packed, out_elements=size)
    torch.testing.assert_close(from_blocked(flat, expected.shape, 8), expected, rtol=1e-5, atol=1e-4)
