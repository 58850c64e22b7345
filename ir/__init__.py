"""The typed graph IR: types, values and ops, graphs, text, verifier, reference interpreter, rewriter.

Nothing in here knows a frontend, a pass or a target.
"""

from . import ops
from .analysis import dataflow, is_constant, live_ops, post_dominators
from .compare import fingerprint, structurally_equal
from .core import Attrs, Op, Operand, Use, Value
from .errors import IRError, TersorError, TersorWarning, shorten
from .graph import Graph, clone_op
from .interpreter import check_inputs, evaluate, evaluate_op
from .isolate import graph_of
from .names import suggest
from .parser import IR_VERSION, parse
from .printer import print_attrs, print_graph
from .rewriter import Refusal, RewriteLog, Rewriter, apply_rules
from .storage import load_ir, save_ir
from .traits import ChannelFlow, Cost, Narrowing, OnIntegers, Storage
from .types import DType, TensorType, check_memory
from .verifier import verify, weights_loaded
from .weights import WeightStore

__all__ = [
    "IR_VERSION",
    "Attrs",
    "ChannelFlow",
    "Cost",
    "DType",
    "Graph",
    "IRError",
    "Narrowing",
    "OnIntegers",
    "Op",
    "Operand",
    "Refusal",
    "RewriteLog",
    "Rewriter",
    "Storage",
    "TensorType",
    "TersorError",
    "TersorWarning",
    "Use",
    "Value",
    "WeightStore",
    "apply_rules",
    "check_inputs",
    "check_memory",
    "clone_op",
    "dataflow",
    "evaluate",
    "evaluate_op",
    "fingerprint",
    "graph_of",
    "is_constant",
    "live_ops",
    "load_ir",
    "ops",
    "parse",
    "post_dominators",
    "print_attrs",
    "print_graph",
    "save_ir",
    "shorten",
    "structurally_equal",
    "suggest",
    "verify",
    "weights_loaded",
]
