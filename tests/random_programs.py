"""Random PyTorch modules: programs of views, writes in place, layers and arithmetic.

A program is Python source, and a seed stands for one. It is grown statement by statement, each one run by PyTorch as it
is drawn: what raises is drawn again. So a program that fails can be read, and run, as it is printed.

Two kinds of numbers are kept apart. Where a comparison, a logarithm or an index is drawn, its operand holds numbers of
an input, moved but not computed: a difference of rounding never decides which branch is taken. All other results may
be off by rounding; `tests/random_modules.py` compares them.
"""

from __future__ import annotations

import contextlib
import math
import random
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import nn
from torch.nn import functional

PIPELINES = ("O0", "O3")
EXTENTS = (1, 1, 2, 3, 4, 5, 7)
SPECIAL = (
    math.nan,
    math.inf,
    -math.inf,
    -0.0,
    3e-39,
    0.0,
)  # the fifth is denormal, and its reciprocal is not too large
MOST_ELEMENTS = 600

# How a value may be used: computed (0), equal to a number of an input but for the sign of zero (1), moved only (2).
COMPUTED, EXACT, MOVED = range(3)


@dataclass(frozen=True)
class Program:
    """Source of a module.

    Attributes
    ----------
    seed
        What inputs, weights and the pipeline are drawn from.
    inputs
        Names, shapes and element types of the arguments.
    layers
        Statements of ``__init__``.
    statements
        Statements of ``forward``.
    result
        The expression that ``forward`` returns.
    pipeline
        What it is compiled with.
    """

    seed: int
    inputs: tuple[tuple[str, tuple[int, ...], torch.dtype], ...]
    layers: tuple[str, ...]
    statements: tuple[str, ...]
    result: str
    pipeline: str = PIPELINES[0]

    @property
    def source(self) -> str:
        """Python source; ``FLOAT`` is float32."""
        names = ", ".join(name for name, _, _ in self.inputs)
        init = ["super().__init__()", *self.layers]
        forward = [line for statement in self.statements for line in statement.splitlines()]
        lines = [f"class Model(nn.Module):  # seed {self.seed}, pipeline {self.pipeline}"]
        lines += [
            f"    # {name}: {str(dtype).removeprefix('torch.')}{list(shape)}" for name, shape, dtype in self.inputs
        ]
        lines += ["    def __init__(self):", *(f"        {line}" for line in init)]
        lines += [f"    def forward(self, {names}):", *(f"        {line}" for line in forward)]
        return "\n".join([*lines, f"        return {self.result}"])

    def module(self, dtype: torch.dtype = torch.float32) -> nn.Module:
        """The module, in evaluation mode, with the same weights for every ``dtype``."""
        torch.manual_seed(self.seed)
        namespace = {**NAMES, "FLOAT": dtype}
        exec(self.source, namespace)
        return namespace["Model"]().eval().to(dtype)

    def draw_inputs(self, call: int) -> tuple[torch.Tensor, ...]:
        """Arguments of one call; the special values are elsewhere in each."""
        generator = random.Random(self.seed * 8 + call)
        return tuple(_numbers(shape, dtype, generator) for _, shape, dtype in self.inputs)


NAMES: dict[str, Any] = {"torch": torch, "nn": nn, "F": functional}


def _numbers(shape: tuple[int, ...], dtype: torch.dtype, generator: random.Random) -> torch.Tensor:
    count = math.prod(shape)
    if dtype is torch.bool:
        return torch.tensor([generator.random() < 0.5 for _ in range(count)]).reshape(shape)
    if not dtype.is_floating_point:
        return torch.tensor([generator.randint(-4, 4) for _ in range(count)], dtype=dtype).reshape(shape)
    share = generator.choice((0, 0, 0.1, 0.3))
    numbers = [generator.choice(SPECIAL) if generator.random() < share else generator.gauss(0, 1) for _ in range(count)]
    return torch.tensor(numbers, dtype=torch.float32).to(dtype).reshape(shape)


# Growing a program ----------------------------------------------------------------------------------------------


