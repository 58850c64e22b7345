"""``torch.compile(model, backend="tersor")``: the graphs that PyTorch finds in a model, compiled for inference.

PyTorch records graphs, guards them, and makes them functional; each becomes a program for the shapes and the weights
that it is called with. Calls that a graph cannot hold stay in PyTorch, and so does everything that needs gradients.
"""

from __future__ import annotations

import operator
import warnings
import weakref
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import torch
from torch import fx, nn

from .checking import Reference
from .compiler import CompileOptions, compile_in_stages
from .frontend.aot import Compiled, Division, GraphValue, convert_functional, functional, viewed
from .ir import Graph, TersorError, TersorWarning, suggest
from .ir.foreign import Instance
from .targets import Executable
from .targets.codegen.lowering import CompileError

_VERSION = operator.attrgetter("_version")


def backend(
    module: fx.GraphModule,
    inputs: Sequence[GraphValue],
    *,
    options: Mapping[str, Instance] | None = None,
    mode: str | None = None,
) -> Compiled:
    """Compile a graph of `torch.compile`; PyTorch finds this function by the name of the backend.

    Parameters
    ----------
    options
        Those of `tersor.compile`: ``torch.compile(model, backend="tersor", options={"pipeline": "O3,to-bf16"})``.
    mode
        Must be None.

    Raises
    ------
    TersorError
        For an unknown or wrong option. PyTorch wraps the message into one of its own.

    Warns
    -----
    TersorWarning
        When something stays in PyTorch: calls that need gradients, and operators that are not supported.
    """
    if mode is not None:
        raise TersorError(f"the backend has no mode {mode!r}; say what you want by options, such as 'pipeline'")
    checked = _options(options or {})
    tensors = [one for one in inputs if isinstance(one, torch.Tensor)]
    if torch.is_grad_enabled() and any(one.requires_grad for one in tensors):
        _stay("it is called with gradients; call it under torch.no_grad() or torch.inference_mode()")
        return module.forward
    if any(one.device.type != "cpu" for one in tensors):
        _stay("its tensors are not on the CPU")
        return module.forward
    return functional(module, inputs, lambda found, weights: _Program(found, weights, checked))


def _options(given: Mapping[str, Instance]) -> CompileOptions:
    known = [entry.name for entry in fields(CompileOptions)]
    unknown = next((name for name in given if name not in known), None)
    if unknown is not None:
        raise TersorError(f"the backend has no option {unknown!r}{suggest(str(unknown), known)}")
    log_dir = given.get("log_dir")
    return CompileOptions(**{**given, "log_dir": None if log_dir is None else Path(log_dir)})


def _stay(reason: str, what: str = "a graph") -> None:
    warnings.warn(f"{what} of torch.compile stays in PyTorch: {reason}", TersorWarning, stacklevel=3)


class _Program:
    """A whole functional graph, which is converted when it is first called: then there are weights and inputs."""

    def __init__(self, module: fx.GraphModule, weights: frozenset[int], options: CompileOptions) -> None:
        self._module, self._weights, self._options = module, weights, options
        self._run: Compiled | None = None

    def __call__(self, *args: GraphValue) -> GraphValue:
        if self._run is None:
            self._run = self._prepared(args)
        return self._run(*args)

    def _prepared(self, args: Sequence[GraphValue]) -> Compiled:
        whole = _Part(self._module, self._weights, self._options)
        try:
            converted = whole.converted(args)
        except TersorError as error:
            _stay(str(error))
            return self._module.forward
        if isinstance(converted, Graph):
            whole.compile(converted, args)
            return whole
        _stay(str(converted.reason), "some of a graph")
        return self._divided(converted)

    def _divided(self, division: Division) -> Compiled:
        module = division.module
        placeholders = module.graph.find_nodes(op="placeholder")
        weights = {placeholders[index] for index in self._weights}
        for node in module.graph.find_nodes(op="call_module"):
            read = frozenset(index for index, source in enumerate(node.args) if source in weights)
            setattr(module, str(node.target), _Part(getattr(module, str(node.target)), read, self._options))
        return module.forward


