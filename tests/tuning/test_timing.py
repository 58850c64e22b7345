"""Timing with a clock of our own: what is dropped, when it stops, and that drift cancels."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest

from tersor.targets.tuning.timing import TimingPolicy, measure, spread_of


class Machine:
    """A clock that kernels move; ``slowdown`` says how slow the machine is at a time."""

    def __init__(self, slowdown: Callable[[float], float] = lambda now: 1.0) -> None:
        self.now = 0.0
        self.calls: list[str] = []
        self._slowdown = slowdown

    def clock(self) -> float:
        return self.now

    def kernel(self, name: str, seconds: float, first: float = 0.0) -> Callable[[], None]:
        """Takes ``first`` seconds more when another kernel was called before it."""

        def run() -> None:
            cold = bool(self.calls) and self.calls[-1] != name
            self.calls.append(name)
            self.now += (seconds + first * cold) * self._slowdown(self.now)

        return run


def test_steady_kernels_stop_at_the_fewest_blocks_without_the_first_call() -> None:
    machine = Machine()
    timing = measure(machine.kernel("a", 1e-3, 5e-3), machine.kernel("b", 2e-3, 5e-3), clock=lambda: machine.now)
    assert timing.seconds == pytest.approx(1e-3)
    assert timing.baseline == pytest.approx(2e-3)
    assert timing.spread == pytest.approx(0, abs=1e-9)
    assert timing.repeats == TimingPolicy().min_blocks


def test_short_kernels_are_called_many_times_a_block() -> None:
    machine = Machine()
    timing = measure(machine.kernel("a", 1e-5), None, clock=lambda: machine.now)
    assert timing.repeats == pytest.approx(100 * TimingPolicy().min_blocks, rel=0.02)
    assert math.isnan(timing.baseline)


def test_drift_cancels_in_the_ratio() -> None:
    machine = Machine(lambda now: 1.0 + 10 * now)
    timing = measure(machine.kernel("a", 1e-3), machine.kernel("b", 1.2e-3), clock=lambda: machine.now)
    assert machine.now > 0.02
    assert timing.seconds / timing.baseline == pytest.approx(1 / 1.2, rel=0.03)


def test_disturbed_blocks_are_left_out() -> None:
    machine = Machine(lambda now: 5.0 if int(now / 4e-3) % 3 == 1 else 1.0)
    timing = measure(machine.kernel("a", 1e-3), machine.kernel("b", 1e-3), clock=lambda: machine.now)
    assert timing.seconds == pytest.approx(1e-3, rel=0.01)
    assert timing.baseline == pytest.approx(1e-3, rel=0.01)


def test_a_noisy_kernel_is_repeated_until_the_limit() -> None:
    machine = Machine(lambda now: 1.0 + (now * 1e3 * math.pi) % 1)
    policy = TimingPolicy(max_blocks=20, max_seconds=10)
    assert measure(machine.kernel("a", 1e-3), None, policy, lambda: machine.now).repeats == 20
    policy = TimingPolicy(max_blocks=1000, max_seconds=0.05)
    machine.now = 0.0
    measure(machine.kernel("a", 1e-3), None, policy, lambda: machine.now)
    assert 0.05 <= machine.now < 0.1


def test_a_very_slow_kernel_is_called_a_few_times_only() -> None:
    machine = Machine()
    timing = measure(machine.kernel("a", 0.9), machine.kernel("b", 1.0), clock=lambda: machine.now)
    assert (timing.seconds, timing.baseline) == (pytest.approx(0.9), pytest.approx(1.0))
    assert machine.now < 6


def test_a_much_slower_candidate_is_cut_off_and_a_slightly_slower_one_is_not() -> None:
    policy = TimingPolicy(cut=1.5)
    for factor, blocks in ((1.6, policy.min_blocks // 2), (1.4, policy.min_blocks)):
        machine = Machine()
        timing = measure(machine.kernel("a", factor * 1e-3), machine.kernel("b", 1e-3), policy, clock=machine.clock)
        assert timing.repeats == blocks
        assert timing.seconds == pytest.approx(factor * 1e-3)


def test_spread_is_relative_to_the_median() -> None:
    assert spread_of([1.0]) == 0
    assert spread_of([1.0, 2.0, 3.0, 4.0, 5.0]) == pytest.approx(2 / 3)


@pytest.mark.parametrize("wrong", [{"min_blocks": 1}, {"max_blocks": 3}, {"cut": 1.0}, {"block_seconds": 0.0}])
def test_policies_are_checked(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="TimingPolicy"):
        TimingPolicy(**wrong)
