"""What a compiled model is, apart from its code and weights; profiles and the artifact's manifest are made of this."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from ...ir import Op, TensorType
from ..machines.target import Cpu, Gpu


@dataclass(frozen=True)
class Port:
    """An input or output of a compiled model.

    Attributes
    ----------
    name, type
        As in the graph.
    rows
        For an input of row numbers: how many rows the table has; 0 for any other.
    """

    name: str
    type: TensorType
    rows: int = 0


@dataclass(frozen=True)
class KernelInfo:
    """One kernel call of a compiled model: which PrimFunc, for which op, and its work in multiply-adds and bytes.

    ``tuned`` tells whether template and knobs come from a record of measurements.
    """

    function: str
    op: str
    location: str
    template: str
    knobs: str
    macs: int
    bytes: int
    tuned: bool = False


def described(op: Op) -> str:
    """How profiles name the work of an op: its own name, or those of what is fused in it."""
    members = [op] if op.body is None else [member for member in op.body.ops if member.inputs]
    return "+".join(member.name for member in members)


@dataclass(frozen=True)
class ModelInfo:
    """Everything about a compiled model except its code and weights.

    Attributes
    ----------
    name
        Of the graph.
    inputs, outputs
        In call order. Those of state are the last of both.
    target
        What the code was compiled for.
    kernels
        In execution order.
    activation_bytes
        Memory that one call allocates for intermediate values and outputs.
    states
        Names of the buffers that a call updates.
    """

    name: str
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    target: Cpu | Gpu
    kernels: tuple[KernelInfo, ...]
    activation_bytes: int = 0
    states: tuple[str, ...] = ()

    @cached_property
    def user_inputs(self) -> tuple[Port, ...]:
        """The inputs that a call gives: all but state."""
        return self.inputs[: len(self.inputs) - len(self.states)]

    @cached_property
    def user_outputs(self) -> tuple[Port, ...]:
        """The outputs that a call returns: all but new state."""
        return self.outputs[: len(self.outputs) - len(self.states)]
