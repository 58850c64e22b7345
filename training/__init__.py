"""Training with quantization: modules that round as integer inference will, while any training loop trains them.

``graph.to_torch()`` makes one (`QuantizedModule`) of a graph with calibrated notes, and of one of integers; importing
this package registers that. How the step sizes of activations learn is one file each in `quantizers`.
"""

from ..frontend.to_torch import register_quantized
from .module import QuantizedModule
from .quantized import quantized_module
from .quantizers import ActivationQuantizer, WeightQuantizer, register_quantizer

register_quantized(quantized_module)
