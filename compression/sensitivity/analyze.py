"""The facade of sensitivity: a model and data in, the loss of every layer at every setting out."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

from ...compiler import as_graph
from ...evaluation import Model, as_evaluation
from ...ir import Graph, Rewriter, TersorError, at_hints
from ...ir.foreign import UserObject
from ...ir.ops import BatchNormOp, RelayoutOp
from ...passes.calibration import read_calibration
from ...passes.pruning.criteria import find_criterion
from ...passes.sensitivity import SensitivityScan
from ...passes.unfuse import take_apart
from .axes import axis_names, make_axis
from .scan import Scanner

BATCHES = 8  # of the data, on which outputs are compared if nobody says how many


def analyze_sensitivity(
    graph_or_module: UserObject,
    example_inputs: UserObject = None,
    *,
    data: UserObject,
    axes: Sequence[str] | None = None,
    settings: Mapping[str, Sequence[float]] | None = None,
    evaluate: Callable[[Model], float] | None = None,
    criterion: str = "l1",
    batches: int = BATCHES,
    reestimate: bool = False,
    seconds: float | None = None,
    progress: Callable[[str], None] = lambda text: None,
) -> SensitivityScan:
    """Find out how much a model loses when one of its layers alone is compressed.

    Nothing is compiled: the reference interpreter computes what follows a layer that is changed, on calibration data.

    Parameters
    ----------
    graph_or_module
        A `tersor.ir.Graph`, an ``nn.Module`` or an ``ExportedProgram``; never changed.
    example_inputs
        Tensors to export a module with; not needed for the other two.
    data
        Calibration data, in any form that `tersor.compile` takes.
    axes
        What is tried: ``channels`` (a share of a group's channels goes), ``ranks`` (a layer becomes a chain of lower
        rank), ``bits`` (a weight, or what a layer reads, is rounded), ``zeros`` (a share of a layer's weights becomes
        zero). All of them if omitted.
    settings
        Other settings than the usual ones, by axis: shares of channels that go, of the full rank that stays, bits,
        shares of zeros; for example ``{"channels": (0.25, 0.5, 0.75)}``.
    evaluate
        Scores models, see `tersor.compress`; called once for each layer and setting, after all errors are measured.
    criterion
        Which channels go first, as in ``prune-channels{criterion=…}``.
    batches
        How many batches of the data are looked at.
    reestimate
        Measure batch normalisations again behind each change, as the pass ``reestimate-batchnorm`` does; changes are
        then compared with the model as it is on statistics of the same data.
    seconds
        No further model is scored when that much time has passed.
    progress
        Told what is left, now and then.

    Returns
    -------
    SensitivityScan
        After Ctrl-C while models are scored, with the scores until then.

    Raises
    ------
    TersorError
        For a mistake in what is given; when no layer can be changed in a way that was asked for; and when the model
        itself makes no numbers on the data.
    """
    check_request(axes, settings, criterion, batches, seconds, evaluate is not None)
    names = _names(axes)
    evaluation = as_evaluation(evaluate)
    graph = _prepared(as_graph(graph_or_module, example_inputs))
    given = read_calibration(data, graph, "data")
    if given is None:
        raise TersorError("sensitivity needs calibration data: give at least one batch of inputs (data=..., or --data)")
    made = {name: make_axis(name, settings or {}) for name in names}
    if reestimate and not any(isinstance(op, BatchNormOp) for op in graph.ops):
        raise TersorError("reestimate: the model has no batch normalisation that could be measured again; leave it out")
    return Scanner(graph, given, batches, criterion, progress, reestimate).run(
        made, axes is not None, evaluation, seconds
    )


def check_request(
    axes: Sequence[str] | None,
    settings: Mapping[str, Sequence[float]] | None,
    criterion: str,
    batches: int,
    seconds: float | None,
    has_evaluate: bool,
) -> None:
    """Raise TersorError for options of `analyze_sensitivity` that no model could be scanned with."""
    names = _names(axes)
    for name in (*names, *(settings or {})):
        make_axis(name, settings or {})
        if name not in names:
            raise TersorError(f"settings are given for axis {name}, which is not among those to scan")
    try:
        find_criterion(criterion)
    except ValueError as error:
        raise TersorError(str(error)) from error
    if batches < 1:
        raise TersorError(f"batches must be 1 or more, not {batches}")
    if seconds is not None and not (math.isfinite(seconds) and seconds > 0):
        raise TersorError(f"seconds must be above 0, not {seconds:g}")
    if seconds is not None and not has_evaluate:
        raise TersorError("seconds limits what scores take: give evaluate too, or leave it out")


def _names(axes: Sequence[str] | None) -> tuple[str, ...]:
    """The names of the axes, each once."""
    names = axis_names() if axes is None else tuple(dict.fromkeys(axes))
    if not names:
        raise TersorError(f"axes: none is given; choose from {', '.join(axis_names())}")
    return names


def _prepared(graph: Graph) -> Graph:
    """A copy of fixed shapes, without fused ops."""
    if any(isinstance(op, RelayoutOp) for op in graph.ops):
        raise TersorError("the graph has layouts already; give the model itself, not what was compiled")
    copy = at_hints(graph).clone()
    take_apart(copy, Rewriter(copy), "sensitivity")
    return copy
