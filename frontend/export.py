"""From a module to a functional program of convertible operators, by `torch.export`."""

from __future__ import annotations

import copy
import functools
import operator
import threading
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import chain

import torch
from torch import fx, nn
from torch._decomp import get_decompositions
from torch._ops import OperatorBase, OpOverload
from torch.export import ExportedProgram, default_decompositions
from torch.export.exported_program import _decompose_exported_program, _split_decomp_table_to_cia_and_python_decomp
from torch.fx.experimental.symbolic_shapes import GuardOnDataDependentSymNode
from torch.nn.modules.module import register_module_buffer_registration_hook
from torch.nn.utils import rnn as rnn_utils
from torch.utils._pytree import tree_map_only

from ..ir import TersorError
from ..ir.foreign import UserObject
from .caches import register_caches
from .decompositions import DECOMPOSITIONS
from .errors import Operator, UnsupportedError
from .known import known_numbers
from .places import place_of_error, place_of_trace
from .quiet import quiet
from .registry import CONVERTERS, DROPOUTS, Argument, adopt
from .symbols import Symbols, depends_on_data, is_extent, names_of, widened, with_dims
from .to_torch import GraphModule

aten = torch.ops.aten


class Arguments:
    """Positional and named example inputs: ``Arguments(x, mask=mask)`` stands for ``module(x, mask=mask)``."""

    def __init__(self, *args: UserObject, **kwargs: UserObject) -> None:
        self.args, self.kwargs = args, kwargs


Decompositions = dict[OperatorBase, Callable[..., Argument]]
ExampleInputs = torch.Tensor | Sequence[UserObject] | Mapping[str, UserObject] | Arguments

# What a call may name beside operators: picking one of several results, regions that PyTorch inlines, and arithmetic
# on extents.
_HARMLESS = (
    torch.ops.higher_order.wrap_with_set_grad_enabled,
    operator.getitem,
    *(operator.add, operator.sub, operator.mul, operator.floordiv, operator.mod, operator.neg, operator.pow),
    *(operator.eq, operator.ne, operator.lt, operator.le, operator.gt, operator.ge),
)

_ONE_AT_A_TIME = threading.RLock()

# Decomposed beyond the default table, which leaves them to backends.
_DECOMPOSED_TOO = (
    aten.addmv.default,
    aten.as_strided_copy.default,
    aten.dist.default,
    aten.narrow_copy.default,
    aten.permute_copy.default,
    aten.unbind_copy.int,
    aten.view_copy.default,
    aten.linalg_vector_norm.default,
    aten.upsample_nearest2d.default,
    aten.upsample_nearest2d.vec,
)


def export(
    module: nn.Module, example_inputs: ExampleInputs | None, dynamic_shapes: UserObject = None
) -> tuple[ExportedProgram, Symbols]:
    """Trace a module for inference; neither its mode nor its tensors change."""
    args, kwargs = split_inputs(example_inputs)
    try:
        module = _for_inference(in_eval_mode(module))
        register_caches(module)
        dims = None if dynamic_shapes is None else with_dims(module, args, kwargs, dynamic_shapes)
        with tracing(), _assignments_as_writes(module), known_numbers(module):
            if dims is not None:
                args, kwargs = widened(module, args, kwargs, dims)
            program = torch.export.export(module, args, kwargs, dynamic_shapes=dims)
            names = {} if dims is None else names_of(program, module, args, kwargs, dims)
            return program, Symbols(program, names)
    except TersorError:
        raise
    except Exception as error:  # the model's own forward runs in here: anything may be raised
        raise TersorError(_why_not_traced(type(module).__name__, error)) from error


def _why_not_traced(name: str, error: Exception) -> str:
    """In one line, why `torch.export` failed on a module, and what to do."""
    start, place = f"torch.export cannot trace {name}: ", _at(error)
    if _packs_sequences(error):
        return (
            f"{start}packed sequences have lengths that depend on the data{place}; call the layer on the padded "
            "tensor, and mask what lies behind the ends"
        )
    if isinstance(error, GuardOnDataDependentSymNode):
        reason = _first_line(error).partition(" (unhinted")[0]
        return (
            f"{start}numbers that depend on the input decide what it does{place} ({reason}); choose with "
            "torch.where, or decide before the model is called"
        )
    return f"{start}{_first_line(error)}{place}; make it pass torch.export.export(model.eval(), example_inputs) first"


def _packs_sequences(error: Exception) -> bool:
    """Whether an error comes from PyTorch's functions on packed sequences, or from a layer that is given one."""
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    packing = any(frame.f_code.co_filename == rnn_utils.__file__ for frame in frames)
    return packing or any(isinstance(frame.f_locals.get("orig_input"), rnn_utils.PackedSequence) for frame in frames)


