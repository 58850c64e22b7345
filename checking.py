"""Whether a compiled program agrees with the model that it was made from, and which layer is the first that does not.

The model itself runs once on the example inputs, and so does the program; where the target's code does not run on this
machine, the interpreter runs the optimized graph in its place. After exact and close passes outputs must agree, up to
what rounding itself loses; after approximate ones the signal-to-noise ratio is reported.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import nn
from torch.export import ExportedProgram
from torch.utils import _pytree as pytree

from .frontend import in_eval_mode, split_inputs
from .ir import Graph, Op, TersorError, bind, elsewhere, evaluate, numbers_of, shorten, told
from .ir.foreign import UserObject
from .passes import Agreement, Exactness, Pipeline, bisect, run_passes
from .passes.numeric import distance, own_rounding, seeded_inputs
from .targets import Executable, compile_graph
from .targets.codegen.heap import give_back

Tensors = tuple[torch.Tensor, ...]

TOLERANCE = 1e-3  # of the scale of an output, after exact and close passes
ROUNDING = 4.0  # a program may be off so many times what rounding costs the model itself


class DisagreementError(TersorError):
    """A compiled program, or the graph that it was made from, computes something else than the model."""


@dataclass(frozen=True)
class Reference:
    """A model on its example inputs.

    Attributes
    ----------
    model
        An ``nn.Module``, an ``ExportedProgram`` or a `Graph`, as `tersor.compile` was given it.
    imported
        Its graph before any pass.
    args, kwargs
        The example inputs.
    """

    model: UserObject
    imported: Graph
    args: tuple[UserObject, ...]
    kwargs: dict[str, UserObject]

    @classmethod
    def of(cls, model: UserObject, imported: Graph, example_inputs: UserObject) -> Reference:
        """With the inputs given; else a program's own, or seeded random ones for a graph."""
        if example_inputs is not None:
            args, kwargs = split_inputs(example_inputs)
        elif isinstance(model, ExportedProgram) and model.example_inputs is not None:
            args, kwargs = model.example_inputs
        else:
            args, kwargs = seeded_inputs(imported), {}
        return cls(model, imported, tuple(args), dict(kwargs))

    @property
    def numbers(self) -> dict[str, int]:
        """What the shapes of the example inputs choose for the symbols of the imported graph."""
        declared = [(value.name, value.shape) for value in self.imported.user_inputs]
        return numbers_of(self.imported.symbols, declared, [tensor.shape for tensor in self.inputs])

    def at(self, numbers: Mapping[str, int]) -> Reference:
        """The same on inputs of another shape: parts of the example inputs, or repetitions."""
        imported = bind(self.imported, numbers)
        fitted = (_fitted(tensor, value.shape) for tensor, value in zip(self.inputs, imported.user_inputs, strict=True))
        leaves, tree = pytree.tree_flatten((self.args, self.kwargs))
        given = [next(fitted) if isinstance(leaf, torch.Tensor) else leaf for leaf in leaves]
        args, kwargs = pytree.tree_unflatten(given, tree)
        return Reference(imported if isinstance(self.model, Graph) else self.model, imported, args, kwargs)

    @property
    def inputs(self) -> Tensors:
        """The tensors among the inputs, as graphs and programs take them."""
        return _tensors((self.args, self.kwargs))

    @cached_property
    def module(self) -> nn.Module | None:
        """What computes the outputs, always the same one; None for a graph, which the interpreter runs."""
        if isinstance(self.model, ExportedProgram):
            return self.model.module()
        return in_eval_mode(self.model) if isinstance(self.model, nn.Module) else None

    def outputs(self) -> Tensors:
        """What the model returns, and then its new state; whatever its own ``forward`` raises comes through."""
        module = self.module
        if module is None:
            return self.imported.evaluate(*self.inputs)
        args, kwargs = pytree.tree_map(_own, (self.args, self.kwargs))  # a model may write into its inputs
        with torch.no_grad(), _restored(module, self.imported) as state:
            returned = _tensors(module(*args, **kwargs))
            return *(map(_own, returned) if self.imported.states else returned), *state()


def _fitted(tensor: torch.Tensor, shape: Sequence[int]) -> torch.Tensor:
    """A tensor of the shape given, whose elements are those of ``tensor`` again and again."""
    for axis, extent in enumerate(shape):
        tensor = tensor.index_select(axis, torch.arange(extent) % tensor.shape[axis])
    return tensor


@contextmanager
def _restored(module: nn.Module, graph: Graph) -> Iterator[Callable[[], Tensors]]:
    """Give a module the state that its graph begins with, say what that has become, and put the old one back."""
    buffers = {name: module.get_buffer(name) for name in graph.states}
    before = {name: buffer.clone() for name, buffer in buffers.items()}

    def current() -> Tensors:
        return tuple(module.get_buffer(name).clone() for name in buffers)

    try:
        for name, buffer in buffers.items():
            buffer.copy_(graph.weights[name])
        yield current
    finally:
        for name, buffer in buffers.items():
            owner, _, last = name.rpartition(".")
            setattr(module.get_submodule(owner), last, buffer.copy_(before[name]))


