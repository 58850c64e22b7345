"""Random modules (`random_programs.py`), compiled, against eager; `random_modules.py` checks more of them."""

from __future__ import annotations

import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from tersor.tests.random_modules import BATCH, _expected, check, smallest, verdicts
from tersor.tests.random_programs import PIPELINES, Program, random_program

QUICK, MANY = 200, 4000  # programs

# A wrong program is made as short as possible where it is found, so hypothesis need not try.
seeded = settings(
    deadline=None, derandomize=True, phases=[Phase.generate], suppress_health_check=[HealthCheck.too_slow]
)
first_seeds = st.integers(0, 2**40)


def check_batch(first: int, pipeline: str) -> None:
    found = check(range(first, first + BATCH), pipeline)
    wrong = [how for kind, how in found if kind == "wrong"]
    assert not wrong, "\n".join(wrong)
    assert sum(kind == "same" for kind, _ in found) >= BATCH // 2, found


@pytest.mark.parametrize("pipeline", PIPELINES)
@settings(seeded, max_examples=QUICK // BATCH // len(PIPELINES))
@given(first=first_seeds)
def test_programs(pipeline: str, first: int) -> None:
    check_batch(first, pipeline)


@pytest.mark.slow
@pytest.mark.parametrize("pipeline", PIPELINES)
@settings(seeded, max_examples=MANY // BATCH // len(PIPELINES))
@given(first=first_seeds)
def test_many_programs(pipeline: str, first: int) -> None:
    check_batch(first, pipeline)


def test_a_seed_stands_for_a_program() -> None:
    program = random_program(11)
    assert program == random_program(11) != random_program(12)
    (x, *_), (again, *_) = program.draw_inputs(0), program.draw_inputs(0)
    assert torch.equal(x.nan_to_num(), again.nan_to_num())


def test_programs_are_shortened() -> None:
    program = random_program(11, size=8)
    last = program.statements[-1]
    assert smallest(program, lambda one: last in one.statements).statements == (last,)


def program_of(*statements: str) -> Program:
    return Program(0, (("x0", (2, 5), torch.float32),), ("self.m0 = nn.LayerNorm(5)",), statements, "v1")


def test_what_is_zero_up_to_rounding_may_differ_by_rounding() -> None:
    """Eager's mean of a normalised row is 0.0 on one machine and 4.8e-8 on another; its float64 is 2e-17."""
    mean = program_of("v0 = self.m0(x0)", "v1 = v0.mean(1, keepdim=True)")
    ((_, allowed),) = _expected(mean, mean.draw_inputs(0), roundings=4)
    assert 1e-7 < allowed < 1e-5
    exact = program_of("v0 = x0.exp()", "v1 = v0 - v0")
    assert [one for _, one in _expected(exact, exact.draw_inputs(0), 4)] == [
        one for _, one in _expected(exact, exact.draw_inputs(0))
    ]


def test_a_dropped_write_would_be_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the suite is for: with a program that is not made functional, it fails."""
    program = Program(0, (("x0", (3,), torch.float32),), (), ("v0 = x0 * 2", "v0[0] = 5.0"), "v0")
    assert verdicts([program])[0][0] == "same"
    monkeypatch.setattr("tersor.frontend.export.writes_in_place", lambda node: False)
    monkeypatch.setattr("tersor.frontend.program.writes_in_place", lambda node: False)
    assert verdicts([program])[0][0] == "wrong"