@dataclass
class Grower:
    """Draws statements, and runs each."""

    seed: int
    draw: random.Random = field(init=False)
    layers: list[str] = field(default_factory=list)
    statements: list[str] = field(default_factory=list)
    precision: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.draw = random.Random(self.seed)
        inputs = []
        for index in range(self.draw.randint(1, 3)):
            rank = self.draw.choice((0, 1, 2, 2, 3, 3, 4))
            shape = tuple(self.draw.choice(EXTENTS) for _ in range(rank))
            dtype = self.draw.choice((torch.float32,) * 5 + (torch.int64, torch.bool, torch.float64))
            inputs.append((f"x{index}", shape if index else (2, *shape[1:]), dtype if index else torch.float32))
        self.inputs = tuple(inputs)
        numbers = Program(self.seed, self.inputs, (), (), "").draw_inputs(0)
        self.model = nn.Module()
        self.values: dict[str, Any] = {name: one for (name, _, _), one in zip(self.inputs, numbers, strict=True)}
        self.precision = dict.fromkeys(self.values, MOVED)
        self.kept = [one.clone() for one in numbers]

    def grown(self, size: int) -> Program:
        """The program after ``size`` statements."""
        torch.manual_seed(self.seed)
        for _ in range(20 * size):
            if len(self.statements) >= size:
                break
            made = self.draw.choice(STATEMENTS)(self)
            if made is not None:
                self._try(*made)
        return Program(self.seed, self.inputs, tuple(self.layers), tuple(self.statements), self._result())

    # Drawing --------------------------------------------------------------------------------------------------

    def pick(self, wanted: Callable[[torch.Tensor], bool] = lambda _: True) -> str:
        """A name of a value, a late one as a rule; the first input, which is float32, must be wanted."""
        name = self.find(wanted)
        assert name is not None
        return name

    def find(self, wanted: Callable[[torch.Tensor], bool] = lambda _: True, precision: int = COMPUTED) -> str | None:
        """A name of a value, a late one as a rule; None if there is none."""
        names = [n for n, v in self.values.items() if wanted(v) and self.precision[n] >= precision]
        return None if not names else names[-1] if self.draw.random() < 0.4 else self.draw.choice(names)

    def new(self) -> str:
        """A name that nothing has."""
        return f"v{len(self.statements)}"

    def number(self) -> str:
        """A constant."""
        return self.draw.choice(("0.0", "0.5", "2.0", "-1.5", "3", "-1"))

    def axis(self, name: str) -> int:
        """A dimension of a value, counted from either end."""
        rank = max(1, self.values[name].ndim)
        return self.draw.randrange(-rank, rank)

    def index(self, name: str) -> str:
        """Basic indices into a value: numbers, slices, an ellipsis."""
        items = []
        for extent in self.values[name].shape[: self.draw.randint(0, self.values[name].ndim)]:
            start = self.draw.randrange(extent)
            stop = self.draw.randint(start + 1, extent)
            options = (":", "::2", "-1:", f"{self.draw.randrange(-extent, extent)}", f"{start}:{stop}", f":{stop}")
            items.append(self.draw.choice((*options, "1::2") if extent > 1 else options))
        if self.draw.random() < 0.3:
            items.insert(self.draw.randint(0, len(items)), "...")
        return ", ".join(items) or "..."

    def positions(self, extent: int, count: int | None = None, *, distinct: bool = False) -> str:
        """A tensor of integers below ``extent``."""
        count = self.draw.randint(1, 3) if count is None else count
        chosen = [self.draw.randrange(extent) for _ in range(count)]
        return f"torch.tensor({list(dict.fromkeys(chosen)) if distinct else chosen})"

    def layer(self, expression: str) -> str:
        """A layer of the module, an equal one that is there already as a rule."""
        for line in self.layers:
            if line.endswith(f" = {expression}") and self.draw.random() < 0.7:
                return line.partition(" = ")[0]
        name = f"self.m{len(self.layers)}"
        self.layers.append(f"{name} = {expression}")
        exec(self.layers[-1], {**NAMES, "FLOAT": torch.float32, "self": self.model})
        self.model.eval()
        return name

    # Running --------------------------------------------------------------------------------------------------

    def _try(self, statement: str, precision: int = COMPUTED) -> None:
        """Keep a statement unless PyTorch refuses it, or it writes to an input or a weight, or is too large."""
        values = dict(self.values)
        before = {name: one._version for name, one in values.items()}
        backup = {name: one.detach().clone() for name, one in values.items()}
        try:
            with warnings.catch_warnings():  # with gradients, as when it is exported
                warnings.simplefilter("ignore")
                exec(statement, {**NAMES, "FLOAT": torch.float32, "self": self.model}, values)
        except (RuntimeError, IndexError, ValueError, TypeError):
            values = {}
        values = {name: one for name, one in values.items() if isinstance(one, torch.Tensor)}
        fits = all(0 < one.numel() <= MOST_ELEMENTS and one.ndim <= 5 for one in values.values())
        named = [name for name, _, _ in self.inputs]
        weights = {one.untyped_storage().data_ptr() for one in self.model.state_dict().values()}
        written = [name for name, version in before.items() if self.values[name]._version != version]
        foreign = any(name in named or self.values[name].untyped_storage().data_ptr() in weights for name in written)
        if not values or not fits or foreign:
            for name in written:  # before it was found out
                with torch.no_grad(), contextlib.suppress(RuntimeError):  # an expanded value is not written to itself
                    self.values[name].copy_(backup[name])
            return
        for name, one in values.items():
            if name not in self.precision:
                self.precision[name] = precision if one.is_floating_point() else MOVED
            elif name in written and one.is_floating_point():
                self.precision[name] = min(self.precision[name], precision)
        self.values = values
        self.statements.append(statement)

    def _result(self) -> str:
        names = list(self.values)
        made = names[len(self.inputs) :] or names
        written = [name for name in made if any(line.startswith((f"{name}[", f"{name}.")) for line in self.statements)]
        chosen = [self.draw.choice(self.draw.choice((names, made, made[-4:]))) for _ in range(self.draw.randint(0, 3))]
        chosen += [*written[:2], made[-1]]
        if len(chosen) > 2 and self.draw.random() < 0.3:
            return f"{{'a': {chosen[0]}, 'b': ({', '.join(chosen[1:])})}}"
        return chosen[0] if len(chosen) == 1 else f"({', '.join(chosen)})"


