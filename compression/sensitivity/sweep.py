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

from ...ir import Graph, Op, TersorError, evaluate
from ...passes.partial_runs import NO_CHANGE, AliveValues, Change, Outputs, PartialRuns
from .statistics import measured_again
from .variants import Variant

MOST_BYTES = 2**29  # of numbers that are alive, in all batches that are swept side by side


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
    graph: Graph,
    batches: Iterable[Sequence[torch.Tensor]],
    variants: Sequence[Variant],
    done: Callable[[int], None],
    reestimate: bool = False,
) -> list[float | None]:
    """How far each variant moves the outputs.

    Parameters
    ----------
    batches
        Inputs of ``graph``; read once.
    done
        Told how many evaluations are done, now and then.
    reestimate
        Whether batch normalisations are measured again on the batches that are swept side by side: of the graph as it
        is, which changes are compared with, and behind each change.

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
    for portion in portions(runs, batches):
        whole, unchanged = _run(runs, [runs.begin(batch) for batch in portion], reestimate=reestimate)
        expected = [tuple(one.double() for one in outputs) for outputs in whole]
        for batch, outputs in zip(portion, expected, strict=True):
            _check(graph, batch, outputs, number)
            signal = [sum_ + _power(one) for sum_, one in zip(signal, outputs, strict=True)]
            number += 1
        alive = [runs.begin(batch) for batch in portion]
        for index in range(len(runs.ops)):
            for at in starts[index]:
                make = variants[at].make
                assert make is not None  # others have no start
                found, _ = _run(runs, alive, index, make(), reestimate=reestimate)
                for exact, outputs in zip(expected, found, strict=True):
                    sums[at].add(exact, outputs)
                done(len(portion))
            with torch.no_grad():
                for values in alive:
                    runs.step(values, index, unchanged)
    return [_error(one, signal) for one in sums]


def portions(
    runs: PartialRuns, batches: Iterable[Sequence[torch.Tensor]]
) -> Iterator[tuple[Sequence[torch.Tensor], ...]]:
    """As many batches at a time as fit into `MOST_BYTES`."""
    length = max(1, MOST_BYTES // runs.bytes_alive())
    iterator = iter(batches)
    while portion := tuple(itertools.islice(iterator, length)):
        yield portion


def _run(
    runs: PartialRuns, alive: Sequence[AliveValues], index: int = 0, change: Change = NO_CHANGE, *, reestimate: bool
) -> tuple[list[Outputs], Change]:
    """Outputs from op ``index`` on, and the change with what was measured again."""
    if reestimate:
        return measured_again(runs, alive, index, change)
    return [runs.finish(values, index, change) for values in alive], change


def _check(graph: Graph, batch: Sequence[torch.Tensor], outputs: Outputs, number: int) -> None:
    if any(bool(one.isnan().any()) for one in outputs):
        where = _first_without_number(graph, batch)
        raise TersorError(
            f"calibration batch {number} makes numbers at {where} that are not a number (NaN), so nothing can be"
            " compared; look at the data, and at the weights"
        )


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
