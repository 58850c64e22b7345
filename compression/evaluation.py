"""A model's score, from a function of the user, and the callable that this function is given."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from numbers import Real

import numpy as np
import torch

from ..ir import Graph, TersorError
from ..ir.foreign import Array, UserObject
from ..ir.imports import find_function
from ..targets import Executable
from .batches import Shape, run_in_parts


class Model:
    """What a user's function is given: called like the PyTorch model, torch tensors or NumPy arrays in, the same out.

    Batches that are a whole number of times as long as those that the model was exported with are computed in parts.

    Parameters
    ----------
    run
        Takes and returns tensors or arrays of the exported shapes.
    shapes
        Those of the inputs.
    """

    def __init__(self, run: Callable[..., UserObject], shapes: Sequence[Shape]) -> None:
        self._run = run
        self._shapes = tuple(shapes)

    def __call__(self, *inputs: Array) -> UserObject:
        """The outputs; TersorError where the inputs do not fit."""
        return run_in_parts(self._run, inputs, self._shapes)


def compiled_model(executable: Executable) -> Model:
    """A compiled program, which must run on this machine."""
    return Model(executable, [port.type.shape for port in executable.info.user_inputs])


def interpreted_model(graph: Graph) -> Model:
    """What a graph means, where its code does not run."""

    def run(*inputs: Array) -> UserObject:
        as_arrays = bool(inputs) and isinstance(inputs[0], np.ndarray)
        outputs: list[Array] = list(graph.evaluate(*(torch.as_tensor(value) for value in inputs)))
        if as_arrays:
            outputs = [output.numpy() for output in outputs]
        return graph.returned(outputs)

    return Model(run, [value.shape for value in graph.user_inputs])


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


def open_evaluation(name: str | None) -> Evaluation | None:
    """What ``--evaluate`` names; None without any."""
    if name is None:
        return None
    return Evaluation(find_function(name, "that takes a model"), name)
