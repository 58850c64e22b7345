"""Kernels are compiled as users get them."""

from __future__ import annotations

import pytest


@pytest.fixture(autouse=True)
def llvm_level() -> None:
    """LLVM optimizes as it does for users."""
