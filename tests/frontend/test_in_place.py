"""Writes in place: none is dropped, whoever reads the result, and all are the same numbers as eager when compiled."""

from __future__ import annotations

import copy
import threading
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.utils._pytree import tree_leaves

import tersor
from tersor.frontend import from_torch
from tersor.ir import TersorError, TersorWarning


class Together(nn.Module):
    """Several functions of the same inputs as one module, which is traced and compiled once."""

    def __init__(self, cases):
        super().__init__()
        self.cases = cases

    def forward(self, *inputs):
        return {name: case(*inputs) for name, case in self.cases.items()}


def compare(module, *inputs, levels=("O0", "O3")):
    """Compare the interpreter and compiled code with eager."""
    expected = tree_leaves(module(*copy.deepcopy(inputs)))
    graph = from_torch(module, inputs)
    programs = {
        "interpreter": graph.evaluate,
        **{level: tersor.compile(graph, pipeline=level, check=False) for level in levels},
    }
    for program, call in programs.items():
        actual = tree_leaves(call(*inputs))
        assert len(actual) == len(expected)
        for index, (ours, theirs) in enumerate(zip(actual, expected, strict=True)):
            message = f"{program}, output {index}: {{}}".format
            torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5, equal_nan=True, msg=message)


class SwinMask(nn.Module):
    """The mask of shifted windows (Liu et al. 2021), written by slices."""

    def forward(self, x):
        regions = torch.zeros(8, 8)
        parts = (slice(0, -4), slice(-4, -2), slice(-2, None))
        for number, (rows, columns) in enumerate((a, b) for a in parts for b in parts):
            regions[rows, columns] = number
        windows = regions.view(2, 4, 2, 4).permute(0, 2, 1, 3).reshape(4, 16)
        mask = windows.unsqueeze(1) - windows.unsqueeze(2)
        return (x + mask.masked_fill(mask != 0, -100.0)).softmax(-1)


class TemporalShift(nn.Module):
    """Channels shifted along time (Lin et al. 2019)."""

    def forward(self, x):
        out = torch.zeros_like(x)
        out[:, :-1, :2] = x[:, 1:, :2]
        out[:, 1:, 2:4] = x[:, :-1, 2:4]
        out[:, :, 4:] = x[:, :, 4:]
        return out


class CostVolume(nn.Module):
    """Products of the left picture and the shifted right one, a disparity at a time (stereo matching)."""

    def forward(self, x):
        left, right = x[:2], x[2:]
        volume = left.new_zeros(2, 3, *left.shape[2:])
        for disparity in range(3):
            if disparity:
                shifted = left[..., disparity:] * right[..., :-disparity]
                volume[:, disparity, :, disparity:] = shifted.mean(1)
            else:
                volume[:, disparity] = (left * right).mean(1)
        return volume.contiguous()


class InPlaceRelu(nn.Module):
    """The result of the layer is not used: its operand is."""

    def __init__(self):
        super().__init__()
        self.relu_inplace = nn.ReLU(inplace=True)

    def forward(self, x):
        y = x * 2
        self.relu_inplace(y)
        return y


MODULES = {
    "Swin's mask": (SwinMask(), (4, 16, 16)),
    "temporal shift": (TemporalShift(), (1, 3, 6, 2, 2)),
    "cost volume": (CostVolume(), (4, 3, 4, 5)),
    "activation in place": (InPlaceRelu(), (3, 4)),
}


@pytest.mark.parametrize("name", MODULES)
def test_modules(name):
    module, shape = MODULES[name]
    compare(module, torch.randn(shape))


def case(table):
    def register(function):
        table[function.__name__] = function
        return function

    return register


PARTS: dict[str, Any] = {}
PLACES: dict[str, Any] = {}


@case(PARTS)
def last_column(x, i):
    y = x * 1
    y[..., -1] = 0
    return y


@case(PARTS)
def steps(x, i):
    y = x * 1
    y[:, ::2] = 0.0
    y[1::2, 1::3] = x[1::2, ::3] * 2
    y.t()[::2] += 7
    return y


@case(PARTS)
def all_through_a_view(x, i):
    y = x * 1
    y.view(-1).mul_(3)
    return y


@case(PARTS)
def rows_in_a_loop(x, i):
    y = x * 1
    for row in range(4):
        y[row] = y[row] * row + x[-1 - row]
    return y


@case(PARTS)
def clamped_filled_copied(x, i):
    y = x * 1
    y[0].clamp_(-0.5, 0.5)
    y[1].fill_(3)
    y[2:, 1:].copy_(x[:2, :5])
    y[3].masked_fill_(x[3] > 0, -1)
    y[:, 5].zero_()
    y[:, 3:5].relu_()
    return y


