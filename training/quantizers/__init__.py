"""What rounds numbers in training: activations by one of several rules, weights by one."""

from . import lsq, pact  # registers quantizers
from .registry import QUANTIZERS, ActivationQuantizer, register_quantizer
from .weights import WeightQuantizer
