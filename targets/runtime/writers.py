"""Who writes a compiled model to a file, by the form of the file; `tersor.targets` fills the table in."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

WRITERS: dict[str, Callable[..., Path]] = {}
