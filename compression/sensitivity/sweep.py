"""What changes of single layers do to a graph's outputs: each batch is swept once, op by op, and changes branch off.

At the first op that a change reaches, the numbers that are alive are there already, so only what follows is computed
again: half of the graph on the mean. As many batches are swept side by side as fit into `MOST_BYTES` of such numbers,
and each change is made once for these, and dropped.
"""

from __future__ import annotations

import itertools
import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch

from ...ir import Graph, Op, TersorError, Value, check_inputs, evaluate, evaluate_op, is_constant
from ...ir.ops import WeightOp
from .variants import Change, Variant

MOST_BYTES = 2**29  # of numbers that are alive, in all batches that are swept side by side

Outputs = tuple[torch.Tensor, ...]
_Values = dict[Value, torch.Tensor]
_NOTHING = Change()


class PartialRuns:
    """Evaluates a graph from any of its ops on, with a change.

    Parameters
    ----------
    graph
        Without symbols and fused ops.
    """

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.ops = graph.ops
        last = {value: index for index, op in enumerate(self.ops) for value in (*op.results, *op.inputs)}
        self._dead: list[list[Value]] = [[] for _ in self.ops]  # what nobody reads after an op
        for value, index in last.items():
            if not value.is_output:
                self._dead[index].append(value)

    def begin(self, inputs: Sequence[torch.Tensor]) -> _Values:
        """The inputs' values; state has its initial value."""
        given = self.graph.with_state(inputs)
        check_inputs(self.graph, given)
        return dict(zip(self.graph.inputs, given, strict=True))

    def step(self, values: _Values, index: int, change: Change = _NOTHING) -> None:
        """Evaluate op ``index``; ``values`` are those that are alive, before and after."""
        op = self.ops[index]
        operands = [None if value is None else values[value] for value in op.operands]
        results: Outputs
        if op in change.ops:
            results = (change.ops[op](*operands),)
        elif isinstance(op, WeightOp) and op.attrs.id in change.weights:
            results = (change.weights[op.attrs.id],)
        else:
            results = evaluate_op(op, operands)
        values.update(zip(op.results, results, strict=True))
        for value in self._dead[index]:
            values.pop(value, None)

    def finish(self, values: _Values, index: int = 0, change: Change = _NOTHING) -> Outputs:
        """The user's outputs, computed from op ``index`` on; ``values`` stay as they are."""
        values = {
            value: change.weights.get(value.op.attrs.id, tensor) if isinstance(value.op, WeightOp) else tensor
            for value, tensor in values.items()
        }
        with torch.no_grad():
            for at in range(index, len(self.ops)):
                self.step(values, at, change)
        return tuple(values[value] for value in self.graph.user_outputs)

    def bytes_alive(self) -> int:
        """The most that is alive at once while a batch is swept, weights and outputs aside."""
        most = alive = sum(value.type.bytes for value in self.graph.inputs)
        for op, dead in zip(self.ops, self._dead, strict=True):
            alive += sum(value.type.bytes for value in op.results if not is_constant(value))
            most = max(most, alive)
            alive -= sum(value.type.bytes for value in dead if not is_constant(value))
        return max(1, most)


@dataclass
class _Sums:
    """Squares of what a variant changes in each output."""

    noise: list[float]
    is_finite: bool = True

    def add(self, expected: Outputs, found: Outputs) -> None:
        """Take in one batch; only what is finite in ``expected`` counts."""
        for index, (exact, changed) in enumerate(zip(expected, found, strict=True)):
            there = exact.isfinite()
            squares = (exact[there] - changed.double()[there]).square().sum().item()
            self.is_finite &= math.isfinite(squares)
            self.noise[index] += squares


def errors(
    graph: Graph, batches: Iterable[Sequence[torch.Tensor]], variants: Sequence[Variant], done: Callable[[int], None]
) -> list[float | None]:
    """How far each variant moves the outputs.

    Parameters
    ----------
    batches
        Inputs of ``graph``; read once.
    done
        Told how many evaluations are done, now and then.

    Returns
    -------
    For each variant the root mean square of the change of an output, relative to that output, of the output for which
    this is largest; None where outputs are not finite.

    Raises
    ------
    TersorError
        When a batch makes outputs of the graph itself that are not a number; the message names the first such layer.
    """
    runs = PartialRuns(graph)
    order = {op: index for index, op in enumerate(runs.ops)}
    starts: dict[int, list[int]] = defaultdict(list)
    for index, variant in enumerate(variants):
        if variant.make is not None and variant.readers:
            starts[min(order[op] for op in variant.readers)].append(index)
    sums = [_Sums([0.0] * len(graph.user_outputs)) for _ in variants]
    signal = [0.0] * len(graph.user_outputs)
    number = 0
    for portion in _portions(batches, max(1, MOST_BYTES // runs.bytes_alive())):
        expected = []
        for batch in portion:
            expected.append(_expected(runs, batch, number))
            signal = [sum_ + _power(one) for sum_, one in zip(signal, expected[-1], strict=True)]
            number += 1
        alive = [runs.begin(batch) for batch in portion]
        for index in range(len(runs.ops)):
            for at in starts[index]:
                make = variants[at].make
                assert make is not None  # others have no start
                change = make()
                for values, exact in zip(alive, expected, strict=True):
                    sums[at].add(exact, runs.finish(values, index, change))
                done(len(portion))
            with torch.no_grad():
                for values in alive:
                    runs.step(values, index)
    return [_error(one, signal) for one in sums]


def _portions(batches: Iterable[Sequence[torch.Tensor]], length: int) -> Iterator[tuple[Sequence[torch.Tensor], ...]]:
    iterator = iter(batches)
    while portion := tuple(itertools.islice(iterator, length)):
        yield portion


def _expected(runs: PartialRuns, batch: Sequence[torch.Tensor], number: int) -> Outputs:
    outputs = tuple(one.double() for one in runs.finish(runs.begin(batch)))
    if any(bool(one.isnan().any()) for one in outputs):
        where = _first_without_number(runs.graph, batch)
        raise TersorError(
            f"calibration batch {number} makes numbers at {where} that are not a number (NaN), so nothing can be"
            " compared; look at the data, and at the weights"
        )
    return outputs


def _first_without_number(graph: Graph, batch: Sequence[torch.Tensor]) -> str:
    """The first op that makes NaN, or the input that holds one."""
    for value, tensor in zip(graph.inputs, graph.with_state(batch), strict=True):
        if tensor.is_floating_point() and bool(tensor.isnan().any()):
            return f"input {value.name!r}"
    found: list[Op] = []

    def observe(op: Op, results: Outputs) -> None:
        if not found and any(one.is_floating_point() and bool(one.isnan().any()) for one in results):
            found.append(op)

    evaluate(graph, batch, observe)
    return found[0].describe() if found else "an output"


def _power(output: torch.Tensor) -> float:
    return output[output.isfinite()].square().sum().item()


def _error(sums: _Sums, signal: Sequence[float]) -> float | None:
    if not sums.is_finite:
        return None
    shares = [
        math.sqrt(noise / power) if power else math.sqrt(noise) for noise, power in zip(sums.noise, signal, strict=True)
    ]
    return max(shares, default=0.0)
