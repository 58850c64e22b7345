"""``fuse``: all fusion that this compiler does, ``fuse-epilogue`` and then ``fuse-elementwise``.

What a layer can take is fused with the layer; what is left is fused with itself. Both take a graph apart into kernels
that read each operand once and write one result; see their modules for how groups are found.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..ir import Graph
from .base import Pass, PassContext, Result
from .fuse_elementwise import FuseElementwise
from .fuse_epilogue import FuseEpilogue
from .registry import register_pass


@register_pass("fuse")
@dataclass(frozen=True)
class Fuse(Pass):
    """Fuse layers with what follows them, then the elementwise ops that are left."""

    def run(self, graph: Graph, context: PassContext) -> Result:
        results = [part.run(graph, context) for part in (FuseEpilogue(), FuseElementwise())]
        return Result(any(result.changed for result in results))
