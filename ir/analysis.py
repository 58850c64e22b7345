"""Graph analyses, all on networkx: the use-definition graph, dominators, reachability."""

from __future__ import annotations

import networkx

from .core import Op, Value
from .graph import Graph
from .ops import FullOp, WeightOp

EXIT = "exit"


def is_constant(value: Value) -> bool:
    """Whether ``value`` is a weight or a filled tensor."""
    return isinstance(value.op, WeightOp | FullOp)


def dataflow(graph: Graph, *, constants: bool = False) -> networkx.DiGraph:
    """Directed graph from each op to the ops that read it; ops that feed an output have an edge to `EXIT`.

    Parameters
    ----------
    constants
        Whether weights and filled tensors are nodes too.
    """
    flow = networkx.DiGraph()
    flow.add_node(EXIT)
    for op in graph.ops:
        if not constants and isinstance(op, WeightOp | FullOp):
            continue
        flow.add_node(op)
        for result in op.results:
            flow.add_edges_from((op, user) for user in result.users)
            if result.is_output:
                flow.add_edge(op, EXIT)
    return flow


def post_dominators(graph: Graph) -> dict[Op, Op | str]:
    """Immediate post-dominator of every op that reaches an output: the first op on all paths from it to outputs."""
    reverse = dataflow(graph).reverse(copy=False)
    dominators = networkx.immediate_dominators(reverse, EXIT)
    return {op: dominator for op, dominator in dominators.items() if op is not EXIT and dominator is not None}


def live_ops(graph: Graph) -> set[Op]:
    """Ops that an output depends on."""
    return {op for op in networkx.ancestors(dataflow(graph, constants=True), EXIT) if op is not EXIT}
