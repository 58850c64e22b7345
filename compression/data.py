"""The calibration data that ``--data`` names."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ..ir import Graph, TersorError
from ..ir.imports import find_attribute
from ..passes.calibration import Batches, read_calibration
from ..targets.runtime.array_files import SUFFIXES, read_inputs

_FORM = f"no such file, and not of the form package.module:loader; give a loader or {', '.join(SUFFIXES)} files"


def open_data(names: Sequence[str], graph: Graph) -> Batches | None:
    """What ``--data`` names: one ``package.module:loader``, or files of one batch each; None without any.

    Raises
    ------
    TersorError
        When a file or a loader does not exist, both are given, or the first batch does not fit.
    """
    if not names:
        return None
    files = [Path(name) for name in names if Path(name).suffix in SUFFIXES or Path(name).exists()]
    if files and len(files) < len(names):
        raise TersorError("--data takes files or one loader, not both")
    if len(files) == len(names):
        data = read_calibration(lambda: (read_inputs([path], graph.user_inputs) for path in files), graph, "--data")
    elif len(names) > 1:
        raise TersorError(f"--data takes one loader, got {len(names)}: {', '.join(names)}")
    else:
        data = read_calibration(find_attribute(names[0], _FORM), graph, names[0])
    if data is not None:
        next(iter(data))  # fails now rather than after minutes
    return data
