"""ONNX operators as functions on PyTorch tensors, one file a family.

Importing this package fills the table in `tersor.frontend.onnx.registry`. To support another operator, write a function
of its inputs and attributes, named as in ONNX's own list of operators, and decorate it with the operator's name.
"""

from . import (
    arithmetic,
    constant,
    convolution,
    indexing,
    integer_sums,
    matmul,
    movement,
    normalization,
    pooling,
    quantization,
    recurrent,
    reduction,
    resizing,
    spectral,
)
