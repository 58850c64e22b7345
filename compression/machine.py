"""Where a result was made: processor, system and versions, for reports."""

from __future__ import annotations

import os
import platform
from importlib.metadata import version

from ..targets.machines.catalog import processor_name

_PACKAGES = ("tersor", "torch", "apache-tvm")


def describe_machine() -> str:
    """The processor, its logical cores, and the operating system."""
    return f"{processor_name()}, {os.cpu_count() or 1} logical cores, {platform.system()} {platform.machine()}"


def describe_versions() -> dict[str, str]:
    """Of Python, Tersor and what it stands on."""
    return {"python": platform.python_version()} | {name: version(name) for name in _PACKAGES}
