"""Who writes a compiled model to a file and reads it, by the form of the file, and who makes a program for a new shape.

`tersor.targets` fills in the first two tables, and `tersor.shapes` the third. So the runtime knows nothing of packaging
and compilation, and executables have methods that save them, and make programs, nevertheless.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .compiled_model import Compiled
    from .dynamic import Make

WRITERS: dict[str, Callable[..., Path]] = {}
READERS: dict[str, Callable[..., Compiled]] = {}
MAKERS: dict[str, Make] = {}
