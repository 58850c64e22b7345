"""Imports of a package whose own imports are not all needed."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import ModuleType

from tersor.ir.foreign import UserObject


@contextmanager
def stand_ins(modules: Mapping[str, Mapping[str, UserObject]]) -> Iterator[None]:
    """Let `import` find modules that hold some names only, packages first; what was there before comes back at the end.

    What was imported meanwhile keeps the stand-ins that it has bound.
    """
    before = {name: sys.modules.get(name) for name in modules}
    for name, members in modules.items():
        sys.modules[name] = stand_in = ModuleType(name)
        stand_in.__dict__.update(members)
        parent, _, child = name.rpartition(".")
        if parent in modules:
            setattr(sys.modules[parent], child, stand_in)
    try:
        yield
    finally:
        for name, module in before.items():
            if module is None:
                del sys.modules[name]
            else:
                sys.modules[name] = module