Made = tuple[str, int] | tuple[str] | None
STATEMENTS: list[Callable[[Grower], Made]] = []


def statement(weight: int) -> Callable[[Callable[[Grower], Made]], Callable[[Grower], Made]]:
    """Register a function that draws one statement and the precision of what it makes."""

    def register(function: Callable[[Grower], Made]) -> Callable[[Grower], Made]:
        STATEMENTS.extend([function] * weight)
        return function

    return register


def is_float(value: torch.Tensor) -> bool:
    return value.is_floating_point()


def is_single(value: torch.Tensor) -> bool:
    return value.dtype is torch.float32


def is_number(value: torch.Tensor) -> bool:
    return value.dtype is not torch.bool


@statement(6)
def view(grower: Grower) -> Made:
    name = grower.pick()
    value, draw = grower.values[name], grower.draw
    rank, axis = value.ndim, grower.axis(name)
    extent = value.shape[axis] if rank else 1
    dims = draw.sample(range(rank), rank)
    divisor = draw.choice([n for n in range(1, value.numel() + 1) if value.numel() % n == 0])
    half = draw.randint(0, extent - 1)
    options = (
        f"{name}[{grower.index(name)}]",
        f"{name}[{grower.index(name)}]",
        f"{name}[{grower.index(name)}]",
        f"{name}.view(-1)",
        f"{name}.view({divisor}, -1)",
        f"{name}.reshape(-1, {divisor})",
        f"{name}.permute({dims})",
        f"{name}.transpose({axis}, {grower.axis(name)})",
        f"{name}.t()",
        f"{name}.mT",
        f"{name}.unsqueeze({axis})",
        f"{name}.squeeze()",
        f"{name}.squeeze({axis})",
        f"{name}.flatten()",
        f"{name}.narrow({axis}, {half}, {extent - half})",
        f"{name}.select({axis}, {half})",
        f"{name}.chunk(2, {axis})[-1]",
        f"{name}.split(2, {axis})[0]",
        f"{name}.unbind({axis})[{half}]",
        f"{name}.diagonal({draw.randint(-1, 1)}, {axis}, {grower.axis(name)})",
        f"{name}.unfold({axis}, {max(1, half)}, 1)",
        f"{name}.movedim({axis}, 0)",
        f"{name}.detach()",
        f"{name}.contiguous()",
        f"{name}.expand(2, {', '.join(['-1'] * rank)})" if rank else f"{name}.expand(3)",
        f"{name}.to({name}.dtype)",
        f"F.dropout({name}, 0.5, False)",
        f"{name}.view_as({name})",
    )
    return f"{grower.new()} = {draw.choice(options)}", grower.precision[name]


