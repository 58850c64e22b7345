"""Quantization: which values become integers, which numbers these stand for, and the integer graph.

Importing this package registers its passes and calibrators.
"""

from . import (  # registers passes
    activation_tables,
    adaround,
    annotate,
    attention_sizes,
    bias_correction,
    calibrate,
    concatenation,
    equalization,
    gptq,
    integer_layers,
    narrow_weights,
    quantize,
    realize,
    smooth_quant,
    tables,
    weights,
)
from .calibrators import Calibrator, RangeObserver, register_calibrator
from .scheme import IntegerLayer, QuantizationStep, integer_layer
