"""Modules with dynamic shapes as graphs with symbols: right at every shape, or refused in one line."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.export import Dim

from tersor import TersorError, from_torch, run_passes
from tersor.ir import Relation, Symbol, bind, elsewhere, parse, verify


class Function(nn.Module):
    """A module that calls a function."""

    def __init__(self, function: Callable[..., object]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *inputs: torch.Tensor) -> object:
        return self.function(*inputs)


class Convolutions(nn.Module):
    """Convolutions with a residual, pooling and a linear head."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.BatchNorm2d(8), nn.ReLU())
        self.second = nn.Conv2d(8, 8, 3, padding=1)
        self.head = nn.Linear(8, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x)
        return self.head((x + torch.relu(self.second(x))).mean((2, 3)))


class Transformer(nn.Module):
    """A token and position embedding, masked attention, and a head for the first token."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.positions = nn.Embedding(20, 16), nn.Embedding(32, 16)
        self.packed, self.norm, self.head = nn.Linear(16, 48), nn.LayerNorm(16), nn.Linear(16, 3)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        count, length = ids.shape
        x = self.tokens(ids) + self.positions(torch.arange(length))
        query, key, value = self.packed(self.norm(x)).view(count, length, 3, 2, 8).permute(2, 0, 3, 1, 4)
        mask = torch.ones(length, length, dtype=torch.bool).tril()
        y = nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        return self.head(x + y.transpose(1, 2).flatten(2))[:, -1]


def ids(*shape: int) -> torch.Tensor:
    return torch.arange(shape[0] * shape[1]).view(shape) % 20


CASES = {
    "batch of images": (Convolutions(), lambda b, n: (torch.randn(b, 3, 16, 16),), {"x": {0: "batch"}}),
    "images of any size": (
        Convolutions(),
        lambda b, n: (torch.randn(b, 3, 2 * n, n + 3),),
        {"x": {0: "batch", 2: 2 * Dim("n", min=2), 3: Dim("w", min=3)}},
    ),
    "sequences": (Transformer(), lambda b, n: (ids(b, n),), {"ids": {0: "batch", 1: Dim("n", max=32)}}),
    "recurrent": (nn.LSTM(4, 6, batch_first=True), lambda b, n: (torch.randn(b, 5, 4),), ({0: "batch"},)),
    "two inputs": (
        Function(lambda x, y: torch.cat([x, y[:, 1:]], 1).softmax(0)),
        lambda b, n: (torch.randn(b, n), torch.randn(b, 4)),
        (({0: "batch", 1: "n"}, {0: "batch"}),),
    ),
    "slices": (
        Function(lambda x: (x[:, 1:], x[:, -2], x[:, ::2], x[:, :-1], x[:, 0:1].expand(-1, x.shape[1]))),
        lambda b, n: (torch.randn(b, n),),
        (({0: "batch", 1: Dim("n", min=4)},),),
    ),
    "counts": (
        Function(lambda x: x.flatten() * x.shape[0] + x.shape[1] // 2),
        lambda b, n: (ids(b, n),),
        (({0: "b", 1: "n"},),),
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_graphs_are_right_at_every_shape(name: str) -> None:
    module, draw, dynamic_shapes = CASES[name]
    module.eval()
    graph = from_torch(module, draw(1, 8), dynamic_shapes)
    verify(graph)
    assert str(parse(str(graph))) == str(graph)
    optimized = run_passes(graph, "decompose,fold-constants,dce,O3,fold-batchnorm", target="x86:avx2")
    for count, length in ((1, 8), (3, 8), (4, 5), (1, 12), (17, 4)):
        inputs = draw(count, length)
        with torch.no_grad():
            leaves = torch.utils._pytree.tree_leaves(module(*inputs))
        for computed in (graph, optimized):
            for expected, actual in zip(leaves, computed.evaluate(*inputs), strict=True):
                torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)


def test_symbols_have_the_users_names_and_bounds() -> None:
    x = torch.randn(3, 8)
    graph = from_torch(nn.ReLU(), x, {"input": {0: Dim("batch", min=1, max=64), 1: "width"}})
    assert graph.symbols == (Symbol("batch", 3, 1, 64), Symbol("width", 8))
    program = torch.export.export(nn.ReLU(), (x,), dynamic_shapes=({0: Dim("batch", max=64)},))
    (symbol,) = from_torch(program).symbols
    assert symbol.most == 64
    (symbol,) = from_torch(program, dynamic_shapes={"input": {0: "images"}}).symbols
    assert symbol == Symbol("images", 3, 1, 64)


@pytest.mark.parametrize(
    ("dynamic_shapes", "message"),
    [
        ({"x": {1: "n"}}, r"dimension 1 of an input of shape \[s\d+, 4\] 'n', but only"),
        ({"x": {0: "a"}, "y": {0: "a"}}, "dynamic_shapes calls several extents a"),
        ({"x": {0: "a"}, "z": {0: "b"}}, r"dynamic_shapes calls the one extent s\d+ a and b"),
        ({"y": {1: "n"}}, r"of shape \[s\d+, 2\*s\d+\] 'n', but only"),
        ({"w": {0: "n"}}, "names 'w'; the inputs are x, y, z"),
    ],
)
def test_names_for_a_program_are_those_of_its_symbols(dynamic_shapes: object, message: str) -> None:
    class Three(nn.Module):
        def forward(self, x: torch.Tensor, y: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
            return x.sum() + y + z.sum()

    batch = Dim("batch")
    inputs = torch.randn(3, 4), torch.randn(5, 6), torch.randn(3)
    dims = {"x": {0: batch}, "y": {0: Dim("n"), 1: 2 * batch}, "z": {0: batch}}
    program = torch.export.export(Three(), inputs, dynamic_shapes=dims)
    with pytest.raises(TersorError, match=message):
        from_torch(program, dynamic_shapes=dynamic_shapes)


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda x, y: x + 1 if x.shape[0] % 2 == 0 else x * 2, r"only right where \(x.shape\[0\] % 2\) == 0, .*s77=3"),
        (lambda x, y: x if x.shape[0] != 37 else y, "only right where x.shape.0. != 37"),
        (lambda x, y: x if x.shape[0] > 3 else y, ""),  # a bound, which symbols have
    ],
)
def test_what_a_program_is_made_for_only_in_part(function: Callable[..., object], message: str) -> None:
    """PyTorch holds the branch that it took, and the condition as a guard."""

    class Both(nn.Module):
        def forward(self, x: torch.Tensor, y: torch.Tensor) -> object:
            return function(x, y)

    inputs, auto = (torch.randn(4, 3), torch.randn(8, 3)), {0: Dim.AUTO}
    program = torch.export.export(Both(), inputs, dynamic_shapes={"x": auto, "y": auto})
    if message:
        with pytest.raises(TersorError, match=message):
            from_torch(program)
    else:
        assert from_torch(program).symbols[0].least == 4


@pytest.mark.parametrize(
    ("module", "dynamic_shapes", "message"),
    [
        (Function(lambda x: x.view(2, -1)), (({0: "n"},),), "cannot trace.*Not all values of n"),
        (Function(lambda x: x + torch.ones(4, 3)), (({0: "n"},),), "cannot trace.*n"),
        (Function(lambda x: x / x.shape[0]), (({0: "n"},),), "computes a number from the extent n"),
        (Function(lambda x: (x, x.shape[0])), (({0: "n"},),), "returns an extent"),
        (Function(lambda x: x @ torch.eye(x.shape[1])), (({1: "n"},),), "aten.eye.default.*leave that extent out"),
        (Function(lambda x: x.flip(0)), (({0: "n"},),), "leave"),
        (nn.ReLU(), {"y": {0: "n"}}, "names 'y'; the inputs are input"),
        (nn.ReLU(), {"input": {0: "a b"}}, "'a b' is no name"),
        (nn.ReLU(), {"input": {5: "n"}}, r"dimension 5 of an input of shape \[4, 3\]"),
    ],
)
def test_what_needs_fixed_shapes_is_refused(module: nn.Module, dynamic_shapes: object, message: str) -> None:
    with pytest.raises(TersorError, match=message):
        from_torch(module.eval(), torch.randn(4, 3), dynamic_shapes)


def test_relations_between_extents_are_kept_and_checked() -> None:
    class Front(nn.Module):
        def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
            return torch.cat([y[: x.shape[0]] * 2, x]) if x.shape[0] <= y.shape[0] else x

    module, inputs = Front(), (torch.randn(4, 3), torch.randn(8, 3))
    auto = {0: Dim.AUTO}
    program = torch.export.export(module, inputs, dynamic_shapes={"x": auto, "y": auto})
    graph = from_torch(program, dynamic_shapes={"x": {0: "n"}, "y": {0: "m"}})
    assert [symbol.relations for symbol in graph.symbols] == [(), (Relation("n<=m"),)]
    assert 'm=8 in [2,inf] where "n<=m"' in str(graph)
    assert parse(str(graph)).symbols == graph.symbols
    for n, m in ((2, 2), (3, 8), (8, 9)):
        x, y = torch.randn(n, 3), torch.randn(m, 3)
        torch.testing.assert_close(graph.evaluate(x, y)[0], module(x, y))
    with pytest.raises(TersorError, match="only right where n<=m, but n = 5 in input 'x' and m = 4 in input 'y'"):
        graph.evaluate(torch.randn(5, 3), torch.randn(4, 3))
    with pytest.raises(TersorError, match="only right where n<=m, got n=5, m=4"):
        bind(graph, {"n": 5, "m": 4})


def test_numbers_elsewhere_keep_to_bounds_and_relations() -> None:
    symbols = (Symbol("n", 4), Symbol("m", 8, relations=(Relation("2*n<=m"),)), Symbol("k", 3, 3, 3))
    numbers = elsewhere(symbols)
    assert numbers["n"] != 4
    assert numbers["m"] != 8
    assert numbers["k"] == 3
    assert 2 * numbers["n"] <= numbers["m"]


@pytest.mark.parametrize("text", ["n", "n<m<k", "n => m", "n<=m;1", ""])
def test_relations_are_two_formulas_compared(text: str) -> None:
    with pytest.raises(TersorError, match="is no relation of extents"):
        Relation(text)
