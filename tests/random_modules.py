"""Random modules (`tests/random_programs.py`), compiled and compared with eager.

How far a program amplifies rounding is measured by running it in float64 as well, and for one that seems wrong by
running it with other roundings too (`tests/random_rounding.py`).

    python -m tests.random_modules --count 20000 --seed 1      # in a checkout; prints every program that is wrong
"""

from __future__ import annotations

import argparse
import itertools
import multiprocessing
import os
import re
import time
import traceback
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_leaves

import tersor
from tersor.ir import TersorError
from tersor.tests.random_programs import PIPELINES, Program, random_program
from tersor.tests.random_rounding import rounded

BATCH = 20  # programs that a process takes at a time
TOGETHER = 4  # programs that are compiled as one: more or fewer take longer in all
ROUNDING = 2e-5  # of the largest output: what chains of float32 sums in another order may differ by
AMPLIFIED = 16  # times what eager in float32 is off eager in float64, or off itself with another rounding
ROUNDINGS = 4

Expected = list[tuple[torch.Tensor, float]]
Verdict = tuple[str, str]  # "same", "refused", "unstable" or "wrong", and why or how
CALLS = 2


class Unstable(Exception):
    """Raised for a program whose result float32 does not determine: NaN or infinities where float64 has none."""


class Together(nn.Module):
    """Several modules as one, to be compiled at once."""

    def __init__(self, programs: Sequence[Program]) -> None:
        super().__init__()
        self.parts = nn.ModuleList(program.module() for program in programs)
        self._counts = [len(program.inputs) for program in programs]

    def forward(self, *inputs: torch.Tensor) -> list[Any]:
        parts = zip(self.parts, _split(inputs, self._counts), strict=True)
        return [part(*own) for part, own in parts]


def _split(items: Sequence[Any], counts: Sequence[int]) -> list[Sequence[Any]]:
    ends = list(itertools.accumulate(counts))
    return [items[end - count : end] for end, count in zip(ends, counts, strict=True)]


def verdicts(programs: Sequence[Program]) -> list[Verdict]:
    """What becomes of each program: compiled as one module, and in smaller parts where that is not as it should be."""
    results: dict[int, Verdict] = {}
    expected: dict[int, list[Expected]] = {}
    for index, program in enumerate(programs):
        try:
            expected[index] = [_expected(program, program.draw_inputs(call)) for call in range(CALLS)]
        except (Unstable, RuntimeError, IndexError) as reason:  # PyTorch may refuse the numbers of another call
            results[index] = "unstable", str(reason)
    runnable = list(expected)
    waiting = [runnable[at : at + TOGETHER] for at in range(0, len(runnable), TOGETHER)]
    while waiting:
        part = waiting.pop()
        verdict = _verdict([programs[index] for index in part], [expected[index] for index in part])
        if verdict[0] == "same" or len(part) == 1:
            results.update(dict.fromkeys(part, verdict))
            if verdict[0] == "wrong":
                results[part[0]] = _second_look(programs[part[0]], verdict)
            continue
        named = {part[int(place)] for place in re.findall(r"'parts\.(\d+)", verdict[1])} or set(part[::2])
        waiting += [rest for rest in ([i for i in part if i in named], [i for i in part if i not in named]) if rest]
        if len(named) == len(part):
            waiting[-1:] = [part[::2], part[1::2]]
    return [results[index] for index in range(len(programs))]


def _verdict(programs: Sequence[Program], expected: Sequence[list[Expected]]) -> Verdict:
    try:
        text = _problem(programs, expected)
    except TersorError as error:
        return "refused", str(error)
    except Exception:
        return "wrong", traceback.format_exc(limit=-4)
    return ("wrong", text) if text else ("same", "")


def _second_look(program: Program, verdict: Verdict) -> Verdict:
    """The verdict on a program that seems wrong, when it may be off by what its own roundings matter, too."""
    try:
        expected = [_expected(program, program.draw_inputs(call), ROUNDINGS) for call in range(CALLS)]
    except Unstable as reason:
        return "unstable", str(reason)
    again = _verdict([program], [expected])
    return again if again[0] == "same" else verdict


