"""Inputs as nearly all calls give them, read with few checks: for a small model, the rest would take longer than it.

Whatever is wrong or unusual is left to the reader of all other inputs, which says what is wrong.
"""

from __future__ import annotations

import numpy as np
import torch

from ...ir import DType
from ...ir.foreign import Array
from ..machines.target import ALIGNMENT
from .model_info import Port
from .ports import STORED_AS


class PlainInput:
    """Reads a plain array in place: of the port's shape and element type, contiguous, aligned, on the CPU.

    Parameters
    ----------
    port
        The input. All that depends on it is worked out here; nothing is kept of the arrays.
    """

    def __init__(self, port: Port) -> None:
        self._shape = port.type.shape
        self._dtype = port.type.dtype.torch
        # NumPy has one object for each of its own types, but for copies with metadata; it lacks bfloat16.
        self._numpy_dtype = None if port.type.dtype is DType.BF16 else torch.empty(0, dtype=self._dtype).numpy().dtype
        self._stored_as = STORED_AS.get(port.type.dtype)

    def read(self, value: Array) -> torch.Tensor | None:
        """The flat array on the memory of ``value``, of the type that kernels read; None where `value` isn't plain."""
        try:
            # Subclasses, of either, may mean something else by any of these attributes.
            if type(value) is np.ndarray:
                flat = self._from_numpy(value)
            elif type(value) is torch.Tensor:
                flat = self._from_torch(value)
            else:
                return None
            if flat is None or not (address := flat.data_ptr()) or address % ALIGNMENT:
                return None
        except RuntimeError:  # no strided memory: sparse and nested tensors, and those within `torch.vmap`
            return None
        return flat if self._stored_as is None else flat.view(self._stored_as)

    def _from_numpy(self, value: np.ndarray) -> torch.Tensor | None:
        # carray: contiguous and writeable, each element aligned
        if value.dtype is self._numpy_dtype and value.shape == self._shape and value.flags.carray:
            return torch.from_numpy(value.reshape(-1))
        return None

    def _from_torch(self, value: torch.Tensor) -> torch.Tensor | None:
        if (
            value.dtype is self._dtype
            and value.is_cpu
            and value.shape == self._shape
            and value.is_contiguous()
            and not value.is_neg()
            and not value.requires_grad
        ):
            return value.view(-1)
        return None
