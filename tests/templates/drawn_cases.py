"""Hypothesis strategies for the templates: shapes, strides, groups, dilations, odd channels, layouts and targets."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from typing import Any, Literal

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tersor.targets.templates.conv2d.direct import Conv2dSpec
from tersor.targets.templates.conv2d.transposed import TransposedSpec
from tersor.targets.templates.conv2d.volume import VolumeSpec
from tersor.targets.templates.windows.pooling import PoolSpec

from .window_cases import TARGETS, depthwise_spec

targets = st.sampled_from(TARGETS)
batches = st.integers(1, 2)
channels = st.integers(1, 40)
extents = st.integers(1, 9)
choices = st.integers(0, 3)  # which candidate to build, counted round


def search(check: Callable[..., None], cases: st.SearchStrategy[tuple[Any, ...]], examples: int) -> None:
    """Call ``check`` with drawn arguments, the same ones in every run."""

    @settings(
        max_examples=examples,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    )
    @given(cases)
    def run(case: tuple[Any, ...]) -> None:
        check(*case)

    run()


def pairs(low: int, high: int) -> st.SearchStrategy[tuple[int, int]]:
    """A number for each of height and width."""
    return st.tuples(st.integers(low, high), st.integers(low, high))


@st.composite
def windows(draw: st.DrawFn, largest: int = 4) -> dict[str, Any]:
    """Plane, kernel, stride, padding and dilation of a convolution whose window fits the padded plane."""
    kernel, stride, dilation = draw(pairs(1, largest)), draw(pairs(1, 3)), draw(pairs(1, 2))
    padding = (*draw(pairs(0, 3)), *draw(pairs(0, 3)))
    spans = [dilation[i] * (kernel[i] - 1) + 1 for i in range(2)]
    plane = [max(1, spans[i] - padding[i] - padding[i + 2]) + draw(st.integers(0, 8)) for i in range(2)]
    return {
        "h": plane[0],
        "w": plane[1],
        "kernel": kernel,
        "stride": stride,
        "padding": padding,
        "dilation": dilation,
    }


@st.composite
def convolutions(draw: st.DrawFn) -> Conv2dSpec:
    """Dense and grouped convolutions of blocked or row-major operands."""
    groups = draw(st.sampled_from([1, 1, 2, 3]))
    inputs, outputs = (groups * draw(st.integers(1, 20 if groups > 1 else 40)) for _ in range(2))
    layout: Literal["blocked", "plain"] = draw(st.sampled_from(["blocked", "plain"]))
    return Conv2dSpec(draw(batches), inputs, o=outputs, groups=groups, input_layout=layout, **draw(windows()))


@st.composite
def transposed_convolutions(draw: st.DrawFn) -> TransposedSpec:
    """Transposed convolutions, of which any number of rows and columns may be cut off or added by output padding."""
    groups = draw(st.sampled_from([1, 1, 2, 3]))
    inputs, outputs = (groups * draw(st.integers(1, 20)) for _ in range(2))
    kernel, stride, plane = draw(pairs(1, 5)), draw(pairs(1, 4)), draw(pairs(1, 7))
    dilation = [draw(st.integers(1, 2)) if step == 1 else 1 for step in stride]
    whole = [(plane[i] - 1) * stride[i] + dilation[i] * (kernel[i] - 1) + 1 for i in range(2)]
    top, left = (draw(st.integers(0, min(4, (extent - 1) // 2))) for extent in whole)
    height, width = (whole[i] - 2 * (top, left)[i] + draw(st.integers(0, 1)) for i in range(2))
    window = ((height, width), kernel, stride, (top, left), (dilation[0], dilation[1]))
    layout: Literal["blocked", "plain"] = draw(st.sampled_from(["blocked", "plain"]))
    return TransposedSpec(draw(batches), inputs, *plane, outputs, *window, groups, layout)


@st.composite
def volume_convolutions(draw: st.DrawFn) -> VolumeSpec:
    """Convolutions of volumes."""
    flat = draw(convolutions())
    options = {entry.name: getattr(flat, entry.name) for entry in fields(flat)}
    kernel, gap, padding = draw(st.integers(1, 4)), draw(st.integers(1, 2)), draw(pairs(0, 3))
    frames = max(1, gap * (kernel - 1) + 1 - sum(padding)) + draw(st.integers(0, 4))
    return VolumeSpec(
        **options,
        d=frames,
        depth_kernel=kernel,
        depth_stride=draw(st.integers(1, 3)),
        depth_padding=padding,
        depth_dilation=gap,
    )


@st.composite
def winograd_convolutions(draw: st.DrawFn) -> Conv2dSpec:
    """3x3 convolutions of stride 1, which Winograd's algorithm computes."""
    padding = (*draw(pairs(0, 3)), *draw(pairs(0, 3)))
    h, w = (max(1, 3 - padding[i] - padding[i + 2]) + draw(st.integers(0, 12)) for i in range(2))
    return Conv2dSpec(draw(batches), draw(channels), h, w, draw(channels), (3, 3), padding=padding)


@st.composite
def depthwise_convolutions(draw: st.DrawFn) -> Conv2dSpec:
    """One filter per channel."""
    return depthwise_spec(draw(batches), draw(channels), **draw(windows(5)))


@st.composite
def poolings(draw: st.DrawFn, mode: Literal["max", "avg"]) -> PoolSpec:
    """Windows padded alike on both sides, as PyTorch's; average pooling has no dilation."""
    kernel = draw(pairs(1, 4))
    dilation = draw(pairs(1, 2)) if mode == "max" else (1, 1)
    before = [draw(st.integers(0, extent // 2)) for extent in kernel]
    spans = [dilation[i] * (kernel[i] - 1) + 1 for i in range(2)]
    h, w = (max(1, spans[i] - 2 * before[i]) + draw(st.integers(0, 8)) for i in range(2))
    return PoolSpec(
        draw(batches),
        draw(channels),
        h,
        w,
        mode,
        kernel,
        draw(pairs(1, 3)),
        (before[0], before[1], before[0], before[1]),
        dilation,
        ceil_mode=draw(st.booleans()),
        count_include_pad=draw(st.booleans()),
    )


@st.composite
def reductions(draw: st.DrawFn) -> tuple[str, tuple[int, ...], tuple[int, ...]]:
    """Kind, shape and the axes that are reduced, in any order."""
    shape = tuple(draw(st.lists(st.integers(1, 20), min_size=1, max_size=4)))
    axes = draw(st.lists(st.integers(0, len(shape) - 1), min_size=1, max_size=len(shape), unique=True))
    return draw(st.sampled_from(["sum", "mean", "max", "min"])), shape, tuple(axes)


@st.composite
def gathers(draw: st.DrawFn) -> tuple[list[int], list[int]]:
    """Channels of each part, and for each channel of the result the one of all parts that it comes from."""
    counts = draw(st.lists(st.integers(1, 40), min_size=1, max_size=3))
    return counts, draw(st.lists(st.integers(0, sum(counts) - 1), min_size=1, max_size=50))
