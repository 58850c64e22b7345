"""Families of targets: what all machines of one architecture have in common, one module each."""

from __future__ import annotations

from importlib import import_module
from types import ModuleType

from ..target import Target
from .arm import ARM
from .base import Family
from .cuda import CUDA
from .x86 import X86

FAMILIES = {family.name: family for family in (X86, ARM, CUDA)}


def family_of(target: Target) -> Family:
    """The family that a target belongs to."""
    return FAMILIES[target.family]


def backend_of(target: Target) -> ModuleType | None:
    """The module that compiles for the target's family in its own way; None for processors."""
    name = family_of(target).backend
    return import_module(name) if name else None
