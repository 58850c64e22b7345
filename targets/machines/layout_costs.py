"""What physical layouts cost on a machine: a model of memory traffic, for the pass ``layout``.

Tensors between layers seldom stay in a core's own caches, so their traffic is what a layout costs; a relayout is a
kernel more, which has to be started. The two rates are orders of magnitude, not measurements: the pass weighs whole
tensors against each other, so a factor of two changes few decisions, and none on the networks of ``benchmarks``.
"""

from __future__ import annotations

from dataclasses import dataclass

from ...ir import TensorType

_BYTES_PER_NANOSECOND = 10  # that one core streams through its outer caches
_START_NANOSECONDS = 2000  # of one kernel on all threads: the virtual machine's call, and waking the threads
_PICO = 1000


@dataclass(frozen=True)
class MemoryTraffic:
    """Implements `tersor.passes.base.LayoutCosts`, in picoseconds.

    Attributes
    ----------
    cores
        That share the work.
    """

    cores: int

    def access(self, type: TensorType) -> int:
        """Time to stream the stored elements once, those that pad the last channel block included."""
        moved = type.physical_size * type.dtype.itemsize
        return moved * _PICO // (_BYTES_PER_NANOSECOND * self.cores)

    def relayout(self, type: TensorType, channel_block: int) -> int:
        """Time of a kernel that reads one layout and writes the other; 0 where no element would move."""
        if type.stays_in_place(channel_block):
            return 0
        return _START_NANOSECONDS * _PICO + self.access(type) + self.access(type.with_layout(channel_block))
