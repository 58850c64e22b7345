"""Jobs for worker processes that need neither PyTorch nor TVM."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def double(number: int) -> Any:
    """A job for a worker."""
    return 2 * number


def fail(message: str) -> None:
    """A job that goes wrong."""
    raise ValueError(f"first line\n{message}")


def open_file(path: str) -> Any:
    """A job that needs a file."""
    Path(path).open().close()
