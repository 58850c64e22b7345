"""Whether a file can be written, found out before the work whose result it is to hold."""

from __future__ import annotations

import os
from pathlib import Path


def obstacle_to_writing(path: Path) -> str:
    """Why nothing can be written to ``path``, with what to do about it; empty if its folder is in order."""
    folder = path.absolute().parent
    if not folder.is_dir():
        return f"cannot write {path}: {path.parent} is not an existing directory; create it first"
    if not os.access(folder, os.W_OK):
        return f"cannot write {path}: {path.parent} is read-only; choose another output path"
    return ""
