"""The typed graph IR: types, values and ops, graphs, text, verifier, reference interpreter, rewriter.

Nothing in here knows a frontend, a pass or a target.
"""

from . import ops
from .analysis import dataflow, is_constant, live_ops, post_dominators
from .binding import at_hints, bind, check_numbers, elsewhere, numbers_of, told
from .compare import fingerprint, structurally_equal
from .core import Attrs, Op, Operand, Use, Value
from .errors import IRError, TersorError, TersorWarning, shorten
from .extents import Extent, Relation, Symbol, is_symbolic
from .graph import Graph, clone_op
from .interpreter import check_inputs, evaluate, evaluate_op
from .isolate import append_clones, graph_of
from .names import suggest
from .parser import IR_VERSION, parse
from .printer import print_attrs, print_graph
from .rewriter import Refusal, RewriteLog, Rewriter, apply_rules
from .storage import load_ir, save_ir
from .structure import Structure, Tree
from .traits import ChannelFlow, Cost, Narrowing, OnIntegers, Storage
from .types import DType, TensorType, check_memory
from .verifier import verify, verify_interface, weights_loaded
from .weights import WeightStore, changed_id, changes_of, name_of, names_of
