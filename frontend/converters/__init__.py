"""Converters from ATen operators to IR ops, one file a family, as in `tersor.ir.ops`.

Importing this package fills the table in `tersor.frontend.registry`. To support another operator, write a function with
the operator's own signature (after the context), decorate it with the overload, and emit IR ops. Operators that have no
converter are decomposed by PyTorch into core ATen operators first, so that composite ones rarely need any. In-place
operators need none: programs are made functional before they are converted.
"""

from . import (
    activation,
    arithmetic,
    bags,
    bessel,
    complex_numbers,
    constant,
    convolution,
    data_movement,
    distance,
    fourier,
    identity,
    indexing,
    matmul,
    normalization,
    order,
    pooling,
    quantization,
    recurrent,
    reduction,
    resizing,
    scattering,
    special,
)
