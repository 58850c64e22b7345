"""Magika: what kind of file it is.

Random bytes are no fair question: there, the network's answer changes with the last digit of its numbers.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from .case import Answer, Loaded, Trained
from .sources import Call, OnnxSource

FILES = {
    "numpy": ("__init__.py", "_core/include/numpy/ndarrayobject.h"),
    "sklearn": ("datasets/data/iris.csv", "datasets/data/diabetes_data_raw.csv.gz"),
    "matplotlib": (
        "mpl-data/images/home.svg",
        "mpl-data/images/home.png",
        "mpl-data/images/home.pdf",
        "mpl-data/fonts/ttf/DejaVuSans.ttf",
    ),
}


def cases() -> Iterator[Trained]:
    """The one network."""
    yield Trained("magika", "magika", ("magika", *FILES), "types of eight files of packages", load)


def load() -> Loaded:
    """The network."""
    import magika

    detector = magika.Magika()
    (path,) = (Path(magika.__file__).parent / "models").rglob("model.onnx")
    folders = {package: Path(str(importlib.import_module(package).__file__)).parent for package in FILES}
    files = [folders[package] / name for package, names in FILES.items() for name in names]

    def ask(networks: Mapping[str, Call]) -> Answer:
        detector._onnx_session = _Session(networks["network"])
        results = [detector.identify_path(file) for file in files]
        labels = ", ".join(f"{result.output.label} {result.score:.2f}" for result in results)
        return Answer(labels, (np.array([result.score for result in results]),))

    return Loaded({"network": OnnxSource(path)}, ask)


class _Session:
    """A call with the interface of ONNX Runtime's session."""

    def __init__(self, call: Call) -> None:
        self.call = call

    def run(self, outputs: Sequence[str], inputs: Mapping[str, Sequence[Sequence[int]]]) -> list[np.ndarray]:
        return self.call(np.array(inputs["bytes"], np.int32))
