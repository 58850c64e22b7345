"""``quantize-tables``: tables of embeddings as 8-bit integers, with a scale for each row."""

from __future__ import annotations

import pytest
import torch

from tersor.ir import DType, Graph, TensorType, TersorError
from tersor.ir.ops import AddOp, EmbeddingOp, LinearOp, WeightOp
from tersor.passes import PassManager, PassOutcome, as_pipeline, run_passes
from tersor.targets import resolve_target
from tersor.tests.checks import refusals
from tersor.tests.random_graphs import GraphBuilder
from tersor.tests.targets.compiled import compiled

PASS = "quantize-tables"
WORDS, WIDTH = 50, 24


def words(shared: bool = False) -> Graph:
    """Words and places, added up; with ``shared``, a second embedding reads the table of words."""
    b = GraphBuilder({"x": TensorType((2, 7), DType.I64)})
    table = torch.randn(WORDS, WIDTH, generator=b.generator) * torch.logspace(-2, 1, WORDS)[:, None]
    table[3] = 0
    value = b.constant(table, "words")
    found = b.op(EmbeddingOp, value, b.graph.inputs[0], location="words")
    places = b.op(EmbeddingOp, b.weight(7, WIDTH), b.constant(torch.arange(7)), location="places")
    total = b.op(AddOp, found, places)
    if shared:
        total = b.op(AddOp, total, b.op(EmbeddingOp, value, b.graph.inputs[0], location="again"))
    return b.done(b.linear(total, 5))


def ids() -> torch.Tensor:
    return torch.randint(0, WORDS, (2, 7), generator=torch.Generator().manual_seed(3))


def outcome_of(graph: Graph) -> PassOutcome:
    return PassManager(as_pipeline(PASS)).run(graph, calibration=[(ids(),)])


@pytest.mark.parametrize("shared", [False, True])
def test_tables_become_integers(shared: bool):
    graph = words(shared)
    outcome = outcome_of(graph)
    tables = {op.table.type.dtype for op in outcome.graph.ops if isinstance(op, EmbeddingOp)}
    assert tables == {DType.I8, DType.F32}  # integers and scales
    (note, *_) = [line for record in outcome.report.records for line in record.notes]
    assert note.startswith(f"2 tables of 8 bits: {4 * 57 * WIDTH} -> {57 * (WIDTH + 4)} bytes")
    (expected,), (found,) = graph.evaluate(ids()), outcome.graph.evaluate(ids())
    assert (found - expected).abs().max() < 0.01 * expected.abs().max()
    assert not outcome_of(outcome.graph).report.records[0].changed


def test_each_row_has_its_scale():
    """Rows that are a thousandth of others keep as many bits; one of zeros stays one of zeros."""
    b = GraphBuilder({"x": TensorType((WORDS,), DType.I64)})
    table = torch.randn(WORDS, WIDTH, generator=b.generator) * torch.logspace(-3, 1, WORDS)[:, None]
    table[3] = 0
    graph = b.done(b.op(EmbeddingOp, b.constant(table), b.graph.inputs[0]))
    every = torch.arange(WORDS)
    found = run_passes(graph, PASS).evaluate(every)[0]
    assert ((found - table).abs().amax(1) <= table.abs().amax(1) / 253).all()


def test_compiled():
    graph = run_passes(words(), PASS)
    found = compiled(graph, "O3")(ids())
    torch.testing.assert_close(found, graph.evaluate(ids())[0], rtol=1e-5, atol=1e-5)


def test_refusals():
    b = GraphBuilder({"x": TensorType((4,), DType.I64), "t": TensorType((9, WIDTH))})
    x, computed = b.graph.inputs
    tied = b.weight(WORDS, WIDTH)
    rows = [b.op(EmbeddingOp, tied, x), b.op(EmbeddingOp, computed, x)]
    rows.append(b.op(EmbeddingOp, b.constant(torch.full((3, WIDTH), torch.inf)), x))
    rows.append(b.op(EmbeddingOp, b.weight(5, WIDTH), x, location="kept"))
    rows.append(b.op(EmbeddingOp, b.weight(5, 7), x))
    graph = b.done(*rows, b.op(LinearOp, rows[0], tied))
    outcome = PassManager(as_pipeline(PASS + "{skip=[kept]}")).run(graph)
    reasons = ("read by something else too", "computed at run time", "not finite", "it is to be skipped", "are short")
    for reason in reasons:
        assert any(reason in one for one in refusals(outcome)), reason
    assert all(op.attrs.type.dtype is DType.F32 for op in outcome.graph.ops if isinstance(op, WeightOp))


def test_it_needs_to_run_before_layout():
    b = GraphBuilder({"x": TensorType((1, 4), DType.I64), "y": TensorType((1, 16, 8, 8))})
    graph = b.done(b.op(EmbeddingOp, b.weight(5, WIDTH), b.graph.inputs[0]), b.conv(b.graph.inputs[1], 16))
    with pytest.raises(TersorError, match="run quantize-tables before layout"):
        run_passes(run_passes(graph, "layout", target=resolve_target("x86:avx2")), PASS)
