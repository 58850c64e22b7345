"""Early exits on data: thresholds for what may be lost or spent, and where the samples of a data set leave."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from .ir import TersorError
from .ir.foreign import Array, Json, UserObject
from .passes.calibration import Batch, Batches, CalibrationData
from .targets.runtime.early_exit import EarlyExitExecutable
from .targets.runtime.exit_thresholds import ExitSamples, find_thresholds


@dataclass(frozen=True)
class ExitShare:
    """What leaves at one exit.

    Attributes
    ----------
    threshold
        The confidence that a sample needs; None where no sample leaves, and at the last exit, which takes all.
    share
        Of the samples.
    score
        Of the samples that leave there, see `ExitReport`; None where none does.
    macs
        Multiply-adds until there.
    """

    threshold: float | None
    share: float
    score: float | None
    macs: int


@dataclass(frozen=True)
class ExitReport:
    """Where the samples of a data set leave, and what that saves.

    Attributes
    ----------
    exits
        All exits, in order.
    samples
        How many samples there are.
    is_accuracy
        Whether scores are shares of samples whose label is the largest output; else of those whose largest output is
        that of the last exit.
    score, last_score
        With the exits, and where all samples go on to the last one.
    macs
        Expected multiply-adds of a sample that runs by itself.
    seconds, whole_seconds
        Mean time of a call, and of one that runs through all exits, timed alternately on the same batches; a batch runs
        on until its last sample leaves.
    batch
        Samples of a call.
    """

    exits: tuple[ExitShare, ...]
    samples: int
    is_accuracy: bool
    score: float
    last_score: float
    macs: float
    seconds: float
    whole_seconds: float
    batch: int

    def to_json(self) -> dict[str, Json]:
        """A dictionary of JSON types."""
        return asdict(self)

    def __str__(self) -> str:
        noun = "accuracy" if self.is_accuracy else "agreement with the last exit"
        lines = [f"{'exit':>4}  {'threshold':>9}  {'samples':>8}  {'score':>8}  {'M macs':>8}"]
        for number, one in enumerate(self.exits):
            threshold = "" if one.threshold is None else f"{one.threshold:.4g}"
            score = "" if one.score is None else f"{one.score:.2%}"
            lines.append(f"{number:>4}  {threshold:>9}  {one.share:>8.2%}  {score:>8}  {one.macs / 1e6:>8.4g}")
        whole = self.exits[-1].macs
        lines.append(
            f"{noun} {self.last_score:.2%} -> {self.score:.2%}, expected multiply-adds {whole} -> {self.macs:.0f}"
            f" ({self.macs / whole:.3f}), {self.whole_seconds * 1e3:.4g} -> {self.seconds * 1e3:.4g} ms a call"
            f" ({self.seconds / self.whole_seconds:.3f}); {self.samples} samples, {self.batch} a call"
        )
        return "\n".join(lines)


def choose_exits(
    executable: EarlyExitExecutable,
    data: UserObject,
    labels: Array | Sequence[int] | None = None,
    *,
    max_drop: float | None = None,
    macs: float | None = None,
) -> ExitReport:
    """Choose the thresholds of a model with exits on data, and set them.

    Parameters
    ----------
    executable
        What `tersor.compile` made with ``exits``; its thresholds are replaced.
    data, labels
        See `measure_exits`.
    max_drop
        How much of the score may be lost, for example 0.01 for one sample in a hundred: as few multiply-adds as that
        allows.
    macs
        Ratio of the multiply-adds that are left at most on the mean, above 0 and below 1: as high a score as that
        allows.

    Returns
    -------
    ExitReport
        On the same data. Thresholds fit the data that they were chosen on: measure them on other data, too.

    Raises
    ------
    TersorError
        When not exactly one of ``max_drop`` and ``macs`` is given, the ratio cannot be reached, or data do not fit.
    """
    if (max_drop is None) == (macs is None):
        raise TersorError("exits: say either how much of the score may be lost (max_drop=) or what may be left (macs=)")
    if max_drop is not None and not 0 <= max_drop < 1:
        raise TersorError(f"max_drop is a share of the samples, from 0 to below 1, not {max_drop!r}")
    if macs is not None and not 0 < macs < 1:
        raise TersorError(f"macs is the ratio of multiply-adds to leave, above 0 and below 1, not {macs!r}")
    reader = _Reader(_checked(executable), data, labels)
    thresholds = find_thresholds(reader.observed(), max_drop, macs)
    executable.exits = replace(executable.exits, thresholds=thresholds)
    return _report(executable, reader)


def measure_exits(
    executable: EarlyExitExecutable, data: UserObject, labels: Array | Sequence[int] | None = None
) -> ExitReport:
    """Where the samples of a data set leave, what that saves, and what it costs.

    Parameters
    ----------
    executable
        What `tersor.compile` made with ``exits``, or `tersor.load` read.
    data
        In any form that `tersor.compile` takes for calibration. Labels may stand behind the inputs of each batch.
    labels
        The classes of all samples, in order, if they do not stand in ``data``. Without any, outputs are compared with
        those of the last exit.

    Raises
    ------
    TersorError
        When the outputs are no logits [samples, classes], or data or labels do not fit.
    """
    return _report(executable, _Reader(_checked(executable), data, labels))


def _checked(executable: EarlyExitExecutable) -> EarlyExitExecutable:
    if not isinstance(executable, EarlyExitExecutable):
        raise TersorError("this program has no exits; compile the model with exits=(…)")
    shape = executable.info.outputs[0].type.shape
    if len(shape) != 2:
        raise TersorError(f"exits are measured on logits [samples, classes], the outputs are {list(shape)}")
    return executable


@dataclass(eq=False)
class _Reader:
    """Data with labels, and what all exits say of it."""

    executable: EarlyExitExecutable
    data: UserObject
    labels: Array | Sequence[int] | None

    def __post_init__(self) -> None:
        graph = self.executable.segments.graph_without_weights
        given = self.data if isinstance(self.data, CalibrationData) else CalibrationData(self.data, name="data")
        self._transform = given.transform_fn
        self._beside: list[UserObject] = []  # labels of the items read so far, where they have any
        self._inputs = len(graph.user_inputs)
        self._batches = Batches(replace(given, transform_fn=self._without_labels), graph)
        self._labels = None if self.labels is None else _classes(self.labels)

    def _without_labels(self, item: UserObject) -> UserObject:
        item = item if self._transform is None else self._transform(item)
        if isinstance(item, tuple | list) and len(item) == self._inputs + 1:
            self._beside.append(item[-1])
            return tuple(item[:-1])
        return item

    def __iter__(self) -> Iterator[tuple[Batch, torch.Tensor | None]]:
        """Batches of the model's length, with the classes of their samples."""
        self._beside.clear()
        length = self.executable.info.outputs[0].type.shape[0]
        count = items = begin = 0
        for batch in self._batches:
            if len(self._beside) != items:
                items, begin = len(self._beside), 0
            known = self._labels if self._labels is not None else _classes(self._beside[-1]) if self._beside else None
            start = count if self._labels is not None else begin
            found = None if known is None else known[start : start + length]
            if found is not None and len(found) != length:
                raise TersorError(f"labels: none for sample {count + len(found)}; give one for each sample")
            yield batch, found
            count, begin = count + length, begin + length
        if self._labels is not None and len(self._labels) != count:
            raise TersorError(
                f"labels: {len(self._labels)} for {count} samples; give one for each, and as many samples as fill"
                f" batches of {length}"
            )

    def observed(self) -> ExitSamples:
        """What all exits say of each sample."""
        confidences: list[list[NDArray[np.float64]]] = []
        scores: list[list[NDArray[np.float64]]] = []
        for batch, labels in self:
            outputs = self.executable.flat(*batch)
            right = outputs[-1].argmax(-1) if labels is None else labels
            confidences.append([self.executable.confidence(one).double().numpy() for one in outputs[:-1]])
            scores.append([(one.argmax(-1) == right).double().numpy() for one in outputs])
        return ExitSamples(
            np.array([np.concatenate(column) for column in zip(*confidences, strict=True)]),
            np.array([np.concatenate(column) for column in zip(*scores, strict=True)]),
            np.array(self.executable.macs, np.float64),
        )


