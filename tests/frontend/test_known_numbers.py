"""What depends on no input may decide what a model does, as long as it cannot change from call to call."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional

from tersor.frontend import UnsupportedError, from_torch
from tersor.ir import TersorError

X = torch.randn(2, 8, 6, generator=torch.Generator().manual_seed(0))


def masked(x):
    mask = torch.ones(x.shape[:2])
    mask[:, 5:] = 0
    return x * 2 if not mask.all() else x


def upper_triangle(x):
    rows = torch.ones(8, 8).triu().view(64).nonzero()
    return (x @ x.transpose(1, 2)).reshape(2, 64)[:, rows]


def picked_by_mask(x):
    return x[:, torch.arange(8) % 3 == 1]


def extents_in_tensors(x):
    step, length = torch.tensor(4), x.shape[-1]
    extra = (torch.ceil(torch.tensor(length) / step) * step).to(torch.int64) - length
    return functional.pad(x, (0, extra)).view(2, 8, step, -1)


def writes_reach_views(x):
    flags = torch.zeros(4, dtype=torch.int64)
    first = flags[:2]
    flags.add_(3)
    return x[first.sum().item()] if first.sum() < 2 else x + first.max().item()


def random_numbers_decide_nothing(x):
    return x * 2 if torch.zeros(3).bernoulli(0.5).sum() > 1 else x


def what_is_written_is_unknown(x):
    flags = torch.zeros(8)
    flags[2:] = x[0, 0]
    return x if flags.sum() > 0 else -x


def loop_over_known_rows(x):
    for row in torch.tensor([3, 0, 5]).tolist():
        x = x + x[:, row : row + 1]
    return x


def tensor_without_its_history(x):
    y = x * 2
    y.data.add_(1)
    return y + x.data


WORKING = (
    masked,
    upper_triangle,
    picked_by_mask,
    extents_in_tensors,
    writes_reach_views,
    loop_over_known_rows,
    tensor_without_its_history,
)


@pytest.mark.parametrize("function", WORKING, ids=lambda one: one.__name__)
def test_constants_decide(function, check):
    check(function, X)


@pytest.mark.parametrize("function", [random_numbers_decide_nothing, what_is_written_is_unknown])
def test_what_is_not_known_does_not(function, wrap):
    with pytest.raises(TersorError, match=r"depend on the input decide|aten\.bernoulli"):
        from_torch(wrap(function), X)


def test_shapes_that_depend_on_the_data_are_not_known(wrap):
    with pytest.raises(UnsupportedError, match=r"1 operator .* aten\.index\.Tensor"):
        from_torch(wrap(lambda x: torch.zeros_like(x[x > 0]).sum() + x), X)


class Strided(nn.Module):
    """Padding as in EnCodec: extents are buffers."""

    def __init__(self):
        super().__init__()
        self.register_buffer("stride", torch.tensor(4), persistent=False)

    def forward(self, x):
        missing = -x.shape[-1] % self.stride
        return functional.pad(x, (0, missing)) if missing < self.stride else x


def test_buffers_decide(check):
    check(Strided(), X)


class Counting(nn.Module):
    def __init__(self, part: bool):
        super().__init__()
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))
        self.part = part

    def forward(self, x):
        is_first = self.calls + 1 == 1
        if self.part:
            self.calls = self.calls + 1
        else:
            self.calls += 1
        return x * 2 if is_first else x


@pytest.mark.parametrize("part", [False, True], ids=["in place", "assigned"])
def test_buffers_that_are_written_decide_nothing(part):
    with pytest.raises(TersorError, match=r"by the numbers of its buffer '(0\.)?calls', which it also writes to"):
        from_torch(nn.Sequential(Counting(part)), X)
    module = Counting(part)
    with pytest.raises(TersorError, match=r"decides by the numbers of its buffer 'calls'"):
        from_torch(module, X)
    assert module.calls.item() == 0


class Freeing(nn.Module):
    """As in RevNet: memory is freed by hand."""

    def forward(self, x):
        half = x[:, :4].contiguous()
        y = half + x[:, 4:]
        half.set_()
        return y * 2


def test_freed_memory(check):
    check(Freeing(), X)


def test_tensors_like_one_of_rank_0(check):
    check(lambda x: (torch.zeros_like(x.sum()), x.sum().new_full((), 2.5), torch.ones_like(x[0, 0])), X)


def test_the_module_is_left_alone():
    module = Strided()
    from_torch(module, X)
    assert not module._forward_hooks
    assert not module._forward_pre_hooks
    assert torch.overrides._len_torch_function_stack() == 0
