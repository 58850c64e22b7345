"""Comparison with other runtimes, by means of the folder ``benchmarks`` of a checkout."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

from ..ir import TersorError
from .artifact import is_artifact
from .executable import Executable

_CHECKOUT = Path(__file__).parent.parent


def check_peers(names: Sequence[str], model: str) -> None:
    """Raise TersorError when ``model`` cannot be compared with these runtimes here."""
    if is_artifact(model):
        raise TersorError(f"--against needs the model that {model} was compiled from; give that instead")
    import_benchmarks()
    from benchmarks.against import check_peers

    problem = check_peers(names)
    if problem is not None:
        raise TersorError(problem)


def compare_with_peers(
    executable: Executable, model: Any, inputs: Any, names: Sequence[str], begin: Callable[[str], None]
) -> Any:
    """Time ``executable`` and other runtimes on ``model``, from which it was compiled; returns the Comparison.

    Parameters
    ----------
    model, inputs
        As `tersor.frontend.load_model` gives them.
    names
        Runtimes, after `check_peers`.
    begin
        Told the name of each stage when it starts.
    """
    from benchmarks.against import compare_with_peers

    if not isinstance(inputs, tuple):
        raise TersorError("--against needs a model whose inputs are positional; export it with a tuple of inputs")
    return compare_with_peers(executable, model, inputs, names, begin=begin)


def import_benchmarks() -> None:
    """Make ``benchmarks`` importable; raises TersorError outside of a checkout."""
    if "benchmarks" in sys.modules:
        return
    folder = _CHECKOUT / "benchmarks"
    if not (folder / "against.py").is_file():
        raise TersorError(
            "--against needs the benchmarks of a checkout, which the installed package lacks; run it there"
        )
    spec = spec_from_file_location("benchmarks", folder / "__init__.py", submodule_search_locations=[str(folder)])
    assert spec is not None
    sys.modules["benchmarks"] = module_from_spec(spec)
