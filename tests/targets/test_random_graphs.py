"""Random graphs as machine code, against the reference interpreter."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings

from tersor.ir import Graph
from tersor.tests.random_graphs import random_graphs

from .compiled import check
from .wide_graphs import wide_graph, wide_graphs

O3 = "O3,layout"
UNOPTIMIZED = "fold-batchnorm,layout"
TOLERANCE = 2e-5  # of the largest output: chains of convolutions reorder long sums

seeded = settings(deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])


@settings(seeded, max_examples=8)
@given(graph=random_graphs())
def test_graphs_at_o3(graph: Graph):
    check(graph, pipeline=O3, tolerance=TOLERANCE)


@settings(seeded, max_examples=12)
@given(graph=wide_graphs())
def test_wide_graphs_at_o3(graph: Graph):
    check(graph, pipeline=O3, tolerance=TOLERANCE)


@settings(seeded, max_examples=5)
@given(graph=wide_graphs())
def test_wide_graphs_without_fusion(graph: Graph):
    check(graph, pipeline=UNOPTIMIZED, tolerance=TOLERANCE)


@pytest.mark.slow
@pytest.mark.parametrize("pipeline", [O3, UNOPTIMIZED])
@settings(seeded, max_examples=150)
@given(graph=random_graphs(max_size=20) | wide_graphs(max_size=16))
def test_many_graphs(pipeline: str, graph: Graph):
    check(graph, pipeline=pipeline, tolerance=TOLERANCE)


def test_generator_is_deterministic():
    assert str(wide_graph(7, 12)) == str(wide_graph(7, 12))
