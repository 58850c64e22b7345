"""``fuse``: all fusion that this compiler does, ``fuse-epilogue`` and then ``fuse-elementwise``.

What a layer can take is fused with the layer; what is left is fused with itself. Both take a graph apart into kernels
that read each operand once and write one result; see their modules for how groups are found.
"""

from __future__ import annotations

from .base import Pass
from .fuse_elementwise import FuseElementwise
from .fuse_epilogue import FuseEpilogue
from .registry import register_pass


@register_pass("fuse", purpose="fuse")
class Fuse(Pass):
    """Fuse layers with what follows them, then the elementwise ops that are left."""

    @property
    def steps(self) -> tuple[Pass, ...]:
        return (FuseEpilogue(), FuseElementwise())
