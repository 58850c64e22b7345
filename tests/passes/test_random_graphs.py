from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings

from tersor.ir import Graph, parse, structurally_equal
from tersor.passes import Exactness, find_pass, list_passes
from tersor.passes.registry import OTHER
from tersor.tests.checks import run_checked
from tersor.tests.random_graphs import random_graph, random_graphs

# Every pass that keeps the numbers. Steps of quantization need folded batch norms, and have tests of their own.
PASSES = [
    info.name
    for info in list_passes()
    if info.exactness is not Exactness.APPROXIMATE and info.purpose not in ("quantize", OTHER)  # of test suites
]
quick = settings(max_examples=25, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])


@pytest.mark.parametrize("name", PASSES)
@quick
@given(graph=random_graphs())
def test_every_pass_keeps_the_numbers(name: str, graph: Graph):
    run_checked(graph, name, tolerance=find_pass(name)().tolerance)


@quick
@given(graph=random_graphs(max_size=20))
def test_o3_keeps_the_numbers(graph: Graph):
    from tersor.passes import run_passes
    from tersor.passes.instruments import CheckEach, VerifyEach

    run_passes(graph, "O3", instruments=[VerifyEach(), CheckEach()])


@quick
@given(graph=random_graphs())
def test_text_round_trips(graph: Graph):
    assert structurally_equal(parse(str(graph), graph.weights), graph)


def test_generator_is_deterministic():
    assert str(random_graph(7, 12)) == str(random_graph(7, 12))