def split_inputs(example_inputs: ExampleInputs | None) -> tuple[tuple[UserObject, ...], dict[str, UserObject]]:
    """Positional and named arguments from what users give as example inputs; raises TersorError for anything else."""
    if example_inputs is None:
        raise TersorError("example_inputs are needed to trace a module: pass a tuple of tensors, one per argument")
    if isinstance(example_inputs, Arguments):
        return example_inputs.args, dict(example_inputs.kwargs)
    if isinstance(example_inputs, torch.Tensor):
        return (example_inputs,), {}
    if isinstance(example_inputs, Mapping):
        return (), dict(example_inputs)
    if isinstance(example_inputs, tuple | list):
        return tuple(example_inputs), {}
    kind = type(example_inputs).__name__
    raise TersorError(f"example_inputs must be a tensor, a tuple of tensors or a dict of named ones, not {kind}")


def in_eval_mode(module: nn.Module) -> nn.Module:
    """The module itself if it is in evaluation mode throughout, else a copy in that mode which shares its tensors."""
    if not any(part.training for part in module.modules()):
        return module
    shared = {id(tensor): tensor for tensor in chain(module.parameters(), module.buffers())}
    return copy.deepcopy(module, shared).eval()


def _for_inference(module: nn.Module) -> nn.Module:
    """The module, or a copy that shares its tensors, where parts of it are not what inference runs."""
    parts = [part for part in module.modules() if isinstance(part, GraphModule)]
    others = {id(part): other for part in parts if (other := part.for_inference()) is not part}
    if not others:
        return module
    shared = {id(tensor): tensor for tensor in chain(module.parameters(), module.buffers())}
    return copy.deepcopy(module, {**shared, **others})