def _problem(programs: Sequence[Program], expected: Sequence[list[Expected]]) -> str:
    """In what the compiled modules are off eager; empty if in nothing."""
    calls = [[one for program in programs for one in program.draw_inputs(call)] for call in range(CALLS)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        together, pipeline = Together(programs), programs[0].pipeline
        executable = tersor.compile(together, calls[0], pipeline=pipeline, threads=1, check=False)  # compared below
    # In another order of products, infinities need not meet each other: then a result that was NaN is a number.
    reordered = any(one.changed for one in executable.report.records if one.name == "reassociate-matmul")
    for call, inputs in enumerate(calls):
        actual = tree_leaves(executable(*inputs))
        wanted = [one for results in expected for one in results[call]]
        if len(actual) != len(wanted):
            return f"call {call}: {len(actual)} results instead of {len(wanted)}"
        for index, (ours, (theirs, allowed)) in enumerate(zip(actual, wanted, strict=True)):
            if text := _difference(ours, theirs, allowed, reordered):
                return f"call {call}, output {index}: {text}"
    return ""


def _eager(program: Program, inputs: tuple[torch.Tensor, ...], dtype: torch.dtype) -> list[torch.Tensor]:
    converted = (one.to(dtype) if one.dtype is torch.float32 else one.clone() for one in inputs)
    before, module = torch.get_default_dtype(), program.module(dtype)
    torch.set_default_dtype(dtype)
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return [one.clone() for one in tree_leaves(module(*converted))]
    finally:
        torch.set_default_dtype(before)


def _expected(program: Program, inputs: tuple[torch.Tensor, ...], roundings: int = 0) -> Expected:
    """PyTorch's results, and by how much they may be missed."""
    results = _eager(program, inputs, torch.float32)
    try:
        precise = _eager(program, inputs, torch.float64)
    except RuntimeError as error:  # an operator that float64 does not have, or another promotion
        raise Unstable(str(error)) from error
    others = [precise, *rounded(lambda: _eager(program, inputs, torch.float32), roundings)]
    return [(one, max(_allowed(one, other[index]) for other in others)) for index, one in enumerate(results)]


def _allowed(result: torch.Tensor, other: torch.Tensor) -> float:
    if not result.is_floating_point():
        if not torch.equal(result, other):
            raise Unstable("an integer differs in float64, or with another rounding")
        return 0.0
    if not bool((result.isfinite() == other.isfinite()).all()) or not bool((result.isnan() == other.isnan()).all()):
        raise Unstable("other numbers are finite in float64, or with another rounding")
    finite = other.isfinite()
    if not finite.any():
        return 0.0
    numbers, exact = result[finite].double(), other[finite].double()
    return ROUNDING * max(numbers.abs().max().item(), 1e-3) + AMPLIFIED * (numbers - exact).abs().max().item()


def _difference(ours: torch.Tensor, theirs: torch.Tensor, allowed: float, reordered: bool) -> str:
    if (ours.shape, ours.dtype) != (theirs.shape, theirs.dtype):
        return f"{ours.dtype}{list(ours.shape)} instead of {theirs.dtype}{list(theirs.shape)}"
    close = torch.isclose(ours.double(), theirs.double(), rtol=0, atol=allowed, equal_nan=True)
    if reordered:
        close |= theirs.isnan()
    if bool(close.all()):
        return ""
    places = (~close).nonzero()[:3].tolist()
    shown = "; ".join(f"{ours[tuple(p)].item()} instead of {theirs[tuple(p)].item()} at {p}" for p in places)
    return f"{int((~close).sum())} of {close.numel()} numbers, {shown} (allowed: {allowed:.1e})"


def smallest(program: Program, fails: Callable[[Program], bool]) -> Program:
    """``program`` without the statements that it fails without."""
    index = len(program.statements)
    while index:
        index -= 1
        shorter = replace(program, statements=program.statements[:index] + program.statements[index + 1 :])
        program = shorter if fails(shorter) else program
    return program


def is_wrong(program: Program) -> bool:
    """Whether a program runs, but compiles to other numbers; one that lacks a statement it needs does not run."""
    try:
        return verdicts([program])[0][0] == "wrong"
    except (NameError, RuntimeError, IndexError, ValueError, TypeError):
        return False


def report(program: Program, how: str) -> str:
    """What to read when a program is wrong: the shortest program that is, and how the whole one is."""
    short = smallest(program, is_wrong)
    return f"{short.source}\n# {verdicts([short])[0][1] or how}"


# Command line ---------------------------------------------------------------------------------------------------


def check(seeds: Sequence[int], pipeline: str) -> list[Verdict]:
    """What becomes of the programs that ``seeds`` stand for; for a wrong one, its `report`."""
    torch.set_num_threads(1)
    programs = [random_program(seed, pipeline=pipeline) for seed in seeds]
    found = zip(programs, verdicts(programs), strict=True)
    return [(kind, report(program, how) if kind == "wrong" else how) for program, (kind, how) in found]


def _work(batch: tuple[Sequence[int], str]) -> list[Verdict]:
    return check(*batch)


def main() -> None:
    """Check many programs in parallel."""
    parser = argparse.ArgumentParser(description="Compile random modules and compare them with PyTorch.")
    parser.add_argument("--count", type=int, default=1000, help="number of programs")
    parser.add_argument("--seed", type=int, default=0, help="of the first program; the others follow")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="number of processes")
    arguments = parser.parse_args()
    start, counts = time.monotonic(), dict.fromkeys(("same", "refused", "unstable", "wrong"), 0)
    first = arguments.seed * 1_000_000
    seeds = [range(at, min(at + BATCH, first + arguments.count)) for at in range(first, first + arguments.count, BATCH)]
    batches = zip(seeds, itertools.cycle(PIPELINES))
    # Processes are made anew from time to time: PyTorch keeps what it traced.
    with multiprocessing.get_context("spawn").Pool(arguments.workers, maxtasksperchild=50) as pool:
        for found in pool.imap(_work, batches):
            for kind, how in found:
                counts[kind] += 1
                if kind in ("wrong", "refused"):
                    print(f"{kind}: {how}", flush=True)
                if sum(counts.values()) % 500 == 0:
                    print(f"{sum(counts.values())} programs: {counts}, {time.monotonic() - start:.0f} s", flush=True)
    told = f"{counts['refused']} refused, {counts['unstable']} undetermined in float32"
    print(f"{arguments.count} programs, {counts['wrong']} wrong, {time.monotonic() - start:.0f} s ({told})")
    raise SystemExit(counts["wrong"] > 0)


if __name__ == "__main__":
    main()
