"""Lines of the model's code that messages name: the innermost one that is the user's own, not PyTorch's."""

from __future__ import annotations

import linecache
import re
import sysconfig
import traceback
from collections.abc import Iterable, Iterator
from pathlib import Path

import torch

from ..ir import shorten

_FRONTEND = str(Path(__file__).parent)
_PYTORCH = str(Path(torch.__file__).parent)
_STANDARD_LIBRARY = sysconfig.get_path("stdlib")
_PACKAGES = ("site-packages", "dist-packages")
_FRAME = re.compile(r'File "([^"\n]+)", line (\d+)')


def place_of_error(error: BaseException) -> str:
    """Where an exception comes from in the model's code, with the line itself, or ``""``."""
    seen: list[BaseException] = []
    one: BaseException | None = error
    while one is not None and one not in seen:
        seen.append(one)
        frames = [(frame.filename, frame.lineno or 0) for frame in traceback.extract_tb(one.__traceback__)]
        chosen = _innermost(frames)
        if chosen:
            line = linecache.getline(*chosen).strip()
            return _shown(*chosen) + (f" ({shorten(line)!r})" if line else "")
        one = one.__cause__ or one.__context__
    return ""


def place_of_trace(trace: object) -> str:
    """Where a call of an exported program comes from, from the text that PyTorch keeps with it, or ``""``."""
    frames = [(path, int(line)) for path, line in _FRAME.findall(trace if isinstance(trace, str) else "")]
    chosen = _innermost(frames)
    return shorten(_shown(*chosen), 120) if chosen else ""


def _innermost(frames: Iterable[tuple[str, int]]) -> tuple[str, int] | None:
    """The last frame of the user's own files, else of installed packages that define models."""
    candidates = list(_of_models(frames))
    own = [frame for frame in candidates if not any(name in frame[0] for name in _PACKAGES)]
    chosen = own or candidates
    return chosen[-1] if chosen else None


def _of_models(frames: Iterable[tuple[str, int]]) -> Iterator[tuple[str, int]]:
    for path, line in frames:
        foreign = path.startswith("<") or path.startswith((_FRONTEND, _PYTORCH))
        if not foreign and (not path.startswith(_STANDARD_LIBRARY) or any(name in path for name in _PACKAGES)):
            yield path, line


def _shown(path: str, line: int) -> str:
    """A path as short as it can be found again: from the current folder, or from where packages are installed."""
    for name in _PACKAGES:
        if f"/{name}/" in path:
            return f"{path.rpartition(f'/{name}/')[2]}:{line}"
    try:
        return f"{Path(path).relative_to(Path.cwd())}:{line}"
    except ValueError:
        return f"{path}:{line}"
