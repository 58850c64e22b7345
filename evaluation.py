"""A model's score, from a function of the user, and the callable that this function is given."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Real

import numpy as np
import torch
from torch import nn
from torch.utils import _pytree as pytree

from .ir import Graph, TersorError, shorten
from .ir.foreign import Array, UserObject
from .ir.imports import find_function
from .ir.ops import WeightOp
from .passes.calibration import Shape, split
from .targets import Executable


class Model(nn.Module):
    """What a user's function is given: called like the PyTorch model, torch tensors or NumPy arrays in, the same out.

    Batches that are a whole number of times as long as those that the model was exported with are computed in parts.
    Functions that were written for a module find what they ask for: ``model.eval()``, ``model.to("cpu")``,
    ``next(model.parameters()).device``. It cannot be trained, moved or cast.

    Parameters
    ----------
    run
        Takes and returns tensors or arrays of the exported shapes.
    shapes
        Those of the inputs, by name.
    weights
        What `parameters` lists.
    """

    def __init__(
        self, run: Callable[..., UserObject], shapes: Mapping[str, Shape], weights: Iterable[torch.Tensor] = ()
    ) -> None:
        super().__init__()
        self._run = run
        self._shapes = dict(shapes)
        tensors = list(weights) or [torch.empty(0)]
        self.weights = nn.ParameterList(nn.Parameter(tensor, requires_grad=False) for tensor in tensors)
        self.eval()

    def forward(self, *inputs: Array, **named: Array) -> UserObject:
        """The outputs; TersorError where the inputs do not fit."""
        if named:
            missing = [name for name in [*self._shapes][len(inputs) :] if name not in named]
            if missing or len(inputs) + len(named) != len(self._shapes):
                given = ", ".join([*map(str, range(len(inputs))), *named])
                raise TersorError(f"the model takes the inputs {', '.join(self._shapes)}, got {shorten(given)}")
            inputs = (*inputs, *(named[name] for name in [*self._shapes][len(inputs) :]))
        return run_in_parts(self._run, inputs, [*self._shapes.values()])

    def train(self, mode: bool = True) -> Model:
        """Evaluation mode is the only one; raises TersorError for the other."""
        if mode:
            raise TersorError("the model is a compiled program, which cannot be trained; leave out model.train()")
        super().train(False)
        return self

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> Model:
        moved = fn(torch.empty(0))
        if moved.device.type != "cpu" or moved.dtype is not torch.float32:
            raise TersorError(
                "the model is a compiled program, which stays on the CPU and in its own types; "
                f"leave out what moves it to {moved.device.type} or makes it {str(moved.dtype).removeprefix('torch.')}"
            )
        return self


def run_in_parts(run: Callable[..., UserObject], inputs: Sequence[Array], shapes: Sequence[Shape]) -> UserObject:
    """Call ``run`` on each part of `split`, and join what it returns along dimension 0."""
    results = [run(*part) for part in split(inputs, shapes)]
    if len(results) == 1:
        return results[0]
    leaves = zip(*map(pytree.tree_leaves, results), strict=True)
    return pytree.tree_unflatten([_join(column) for column in leaves], pytree.tree_structure(results[0]))


def _join(parts: Sequence[UserObject]) -> UserObject:
    if not hasattr(parts[0], "__dlpack__"):  # a constant
        return parts[0]
    return np.concatenate(parts) if isinstance(parts[0], np.ndarray) else torch.cat(tuple(parts))


def compiled_model(executable: Executable) -> Model:
    """A compiled program, which must run on this machine."""
    shapes = {port.name: port.type.shape for port in executable.info.user_inputs}
    return Model(executable, shapes, weights_of(executable.graph))


def interpreted_model(graph: Graph, evaluate: Callable[..., Sequence[torch.Tensor]] | None = None) -> Model:
    """What a graph means, where its code does not run; ``evaluate`` computes its outputs if not the interpreter."""
    evaluate = evaluate or graph.evaluate

    def run(*inputs: Array) -> UserObject:
        as_arrays = bool(inputs) and isinstance(inputs[0], np.ndarray)
        outputs: list[Array] = list(evaluate(*(torch.as_tensor(value) for value in inputs)))
        if as_arrays:
            outputs = [output.numpy() for output in outputs]
        return graph.returned(outputs)

    return Model(run, {value.name: value.shape for value in graph.user_inputs}, weights_of(graph))


def weights_of(graph: Graph) -> list[torch.Tensor]:
    """All tensors that a graph's weight ops name, each once."""
    ids = {op.attrs.id for op in graph.ops if isinstance(op, WeightOp)}
    return [graph.weights[id] for id in sorted(ids)]


@dataclass(frozen=True)
class Evaluation:
    """Scores models: the larger the better.

    Attributes
    ----------
    function
        Takes a `Model`, returns a number.
    name
        What messages call it.
    """

    function: Callable[[Model], UserObject]
    name: str = "evaluate"

    def __call__(self, model: Model) -> float:
        """The score; raises TersorError when the function raises, or returns no finite number."""
        try:
            value = self.function(model)
        except Exception as error:  # the user's own code
            kind = "" if isinstance(error, TersorError) else f"{type(error).__name__}: "
            raise TersorError(f"{self.name}: raised {kind}{' '.join(str(error).split())}") from error
        is_array = isinstance(value, torch.Tensor | np.ndarray | np.generic)
        number = value.item() if is_array and math.prod(value.shape) == 1 else value
        if not isinstance(number, Real) or isinstance(number, bool):
            raise TersorError(f"{self.name}: returned a {type(value).__name__}; return a number, larger for better")
        if not math.isfinite(number):
            raise TersorError(f"{self.name}: returned {float(number)}; return a finite number, larger for better")
        return float(number)


def as_evaluation(evaluate: UserObject) -> Evaluation | None:
    """What a user gives for ``evaluate``; None for nothing."""
    if evaluate is None or isinstance(evaluate, Evaluation):
        return evaluate
    if not callable(evaluate):
        raise TersorError(f"evaluate must be a function that takes a model, not a {type(evaluate).__name__}")
    return Evaluation(evaluate, getattr(evaluate, "__name__", "evaluate"))


def open_evaluation(name: str | None) -> Evaluation | None:
    """What ``--evaluate`` names; None without any."""
    if name is None:
        return None
    return Evaluation(find_function(name, "that takes a model"), name)


def stored_bytes(weight: torch.Tensor) -> int:
    """The size of a weight; of one with many zeros that of its other numbers, and of a bit for each number.

    Two of four numbers that are not zero take as much with their places, of two bits each. Biases, and all else of one
    dimension, are counted whole.
    """
    whole = weight.numel() * weight.element_size()
    if weight.ndim < 2:
        return whole
    return min(whole, int(weight.count_nonzero()) * weight.element_size() + -(-weight.numel() // 8))