class _Part(nn.Module):
    """A functional graph that can be expressed, and its programs: one for each set of weights that it is called with.

    PyTorch calls one graph for all modules that are alike. A weight is known by its identity and its version, which
    counts the writes into it.
    """

    def __init__(self, module: fx.GraphModule, weights: frozenset[int], options: CompileOptions) -> None:
        super().__init__()
        self._module, self._options = module, options
        placeholders = module.graph.find_nodes(op="placeholder")
        tensors = [index for index, node in enumerate(placeholders) if isinstance(node.meta["val"], torch.Tensor)]
        self._weights = sorted(weights)
        self._inputs = [index for index in tensors if index not in weights]
        results: GraphValue = module.graph.output_node().args[0]
        self._is_single = isinstance(results, fx.Node)
        self._results = _results_of([results] if self._is_single else results)
        self._programs: list[tuple[_Weights, Executable | None]] = []

    def forward(self, *args: GraphValue) -> GraphValue:
        executable = self._program(args)
        if executable is None:
            return self._module(*args)
        outputs = iter(executable.flat(*(args[index] for index in self._inputs)))
        results: list[GraphValue] = []
        for result in self._results:
            results.append(result.made_of(outputs, results))
        return results[0] if self._is_single else results

    def _program(self, args: Sequence[GraphValue]) -> Executable | None:
        weights = [args[index] for index in self._weights]
        ids, versions = list(map(id, weights)), _versions(weights)
        for known, executable in self._programs:
            if known.ids == ids and known.versions == versions and not known.dead:
                return executable
        graph = self.converted(args)
        assert isinstance(graph, Graph)  # what can be expressed does not depend on the numbers
        return self.compile(graph, args)

    def converted(self, args: Sequence[GraphValue]) -> Graph | Division:
        """Its graph with the weights of a call."""
        return convert_functional(self._module, {index: args[index] for index in self._weights})

    def compile(self, graph: Graph, args: Sequence[GraphValue]) -> Executable | None:
        """Make the program for the weights of a call, compared with PyTorch on its inputs; None if there is none."""
        tensors = tuple(args[index] for index in self._inputs)
        model = _WithWeights(self._module, args, self._inputs)
        reference = Reference(model, graph, tensors, {}) if self._options.check else None
        executable: Executable | None = None
        try:
            executable = compile_in_stages(graph, self._options, reference=reference)
        except CompileError as error:
            _stay(str(error))
        self._programs = [(known, one) for known, one in self._programs if known.may_come_back()]
        self._programs.append((_Weights([args[index] for index in self._weights]), executable))
        return executable


class _Weights:
    """The weights that a program was made with, compared at every call, so by means that are quick for hundreds.

    Attributes
    ----------
    ids, versions
        Of all of them.
    dead
        Not empty when one of them is gone, whose id another tensor may have then.
    """

    def __init__(self, weights: Sequence[torch.Tensor]) -> None:
        self.ids, self.versions = list(map(id, weights)), _versions(weights)
        self.dead: list[weakref.ref[torch.Tensor]] = []
        self._references = [weakref.ref(one, self.dead.append) for one in weights]

    def may_come_back(self) -> bool:
        """Whether all weights are still there, and none has been written to: versions only rise."""
        alive = [tensor for one in self._references if (tensor := one()) is not None]
        return not self.dead and len(alive) == len(self.ids) and _versions(alive) == self.versions


class _WithWeights(nn.Module):
    """A functional graph as a module of its inputs alone."""

    def __init__(self, module: fx.GraphModule, args: Sequence[GraphValue], inputs: Sequence[int]) -> None:
        super().__init__()
        self._call, self._args, self._inputs = module.forward, list(args), inputs
        self.eval()

    def forward(self, *tensors: torch.Tensor) -> GraphValue:
        args = list(self._args)
        for index, tensor in zip(self._inputs, tensors, strict=True):
            args[index] = tensor
        return self._call(*args)


def _versions(tensors: Sequence[torch.Tensor]) -> list[int]:
    try:
        return list(map(_VERSION, tensors))
    except RuntimeError:  # tensors made in inference mode have none
        return [0 if one.is_inference() else one._version for one in tensors]


@dataclass(frozen=True)
class _Result:
    """What a functional graph returns at one place, as the caller of PyTorch's own graph would see it.

    Attributes
    ----------
    constant
        What it is, if it is no tensor.
    shape, strides, offset
        Of a tensor; ``strides`` is None if it is contiguous.
    base
        The place of an earlier result in whose memory it is, or None.
    """

    is_tensor: bool = True
    constant: GraphValue = None
    shape: tuple[int, ...] = ()
    strides: tuple[int, ...] | None = None
    offset: int = 0
    base: int | None = None

    def made_of(self, outputs: Iterator[torch.Tensor], earlier: Sequence[GraphValue]) -> GraphValue:
        if not self.is_tensor:
            return self.constant
        tensor = next(outputs)
        if self.base is not None:
            return earlier[self.base].as_strided(self.shape, self.strides, self.offset)
        if self.strides is None:
            return tensor
        return torch.empty_strided(self.shape, self.strides, dtype=tensor.dtype).copy_(tensor)


def _results_of(results: Sequence[GraphValue]) -> list[_Result]:
    made: list[_Result] = []
    bases: dict[fx.Node, int] = {}  # of calls that make memory of their own: the first result that has all of it
    for place, one in enumerate(results):
        if not isinstance(one, fx.Node):
            made.append(_Result(False, one))
            continue
        value, source = one.meta["val"], viewed(one)
        shape, strides = tuple(map(int, value.shape)), tuple(map(int, value.stride()))
        if source in bases:
            made.append(_Result(True, None, shape, strides, int(value.storage_offset()), bases[source]))
            continue
        if value.is_contiguous() and value.numel() == source.meta["val"].numel() and not value.storage_offset():
            bases[source] = place
        made.append(_Result(True, None, shape, None if value.is_contiguous() else strides))
    return made