@contextmanager
def _assignments_as_writes(module: nn.Module) -> Iterator[None]:
    """Let sub-modules assign to their buffers: `torch.export` keeps what the root module assigns, and forgets the rest.

    At the end of forward, what was assigned is written into the buffer, behind the back of everything that read it.
    """
    paths = {part: path for path, part in module.named_modules()}
    before: dict[tuple[nn.Module, str], UserObject] = {}

    def note(part: nn.Module, name: str, value: object) -> None:
        if part is not module and part in paths and part._buffers.get(name) is not None:
            before.setdefault((part, name), part._buffers[name])

    def write(root: nn.Module, inputs: UserObject, outputs: UserObject) -> UserObject:
        if not before:
            return None
        outputs = tree_map_only(torch.Tensor, torch.clone, outputs)  # which may be the buffers' old values
        for (part, name), buffer in before.items():
            value = part._buffers[name]
            if value is None or (value.shape, value.dtype) != (buffer.shape, buffer.dtype):
                raise TersorError(
                    f"the model assigns a tensor of another shape or element type to its buffer {paths[part]}.{name}; "
                    "keep those that it has, for example by slicing"
                )
            part._buffers[name] = buffer.copy_(value)
        before.clear()
        return outputs

    handles = [register_module_buffer_registration_hook(note), module.register_forward_hook(write)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def lower(program: ExportedProgram) -> ExportedProgram:
    """Make a program functional, and decompose the operators that have no converter into core ATen operators.

    In-place operators become pure ones, writes into views included. Nothing is traced again if all is well already.
    """
    _refuse_foreign_calls(program)
    calls = [node for node in calls_of(program.graph_module) if not is_extent(node)]
    for node in calls:
        if isinstance(node.target, OpOverload):
            adopt(node.target)
    targets = {node.target for node in calls if node.users or writes_in_place(node)}
    hidden = {node.target for node in calls_of(program.graph_module) if _updates_statistics(node)}
    if not hidden and targets <= CONVERTERS.keys() | {operator.getitem}:
        return program
    _refuse_writes_to_shared_memory(program)
    try:
        with tracing(), _dropout_as_alias(program):
            composite, others = decompositions(frozenset(CONVERTERS.keys() - hidden))
            return _decompose_exported_program(
                program,
                cia_to_decomp=composite,
                python_decomp_table=dict(others),
                joint_loss_index=None,
                decompose_custom_triton_ops=False,
            )
    except Exception as error:  # decompositions are Python functions over the model's operators
        raise TersorError(f"torch.export cannot decompose the program: {_first_line(error)}") from error


@functools.lru_cache(maxsize=2)
def decompositions(kept: frozenset[OpOverload]) -> tuple[Decompositions, Decompositions]:
    """How PyTorch decomposes what is not ``kept``: operators that are composed of others, and all the rest.

    `ExportedProgram.run_decompositions` would work this out for every program anew, and also override each of the
    hundreds of composite operators by the decomposition that it has anyway: 0.15 s, however small the program.
    """
    table = default_decompositions()
    for overload in kept:
        table.pop(overload, None)
    table.update(get_decompositions(_DECOMPOSED_TOO))
    table.update(DECOMPOSITIONS)
    composite, others = _split_decomp_table_to_cia_and_python_decomp(dict(table.items()))
    return {op: call for op, call in composite.items() if not isinstance(call, functools.partial)}, others


def writes_in_place(node: fx.Node) -> bool:
    """Whether a call changes the numbers or the shape of a tensor that others may see, be its result used or not."""
    return isinstance(node.target, OpOverload) and node.target._schema.is_mutable and node.target not in CONVERTERS


def _updates_statistics(node: fx.Node) -> bool:
    """Whether a call writes to running statistics, which its schema does not tell; its decomposition returns them."""
    return node.target is aten.batch_norm.default and node.args[3] is not None and bool(node.args[5])


def _refuse_writes_to_shared_memory(program: ExportedProgram) -> None:
    """Raise UnsupportedError for writes into views whose elements share memory, as ``expand`` makes them.

    PyTorch adds the elements up when it makes such a write functional (it inverts ``expand`` by a sum).
    """
    reason = "it writes into a view whose elements share memory, as expand makes it; clone the view first"
    wrong = [
        node
        for node in calls_of(program.graph_module)
        if writes_in_place(node) and any(_shares_memory(view) for view in _views_below(node))
    ]
    if wrong:
        raise UnsupportedError([refused(node, reason) for node in wrong])


def _views_below(node: fx.Node) -> Iterator[fx.Node]:
    """What a call writes to, and the views that this was made of, down to memory of its own."""
    while node.args and isinstance(node.args[0], fx.Node):
        aliases = isinstance(node.target, OpOverload) and any(one.alias_info for one in node.target._schema.returns)
        if not aliases and node.target is not operator.getitem:
            return
        node = node.args[0]
        yield node


def _shares_memory(node: fx.Node) -> bool:
    value = node.meta.get("val")
    if not isinstance(value, torch.Tensor) or value.layout != torch.strided:
        return False
    return any(extent > 1 and not step for extent, step in zip(value.shape, value.stride(), strict=True))


def calls_of(module: fx.GraphModule) -> Iterator[fx.Node]:
    """All function calls, those in nested regions included."""
    for part in module.modules():
        if isinstance(part, fx.GraphModule):
            yield from (node for node in part.graph.nodes if node.op == "call_function")


def path_of(node: fx.Node) -> str:
    """Path of the innermost module that a node comes from; ``""`` for the model itself."""
    stack = node.meta.get("nn_module_stack")
    if not stack:
        return ""
    path, _ = list(stack.values())[-1]
    return path.partition("@")[0]  # "@1" marks a second call of one module


def name_of(target: fx.node.Target) -> str:
    """An operator's name for messages."""
    return str(target) if isinstance(target, OpOverload) else getattr(target, "__name__", str(target))


def refused(node: fx.Node, reason: str = "") -> Operator:
    """A call that is not supported, for messages."""
    return Operator(name_of(node.target), path_of(node), reason, place_of_trace(node.meta.get("stack_trace")))


@contextmanager
def _dropout_as_alias(program: ExportedProgram) -> Iterator[None]:
    """Call dropout at inference an alias, as in PyTorch: writes into its result reach its operand.

    Decompositions would make it a copy. A copy of the program would have other names, so it is changed for a while.
    """
    dropouts = [node for node in calls_of(program.graph_module) if node.target in DROPOUTS]
    before = [(node, node.target, node.args) for node in dropouts if not (node.args[1] and node.args[2])]
    for node, _, args in before:
        node.target, node.args = aten.alias.default, args[:1]
    try:
        yield
    finally:
        for node, target, args in before:
            node.target, node.args = target, args


def _refuse_foreign_calls(program: ExportedProgram) -> None:
    """Raise UnsupportedError for calls of anything but operators: tracing would run them, and a file may name any.

    Arithmetic on shapes that depend on the data is such a call; then the operators that cause it are named instead.
    """
    calls = list(calls_of(program.graph_module))
    foreign = [node for node in calls if not isinstance(node.target, OpOverload) and node.target not in _HARMLESS]
    causes = [node for node in calls if isinstance(node.target, OpOverload) and depends_on_data(node.meta.get("val"))]
    if causes:
        foreign = [node for node in foreign if not is_extent(node)]
    if causes or foreign:
        reason = "its result has a shape that depends on the data; keep all elements, or a fixed number as topk does"
        first = [
            one for one in causes if not any(depends_on_data(node.meta.get("val")) for node in one.all_input_nodes)
        ]
        raise UnsupportedError(
            [refused(node, reason) for node in first or causes] + [refused(node) for node in foreign]
        )


def _first_line(error: Exception) -> str:
    """What PyTorch says: its first line, or its first reason where it lists why an extent cannot vary."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    reasons = [line.strip(" -") for line in lines if line.startswith("  - ")]
    return (reasons[0] if reasons and lines[0].startswith("Constraints violated") else lines[0]).rstrip(". ")


def _at(error: Exception) -> str:
    place = place_of_error(error)
    return f" at {place}" if place else ""


# PyTorch's recurrent modules list their weights anew when they are traced.
_RNN_ATTRIBUTES = r"The tensor attributes (self[.\w]*\._flat_weights\[\d+\](, )?)+ were assigned during export"


@contextmanager
def tracing() -> Iterator[None]:
    """Keep other threads from tracing, whose state PyTorch holds in global variables; hide its own deprecations."""
    with _ONE_AT_A_TIME, quiet(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=FutureWarning, message=".*LeafSpec.*")
        warnings.filterwarnings("ignore", category=UserWarning, message=_RNN_ATTRIBUTES)
        yield
