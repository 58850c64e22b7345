"""The main job, end to end: EfficientNet-Lite0 with its ImageNet weights, compiled, compared and saved.

``make demo`` runs it. It recognises a picture with PyTorch and with the compiled program, tells what each pass changed,
measures both beside the other runtimes, writes ``model.tersor`` and runs that file again in a new process.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

import tersor
from benchmarks.against import compare_with_peers
from benchmarks.cpu import available_peers
from benchmarks.harness import Schedule, difference
from benchmarks.models import efficientnet_lite0
from benchmarks.peers import PEERS
from benchmarks.tables import new_table
from benchmarks.tables import table as latency_table
from tersor.targets import Executable

THREADS = 2
ARTIFACT = Path("model.tersor")
# The classes that come up on this picture; ImageNet has 1000.
NAMES = {
    281: "tabby",
    282: "tiger cat",
    283: "Persian cat",
    284: "Siamese cat",
    285: "Egyptian cat",
    287: "lynx",
    292: "tiger",
    478: "carton",
    728: "plastic bag",
    904: "window screen",
}
RUN_AGAIN = """
import sys, time, numpy, torch
import tersor
start = time.perf_counter()
program = tersor.load(sys.argv[1])
loaded = time.perf_counter() - start
scores = program(numpy.load(sys.argv[2]))
numpy.save(sys.argv[3], scores)
print(loaded)
"""


def main() -> None:
    console = Console()
    step = _Steps(console)

    step("Loading EfficientNet-Lite0 and a picture")
    module, _ = efficientnet_lite0()
    picture = load_picture()

    step("Compiling for this machine: torch.export, passes, kernels, shared object")
    start = time.perf_counter()
    executable = tersor.compile(module, (picture,), threads=THREADS)
    console.print(f"compiled in {time.perf_counter() - start:.1f} s: {executable}")
    print(executable.report)

    step("Recognising the picture")
    with torch.inference_mode():
        expected = module(picture)
    scores = executable(picture)
    console.print(class_table(expected, scores))
    gap = difference([expected.numpy()], [scores.numpy()])
    console.print(f"largest difference: {gap:.1e} of the output's scale")

    step("Measuring beside the other runtimes (block by block, half a minute)")
    console.print(compare(module, executable, picture, console))

    step(f"Writing {ARTIFACT} and running it in a new process")
    executable.save(ARTIFACT)
    seconds, again = run_in_new_process(picture)
    same = np.array_equal(again, scores.numpy())
    size = ARTIFACT.stat().st_size / 2**20
    console.print(f"{ARTIFACT}: {size:.1f} MiB, loaded in {seconds:.2f} s, same scores: {'yes' if same else 'no'}")
    if gap > 1e-4 or not same:
        sys.exit("the compiled program does not agree with PyTorch")


def load_picture() -> torch.Tensor:
    """The cat of scikit-image as EfficientNet-Lite0 wants it: float32 [1, 3, 224, 224], ``(value - 127) / 128``."""
    from skimage import data, transform

    image = data.chelsea()
    side = min(image.shape[:2])
    top, left = (image.shape[0] - side) // 2, (image.shape[1] - side) // 2
    square = image[top : top + side, left : left + side]
    resized = transform.resize(square, (224, 224), preserve_range=True, anti_aliasing=True)
    return torch.from_numpy((resized.astype(np.float32) - 127) / 128).permute(2, 0, 1)[None].contiguous()


def class_table(expected: torch.Tensor, actual: torch.Tensor) -> Table:
    """The five best classes of both."""
    view = new_table("Five best classes", ("PyTorch", "probability", "tersor", "probability"))
    columns = [torch.softmax(scores[0], 0).topk(5) for scores in (expected, actual)]
    for rank in range(5):
        cells = []
        for top in columns:
            label = int(top.indices[rank])
            cells += [f"{NAMES.get(label, 'class')} ({label})", f"{float(top.values[rank]):.4f}"]
        view.add_row(*cells)
    return view


def compare(module: torch.nn.Module, executable: Executable, picture: torch.Tensor, console: Console) -> Table:
    """Latency of every installed runtime and of the compiled program."""
    names = available_peers(",".join(PEERS), console)
    with console.status("") as status:
        schedule = Schedule(rounds=5, block_seconds=0.3)
        found = compare_with_peers(executable, module, (picture,), names, begin=status.update, schedule=schedule)
    return latency_table(replace(found, model="EfficientNet-Lite0"))


def run_in_new_process(picture: torch.Tensor) -> tuple[float, np.ndarray]:
    """Load the artifact in a process of its own; returns the seconds to load it, and its scores."""
    with tempfile.TemporaryDirectory() as folder:
        given, got = Path(folder) / "in.npy", Path(folder) / "out.npy"
        np.save(given, picture.numpy())
        command = [sys.executable, "-c", RUN_AGAIN, str(ARTIFACT), str(given), str(got)]
        result = subprocess.run(command, capture_output=True, text=True, check=False)
        if result.returncode:
            sys.exit(f"the new process failed:\n{result.stderr}")
        return json.loads(result.stdout.splitlines()[-1]), np.load(got)


class _Steps:
    """Numbered headings."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.count = 0

    def __call__(self, title: str) -> None:
        self.count += 1
        self.console.rule(f"[bold]{self.count}/5  {title}", align="left")


if __name__ == "__main__":
    main()
