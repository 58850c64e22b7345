"""Channels picked from blocked tensors, against indexing in PyTorch."""

from __future__ import annotations

import random
from collections.abc import Sequence

import pytest
import torch

from tersor.targets.templates.moves.channel_gather import ChannelGatherSpec, block_runs, build, table

from .window_cases import TARGETS, from_blocked, run, to_blocked

CASES = {
    "shuffle, first half": ((58, 58), [i % 2 * 58 + i // 2 for i in range(58)]),
    "shuffle, second half": ((58, 58), [i % 2 * 58 + i // 2 for i in range(58, 116)]),
    "shuffle of three groups": ((24,), [i % 3 * 8 + i // 3 for i in range(24)]),
    "concatenation within a block": ((3, 5, 40), range(48)),
    "slice": ((70,), range(13, 50)),
    "every third channel": ((50,), range(2, 50, 3)),
    "whole blocks": ((32, 16), range(16, 48)),
    "backwards": ((20,), range(19, -1, -1)),
    "one channel, many times": ((4,), [3] * 33),
    "shuffle of many channels": ((544,), [i % 8 * 68 + i // 8 for i in range(544)]),  # a table, where blocks have 4
    "slice of many channels": ((600,), range(21, 590)),
    "at random": ((9, 31, 2), random.Random(0).choices(range(42), k=45)),
}


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.name)
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize(("batch", "plane"), [(1, (4, 4)), (2, (3, 5)), (1, (1, 1))], ids=str)
def test_channel_gather(case: str, batch: int, plane: tuple[int, int], target):
    check_gather(*CASES[case], batch, plane, target)


def check_gather(counts: Sequence[int], sources: Sequence[int], batch: int, plane: tuple[int, int], target) -> None:
    """Build, run and compare; padded channels must be zero."""
    block = target.lanes()
    generator = torch.Generator().manual_seed(len(sources))
    parts = [torch.randn(batch, count, *plane, generator=generator) for count in counts]
    spec = ChannelGatherSpec(batch, plane[0] * plane[1], tuple(counts), tuple(sources), block)
    stored = [to_blocked(part, block) for part in parts]
    looked_up = table(spec)
    stored += [] if looked_up is None else [looked_up]
    result = run(build(spec, target), target, *stored, out_elements=spec.size(len(sources)))
    padded = (batch, spec.blocks(len(sources)) * block, *plane)
    actual = from_blocked(result, padded, block)
    assert torch.equal(actual[:, : len(sources)], torch.cat(parts, 1)[:, list(sources)])
    assert (actual[:, len(sources) :] == 0).all()


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ((0, 4, (4,), (0,), 8), "must be positive"),
        ((1, 4, (4,), (), 8), "must be positive"),
        ((1, 4, (4,), (0,), 12), "power of two"),
        ((1, 4, (4, 2), (6,), 8), "must lie in the 6 channels"),
        ((1, 4, (4, 2), (-1,), 8), "must lie in the 6 channels"),
    ],
)
def test_a_spec_that_makes_no_sense_is_refused(arguments, reason):
    with pytest.raises(ValueError, match=reason):
        ChannelGatherSpec(*arguments)


def test_blocks_that_take_the_same_lanes_share_their_code():
    shuffled = tuple(group * 512 + channel for channel in range(512) for group in range(8))
    specs = [ChannelGatherSpec(1, 49, (4096,), shuffled, block) for block in (4, 8, 16)]
    assert [len(block_runs(spec)) for spec in specs] == [4, 8, 8]
    assert [table(spec) is None for spec in specs] == [False, True, True]
    joined = ChannelGatherSpec(1, 49, (20, 4096), tuple(range(4116)), 16)
    assert [len(run.rows) for run in block_runs(joined)] == [1, 1, 255, 1]
