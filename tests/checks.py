"""What every test of a pass asks: it fires, numbers agree, and running it again changes nothing more."""

from __future__ import annotations

from tersor.ir import Graph, parse, structurally_equal
from tersor.passes import PassManager, PassOutcome, PassRecord, as_pipeline
from tersor.passes.instruments import CheckEach, VerifyEach
from tersor.passes.numeric import deviation, seeded_inputs

TOLERANCE = 1e-5  # relative to the output's scale


def run_checked(graph: Graph, pipeline: str, *, fires: str = "", tolerance: float = TOLERANCE) -> PassOutcome:
    """Run a pipeline with all checks on; ``fires`` names a rule that must have been applied."""
    before = str(graph)
    inputs = seeded_inputs(graph)
    expected = graph.evaluate(*inputs)
    manager = PassManager(as_pipeline(pipeline), (VerifyEach(), CheckEach(inputs, tolerance=tolerance)))
    outcome = manager.run(graph)
    assert str(graph) == before, "the graph that was passed in has changed"
    assert not deviation(expected, outcome.graph.evaluate(*inputs)).exceeds(tolerance)
    assert structurally_equal(parse(str(outcome.graph), outcome.graph.weights), outcome.graph)
    if fires:
        assert fires in rules(outcome)
    again = manager.run(outcome.graph)
    assert [record.applied for record in again.report.records if record.changed] == []
    return outcome


def rules(outcome: PassOutcome) -> list[str]:
    """Names of the rewrites that were applied, in order."""
    return [line.split(":")[0] for record in outcome.report.records for line in record.applied]


def refusals(outcome: PassOutcome) -> list[str]:
    """Refusals as text."""
    return [str(refusal) for record in outcome.report.records for refusal in record.refused]


def kinds(graph: Graph) -> list[str]:
    """Names of the ops, constants left out."""
    return [op.name for op in graph.ops if op.inputs]


def body(text: str) -> str:
    """Lines of IR text without indentation, for comparison."""
    return "\n".join(line.strip() for line in text.strip().splitlines())


def record_of(outcome: PassOutcome, name: str) -> PassRecord:
    """What the pass called ``name`` did, in the one run of it."""
    (record,) = (one for one in outcome.report.records if one.name == name)
    return record