@statement(2)
def moved(grower: Grower) -> Made:
    name = grower.pick()
    rank, axis = grower.values[name].ndim, grower.axis(name)
    extent = grower.values[name].shape[axis] if rank else 1
    other = grower.pick(lambda value: value.dtype is grower.values[name].dtype)
    options = (
        f"{name}.clone()",
        f"{name} * 1",
        f"torch.cat([{name}, {other}], {axis})",
        f"torch.stack([{name}, {other}], {axis})",
        f"{name}.flip({axis})",
        f"{name}.roll({grower.draw.randint(-2, 2)}, {axis})",
        f"{name}.repeat({', '.join(['2'] * max(1, rank))})",
        f"{name}.index_select({axis}, {grower.positions(extent)})",
        f"{name}[{grower.positions(extent)}]",
        f"{name}.tril()",
        f"torch.zeros_like({name})",
        f"F.pad({name}, ({grower.draw.choice((0, 1, 2))}, 1))",
    )
    precision = min(grower.precision[name], grower.precision[other])
    return f"{grower.new()} = {grower.draw.choice(options)}", precision


@statement(3)
def constant(grower: Grower) -> Made:
    name = grower.pick()
    shape, number = list(grower.values[name].shape), grower.number()
    dtype = grower.draw.choice(("FLOAT", "FLOAT", "FLOAT", "torch.int64", "torch.bool", "torch.float64"))
    options = (f"torch.zeros({shape}, dtype={dtype})", f"torch.full({shape}, {number}).to({dtype})")
    return f"{grower.new()} = {grower.draw.choice(options)}", MOVED


@statement(4)
def arithmetic(grower: Grower) -> Made:
    a = grower.pick(is_number)
    b = grower.number() if grower.draw.random() < 0.3 else grower.pick(is_number)
    options: tuple[str, ...] = (f"{a} + {b}", f"{a} - {b}", f"{a} * {b}", f"torch.maximum({a}, torch.as_tensor({b}))")
    if grower.draw.random() < 0.2:
        options = (f"{a} / {b}",) if grower.precision.get(b, MOVED) == MOVED else (f"{a} / ({b}.abs() + 1)",)
    return (f"{grower.new()} = {grower.draw.choice(options)}",)


@statement(4)
def function(grower: Grower) -> Made:
    name = grower.pick(is_single)
    exact = grower.precision[name]
    smooth = ("tanh", "sigmoid", "sin", "cos", "erf", "neg", "abs", "relu", "square")
    options = [f"{name}.{one}()" for one in smooth]
    options += [f"F.{one}({name})" for one in ("silu", "gelu", "hardswish", "leaky_relu", "elu", "relu6", "softplus")]
    options += [f"({name}.abs() + 0.5).{one}()" for one in ("log", "sqrt", "rsqrt", "reciprocal")]
    options += [f"{name}.clamp(max=3).exp()", f"{name}.clamp(-0.5, 1)"]
    if exact == MOVED:
        options += [f"{name}.{one}()" for one in ("log", "sqrt", "reciprocal", "floor", "ceil", "log1p", "exp")]
    return (f"{grower.new()} = {grower.draw.choice(options)}",)


@statement(2)
def truth(grower: Grower) -> Made:
    a = grower.find(precision=EXACT)
    b = grower.draw.choice(("0", "0.5", grower.find(precision=EXACT)))
    sign = grower.draw.choice(("<", ">", "<=", "==", "!="))
    condition = grower.find(lambda value: value.dtype is torch.bool) or f"({a} {sign} {b})"
    options = (f"{a} {sign} {b}", f"{a} {sign} {b}", f"~{condition}", f"{condition} & ({a} {sign} {b})")
    return f"{grower.new()} = {grower.draw.choice(options)}", MOVED


