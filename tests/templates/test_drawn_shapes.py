"""Every float32 template on drawn shapes, against PyTorch; each template's own test module says how it is compared.

A few examples by default, many in the slow suite.
"""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import strategies as st

from tersor.targets.templates.conv2d import depthwise, transposed, volume, winograd
from tersor.targets.templates.conv2d import direct as conv2d
from tersor.targets.templates.moves import row_copy
from tersor.targets.templates.windows import pooling

from . import (
    test_attention,
    test_channel_gather,
    test_conv2d,
    test_depthwise,
    test_elementwise,
    test_layer_norm,
    test_matmul,
    test_pooling,
    test_reduce,
    test_relayout,
    test_softmax,
    test_transposed,
    test_volume,
    test_winograd,
)
from .drawn_cases import (
    batches,
    channels,
    choices,
    convolutions,
    depthwise_convolutions,
    extents,
    gathers,
    pairs,
    poolings,
    reductions,
    search,
    targets,
    transposed_convolutions,
    volume_convolutions,
    winograd_convolutions,
)
from .window_cases import run

QUICK, THOROUGH = 8, 150  # examples


def candidate(template, spec, target, choice: int):
    """One of the template's candidates, the best first."""
    found = template.candidates(spec, target)
    return found[choice % len(found)]


def check_conv2d(spec, target, choice: int) -> None:
    test_conv2d.compare(spec, target, candidate(conv2d, spec, target, choice))


def check_transposed(spec, target, choice: int) -> None:
    test_transposed.compare(spec, target, candidate(transposed, spec, target, choice))


def check_volume(spec, target, choice: int) -> None:
    test_volume.compare(spec, target, candidate(volume, spec, target, choice))


def check_winograd(spec, target, choice: int) -> None:
    test_winograd.compare(spec, target, candidate(winograd, spec, target, choice))


def check_depthwise(spec, target, choice: int) -> None:
    test_depthwise.compare(spec, target, candidate(depthwise, spec, target, choice))


def check_max_pool(spec, target, choice: int) -> None:
    window = (spec.kernel, spec.stride, spec.padding[:2], spec.dilation, spec.ceil_mode)
    knobs = candidate(pooling, spec, target, choice)
    test_pooling.compare(spec, target, knobs, lambda x: F.max_pool2d(x, *window))


def check_average_pool(spec, target, choice: int) -> None:
    window = (spec.kernel, spec.stride, spec.padding[:2], spec.ceil_mode, spec.count_include_pad)
    knobs = candidate(pooling, spec, target, choice)
    test_pooling.compare(spec, target, knobs, lambda x: F.avg_pool2d(x, *window))


def check_channel_gather(gather, batch: int, plane: tuple[int, int], target) -> None:
    test_channel_gather.check_gather(*gather, batch, plane, target)


def check_reduce(reduction, target) -> None:
    test_reduce.test_reduce(*reduction, target)


def check_concat(outer: int, runs: list[int], target) -> None:
    parts = [torch.randn(outer, width, generator=torch.Generator().manual_seed(width)) for width in runs]
    spec = row_copy.ConcatSpec(outer, tuple(runs))
    result = run(row_copy.build_concat(spec, target), target, *parts, out_elements=outer * sum(runs))
    assert torch.equal(result.reshape(outer, -1), torch.cat(parts, 1))


def check_pad(extents: list[tuple[int, int, int]], value: float, target) -> None:
    before, shape, after = zip(*extents, strict=True)
    x = torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))
    spec = row_copy.PadSpec(shape, before, after, value)
    result = run(row_copy.build_pad(spec, target), target, x, out_elements=math.prod(spec.out_shape))
    amounts = [amount for dim in reversed(range(len(shape))) for amount in (before[dim], after[dim])]
    assert torch.equal(result.reshape(spec.out_shape), F.pad(x, amounts, value=value))


IMAGES = st.tuples(batches, channels, extents, extents)
ROWS, COLUMNS = st.integers(1, 40), st.integers(1, 140)

CASES = {
    "conv2d": (check_conv2d, st.tuples(convolutions(), targets, choices)),
    "transposed": (check_transposed, st.tuples(transposed_convolutions(), targets, choices)),
    "volume": (check_volume, st.tuples(volume_convolutions(), targets, choices)),
    "winograd": (check_winograd, st.tuples(winograd_convolutions(), targets, choices)),
    "depthwise": (check_depthwise, st.tuples(depthwise_convolutions(), targets, choices)),
    "max pool": (check_max_pool, st.tuples(poolings("max"), targets, choices)),
    "average pool": (check_average_pool, st.tuples(poolings("avg"), targets, choices)),
    "global average": (test_pooling.test_global_average, st.tuples(IMAGES, targets)),
    "relayout": (test_relayout.test_relayout, st.tuples(IMAGES, targets)),
    "channel gather": (check_channel_gather, st.tuples(gathers(), batches, pairs(1, 6), targets)),
    "matmul": (test_matmul.check_dense, st.tuples(ROWS, COLUMNS, COLUMNS, targets)),
    "attention": (
        test_attention.test_plain_operands,
        st.tuples(st.sampled_from([(), (2,), (2, 3)]), ROWS, ROWS, st.integers(1, 36), st.integers(1, 36), targets),
    ),
    "softmax": (test_softmax.test_softmax, st.tuples(ROWS, COLUMNS, targets)),
    "layer norm": (
        test_layer_norm.test_layer_norm,
        st.tuples(ROWS, st.integers(2, 140), st.tuples(st.booleans(), st.booleans()), targets),
    ),
    "concat": (check_concat, st.tuples(ROWS, st.lists(st.integers(1, 70), min_size=1, max_size=4), targets)),
    "pad": (
        check_pad,
        st.tuples(
            st.lists(st.tuples(st.integers(0, 3), st.integers(1, 20), st.integers(0, 3)), min_size=1, max_size=4),
            st.sampled_from([0.0, -1.5]),
            targets,
        ),
    ),
    "reduce": (check_reduce, st.tuples(reductions(), targets)),
    "elementwise, flat": (test_elementwise.test_flat, st.tuples(st.integers(1, 5000), targets)),
    "elementwise, coordinates": (
        test_elementwise.test_broadcast_of_rows_and_columns,
        st.tuples(st.lists(st.integers(1, 40), min_size=2, max_size=4).map(tuple), targets),
    ),
    "elementwise, blocked": (test_elementwise.test_blocked, st.tuples(IMAGES, targets)),
}


@pytest.mark.parametrize("name", CASES)
def test_drawn_shapes(name: str):
    search(*CASES[name], examples=QUICK)


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_many_drawn_shapes(name: str):
    search(*CASES[name], examples=THOROUGH)
