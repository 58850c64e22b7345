"""The two files that a graph is kept in: IR text, and its weights beside it with the suffix ``.safetensors``.

Two files cannot be renamed at once. So new weights first get a name that contains their digest, then the text that
names the digest is put into its place, and then the weights. Whatever kills the writer, the text that is there leads to
the weights that it was written with.
"""

from __future__ import annotations

import os
import re
from glob import escape
from pathlib import Path

from .errors import IRError
from .files import check_writable, locked, put, scratch_folder, write_text, writing
from .graph import Graph
from .parser import HEADER, IR_VERSION, parse
from .printer import print_graph
from .weights import WeightStore, read_digest

_WEIGHTS = re.compile(r"# weights ([0-9a-f]{64})$", re.MULTILINE)


def save_ir(graph: Graph, path: str | Path) -> None:
    """Write ``path`` (IR text) and, beside it, the weights.

    Where ``path`` is a device or a named pipe, it gets the text, and the weights are written nowhere.

    Raises
    ------
    OutputError
        When a file cannot be written; the old files can still be read then.
    """
    path = Path(path)
    check_writable(path)
    if path.exists() and not path.is_file():
        write_text(path, ir_text(graph))
        return
    weights, digest = _weights_file(path), graph.weights.digest_of_all()
    check_writable(weights)
    with writing(weights), scratch_folder(beside=weights) as folder:
        fresh, waiting = folder / "weights", _waiting(weights, digest)
        graph.weights.save(fresh)
        with locked(weights.parent):
            put(fresh, waiting)
            write_text(path, ir_text(graph, f"# weights {digest}\n"))
            put(waiting, weights)
            for abandoned in weights.parent.glob(f"{escape(_waiting(weights, '').name)}*"):
                abandoned.unlink(missing_ok=True)


def ir_text(graph: Graph, note: str = "") -> str:
    """The text of a graph with the version of the format, and a note of lines that are comments."""
    return f"{HEADER}{IR_VERSION}\n{note}{print_graph(graph)}"


def load_ir(path: str | Path, *, require_weights: bool = True) -> Graph:
    """Read a graph that `save_ir` wrote; raises IRError when a file is missing, damaged or newer than this version.

    Parameters
    ----------
    path
        The IR text; its weights have the suffix ``.safetensors``.
    require_weights
        Whether a missing weights file is an error. A graph without its weights cannot be evaluated.
    """
    path = Path(path)
    if path.exists() and not path.is_file():  # reading a pipe or a device may never end
        raise IRError(f"{path}: not a regular file; name a file of IR text")
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise IRError(f"{path}: no such file") from None
    except (OSError, UnicodeDecodeError, MemoryError) as error:
        raise IRError(f"{path}: not readable as IR text ({error})") from error
    try:
        graph = parse(text)
        weights = _weights_file(path)
        if any(op.name == "weight" for op in graph.ops) and (require_weights or weights.exists()):
            graph.weights = _read_weights(weights, _WEIGHTS.search(text[: text.find("graph @")]))
    except IRError as error:
        raise IRError(f"{path}: {error}") from error
    return graph


def _read_weights(path: Path, named: re.Match[str] | None) -> WeightStore:
    """The weights of a text that names a digest, or of one that does not."""
    if named is not None:
        waiting = _waiting(path, named[1])
        if waiting.exists():
            return WeightStore.load(waiting)
        if path.is_file() and read_digest(path) not in ("", named[1]):
            raise IRError(f"{path} belongs to another text; keep a text and its weights together")
    return WeightStore.load(path)


def _weights_file(path: Path) -> Path:
    if path.suffix == ".safetensors":
        raise IRError(f"{path}: this suffix is for the weights beside a text; give the text another name")
    return Path(os.path.realpath(path.with_suffix(".safetensors")))


def _waiting(weights: Path, digest: str) -> Path:
    """Where weights are until their text is in its place."""
    return weights.with_name(f".{weights.name}.{digest}")
