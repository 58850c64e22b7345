"""What is tuned: a problem (`Workload`), and one way to compute it (`Option`). Both hash, and go through JSON."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ...ir.codec import CodecError, UnknownNameError, decode
from ...ir.foreign import Annotation, Instance, Json
from .registry import Knobs, Spec, knobs_type, spec_type


@dataclass(frozen=True)
class Workload:
    """What a kernel computes, apart from its epilogue: what a record is looked up by.

    Layers that differ only in what is fused behind them (a residual sum, an activation) share records.

    Attributes
    ----------
    kind
        A key of `tersor.targets.templates.registry.SPECS`, for example ``"conv2d"``.
    spec
        Shapes, strides, element type: the frozen dataclass that templates take, for example a ``Conv2dSpec``.
    """

    kind: str
    spec: Spec

    @classmethod
    def from_json(cls, value: Json) -> Workload:
        """Read what `encode` made; raises CodecError where a field does not fit, `UnknownNameError` for a kind."""
        return cls(*_members(value, "workload", ("kind", "spec"), spec_type))

    def __str__(self) -> str:
        return f"{self.kind} {self.spec}"


@dataclass(frozen=True)
class Option:
    """One way to compute a workload.

    Attributes
    ----------
    template
        A key of `tersor.targets.templates.registry.TEMPLATES`: the algorithm.
    knobs
        How it is tiled: the template's frozen dataclass of knobs.
    """

    template: str
    knobs: Knobs

    @classmethod
    def from_json(cls, value: Json) -> Option:
        """Read what `encode` made; raises CodecError like `Workload.from_json`, for an unknown template too."""
        return cls(*_members(value, "option", ("template", "knobs"), knobs_type))

    def __str__(self) -> str:
        return f"{self.template} {self.knobs}"


def _members(
    value: Json, where: str, names: tuple[str, str], type_of: Callable[[str], Annotation]
) -> tuple[str, Instance]:
    """A name, and what it says the type of."""
    if not isinstance(value, dict) or set(value) != set(names) or not isinstance(value[names[0]], str):
        raise CodecError(f"{where} must be an object with {names[0]!r} (text) and {names[1]!r}")
    name, content = value[names[0]], value[names[1]]
    try:
        return name, decode(type_of(name), content, names[1])
    except LookupError as error:
        raise UnknownNameError(str(error)) from error
