"""Who writes a compiled model to a file and reads it, by the form of the file; `tersor.targets` fills the tables in.

So the runtime knows nothing of packaging, and executables have methods that save them nevertheless.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .compiled_model import CompiledModel

WRITERS: dict[str, Callable[..., Path]] = {}
READERS: dict[str, Callable[..., CompiledModel]] = {}
