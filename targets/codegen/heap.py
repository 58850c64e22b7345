"""The C library's heap, which keeps what was freed."""

from __future__ import annotations

import ctypes


def give_back() -> None:
    """Give memory that was freed back to the system; does nothing where the C library is not glibc.

    Weights are transformed in buffers of some megabytes, which glibc keeps for the next ones, in each thread's heap.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
