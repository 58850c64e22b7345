"""The error that lists every operator which the frontend cannot express."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from ..ir import TersorError, shorten

_PATHS_SHOWN = 4


@dataclass(frozen=True)
class Operator:
    """An operator of the exported program that has no counterpart in the IR.

    Attributes
    ----------
    name
        Name of the overload, for example ``"aten.fft_fft.default"``.
    path
        Module path where it is called, ``""`` for the model itself.
    reason
        Why this call is not supported although others of the operator may be; empty if the whole operator is unknown.
    place
        File and line of the model's code that calls it, where they are known.
    """

    name: str
    path: str
    reason: str = ""
    place: str = ""


class UnsupportedError(TersorError):
    """The model uses operators that the IR does not have.

    Attributes
    ----------
    operators
        Every such call, in execution order.
    """

    def __init__(self, operators: Iterable[Operator]) -> None:
        self.operators = tuple(operators)
        calls: dict[tuple[str, str], dict[str, list[str]]] = {}
        for operator in self.operators:
            paths = calls.setdefault((operator.name, operator.reason), {}).setdefault(operator.place, [])
            if operator.path not in paths:
                paths.append(operator.path)
        listed = "; ".join(
            f"{shorten(name)}{f' ({shorten(reason, 200)})' if reason else ''} {_show_all(places)}"
            for (name, reason), places in calls.items()
        )
        count = len(calls)
        super().__init__(
            f"{count} operator{'s are' if count > 1 else ' is'} not supported: {listed}. "
            "Replace them in the model by supported ones, or add a converter in tersor/frontend/converters"
        )


def _show_all(places: dict[str, list[str]]) -> str:
    """Module paths by the line of code that they have in common."""
    shown = [f"at {_show(paths)}{f' ({place})' if place else ''}" for place, paths in places.items()]
    more = len(shown) - _PATHS_SHOWN
    return ", ".join(shown[:_PATHS_SHOWN]) + (f" and in {more} more lines" if more > 0 else "")


def _show(paths: list[str]) -> str:
    shown = ", ".join(repr(shorten(path)) if path else "the model's own forward" for path in paths[:_PATHS_SHOWN])
    more = len(paths) - _PATHS_SHOWN
    return f"{shown} and {more} more" if more > 0 else shown
