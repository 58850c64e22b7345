"""How long whole networks take to compile: for the first time, and again when their kernels are kept on disk.

::

    python -m benchmarks.compile_networks resnet50,densenet121,googlenet

Each compilation is a process of its own, with a cache folder of its own network, and is timed from the PyTorch module
to the checked program. Importing PyTorch and TVM is left out, and so are the first export and kernel of a process,
which initialize both: a small layer is compiled before.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from benchmarks.tables import new_table

CHECKOUT = Path(__file__).parent.parent
STAGES = ("export", "passes", "choose kernels", "generate code", "link", "compare with the model")


def measure(network: str, pipeline: str) -> dict[str, float]:
    """Seconds of the stages of one compilation in this process."""
    import torch

    import tersor
    from benchmarks.models import load
    from tersor.checking import Reference
    from tersor.compiler import CompileOptions, as_graph, compile_in_stages

    module, inputs = load(network)
    tersor.compile(torch.nn.Linear(3, 5), (torch.randn(1, 3),), cache=False)
    seconds: dict[str, float] = defaultdict(float)
    stage, since = "export", time.perf_counter()

    def begin(name: str) -> None:
        nonlocal stage, since
        now = time.perf_counter()
        seconds[stage] += now - since
        stage, since = "passes" if name.startswith("pass ") else name, now

    graph = as_graph(module, inputs)
    options = CompileOptions(pipeline=pipeline)
    compile_in_stages(graph, options, reference=Reference.of(module, graph, inputs), begin=begin)
    begin("")
    return dict(seconds)


def main(
    networks: Annotated[str, typer.Argument(help="Names of networks in benchmarks/models.py.")],
    pipeline: Annotated[str, typer.Option("-p", help="Passes.")] = "O3",
    runs: Annotated[int, typer.Option(help="Compilations of each network, the first with an empty cache.")] = 2,
    here: Annotated[bool, typer.Option(hidden=True)] = False,
) -> None:
    """Measure networks, separated by commas."""
    if here:
        print(json.dumps(measure(networks, pipeline)))
        return
    rows = []
    for network in networks.split(","):
        with tempfile.TemporaryDirectory() as folder:
            for run in range(runs):
                command = [sys.executable, "-m", "benchmarks.compile_networks", network, "-p", pipeline, "--here"]
                environment = os.environ | {"XDG_CACHE_HOME": folder}
                ended = subprocess.run(
                    command, cwd=CHECKOUT, env=environment, stdout=subprocess.PIPE, text=True, check=True
                )
                seconds = json.loads(ended.stdout.splitlines()[-1])
                stages = [f"{seconds.get(stage, 0.0):.2f}" for stage in STAGES]
                rows.append((network, f"{run + 1}", f"{sum(seconds.values()):.2f}", *stages))
    columns = ("network", "run", "all", "export", "passes", "choose", "generate", "link", "compare")
    Console().print(new_table("Seconds", columns, rows))


if __name__ == "__main__":
    typer.run(main)
