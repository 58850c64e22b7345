"""The table of ONNX operators: each is a function on PyTorch tensors."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import torch

Computed = torch.Tensor | tuple[torch.Tensor | None, ...]
FunctionT = TypeVar("FunctionT", bound=Callable[..., Computed])

# What a function is told besides the node's inputs and attributes, if it has a parameter of this name.
FACTS = ("opset", "outputs")


@dataclass(frozen=True)
class OnnxOperator:
    """An operator of ONNX.

    Attributes
    ----------
    function
        Computes it on tensors.
    inputs
        How many inputs there may be.
    attributes
        Names of the attributes that it knows.
    facts
        Those of `FACTS` that it wants.
    """

    function: Callable[..., Computed]
    inputs: float
    attributes: frozenset[str]
    facts: frozenset[str]


OPERATORS: dict[str, OnnxOperator] = {}


def operator(*names: str) -> Callable[[FunctionT], FunctionT]:
    """Register a function as ONNX operators; one of another domain is named ``domain::name``.

    The function is called with a tensor for each input, None for one that is left out, and the attributes by name. Some
    attributes of old opsets are inputs in later ones (the axes of a reduction): they are ordinary parameters, and
    `tersor.frontend.onnx.known` reads both. Defaults are those of ONNX. Two parameters tell what else is known of the
    node: ``opset``, and ``outputs``, the number of outputs that are asked for. A tensor may be a stand-in without
    numbers; only its shape and its element type can be looked at. The function raises `Inexpressible` for what it does
    not support.
    """

    def register(function: FunctionT) -> FunctionT:
        for name in names:
            if name in OPERATORS:
                raise ValueError(f"the ONNX operator {name} is registered twice")
            OPERATORS[name] = _described(function)
        return function

    return register


def operators(table: dict[str, Any], make: Callable[[Any], Callable[..., Computed]]) -> None:
    """Register ``make(entry)`` for every operator of a table."""
    for name, entry in table.items():
        operator(name)(make(entry))


def _described(function: Callable[..., Computed]) -> OnnxOperator:
    parameters = inspect.signature(function).parameters.values()
    named = [one for one in parameters if one.kind is not one.VAR_POSITIONAL]
    positional = [one for one in named if one.kind is one.POSITIONAL_OR_KEYWORD]
    is_variadic = len(named) < len(parameters)
    names = frozenset(one.name for one in named if one.default is not one.empty)
    return OnnxOperator(
        function, float("inf") if is_variadic else len(positional), names - set(FACTS), names & set(FACTS)
    )
