"""RapidOCR: detects lines of text, turns those that stand on their heads, and reads them.

Both generations of the package take three ONNX files, and both call them through a session of their own.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from tersor.ir.foreign import UserObject

from .case import Answer, Loaded, Trained
from .sources import Call, OnnxSource

LINES = ("Tersor makes models terse", "Batch 1, 224 x 224 pixels", "Kernels for 2 threads")
UPSIDE_DOWN = 1  # the number of a line
SIZE = (640, 320)
HEIGHT = 90  # of a line, in pixels
FONT_SIZE = 34
NEEDS = ("cv2", "pyclipper", "shapely")
NETWORKS = ("detector", "classifier", "recognizer")
TASK = "a drawn text of three lines, the second upside down"


def cases() -> Iterator[Trained]:
    """PP-OCRv6, and PP-OCRv4 before it."""
    yield Trained("rapidocr", "rapidocr", ("rapidocr", "omegaconf", *NEEDS), TASK, load)
    needs = ("rapidocr_onnxruntime", *NEEDS)
    yield Trained("rapidocr_v4", "rapidocr-onnxruntime", needs, TASK, load_v4)


def picture() -> np.ndarray:
    """The text in Pillow's own font, black on white: uint8 [height, width, 3]."""
    from PIL import Image, ImageDraw, ImageFont

    page = Image.new("RGB", SIZE, "white")
    font = ImageFont.load_default(FONT_SIZE)
    for index, text in enumerate(LINES):
        line = Image.new("RGB", (SIZE[0], HEIGHT), "white")
        ImageDraw.Draw(line).text((40, 20), text, "black", font)
        page.paste(line.rotate(180) if index == UPSIDE_DOWN else line, (0, 25 + index * HEIGHT))
    return np.array(page)


def load() -> Loaded:
    """The package of today."""
    import rapidocr

    engine: UserObject = rapidocr.RapidOCR(params={"Global.log_level": "error"})
    engine(picture())  # loads the networks
    models = Path(rapidocr.__file__).parent / "models"
    files = ("PP-OCRv6_det_small.onnx", "ch_ppocr_mobile_v2.0_cls_mobile.onnx", "PP-OCRv6_rec_small.onnx")

    def ask(networks: Mapping[str, Call]) -> Answer:
        for user, name in zip((engine.text_det, engine.text_cls, engine.text_rec), NETWORKS, strict=True):
            user.session = lambda pictures, name=name: networks[name](pictures)[0]
        found = engine(picture())
        return _answer(found.txts, found.boxes, found.scores)

    return Loaded(_sources(models, files), ask)


def load_v4() -> Loaded:
    """The package before it."""
    import rapidocr_onnxruntime

    logging.getLogger("RapidOCR").setLevel(logging.ERROR)
    engine = rapidocr_onnxruntime.RapidOCR()
    models = Path(rapidocr_onnxruntime.__file__).parent / "models"
    files = ("ch_PP-OCRv4_det_infer.onnx", "ch_ppocr_mobile_v2.0_cls_infer.onnx", "ch_PP-OCRv4_rec_infer.onnx")

    def ask(networks: Mapping[str, Call]) -> Answer:
        engine.text_det.infer, engine.text_cls.infer, engine.text_rec.session = (networks[name] for name in NETWORKS)
        boxes, texts, scores = zip(*engine(picture())[0], strict=True)
        return _answer(texts, boxes, scores)

    return Loaded(_sources(models, files), ask)


def _sources(folder: Path, files: tuple[str, ...]) -> dict[str, OnnxSource]:
    return {name: OnnxSource(folder / file) for name, file in zip(NETWORKS, files, strict=True)}


def _answer(texts: Sequence[str], boxes: UserObject, scores: UserObject) -> Answer:
    corners = np.asarray(boxes, np.float32)  # [lines, 4, 2]
    places = [f"at {box[0][0]:.0f}, {box[0][1]:.0f}" for box in corners]
    read = "; ".join(f"“{text}” {place}" for text, place in zip(texts, places, strict=True))
    return Answer(read, (corners, np.asarray(scores, np.float32)))
