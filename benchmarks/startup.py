"""What it costs before the first answer: compiling, and loading the artifact, each in a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tersor.ir.foreign import Json

CHECKOUT = Path(__file__).parent.parent
STATUS = Path("/proc/self/status")


@dataclass(frozen=True)
class Startup:
    """Cost of one model's start; seconds, bytes.

    Attributes
    ----------
    compile_seconds
        `tersor.compile` on the PyTorch module, export and the import of TVM included; no kernel is known before.
    compile_peak_bytes
        Most memory that the compiling process held, PyTorch and the model included; None where Linux's /proc is absent.
    artifact_bytes
        Size of the file.
    import_seconds
        Importing what `tersor.load` needs, TVM's runtime above all, where PyTorch is imported already.
    load_seconds
        `tersor.load` itself.
    first_call_seconds
        The first call, which wakes the threads and reads the weights from the file.
    """

    compile_seconds: float
    compile_peak_bytes: int | None
    artifact_bytes: int
    import_seconds: float
    load_seconds: float
    first_call_seconds: float


def startup(model: str, threads: int, pipeline: str) -> Startup:
    """Compile and save a model in one new process, load and call it in another.

    Parameters
    ----------
    model
        As `benchmarks.models.load` takes it.
    threads, pipeline
        As `tersor.compile` takes them.

    Raises
    ------
    subprocess.CalledProcessError
        If one of the processes fails; it has said why on stderr.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder) / "model.tersor")
        compiled = _in_new_process("compile", model, path, str(threads), pipeline)
        loaded = _in_new_process("load", path, str(threads))
        return Startup(**compiled, artifact_bytes=Path(path).stat().st_size, **loaded)


def _in_new_process(*arguments: str) -> dict[str, Json]:
    command = [sys.executable, "-m", "benchmarks.startup", *arguments]
    result = subprocess.run(command, cwd=CHECKOUT, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(result.stdout.splitlines()[-1])


def compile_and_save(model: str, path: str, threads: int, pipeline: str) -> dict[str, Json]:
    """Compile a model in this process and save it; its peak memory is that of the whole process so far."""
    import tersor
    from benchmarks.models import load

    module, inputs = load(model)
    begin = time.perf_counter()
    executable = tersor.compile(module, inputs, pipeline=pipeline, threads=threads, cache=False)
    seconds = time.perf_counter() - begin
    peak = _peak_bytes()
    executable.save(path)
    return {"compile_seconds": seconds, "compile_peak_bytes": peak}


def load_and_call(path: str, threads: int) -> dict[str, Json]:
    """Load an artifact in this process and call it once."""
    import torch  # noqa: F401  (who loads a model has it already)

    import tersor

    begin = time.perf_counter()
    import tersor.targets.packaging.artifact
    import tersor.targets.runtime.virtual_machine

    imported = time.perf_counter()
    executable = tersor.load(path, threads=threads)
    loaded = time.perf_counter()
    inputs = executable.random_inputs()
    called = time.perf_counter()
    executable(*inputs)
    return {
        "import_seconds": imported - begin,
        "load_seconds": loaded - imported,
        "first_call_seconds": time.perf_counter() - called,
    }


def _peak_bytes() -> int | None:
    """Peak resident memory; getrusage would count that of the parent process before the child began."""
    if not STATUS.exists():
        return None
    fields = dict(line.split(":", 1) for line in STATUS.read_text("utf-8").splitlines() if ":" in line)
    return int(fields["VmHWM"].split()[0]) * 1024


if __name__ == "__main__":
    job, *rest = sys.argv[1:]
    if job == "compile":
        name, target, count, passes = rest
        print(json.dumps(compile_and_save(name, target, int(count), passes)))
    else:
        target, count = rest
        print(json.dumps(load_and_call(target, int(count))))
