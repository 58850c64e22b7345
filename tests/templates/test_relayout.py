"""Conversions between plain and blocked layout."""

from __future__ import annotations

import pytest
import torch

from tersor.targets.templates.moves.relayout import RelayoutSpec, build

from .window_cases import TARGETS, from_blocked, run, to_blocked

SHAPES = [(1, 16, 4, 4), (2, 5, 3, 3), (1, 3, 9, 11), (1, 24, 7, 7), (1, 40, 1, 1), (1, 6, 1, 1), (3, 33, 5, 8)]


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.name)
@pytest.mark.parametrize("shape", [*SHAPES, (1, 64, 30, 31)], ids=str)
def test_relayout(shape, target):
    n, c, h, w = shape
    block = target.lanes()
    x = torch.randn(shape, generator=torch.Generator().manual_seed(c))
    to_blocks = RelayoutSpec("to_blocked", n, c, h * w, block)
    blocked = run(build(to_blocks, target), target, x, out_elements=to_blocks.blocked_size)
    torch.testing.assert_close(from_blocked(blocked, shape, block), x, rtol=0, atol=0)
    padding = from_blocked(blocked, (n, to_blocks.blocks * block, h, w), block)[:, c:]
    assert (padding == 0).all()

    to_plain = RelayoutSpec("to_plain", n, c, h * w, block)
    plain = run(build(to_plain, target), target, to_blocked(x, block), out_elements=to_plain.plain_size)
    torch.testing.assert_close(plain.reshape(shape), x, rtol=0, atol=0)


def test_a_block_narrower_than_a_vector():
    x = torch.randn(2, 10, 5, 5, generator=torch.Generator().manual_seed(0))
    spec = RelayoutSpec("to_blocked", 2, 10, 25, 4)
    blocked = run(build(spec, TARGETS[0]), TARGETS[0], x, out_elements=spec.blocked_size)
    torch.testing.assert_close(from_blocked(blocked, (2, 10, 5, 5), 4), x, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (("sideways", 1, 4, 4, 8), "direction must be"),
        (("to_plain", 1, 0, 4, 8), "must be positive"),
        (("to_plain", 1, 4, 4, 12), "power of two"),
    ],
)
def test_a_spec_that_makes_no_sense_is_refused(arguments, reason):
    with pytest.raises(ValueError, match=reason):
        RelayoutSpec(*arguments)
