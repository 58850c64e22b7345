"""Selection of kernels, one file a family: from a group of ops to a template's spec, packed weights and epilogue.

Importing this package registers every selector with `tersor.targets.codegen.kernel`. To give an op a kernel, add a
function decorated with ``@selects(TheOp)`` to the file it belongs to. Rare ops only need a formula instead, see
`tersor.targets.templates.loops`. See docs/kernels.md.
"""

from . import (
    attention,
    channels,
    convolution,
    data_movement,
    elementwise,
    fallback,
    matmul,
    normalization,
    pooling,
    recurrent,
    reduction,
    resizing,
)
