"""The reference interpreter: every op by its own `evaluate`, one after another, on the CPU.

It is the meaning of a graph: passes and compiled programs are checked against it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

import torch

from .binding import bind_with_map, fits, numbers_of
from .core import Op, Value
from .errors import IRError
from .graph import Graph
from .types import DType

# What PyTorch raises for operands that it does not take: sizes, indices, numbers out of range.
_EVALUATION_ERRORS = (RuntimeError, IndexError, ValueError, TypeError, ArithmeticError)


def evaluate(
    graph: Graph, inputs: Sequence[torch.Tensor], observe: Callable[[Op, tuple[torch.Tensor, ...]], None] | None = None
) -> tuple[torch.Tensor, ...]:
    """Run ``graph`` on CPU tensors.

    Parameters
    ----------
    inputs
        One tensor per graph input, of the input's logical shape and element type; state may be left out. The shapes
        choose the graph's symbols, if it has any.
    observe
        Called after each op with its results; calibration and debugging hook in here.

    Returns
    -------
    One tensor per graph output.

    Raises
    ------
    IRError
        When the number, shape or element type of the inputs is wrong, a weight is missing, or an op cannot be
        evaluated, for example since an index is outside of its table; the message names the op.

    Notes
    -----
    An output may be the very tensor that was passed in, or a weight: clone it before writing into it.
    """
    inputs = graph.with_state(inputs)
    check_inputs(graph, inputs)
    origins: dict[Op, Op] = {}
    if graph.symbols:
        declared = [(value.name, value.shape) for value in graph.inputs]
        numbers = numbers_of(graph.symbols, declared, [tensor.shape for tensor in inputs])
        graph, origins = bind_with_map(graph, numbers)
    environment: dict[Value, torch.Tensor] = dict(zip(graph.inputs, inputs, strict=True))
    remaining = Counter(use_value for op in graph.ops for use_value in op.inputs)
    remaining.update(graph.outputs)
    with torch.no_grad():
        for op in graph.ops:
            operands = [None if value is None else environment[value] for value in op.operands]
            tensors = evaluate_op(op, operands)
            environment.update(zip(op.results, tensors, strict=True))
            if observe is not None:
                observe(origins.get(op, op), tensors)
            for value in op.inputs:
                remaining[value] -= 1
                if not remaining[value]:
                    del environment[value]
    return tuple(environment[value] for value in graph.outputs)


def evaluate_op(op: Op, operands: Sequence[torch.Tensor | None]) -> tuple[torch.Tensor, ...]:
    """Results of one op; raises IRError, naming it, when it cannot be evaluated on ``operands``."""
    try:
        results = op.evaluate(*operands)
    except KeyError as error:
        raise op.error(f"weight {error} is not in the graph's weight store") from error
    except _EVALUATION_ERRORS as error:
        raise op.error(f"cannot be evaluated on these operands: {error}") from error
    return results if isinstance(results, tuple) else (results,)


def check_inputs(graph: Graph, inputs: Sequence[torch.Tensor]) -> None:
    """Raise IRError, naming the input, unless ``inputs`` fit the graph; state may be left out."""
    wanted = graph.inputs if len(inputs) == len(graph.inputs) else graph.user_inputs
    if len(inputs) != len(wanted):
        names = ", ".join(f"{value.name}: {value.type}" for value in wanted)
        raise IRError(f"{graph.name} takes {len(wanted)} inputs ({names}), got {len(inputs)}")
    for value, tensor in zip(wanted, inputs, strict=True):
        if not fits(tensor.shape, value.shape):
            raise IRError(f"input {value.name!r} must have shape {list(value.shape)}, got {list(tensor.shape)}")
        if DType.from_torch(tensor.dtype) is not value.type.dtype:
            raise IRError(f"input {value.name!r} must be {value.type.dtype.value}, got {tensor.dtype}; cast it first")