@statement(2)
def chosen(grower: Grower) -> Made:
    condition = grower.find(lambda value: value.dtype is torch.bool)
    a, b = grower.pick(is_float), grower.draw.choice((grower.number(), grower.pick(is_float)))
    return None if condition is None else (f"{grower.new()} = torch.where({condition}, {a}, {b})",)


@statement(2)
def cast(grower: Grower) -> Made:
    name = grower.pick()
    if is_float(grower.values[name]):  # a copy, since in float64 the two types are one
        dtype = "torch.float64" if is_single(grower.values[name]) else "FLOAT"
        return f"{grower.new()} = {name}.to({dtype}, copy=True)", grower.precision[name]
    dtype = grower.draw.choice(("FLOAT", "torch.int64", "torch.bool", "torch.float64"))
    return f"{grower.new()} = {name}.to({dtype})", MOVED


@statement(2)
def reduction(grower: Grower) -> Made:
    name = grower.pick(lambda value: is_number(value) and value.dtype is not torch.float64)
    axis = grower.axis(name)
    kind = grower.draw.choice(("sum", "mean", "amax", "amin") if is_float(grower.values[name]) else ("sum", "amax"))
    return (f"{grower.new()} = {name}.{kind}({axis}, keepdim={grower.draw.random() < 0.5})",)


@statement(3)
def layered(grower: Grower) -> Made:
    name = grower.find(lambda value: is_single(value) and value.ndim > 0)
    if name is None:
        return None
    shape = grower.values[name].shape
    last, channels = shape[-1], shape[1] if len(shape) > 1 else 1
    width = grower.draw.choice((1, 3, last))
    expressions = [
        f"nn.Linear({last}, {width})",
        f"nn.LayerNorm({last})",
        "nn.ReLU(inplace=True)",
        "nn.ReLU(inplace=True)",
        "nn.Hardtanh(inplace=True)",
        "nn.Dropout(0.5)",
        "nn.Softmax(-1)",
        "nn.Identity()",
    ]
    if len(shape) == 3:
        expressions += [f"nn.Conv1d({channels}, {width}, 3, padding=1)", f"nn.BatchNorm1d({channels})"]
    if len(shape) == 4:
        expressions += [  # no groups: the zeros between narrow ones spread infinities, see docs/kernels.md
            f"nn.Conv2d({channels}, {width}, {grower.draw.choice((1, 3))}, padding=1)",
            f"nn.BatchNorm2d({channels})",
            "nn.MaxPool2d(2, 1)",
            "nn.AvgPool2d(2, 1)",
            "nn.AdaptiveAvgPool2d(1)",
            f"nn.PReLU({channels})",
        ]
    layer = grower.layer(grower.draw.choice(expressions))
    call = grower.draw.choice((f"{layer}({name})", f"{layer}({name})", f"{layer}({layer}({name}))"))
    return (grower.draw.choice((f"{grower.new()} = {call}", call)),)


@statement(1)
def product(grower: Grower) -> Made:
    a = grower.find(lambda value: is_single(value) and value.ndim > 1)
    if a is None:
        return None
    last = grower.values[a].shape[-1]
    weight = grower.layer(f"nn.Parameter(torch.randn({grower.draw.choice((1, 3, last))}, {last}))")
    return (
        f"{grower.new()} = {grower.draw.choice((f'{a} @ {a}.mT', f'{a} @ {weight}.t()', f'F.linear({a}, {weight})'))}",
    )


