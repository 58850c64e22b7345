"""Shared by the tests of the convolution and pooling templates: targets, blocked layout, and running one PrimFunc."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
import tvm

from tersor.targets.machines.target import Cpu
from tersor.targets.templates.base import BufferSpec, Epilogue
from tersor.targets.templates.conv2d.spec import Conv2dSpec
from tersor.targets.templates.vector.builder import broadcast, constant, load
from tersor.tests import emulated_x86

GARBAGE = 7.0  # what padded channel lanes hold: finite, and it must not reach a real channel


def x86(vector_bytes: int, registers: int) -> Cpu:
    """A target with the given vectors. Code is always generated for AVX2, which splits wider vectors."""
    return Cpu(
        name=f"x86:test{vector_bytes}",
        family="x86",
        mcpu="haswell",
        vector_bytes=vector_bytes,
        vector_registers=registers,
        l1_bytes=32 << 10,
        l2_bytes=1 << 20,
        l3_bytes=32 << 20,
        cores=2,
    )


AVX512 = x86(64, 32)
AVX2 = x86(32, 16)
NEON = x86(16, 32)
TARGETS = [AVX512, AVX2, NEON]


def to_blocked(x: torch.Tensor, lanes: int) -> torch.Tensor:
    """NCHW to flat NCHW{lanes}c, with garbage in the padded lanes."""
    n, c, h, w = x.shape
    blocks = -(-c // lanes)
    padded = torch.full((n, blocks * lanes, h, w), GARBAGE)
    padded[:, :c] = x
    return padded.reshape(n, blocks, lanes, h, w).permute(0, 1, 3, 4, 2).reshape(-1)


def from_blocked(flat: torch.Tensor, shape: tuple[int, int, int, int], lanes: int) -> torch.Tensor:
    """Flat NCHW{lanes}c to NCHW of ``shape``, dropping the padded lanes."""
    n, c, h, w = shape
    blocks = -(-c // lanes)
    return flat.reshape(n, blocks, h, w, lanes).permute(0, 1, 4, 2, 3).reshape(n, blocks * lanes, h, w)[:, :c]


def depthwise_spec(n, c, h, w, kernel=(3, 3), *window, **options) -> Conv2dSpec:
    """A depthwise convolution: as many outputs and groups as channels."""
    return replace(Conv2dSpec(n, c, h, w, c, kernel, *window, **options), groups=c)


def run(prim_func, target: Cpu, *inputs: torch.Tensor, out_elements: int) -> torch.Tensor:
    """Build ``prim_func``, run it on flat float32 inputs, and return its flat output."""
    module = emulated_x86.build(prim_func, target)
    tensors = [tvm.runtime.tensor(x.contiguous().reshape(-1).numpy()) for x in inputs]
    out = tvm.runtime.tensor(np.full(out_elements, np.nan, "float32"))
    module["main"](*tensors, out)
    return torch.from_numpy(out.numpy())


def out_elements(shape: tuple[int, int, int, int], lanes: int) -> int:
    """Elements of a blocked tensor of logical ``shape``."""
    n, c, h, w = shape
    return n * -(-c // lanes) * h * w * lanes


def bias_add_relu(shape: tuple[int, int, int, int], lanes: int) -> Epilogue:
    """``relu(result + bias + other)``: bias by channel, another tensor by logical coordinates, in plain layout."""
    n, c, h, w = shape
    padded = -(-c // lanes) * lanes

    def apply(value, at, buffers):
        bias, other = buffers
        image, channel, y, x = at.coords
        # One scalar of the first lane's channel: it checks `coords`; the physical layout is checked by `flat`.
        scalar = other[((image * padded + channel) * h + y) * w + x]
        total = value + load(bias, channel, at.lanes) + broadcast(scalar, at.lanes)
        return tvm.tirx.max(total, constant(0.0, at.lanes))

    return Epilogue((BufferSpec("bias", padded), BufferSpec("other", n * padded * h * w)), apply)


def bias_add_relu_reference(result: torch.Tensor, bias: torch.Tensor, other: torch.Tensor, lanes: int) -> torch.Tensor:
    """What :func:`bias_add_relu` computes, on an NCHW result; ``other`` has padded channels."""
    n, c, h, w = result.shape
    channel = torch.arange(c) // lanes * lanes
    picked = other.reshape(n, -1, h, w)[:, channel]
    return torch.relu(result + bias[:c].reshape(1, -1, 1, 1) + picked)
