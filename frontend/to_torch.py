"""IR to PyTorch: a trainable module that runs a graph op by op."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
from torch import nn
from torch.nn import functional

from ..ir import Graph, Op, TersorError, Value, WeightStore, at_hints, check_inputs, names_of
from ..ir.foreign import UserObject
from ..ir.ops import BatchNormOp, FusedOp, ObserveOp, WeightOp
from . import ir_operator
from .registry import Argument

QuantizedMaker = Callable[[Graph, str], "GraphModule | None"]
_makers: list[QuantizedMaker] = []


def to_torch(graph: Graph, quantizer: str = "lsq") -> GraphModule:
    """Make a trainable module with the same numbers as ``graph``; see `GraphModule`.

    Where the graph computes with 8-bit integers, or has calibrated notes about them (``quantize-calibrate``), it is a
    `tersor.training.QuantizedModule`, which rounds as the integer graph does; ``quantizer`` says how its step sizes
    learn.
    """
    for make in _makers:
        module = make(graph, quantizer)
        if module is not None:
            return module
    if any(isinstance(op, ObserveOp) for part in graph.parts for op in part.ops):
        raise TersorError("nothing makes modules of graphs with notes yet: import tersor.training first")
    return GraphModule(graph)


def register_quantized(make: QuantizedMaker) -> None:
    """Say what makes modules of graphs of integers, or with notes about these; of other graphs it returns None."""
    _makers.append(make)


Graph.register_to_torch(to_torch)


class GraphModule(nn.Module):
    """Runs a graph by the reference semantics of its ops, differentiably.

    Floating-point weights become parameters, except the statistics of batch normalisations; these and integer weights
    become buffers. All are copies. The keys of ``state_dict()`` are the names of the user's own module, also of weights
    that passes have changed (`tersor.ir.names_of`); a part of a name that would hide an attribute or another weight
    gets an underscore.

    The module starts in evaluation mode, in which it computes what the graph computes. In training mode (``train()``),
    batch normalisations use the statistics of the batch and update the stored ones, as in PyTorch; nothing else
    differs: dropout does not exist in a graph. ``tersor.from_torch`` turns the module into a graph again. Ops on 8-bit
    integers, for which PyTorch has no operators, are exported as calls of ``tersor::op`` (`ir_operator`).

    Parameters
    ----------
    graph
        Is copied; later changes of it do not matter. Where it has symbols, the module has the shapes of their hints.
    momentum
        Weight of a new batch in the stored statistics of batch normalisations, in training mode. Graphs do not
        record it; PyTorch's default is 0.1.
    """

    def __init__(self, graph: Graph, momentum: float = 0.1) -> None:
        super().__init__()
        self._momentum = momentum
        self._program = _Program(at_hints(graph))
        read = dict.fromkeys(op.attrs.id for op in graph.ops if isinstance(op, WeightOp))
        names = names_of([*read, *graph.states])
        self._keys: dict[str, str] = {}  # of the state, by id
        for id in names:
            tensor = graph.weights[id].detach().clone()
            trainable = tensor.is_floating_point() and id not in self._program.statistics and id not in graph.states
            self._keys[id] = _register(self, names[id], tensor, trainable)
        self.eval()

    def forward(self, *args: UserObject, **kwargs: UserObject) -> UserObject:
        """Take what the graph's structure says, or one tensor per graph input; return what the structure says.

        Without a structure it returns the output, or a tuple of several. State is kept in buffers.
        """
        graph = self._program.graph
        inputs: Sequence[UserObject] = args
        flat = not kwargs and all(isinstance(one, torch.Tensor) for one in args)
        if graph.structure is not None and not (flat and len(args) == len(graph.user_inputs)):
            inputs = graph.structure.flatten(args, kwargs)
        check_inputs(graph, inputs)
        state = [self._held(id) for id in graph.states]
        results = self._compute([*inputs, *state])
        updates = [value.detach().clone() for value in results[len(graph.user_outputs) :]]
        for buffer, value in zip(state, updates, strict=True):
            buffer.copy_(value)
        return graph.returned(results)

    def for_inference(self) -> nn.Module:
        """What `from_torch` exports in place of this module: itself."""
        return self

    def numbers_by_id(self) -> dict[str, torch.Tensor]:
        """The present numbers of the graph's weights and states, by id; detached, not copied."""
        return {id: self._held(id).detach() for id in self._keys}

    def _held(self, id: str) -> torch.Tensor:
        """The parameter or buffer with the numbers of a weight."""
        owner, _, name = self._keys[id].rpartition(".")
        held: torch.Tensor = getattr(self.get_submodule(owner), name)
        return held

    def _compute(self, inputs: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
        """The outputs of the graph, new state included."""
        return self._run(self._program.graph, inputs)

    def _run(self, graph: Graph, inputs: Iterable[torch.Tensor]) -> tuple[torch.Tensor, ...]:
        values: dict[Value, torch.Tensor] = dict(zip(graph.inputs, inputs, strict=True))
        for op in graph.ops:
            operands = [None if value is None else values[value] for value in op.operands]
            results = self._evaluate(op, operands)
            values.update(zip(op.results, results if isinstance(results, tuple) else (results,), strict=True))
        return tuple(values[value] for value in graph.outputs)

    def _evaluate(self, op: Op, operands: list[Argument]) -> torch.Tensor | tuple[torch.Tensor, ...]:
        if isinstance(op, WeightOp):
            return self._held(op.attrs.id)
        if isinstance(op, FusedOp):
            assert op.body is not None  # guaranteed by infer_types
            return self._run(op.body, operands)
        if self.training and op in self._program.trainable_norms:
            return self._train_batch_norm(op, *operands)
        if torch.compiler.is_exporting() and ir_operator.is_foreign_to_pytorch(op):
            return ir_operator.call(op, operands)
        return op.evaluate(*operands)

    def _train_batch_norm(
        self,
        op: Op,
        x: torch.Tensor,
        mean: torch.Tensor,
        variance: torch.Tensor,
        gamma: torch.Tensor | None = None,
        beta: torch.Tensor | None = None,
    ) -> torch.Tensor:
        return functional.batch_norm(
            x, mean, variance, gamma, beta, training=True, momentum=self._momentum, eps=op.attrs.eps
        )


class _Program:
    """The graph that a module runs, without weights, which the module holds.

    Attributes
    ----------
    statistics
        Ids of the weights that batch normalisations read as mean or variance.
    trainable_norms
        Batch normalisations of which both statistics are weights, so that they can be updated.
    """

    def __init__(self, graph: Graph) -> None:
        self.graph = graph.clone()
        self.graph.weights = WeightStore()
        self.statistics: set[str] = set()
        self.trainable_norms: set[Op] = set()
        self._find_norms(self.graph, {})

    def _find_norms(self, graph: Graph, weights: Mapping[Value, str]) -> None:
        weights = dict(weights)
        for op in graph.ops:
            if isinstance(op, WeightOp):
                weights[op.result] = op.attrs.id
            elif isinstance(op, BatchNormOp) and op.mean in weights and op.variance in weights:
                self.statistics |= {weights[op.mean], weights[op.variance]}
                self.trainable_norms.add(op)
            elif op.body is not None:
                bound = zip(op.body.inputs, op.inputs, strict=True)
                self._find_norms(op.body, {inner: weights[outer] for inner, outer in bound if outer in weights})

    def __deepcopy__(self, memo: dict[int, object]) -> _Program:
        return self  # never changes, so that copies of the module can share it


def free_place(root: nn.Module, wanted: str) -> tuple[nn.Module, str, str]:
    """Where something called ``wanted`` can be added: the module, its name there, and its whole name.

    The modules on the path are made where they are missing.
    """
    owner, key = root, []
    *path, name = wanted.split(".")
    for part in path:
        while not part or (hasattr(owner, part) and part not in owner._modules):
            part += "_"
        if part not in owner._modules:
            owner.add_module(part, nn.Module())
        owner = owner.get_submodule(part)
        key.append(part)
    while not name or hasattr(owner, name):
        name += "_"
    return owner, name, ".".join([*key, name])


def _register(root: nn.Module, wanted: str, tensor: torch.Tensor, trainable: bool) -> str:
    """Add a weight under the name ``wanted``, and return its key in the state."""
    owner, name, key = free_place(root, wanted)
    if trainable:
        owner.register_parameter(name, nn.Parameter(tensor))
    else:
        owner.register_buffer(name, tensor)
    return key
