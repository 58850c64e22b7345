"""What is tuned: a problem (`Workload`), and one way to compute it (`Option`). Both hash, and go through JSON."""

from __future__ import annotations

from dataclasses import dataclass

from ...ir.foreign import Json
from .codec import CodecError, UnknownNameError, decode, encode
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

    def to_json(self) -> dict[str, Json]:
        """JSON types."""
        return {"kind": self.kind, "spec": encode(self.spec)}

    @classmethod
    def from_json(cls, value: Json) -> Workload:
        """Read what `to_json` wrote; raises CodecError where a field does not fit, `UnknownNameError` for a kind."""
        kind, spec = _members(value, "workload", ("kind", "spec"))
        try:
            return cls(kind, decode(spec_type(kind), spec, "spec"))
        except LookupError as error:
            raise UnknownNameError(str(error)) from error

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

    def to_json(self) -> dict[str, Json]:
        """JSON types."""
        return {"template": self.template, "knobs": encode(self.knobs)}

    @classmethod
    def from_json(cls, value: Json) -> Option:
        """Read what `to_json` wrote; raises CodecError like `Workload.from_json`, for an unknown template too."""
        template, knobs = _members(value, "option", ("template", "knobs"))
        try:
            return cls(template, decode(knobs_type(template), knobs, "knobs"))
        except LookupError as error:
            raise UnknownNameError(str(error)) from error

    def __str__(self) -> str:
        return f"{self.template} {self.knobs}"


def _members(value: Json, where: str, names: tuple[str, str]) -> tuple[str, Json]:
    if not isinstance(value, dict) or set(value) != set(names) or not isinstance(value[names[0]], str):
        raise CodecError(f"{where} must be an object with {names[0]!r} (text) and {names[1]!r}")
    return value[names[0]], value[names[1]]