@statement(16)
def write(grower: Grower) -> Made:
    """A write in place, into a value or a part of it."""
    draw = grower.draw
    name = grower.pick()
    value = grower.values[name]
    axis = grower.axis(name)
    extent = value.shape[axis] if value.ndim else 1
    place = draw.choice((name, f"{name}[{grower.index(name)}]", f"{name}[{grower.index(name)}]"))
    other = grower.pick(lambda one: one.dtype is value.dtype)
    part = draw.choice((other, f"{other}[{grower.index(other)}]", f"{other}[{grower.index(other)}].clone()"))
    if grower.values[other].untyped_storage().data_ptr() == value.untyped_storage().data_ptr():
        part = f"{part}.clone()"  # what reads the elements that it writes depends on their order in eager
    same = grower.pick(lambda one: (one.shape, one.dtype) == (value.shape, value.dtype))
    mask = grower.find(lambda one: one.dtype is torch.bool and one.ndim > 0)
    number = grower.number() if is_float(value) else draw.choice(("0", "1"))
    precision = min(grower.precision[name], grower.precision[other])
    reduction = f"{draw.choice(('sum', 'amax', 'amin'))!r}, include_self={draw.random() < 0.5}"
    moves = [
        f"{place}.copy_({part})",
        f"{place}.fill_({number})",
        f"{place}.zero_()",
        f"{place}.clamp_(0, 1)",
        f"{name}[{grower.index(name)}] = {number}",
        f"{name}[{grower.index(name)}] = {number}",
        f"{name}[{grower.index(name)}] = {part}",
        f"{name}[{grower.index(name)}] = {part}",
        f"{name}.view(-1)[{draw.randrange(value.numel())}] = {number}",
        f"{name}.index_fill_({axis}, {grower.positions(extent)}, {number})",
        f"{name}.index_copy_({axis}, {grower.positions(extent, 1)}, {part}.narrow({axis}, 0, 1))",
        f"{name}[{grower.positions(extent, distinct=True)}] = {number}",
        f"{name}.index_put_(({grower.positions(extent, 1)},), {part})",
        f"{name}.scatter_({axis}, torch.zeros_like({other}, dtype=torch.int64), {other})"
        if extent == 1
        else f"{name}.zero_()",
        f"for i in range({len(value) if value.ndim else 0}):\n    {name}[i] = {part}",
        f"for i in range({len(value) if value.ndim else 0}):\n    {name}[i, ..., -1:] = i",
    ]
    if precision >= EXACT:
        moves.append(f"{place}.masked_fill_({place} == 0, {number})")
    if mask is not None:
        moves += [
            f"{name}[{mask}] = {number}",
            f"{name}[{mask}] = {part}",
            f"{name}.masked_fill_({mask}, {number})",
            f"{name}.masked_scatter_({mask}, {other}.clone())",
        ] * 2
    computes = [
        f"{place}.mul_({draw.choice(('2', '-1'))})" if value.dtype is not torch.bool else f"{place}.logical_not_()",
        f"{place}.add_({part})",
        f"{place}.sub_({part})",
        f"{place}.mul_({part})",
        f"{place}.relu_()",
        f"{place}.neg_()",
        f"{place}.clamp_(min={part})",
        f"{place} += {part}",
        f"{place} *= {part}",
        f"torch.add({same}, 1, out={name})",
        f"torch.mul({place}, {place}, out={place})",
        f"{name}.index_add_({axis}, {grower.positions(extent, 1)}, {part}.narrow({axis}, 0, 1))",
        f"{name}.index_put_(({grower.positions(extent)},), {part}, accumulate=True)",
        f"{name}.scatter_add_({axis}, torch.zeros_like({other}, dtype=torch.int64), {other})",
        f"{name}.scatter_reduce_({axis}, torch.zeros_like({other}, dtype=torch.int64), {other}.clone(), {reduction})",
        f"{name}.transpose({axis}, {grower.axis(name)}).add_({number})",
        f"{place}.addcmul_({part}, {part})",
        f"for i in range({len(value) if value.ndim else 0}):\n    {name}[i] += {part}",
    ]
    if value.dtype is torch.float32:
        computes += [f"{place}.sigmoid_()", f"{place}.tanh_()", f"{place}.div_(2)", f"F.relu({place}, inplace=True)"]
    if draw.random() < 0.5:
        return draw.choice(moves), precision
    return (draw.choice(computes),)


def random_program(seed: int, size: int | None = None, pipeline: str = PIPELINES[0]) -> Program:
    """The program that a seed stands for, with a drawn number of statements if ``size`` is omitted."""
    return replace(
        Grower(seed).grown(random.Random(seed + 1).randint(3, 12) if size is None else size), pipeline=pipeline
    )