def check_agreement(executable: Executable, reference: Reference, pipeline: Pipeline, *, runs: bool) -> Agreement:
    """Compare a program with the model that it was made from.

    Parameters
    ----------
    pipeline
        The passes that made the program's graph.
    runs
        Whether the program runs on this machine.

    Raises
    ------
    DisagreementError
        When all passes are exact or close, but outputs differ by more than `TOLERANCE` of their scale and by more than
        `own_rounding` explains, or NaN or infinity stands elsewhere. It names the first layer that differs.
    """
    subject = "program" if runs else "graph"
    exact = all(one.exactness is not Exactness.APPROXIMATE for one in pipeline.passes)
    try:
        expected = reference.outputs()
    except Exception as error:  # the model's own forward runs in here: anything may be raised
        return Agreement(subject, exact, skipped=f"the model fails on its example inputs ({shorten(error, 200)})")
    give_back()  # what the model needed
    run = executable.flat if runs else executable.graph.evaluate
    actual = run(*map(_own, reference.inputs))
    agreement = Agreement.between(subject, exact, expected, actual)
    if not exact or agreement.difference <= TOLERANCE:
        return agreement
    own = own_rounding(reference.imported, reference.inputs)
    if agreement.difference <= ROUNDING * own:
        return replace(agreement, rounding=own)
    raise DisagreementError(
        f"the compiled {subject} differs from the model on the example inputs by {agreement.difference:.3g} of an "
        f"output's scale, of which rounding explains {ROUNDING * own:.3g}: "
        f"{_first_difference(executable, reference, expected, pipeline, runs=runs)}. This is an error of Tersor, "
        "please report it; check=False (--no-check) compiles without the comparison"
    )


def check_formulas(imported: Graph, optimized: Graph, example: Reference, pipeline: Pipeline) -> None:
    """See that passes kept all that follows from the symbols of a graph as formulas: at other numbers than their hints.

    Nothing is compared after approximate passes, which may change numbers.

    Raises
    ------
    DisagreementError
        When the graphs differ there.
    """
    numbers = elsewhere(imported.symbols)
    if any(one.exactness is Exactness.APPROXIMATE for one in pipeline.passes):
        bind(optimized, numbers)
        return
    other = example.at(numbers)
    before, after = other.imported.evaluate(*other.inputs), bind(optimized, numbers).evaluate(*other.inputs)
    difference = distance(before, after)
    if difference > TOLERANCE and difference > ROUNDING * own_rounding(other.imported, other.inputs):
        raise DisagreementError(
            f"the optimized graph differs from the imported one where {told(numbers)}, by {difference:.3g} of an "
            "output's scale. This is an error of Tersor, please report it; compile the model without dynamic_shapes "
            "meanwhile"
        )


def _own(leaf: UserObject) -> UserObject:
    return leaf.detach().clone() if isinstance(leaf, torch.Tensor) else leaf


def _tensors(nested: UserObject) -> Tensors:
    return tuple(leaf.detach() for leaf in pytree.tree_leaves(nested) if isinstance(leaf, torch.Tensor))


# Where it begins ------------------------------------------------------------------------------------------------


def _first_difference(
    executable: Executable, reference: Reference, expected: Tensors, pipeline: Pipeline, *, runs: bool
) -> str:
    """Which step is wrong, conversion, passes or code, and the first layer that it makes differ."""
    inputs, imported = reference.inputs, reference.imported
    if distance(expected, imported.evaluate(*inputs)) > TOLERANCE:
        return f"the conversion from PyTorch is wrong; {_first_wrong_module(reference)}"
    if not runs or distance(expected, executable.graph.evaluate(*inputs)) > TOLERANCE:
        culprit = bisect(imported, pipeline, inputs=inputs, target=executable.info.target, tolerance=TOLERANCE)
        return str(culprit) if culprit is not None else "the passes are wrong, but no single one of them is"
    return f"the generated code is wrong; {_first_wrong_op(executable, inputs)}"


def _first_wrong_module(reference: Reference) -> str:
    """The first sub-module whose output differs from that of the last op at its place in the graph."""
    converted: dict[str, torch.Tensor] = {}

    def observe(op: Op, results: Tensors) -> None:
        converted[op.location] = results[0]

    evaluate(reference.imported, reference.inputs, observe)
    wrong: list[str] = []

    def comparison(path: str) -> Callable[[nn.Module, UserObject, UserObject], None]:
        def compare(part: nn.Module, args: UserObject, result: UserObject) -> None:
            ours = converted.get(path)
            if ours is None or not isinstance(result, torch.Tensor) or ours.shape != result.shape:
                return  # not one value in both
            if distance((result,), (ours,)) > TOLERANCE:
                wrong.append(f"{path} ({type(part).__name__})")

        return compare

    parts = [] if reference.module is None else reference.module.named_modules()
    handles = [part.register_forward_hook(comparison(path)) for path, part in parts if path]
    try:
        reference.outputs()
    finally:
        for handle in handles:
            handle.remove()
    return f"the first layer that differs is {wrong[0]}" if wrong else "no sub-module of its own differs"


def _first_wrong_op(executable: Executable, inputs: Tensors) -> str:
    """The first op whose value differs, in a program that returns the value of every op."""
    graph, target = executable.graph.clone(), executable.info.target
    inputs = graph.with_state(inputs)
    graph.states, graph.structure = (), None
    ops = [op for op in graph.ops if op.inputs and op.results[0].type.dtype.is_floating]
    graph.outputs = tuple(op.results[0] for op in ops)
    graph = run_passes(graph, "layout", target=target)
    actual = compile_graph(graph, target, threads=executable.threads).flat(*inputs)
    for op, right, ours in zip(ops, graph.evaluate(*inputs), actual, strict=True):
        if distance((right,), (ours,)) > TOLERANCE:
            return f"the first layer that differs is {op.location or op.name} ({op.name})"
    return "no layer differs when the program returns the values of all"
