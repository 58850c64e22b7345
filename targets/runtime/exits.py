"""When a model with several exits may stop: thresholds of confidence, and what confidence is."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from ...ir import TersorError, suggest
from ...ir.foreign import UserObject
from ...ir.imports import find_function, one_line
from .model_info import Port

Confidence = Callable[[torch.Tensor], torch.Tensor]  # of an exit's output [samples, …] to one number a sample


def max_softmax(logits: torch.Tensor) -> torch.Tensor:
    """The largest probability, from 0 to 1 (Huang et al., "Multi-Scale Dense Networks", ICLR 2018)."""
    return logits.float().softmax(-1).amax(-1)


def margin(logits: torch.Tensor) -> torch.Tensor:
    """How far the largest probability is above the second one, from 0 to 1."""
    first, second = logits.float().softmax(-1).topk(2).values.unbind(-1)
    return first - second


def low_entropy(logits: torch.Tensor) -> torch.Tensor:
    """1 less the entropy of the probabilities, in units of the largest possible one, from 0 to 1.

    Method: Teerapittayanon et al., "BranchyNet", ICPR 2016.
    """
    logs = logits.float().log_softmax(-1)
    return 1 + (logs.exp() * logs).sum(-1) / math.log(logits.shape[-1])


CONFIDENCES: dict[str, Confidence] = {"max-softmax": max_softmax, "margin": margin, "low-entropy": low_entropy}
_PURPOSE = "that says how certain each sample of an output is"


@dataclass(frozen=True)
class EarlyExits:
    """When a call may stop at one of a model's outputs, which are its exits.

    Attributes
    ----------
    thresholds
        One for each output but the last: a sample leaves where the confidence is at least this high; None for never.
    confidence
        How certain an output is: ``max-softmax``, ``margin`` or ``low-entropy`` of logits [samples, classes]; or a
        function as ``package.module:function``, which takes an output [samples, …] and returns one number for each
        sample.

    Raises
    ------
    ValueError
        For thresholds that are no numbers, and a confidence that is not known.
    """

    thresholds: tuple[float | None, ...]
    confidence: str = "max-softmax"

    def __post_init__(self) -> None:
        if not self.thresholds:
            raise ValueError("exits: give a threshold for each output but the last")
        for one in self.thresholds:
            if one is not None and not (isinstance(one, int | float) and math.isfinite(one)):
                raise ValueError(
                    f"exits: a threshold is a number, or None for an exit that is never taken, not {one!r}"
                )
        if self.confidence not in CONFIDENCES and ":" not in self.confidence:
            raise ValueError(f"unknown confidence {self.confidence!r}{suggest(self.confidence, CONFIDENCES)}")

    def check(self, outputs: Sequence[Port]) -> None:
        """Raise TersorError unless these outputs can be exits."""
        if len(outputs) != len(self.thresholds) + 1:
            raise TersorError(
                f"exits: the model returns {len(outputs)} outputs, which needs {max(0, len(outputs) - 1)} thresholds,"
                f" not {len(self.thresholds)}: one for each output but the last"
            )
        first, *others = (port.type for port in outputs)
        for number, type in enumerate(others, start=1):
            if type != first:
                raise TersorError(f"exits: outputs must be of one type; output 0 is {first}, output {number} is {type}")
        if self.confidence in CONFIDENCES and (len(first.shape) != 2 or not first.dtype.is_floating):
            raise TersorError(
                f"exits: confidence={self.confidence} is for logits [samples, classes], the outputs are {first}; name a"
                " function of your own as package.module:function"
            )
        if not first.shape:
            raise TersorError("exits: outputs must have samples along their first dimension, not be single numbers")

    def function(self) -> Confidence:
        """What says how certain outputs are; imports the user's own function."""
        known = CONFIDENCES.get(self.confidence)
        if known is not None:
            return known
        name, given = self.confidence, find_function(self.confidence, _PURPOSE)

        def checked(output: torch.Tensor) -> torch.Tensor:
            try:
                found: UserObject = given(output)
            except Exception as error:  # the user's own code
                raise TersorError(f"the confidence {name} raised {type(error).__name__}: {one_line(error)}") from error
            if not isinstance(found, torch.Tensor) or tuple(found.shape) != (output.shape[0],):
                shape = list(found.shape) if isinstance(found, torch.Tensor) else type(found).__name__
                raise TersorError(
                    f"the confidence {name} must return one number for each sample, [{output.shape[0]}], not {shape}"
                )
            return found

        return checked
