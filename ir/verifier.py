"""The verifier: every rule that a well-formed graph keeps, each with a message that names the op and its location."""

from __future__ import annotations

from collections.abc import Callable

from .core import Op, Value
from .errors import IRError
from .graph import Graph
from .ops import WeightOp
from .types import DType, TensorType


def weights_loaded(graph: Graph) -> bool:
    """Whether every weight that ``graph`` names is in its store; False for a graph read from text alone."""
    ids = [*graph.states, *(op.attrs.id for op in graph.ops if isinstance(op, WeightOp))]
    return all(id in graph.weights for id in ids)


def verify(graph: Graph, *, weights: bool = True) -> None:
    """Raise IRError for the first broken rule.

    Checked are: operands are defined before they are used and belong to the graph; use lists agree with operands;
    result types are those of the op's type rule (layout apart); weights exist with the declared type; bodies of fused
    ops are well formed themselves and fit their operands; state keeps its type; the structure has as many tensors as
    the graph has inputs and outputs.

    Parameters
    ----------
    weights
        Whether weights must be in the store; False for graphs parsed without them.
    """
    defined: dict[Value, None] = dict.fromkeys(graph.inputs)
    seen: set[Op] = set()
    for op in graph.ops:
        if op.graph is not graph:
            raise op.error("is listed in a graph that it does not belong to")
        seen.add(op)
        for index, value in enumerate(op.operands):
            if value is not None:
                _check_operand(op, index, value, defined)
        _check_results(op)
        if weights and isinstance(op, WeightOp):
            _check_stored(op.attrs.id, op.attrs.type, graph, op.error)
        if op.body is not None:
            verify(op.body, weights=weights)
        defined.update(dict.fromkeys(op.results))
    for index, value in enumerate(graph.outputs):
        if value not in defined:
            raise IRError(f"output {index} of graph {graph.name!r} is not defined in it")
        if not value.is_read_by(graph, index):
            raise IRError(f"output {index} of graph {graph.name!r} is missing in the use list of its value")
    for value in defined:
        _check_uses(value, graph, seen)
    verify_interface(graph, weights=weights)


def _check_operand(op: Op, index: int, value: Value, defined: dict[Value, None]) -> None:
    if value not in defined:
        maker = f"the result of {value.op.describe()}" if value.op is not None else f"input {value.name!r}"
        raise op.error(f"operand {index} is {maker}, which is not defined before it")
    if not value.is_read_by(op, index):
        raise op.error(f"operand {index} does not list this op among its uses")


def _check_results(op: Op) -> None:
    expected = [type.logical for type in op.infer_types()]
    actual = [value.type.logical for value in op.results]
    if expected != actual:
        raise op.error(
            f"results are {', '.join(map(str, actual))}, but its type rule gives {', '.join(map(str, expected))}"
        )
    if any(value.op is not op or value.index != index for index, value in enumerate(op.results)):
        raise op.error("a result does not point back to it")


def _check_stored(id: str, declared: TensorType, graph: Graph, error: Callable[[str], IRError]) -> None:
    if id not in graph.weights:
        raise error(f"weight {id!r} is not in the graph's weight store")
    tensor = graph.weights[id]
    actual = TensorType(tuple(tensor.shape), DType.from_torch(tensor.dtype))
    if actual != declared:
        raise error(f"weight {id!r} is {actual}, declared as {declared}")


def verify_interface(graph: Graph, *, weights: bool = True) -> None:
    """The part of `verify` that is about states and structure."""
    count = len(graph.states)
    if count > min(len(graph.inputs), len(graph.outputs)) or len(set(graph.states)) != count:
        raise IRError(f"graph {graph.name!r} must have an input and an output for each of its states, each named once")
    for id, before, after in zip(
        graph.states, graph.inputs[len(graph.user_inputs) :], graph.outputs[len(graph.user_outputs) :], strict=True
    ):
        if before.type.logical != after.type.logical:
            raise IRError(f"state {id!r} of graph {graph.name!r} is {before.type}, its new value {after.type}")
        if weights:
            _check_stored(id, before.type.logical, graph, IRError)
    if graph.structure is not None:
        taken = graph.structure.positional.tensors + graph.structure.keyword.tensors
        counts = [taken, graph.structure.result.tensors]
        if counts != [len(graph.user_inputs), len(graph.user_outputs)]:
            raise IRError(f"the structure of graph {graph.name!r} has {counts[0]} inputs and {counts[1]} outputs")


def _check_uses(value: Value, graph: Graph, ops: set[Op]) -> None:
    for use in value.uses:
        user = use.user
        known = user in ops if isinstance(user, Op) else user is graph
        if not known:
            name = user.describe() if isinstance(user, Op) else f"graph {user.name!r}"
            raise IRError(f"{value!r} is read by {name}, which is not in graph {graph.name!r}")
        operands = user.operands if isinstance(user, Op) else user.outputs
        if use.index >= len(operands) or operands[use.index] is not value:
            raise IRError(f"the use list of {value!r} names operand {use.index} of {user!r}, which is another value")