@case(PARTS)
def added_to_a_view(x, i):
    y = x * 1
    part = y[1:3]
    part += 1
    part[:, 2] -= x[0, 0]
    part.copy_(torch.where(part > 0, part, -part))
    return y, part


@case(PARTS)
def transposed(x, i):
    y = x * 1
    y.t()[2].mul_(3)
    y.view(2, 2, 6).permute(2, 0, 1)[1] = 7
    y.transpose(0, 1)[4, 1:3] = x[0, 1:3]
    return y


@case(PARTS)
def given_as_out(x, i):
    y = torch.zeros(4, 6)
    torch.add(x, x, out=y)
    torch.mul(x[0], x[1], out=y[2])
    return y


@case(PARTS)
def diagonals(x, i):
    y = x * 1
    y.diagonal().fill_(3)
    y.diagonal(1)[1:].add_(x[0, 0])
    return y


@case(PARTS)
def windows_and_strides(x, i):
    y = x * 1
    y.unfold(1, 2, 2).mul_(2)
    y.as_strided((2, 2), (6, 1)).neg_()
    return y


@case(PARTS)
def pieces(x, i):
    y = x * 1
    left, right = y.chunk(2, 1)
    left.mul_(2)
    right.add_(left)
    first, second, *_ = y.unbind(0)
    first.zero_()
    second.copy_(x[3])
    return y, left


@case(PARTS)
def behind_dropout(x, i):
    y = x * 1
    functional.dropout(y, 0.5, False).mul_(2)  # at inference it returns its operand itself
    return y


@case(PARTS)
def without_gradients(x, i):
    y = x * 1
    with torch.no_grad():
        y[0] = 1
        y[1:].relu_()
    y.detach()[2].neg_()
    return y


@case(PARTS)
def shapes_changed_in_place(x, i):
    y = x * 1
    z = y.view(4, 2, 3)
    y.t_()
    y.unsqueeze_(0)
    y[0, 0] = 1
    return y, z


@case(PLACES)
def by_mask(x, i):
    y = x * 1
    y[x > 0] = 2.0
    y[x[:, 0] > 0] = torch.arange(6.0)
    y[:, x[0] > 0] = torch.arange(4.0)[:, None]
    y.index_put_((x < -1,), torch.tensor(5.0), accumulate=True)
    return y


@case(PLACES)
def by_constant_indices(x, i):
    y = x * 1
    y[torch.tensor([0, -2])] = x[:2]
    y[:, torch.tensor([1, 3])] = x[:, :2]
    y[torch.tensor([0, 2]), torch.tensor([1, -1])] = x[:2, 0]
    y[torch.tensor([[1], [3]]), torch.tensor([4, 0])] += 1
    return y


@case(PLACES)
def apart(x, i):
    y = (x * 1).view(2, 2, 6)
    y[torch.tensor([0, 1, 1]), :, torch.tensor([3, -1, 2])] = x[:3, :2]
    return y


@case(PLACES)
def by_an_input(x, i):
    y = x * 1
    y[i] = x[i] + 1
    y[:, i] *= 2
    y[i, i] = 0
    y.index_put_((i,), x[i], accumulate=True)
    return y


@case(PLACES)
def accumulated(x, i):
    y = x * 1
    y.index_put_((torch.tensor([0, 2, 0]),), x[:3], accumulate=True)
    y.index_add_(1, torch.tensor([1, 1]), x[:, :2])
    y.scatter_add_(1, torch.zeros(4, 2, dtype=torch.long), x[:, :2])
    return y


@case(PLACES)
def filled_and_copied_by_index(x, i):
    y = x * 1
    y.index_fill_(1, torch.tensor([1, 2]), 3.0)
    y.index_copy_(0, i, x[:3])
    y.scatter_(1, i[:, None] - 1, x[:, 2:3])
    y.scatter_(0, torch.tensor([[0, 1, 2]]), 5.0)
    return y


@case(PLACES)
def integers_and_booleans(x, i):
    z = (x * 4).long()
    z[0] = 3
    z[:, ::2] += 1
    z.index_put_((torch.tensor([0, 2, 0]),), z[:3].clone(), accumulate=True)
    b = x > 0
    b[0] = True
    b[:, ::2] = False
    b[torch.tensor([1])] = True
    return z, b.logical_not_(), z.double().index_put_((i,), z[:3].double(), accumulate=True)


INPUTS = (torch.randn(4, 6, generator=torch.Generator().manual_seed(0)), torch.tensor([1, 3, 2]))


