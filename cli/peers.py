"""Comparison with other runtimes, by means of the folder ``benchmarks``, which only a checkout has."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib.util import find_spec
from typing import TYPE_CHECKING

from ..ir import TersorError
from ..ir.foreign import UserObject

if TYPE_CHECKING:
    from ..benchmarks.harness import Comparison
    from ..targets import Executable


def check_peers(names: Sequence[str]) -> None:
    """Raise TersorError when the runtimes called ``names`` cannot be compared with here."""
    if find_spec("..benchmarks", __package__) is None:
        raise TersorError(
            "--against needs the benchmarks of a checkout, which the installed package lacks; run it there"
        )
    from ..benchmarks.against import check_peers

    problem = check_peers(names)
    if problem is not None:
        raise TersorError(problem)


def compare_with_peers(
    executable: Executable, model: UserObject, inputs: UserObject, names: Sequence[str], begin: Callable[[str], None]
) -> Comparison:
    """Time ``executable`` and other runtimes on ``model``, from which it was compiled; returns the Comparison.

    Parameters
    ----------
    model, inputs
        As `tersor.frontend.load_model` gives them, or a graph and arrays for its inputs.
    names
        Runtimes, after `check_peers`.
    begin
        Told the name of each stage when it starts.
    """
    from ..benchmarks.against import compare_with_peers

    if not isinstance(inputs, tuple):
        raise TersorError("--against needs a model whose inputs are positional; export it with a tuple of inputs")
    return compare_with_peers(executable, model, inputs, names, begin=begin)