def _classes(labels: UserObject) -> torch.Tensor:
    try:
        found = torch.as_tensor(labels).reshape(-1)
    except (TypeError, ValueError, RuntimeError) as error:
        raise TersorError(f"labels must be the numbers of classes, not a {type(labels).__name__}") from error
    if found.is_floating_point() or found.is_complex():
        raise TersorError(f"labels must be the numbers of classes, not {found.dtype}")
    return found.long()


def _report(executable: EarlyExitExecutable, reader: _Reader) -> ExitReport:
    scores: list[list[float]] = [[] for _ in executable.macs]
    last: list[float] = []
    seconds = whole_seconds = 0.0
    calls = 0
    has_labels = False
    for batch, labels in reader:
        if not calls:
            executable.flat(*batch)  # the first call of a program is slower
        start = time.perf_counter()
        outputs = executable.flat(*batch)
        middle = time.perf_counter()
        output, taken = executable.with_exit(*batch)
        seconds += time.perf_counter() - middle
        whole_seconds += middle - start
        calls += 1
        has_labels = labels is not None
        right = outputs[-1].argmax(-1) if labels is None else labels
        assert isinstance(output, torch.Tensor)  # batches are tensors
        for exit, score in zip(taken.tolist(), (output.argmax(-1) == right).double().tolist(), strict=True):
            scores[exit].append(score)
        last += (outputs[-1].argmax(-1) == right).double().tolist()
    count = len(last)
    thresholds = (*executable.exits.thresholds, None)
    exits = tuple(
        ExitShare(threshold, len(found) / count, float(np.mean(found)) if found else None, macs)
        for threshold, found, macs in zip(thresholds, scores, executable.macs, strict=True)
    )
    return ExitReport(
        exits=exits,
        samples=count,
        is_accuracy=has_labels,
        score=sum(map(sum, scores)) / count,
        last_score=sum(last) / count,
        macs=sum(one.share * one.macs for one in exits),
        seconds=seconds / calls,
        whole_seconds=whole_seconds / calls,
        batch=count // calls,
    )