@pytest.mark.parametrize("cases", [PARTS, PLACES], ids=["parts", "places"])
def test_functions(cases):
    compare(Together(cases), *INPUTS)


@pytest.mark.slow
@pytest.mark.parametrize("name", PARTS | PLACES)
def test_each_function(name):
    compare(Together({name: (PARTS | PLACES)[name]}), *INPUTS, levels=("O0", "O1", "O2", "O3"))


def test_large_tables_are_written_by_all_threads():
    def write(x, rows, i):
        y = x * 1
        y[i] = rows
        return y.index_put_((i,), rows, accumulate=True)

    i = torch.arange(400).remainder(300) * 7 % 1001
    compare(Together({"": write}), torch.randn(1001, 67), torch.randn(400, 67), i)


REFUSED = {
    "shares? memory, as expand makes it": lambda x: (x * 1).expand(2, 2, 3).index_fill_(0, torch.tensor([0]), 2.0),
    "index_fill_|copy_|fill_.* shares? memory": lambda x: (x * 1)[:1].expand(2, 3)[0].fill_(3) + x,
    "by a mask and other indices": lambda x: (x * 1).index_put_((torch.ones(2) > 0, torch.tensor([1])), torch.ones(1)),
    "not contiguous": lambda x: (x * 1).expand(4, 2, 3).as_strided((2,), (1,)),
    "of which the tensor is only a part": lambda x: (x * 1)[:, :2].as_strided((2,), (2,)),
    "aten.normal": lambda x: (x * 1).normal_(),
}


@pytest.mark.parametrize("reason", REFUSED)
def test_refusals(reason, wrap):
    with pytest.raises(TersorError, match=reason):
        from_torch(wrap(REFUSED[reason]), torch.randn(2, 3))


def test_a_scalar_is_flipped_along_its_only_dimension(wrap):
    graph = from_torch(wrap(lambda x: x.sum().flip(0)), torch.randn(2))
    torch.testing.assert_close(graph.evaluate(torch.ones(2))[0], torch.tensor(2.0))


@pytest.mark.parametrize("write", [lambda x: x.relu_() + 1, lambda x: x.view(-1)[0].fill_(0)])
def test_writes_to_inputs_are_told(write, wrap):
    x = torch.randn(2, 3)
    with pytest.warns(TersorWarning, match="writes to its input '.*' in place: outputs are the same"):
        graph = from_torch(wrap(write), x)
    torch.testing.assert_close(graph.evaluate(x.clone())[0], write(x.clone()))


class Counter(nn.Module):
    """Writes to its own tensors, and uses neither."""

    def __init__(self, *, registered):
        super().__init__()
        if registered:
            self.register_buffer("count", torch.zeros(1))
        else:
            self.count = torch.zeros(1)

    def forward(self, x):
        self.count.add_(1)
        return x * 2


def test_writes_to_buffers_become_state_and_those_to_other_tensors_are_refused():
    graph, x = from_torch(Counter(registered=True), torch.randn(2)), torch.randn(2)
    assert graph.states == ("count",)
    assert graph.evaluate(x)[1].item() == 1
    with pytest.raises(TersorError, match="count is mutated in the forward"):
        from_torch(Counter(registered=False), x)


class Assigning(nn.Module):
    """A sub-module assigns to its buffer, after its old value was read and returned."""

    def __init__(self, width=2):
        super().__init__()
        self.inner, self.width = nn.Module(), width
        self.inner.register_buffer("past", torch.zeros(2))

    def forward(self, x):
        old = self.inner.past
        self.inner.past = torch.cat([x, x])[: self.width]
        return old, self.inner.past + old


def test_assignments_in_sub_modules_become_state():
    module, x = Assigning(), torch.randn(2)
    graph = from_torch(module, x)
    assert graph.states == ("inner.past",)
    state = ()
    for _ in range(3):
        first, second, *state = graph.evaluate(x, *state)
        expected = module(x)
        assert torch.equal(first, expected[0]) and torch.equal(second, expected[1])
    with pytest.raises(TersorError, match=r"another shape or element type to its buffer inner\.past"):
        from_torch(Assigning(width=1), x)


def test_three_compilations_in_three_threads():
    """PyTorch traces one program at a time."""
    models = [nn.Sequential(nn.Linear(4, width), nn.ReLU(inplace=True), nn.Dropout()) for width in (2, 3, 5)]
    x, results, failures = torch.randn(2, 4), {}, []

    def compile_and_call(index):
        try:
            results[index] = tersor.compile(models[index], (x,))(x)
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=compile_and_call, args=(index,)) for index in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    for index, model in enumerate(models):
        torch.testing.assert_close(results[index], model.eval()(x).detach())
