"""Ops written as ONNX nodes, one file a family, as in `tersor.ir.ops`.

Importing this package fills the table in `tersor.frontend.onnx.writer`. To write another op, write a function of the
`Writer` and the op, and decorate it with ``@writes(TheOp)``.
"""

from . import elementwise, layers, movement, quantization, reduction, resizing
