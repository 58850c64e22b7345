"""``quantize``: 8-bit integers in three steps, with corrections between the second and the third.

::

    quantize{method=percentile:99.99}  =  equalize-concat,equalize-attention,smooth-quant,
                                          quantize-annotate,quantize-calibrate{method=percentile:99.99},
                                          narrow-weights,bias-correction,
                                          quantize-realize,activation-tables,fuse

Accuracy passes that move numbers between activations and weights (`Pass.before_notes`) come before the first step.
Groups made by ``fuse`` are taken apart first. Afterwards everything is fused, also if it was not before: scaling and
rounding belong into the layers' kernels. So ``O3,quantize`` and ``O2,quantize`` are the same. A second run changes
nothing.
"""

from __future__ import annotations

from typing import Annotated

from ...ir import DType
from ...ir.ops.integers import QUANTIZED
from ..base import Exactness, Pass
from ..fuse import Fuse
from ..pipeline import parse_pipeline
from ..referee import Keep
from ..registry import register_pass
from .activation_tables import MOST_LOSS, ActivationTables
from .annotate import QuantizeAnnotate
from .calibrate import QuantizeCalibrate
from .calibrators.registry import CALIBRATORS
from .realize import QuantizeRealize
from .scheme import WEIGHT_BITS
from .ways import WAYS


@register_pass("quantize", purpose="quantize")
class Quantize(Pass):
    """Compute convolutions, linear layers, attention and what stands between them on 8-bit integers.

    Attributes
    ----------
    activations
        ``u8`` or ``i8``.
    method
        How ranges are found: ``minmax``, ``percentile:99.99``, ``moving-average:0.9``, ``mse``, ``entropy``, or
        ``auto``: for each value the one with the least error of the layers that read it.
    accuracy
        Passes that make up for rounding: ``equalize-concat``, ``equalize-attention``, ``cross-layer-equalization`` and
        ``smooth-quant`` before values are noted,
        ``narrow-weights``, ``gptq``, ``adaround`` or ``bias-correction`` on calibrated notes.
    skip
        Names of layers and products that stay in floating point; ``*`` stands for anything.
    weight_bits
        Bits of the weights as integers, 2 to 8.
    keep
        Whether only layers change that the target measures faster on integers, or all that can.
    min_sqnr
        Signal-to-noise ratio in dB that each output keeps on calibration data: of the layers, those compute on integers
        that save the most time within it.
    max_drop
        By how much the number may fall that ``evaluate`` gives the model: likewise.
    others
        Other ways to compute layers than on 8-bit integers, where they are faster: ``bf16``, ``f16``, and for linear
        layers ``int4`` and ``int8`` (weights only), ``int4-dynamic`` and ``int8-dynamic`` (rows are rounded at run
        time), or a list of these. Under a budget each layer has the choice of all of them, integers and float32.
    table_loss
        Decibels of its signal-to-noise ratio that a value may lose where its activation becomes a table
        (``activation-tables``); none under a budget.
    """

    activations: Annotated[DType, QUANTIZED] = DType.U8
    method: Annotated[str, CALIBRATORS] = "minmax"
    accuracy: tuple[str, ...] = (
        "equalize-concat",
        "equalize-attention",
        "smooth-quant",
        "narrow-weights",
        "bias-correction",
    )
    skip: tuple[str, ...] = ()
    weight_bits: int = WEIGHT_BITS
    keep: Keep = Keep.FASTER
    min_sqnr: float | None = None
    max_drop: float | None = None
    others: Annotated[str | tuple[str, ...], WAYS] = ()
    table_loss: float = MOST_LOSS

    exactness = Exactness.APPROXIMATE
    measures = True

    def __post_init__(self) -> None:
        QuantizeAnnotate(self.activations, self.skip, self.weight_bits)
        QuantizeCalibrate(self.method)
        _ = self._realize, self._tables
        _ = self.corrections  # raises what is wrong with their names

    @property
    def corrections(self) -> tuple[Pass, ...]:
        """The accuracy passes."""
        return tuple(one for name in self.accuracy for one in parse_pipeline(name).passes)

    @property
    def _realize(self) -> QuantizeRealize:
        return QuantizeRealize(self.keep, self.min_sqnr, self.max_drop, self.others)

    @property
    def _tables(self) -> ActivationTables:
        """Without those that cost accuracy, which a budget does not know of."""
        return ActivationTables(0.0 if self._realize.budget else self.table_loss, self.keep)

    @property
    def steps(self) -> tuple[Pass, ...]:
        first = tuple(one for one in self.corrections if one.before_notes)
        then = tuple(one for one in self.corrections if not one.before_notes)
        notes = (QuantizeAnnotate(self.activations, self.skip, self.weight_bits), QuantizeCalibrate(self.method))
        return (*first, *notes, *then, self._realize, self._tables, Fuse())
