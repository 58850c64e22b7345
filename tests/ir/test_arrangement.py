"""Packed weights hold the weights that they were made of, whatever the template pads and reorders."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from tersor.ir import arrangement as module
from tersor.ir.arrangement import Arrangement, HeldWeight
from tersor.targets.machines.catalog import resolve_cpu
from tersor.targets.templates.conv2d import direct
from tersor.targets.templates.conv2d.spec import Conv2dSpec
from tersor.targets.templates.matmul import bf16_dot, panels
from tersor.targets.templates.matmul.spec import MatmulSpec

TARGETS = [resolve_cpu(name) for name in ("x86:avx2", "x86:znver4")]
on_targets = pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.name)


def check(template, spec, target, weight: torch.Tensor, most: int = 12) -> int:
    """How many of a template's ways to pack a weight hold all of it; each gives it back bit for bit."""
    found = 0
    for knobs in template.candidates(spec, target)[:most]:
        arrangement = template.arrangement(spec, target, knobs)
        if arrangement is None:
            continue
        packed = template.pack_weight(spec, target, knobs, weight)
        assert packed.numel() == arrangement.size
        assert arrangement.holds(tuple(weight.shape))
        assert torch.equal(arrangement.unpacked(packed, tuple(weight.shape)), weight)
        check_comparison(arrangement, packed, weight)
        found += 1
    return found


def check_comparison(arrangement: Arrangement, packed: torch.Tensor, weight: torch.Tensor) -> None:
    """Bits are compared, of the first element and the last, of whole weights and of some rows at a time."""
    for most in (1, 500, 4 << 20):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(module, "_BYTES_AT_A_TIME", most)
            assert arrangement.is_exact(packed, weight)
            for place in (0, weight.numel() // 2, -1):
                other = weight.clone()
                other.reshape(-1)[place] += 1
                assert not arrangement.is_exact(packed, other)
    zero = torch.zeros_like(weight)
    assert arrangement.is_exact(torch.zeros_like(packed), zero)
    assert not arrangement.is_exact(torch.zeros_like(packed), -zero)
    assert not arrangement.is_exact(packed.double(), weight)


@on_targets
@pytest.mark.parametrize("size", [(64, 48), (37, 5), (1, 1), (130, 33)])
def test_linear_layers(target, size):
    weight = torch.randn(size)
    spec = MatmulSpec(7, *size)
    assert check(panels, spec, target, weight)
    if target.name == "x86:znver4":
        assert check(bf16_dot, replace(spec, dtype="bfloat16"), target, weight.bfloat16())


@on_targets
@pytest.mark.parametrize("layout", ["blocked", "plain"])
def test_convolutions(target, layout):
    found = 0
    for outputs, inputs, kernel in ((32, 16, (1, 1)), (48, 20, (3, 3)), (40, 3, (3, 5)), (64, 64, (1, 1))):
        spec = Conv2dSpec(1, inputs, 9, 9, outputs, kernel, input_layout=layout)
        found += check(direct, spec, target, torch.randn(outputs, inputs, *kernel))
    assert found


def test_groups_are_left_out():
    spec = Conv2dSpec(1, 32, 5, 5, 32, (3, 3), groups=2)
    knobs = direct.candidates(spec, TARGETS[0])[0]
    assert direct.arrangement(spec, TARGETS[0], knobs) is None


def test_numbers_that_do_not_fit_together_are_refused():
    for arguments, message in (
        (((2, 3), (0, 0), (6,)), "no order of 2 axes"),
        (((2, 3), (1, 0), (7,)), "other elements"),
        (((2, 0), (1, 0), (0,)), "axes"),
        (((), (), ()), "axes"),
    ):
        with pytest.raises(ValueError, match=message):
            Arrangement(*arguments)
    arrangement = Arrangement((2, 3), (1, 0), (3, 2))
    assert [arrangement.holds(shape) for shape in ((3, 2), (2, 1), (4, 2), (3,), (-1, 2))] == [
        True,
        True,
        False,
        False,
        False,
    ]


def test_rows_that_fall_on_no_border_of_pieces():
    """The first dimension of the weight lies in two axes, neither of which is the slowest."""
    weight = torch.arange(24.0).reshape(4, 6)
    arrangement = Arrangement((2, 2, 6), (1, 0, 2), (4, 6))
    packed = weight.reshape(2, 2, 6).permute(1, 0, 2).reshape(-1)
    check_comparison(arrangement, packed, weight)
    flat = Arrangement((3, 8), (0, 1), (4, 6))  # pieces of 8 elements, rows of 6
    check_comparison(flat, weight.reshape(-1), weight)


def test_a_held_weight_is_restored():
    weight = torch.randn(5, 3)
    swapped = HeldWeight(weight.t().reshape(-1), Arrangement((3, 5), (1, 0), (5, 3)), torch.float32, (5, 3))
    assert torch.equal(swapped.restored(), weight)
    plain = HeldWeight(
        weight.bfloat16().view(torch.uint16).reshape(-1), Arrangement.plain((5, 3)), torch.bfloat16, (5, 3)
    )
    assert torch.equal(plain.restored(), weight.bfloat16())
    assert plain.restored().data_ptr() == plain.packed.data_ptr()
