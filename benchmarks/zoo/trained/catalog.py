"""All trained networks, by name."""

from __future__ import annotations

from itertools import chain

from . import basic_pitch, crepe, efficientnet, magika, minilm, mtcnn, rapidocr, resemblyzer, silero

FILES = (efficientnet, minilm, mtcnn, crepe, resemblyzer, silero, rapidocr, basic_pitch, magika)
TRAINED = {case.name: case for case in chain.from_iterable(file.cases() for file in FILES)}
