"""Basic Pitch: the notes of a recording."""

from __future__ import annotations

import contextlib
import io
import logging
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
from scipy.io import wavfile

from .case import Answer, Loaded, Trained
from .sounds import notes
from .sources import Call, OnnxSource

PLAYED = (261.63, 329.63, 392.0, 523.25)  # Hz: c', e', g', c''
SECONDS = 0.8  # of a note
OUTPUTS = {"note": 1, "onset": 2, "contour": 0}  # as the package's own class says


def cases() -> Iterator[Trained]:
    """The one network."""
    needs = ("basic_pitch", "librosa", "pretty_midi")
    task = "notes of a broken chord, as MIDI numbers: 60, 64, 67, 72"
    yield Trained("basic_pitch", "basic-pitch", needs, task, load)


def load() -> Loaded:
    """The network, constant-Q transform included."""
    logging.disable(logging.WARNING)  # it warns of each runtime that is missing
    from basic_pitch import inference

    logging.disable(logging.NOTSET)
    source = OnnxSource(Path(inference.__file__).parent / "saved_models" / "icassp_2022" / "nmp.onnx")

    class Model(inference.Model):
        """A call as the package's model."""

        def __init__(self, call: Call) -> None:
            self.call = call

        def predict(self, x: np.ndarray) -> dict[str, np.ndarray]:
            results = dict(zip(source.outputs, self.call(x), strict=True))
            return {name: results[f"StatefulPartitionedCall:{index}"] for name, index in OUTPUTS.items()}

    def ask(networks: Mapping[str, Call]) -> Answer:
        with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
            file = Path(folder) / "notes.wav"
            wavfile.write(file, 44100, notes(PLAYED, SECONDS, 44100))
            matrices, _, events = inference.predict(file, Model(networks["network"]))
        events = sorted(events)
        text = ", ".join(f"{number} at {begin:.2f} s" for begin, _, number, *_ in events)
        numbers = np.array([event[:4] for event in events], np.float32)
        return Answer(text, (numbers, *(matrices[name] for name in OUTPUTS)))

    return Loaded({"network": source}, ask)
