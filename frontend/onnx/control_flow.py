"""Control flow of ONNX that is decided while a file is read: one branch of an If, the steps of a Loop or a Scan."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

import torch

from .file import OnnxGraph, OnnxNode
from .known import is_known, refuse

LIMIT = 256  # steps: each becomes ops of its own

Tensor = torch.Tensor | None  # None where it could not be computed, which is noted already
Run = Callable[[OnnxGraph, Mapping[str, Tensor]], list[Tensor]]  # the results of a graph in the scope of these tensors


def branch(run: Run, node: OnnxNode, operands: Sequence[Tensor], scope: Mapping[str, Tensor]) -> Sequence[Tensor]:
    """The branch of an If whose condition is known."""
    (condition,) = operands
    if condition is None or not is_known(condition):
        refuse("its condition depends on the data")
    return run(node.attributes["then_branch" if condition.item() else "else_branch"], scope)


def loop(run: Run, node: OnnxNode, operands: Sequence[Tensor], scope: Mapping[str, Tensor]) -> Sequence[Tensor]:
    """A Loop whose number of steps is known: what goes from step to step, and then what each step gives, stacked."""
    body: OnnxGraph = node.attributes["body"]
    trips, condition, *carried = operands
    if trips is not None and not is_known(trips):
        refuse("the number of its steps depends on the data")
    count = LIMIT + 1 if trips is None else int(trips.item())
    given: list[list[torch.Tensor]] = []
    for step in range(count):
        if condition is not None and not is_known(condition):
            refuse("when it ends depends on the data")
        if condition is not None and not condition.item():
            break
        if step == LIMIT:
            refuse(f"it has more than {LIMIT} steps")
        taken = (torch.tensor(step), torch.tensor(True) if condition is None else condition, *carried)
        results = run(body, {**scope, **dict(zip(body.inputs, taken, strict=True))})
        whole = [one for one in results if one is not None]
        if len(whole) < len(results):
            return []
        condition, carried = whole[0], [*whole[1 : 1 + len(carried)]]
        given.append(whole[1 + len(carried) :])
    outputs = len(body.outputs) - 1 - len(carried)
    return *carried, *_stacked(given, outputs, [0] * outputs)


def scan(run: Run, node: OnnxNode, operands: Sequence[Tensor], scope: Mapping[str, Tensor]) -> Sequence[Tensor]:
    """A Scan over the slices of its last operands: the states at the end, and then what each step gives, stacked."""
    body: OnnxGraph = node.attributes["body"]
    whole = [one for one in operands if one is not None]
    first = len(operands) - node.attributes["num_scan_inputs"]
    carried, scanned = whole[:first], whole[first:]
    axes = node.attributes.get("scan_input_axes", [0] * len(scanned))
    backward = node.attributes.get("scan_input_directions", [0] * len(scanned))
    count = scanned[0].shape[axes[0]]
    if count > LIMIT:
        refuse(f"it has more than {LIMIT} steps")
    given = []
    for step in range(count):
        slices = [
            tensor.select(axis, count - 1 - step if turned else step)
            for tensor, axis, turned in zip(scanned, axes, backward, strict=True)
        ]
        results = run(body, {**scope, **dict(zip(body.inputs, (*carried, *slices), strict=True))})
        whole = [one for one in results if one is not None]
        if len(whole) < len(results):
            return []
        carried = whole[:first]
        given.append(whole[first:])
    outputs = len(body.outputs) - first
    turned = node.attributes.get("scan_output_directions", [0] * outputs)
    places = node.attributes.get("scan_output_axes", [0] * outputs)
    stacked = _stacked(given, outputs, places)
    return *carried, *(one.flip(axis) if back else one for one, axis, back in zip(stacked, places, turned, strict=True))


def _stacked(given: Sequence[Sequence[torch.Tensor]], outputs: int, axes: Sequence[int]) -> Iterable[torch.Tensor]:
    """What all steps give, each output along its axis."""
    if outputs and not given:
        refuse("it has no steps, so the shapes of its results are unknown")
    return [torch.stack([step[index] for step in given], axes[index]) for index in range(outputs)]


CONTROL_FLOW = {"If": branch, "Loop": loop, "Scan": scan}
