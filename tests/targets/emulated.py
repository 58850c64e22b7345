"""A board with an ARM processor, emulated: runs what `tersor compile --bundle` writes, by the bundle's own runner."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from tersor import TersorError
from tersor.targets import Executable, resolve_target
from tersor.targets.machines.toolchain import find_toolchain
from tersor.targets.packaging.bundle import RUNNER, write_model, write_runner

EMULATOR = "qemu-aarch64-static"
SYSTEM = Path("/usr/aarch64-linux-gnu")  # where Debian's cross compiler keeps glibc and libstdc++
PROCESSORS = {"arm:cortex-a72": "cortex-a72", "arm:cortex-a76": "cortex-a76"}
TIMEOUT = 300
# TVM's idle threads wait by giving way again and again, which Linux 6.18 punishes: on a busy machine a program of two
# threads then stands still for seconds. Here they sleep at once.
ENVIRONMENT = os.environ | {"TVM_THREAD_POOL_SPIN_COUNT": "0"}


def require_emulator() -> None:
    """Skip the test, with the reason, where the emulator or the cross compiler is missing."""
    if shutil.which(EMULATOR) is None:
        pytest.skip(f"no {EMULATOR}: apt-get install qemu-user-static")
    if not SYSTEM.is_dir():
        pytest.skip(f"no {SYSTEM}: apt-get install g++-aarch64-linux-gnu")


def require_toolchain() -> None:
    """Skip the test, with the line that installs one, where no compiler links for ARM."""
    try:
        find_toolchain(resolve_target("arm:cortex-a72"))
    except TersorError as error:
        pytest.skip(str(error))


def emulate(program: Path, *arguments: str | Path, processor: str = "cortex-a76") -> subprocess.CompletedProcess[str]:
    """Run an ARM program."""
    command = [EMULATOR, "-cpu", processor, "-L", str(SYSTEM), str(program), *map(str, arguments)]
    return start(command)


def start(command: Sequence[str | Path], folder: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run a program to its end."""
    return subprocess.run(
        command, cwd=folder, env=ENVIRONMENT, capture_output=True, text=True, timeout=TIMEOUT, check=False
    )


def run_bundle(
    bundle: Path, inputs: Sequence[torch.Tensor], processor: str, *, threads: int = 2, runner: Path | None = None
) -> list[torch.Tensor]:
    """Call the program of a bundle; returns its outputs."""
    files: list[str | Path] = []
    for index, tensor in enumerate(inputs):
        np.save(bundle / f"input{index}.npy", tensor.numpy())
        files += ["--input", bundle / f"input{index}.npy"]
    count = sum(line.startswith("output ") for line in (bundle / "manifest.txt").read_text().splitlines())
    outputs = [bundle / f"output{index}.npy" for index in range(count)]
    for path in outputs:
        files += ["--output", path]
    program = runner or bundle / RUNNER
    result = emulate(program, *files, "--threads", str(threads), "--bundle", bundle, processor=processor)
    assert result.returncode == 0, result.stderr
    return [torch.from_numpy(np.load(path)) for path in outputs]


class Board:
    """Runs many executables by one runner, which is built once.

    Parameters
    ----------
    folder
        Where to build it.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._count = 0
        write_runner(resolve_target("arm:cortex-a72"), folder)

    def run(self, executable: Executable, inputs: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """What the executable computes on an emulated processor of its target."""
        self._count += 1
        bundle = self._folder / f"model{self._count}"
        bundle.mkdir()
        write_model(executable.model, bundle)
        processor = PROCESSORS[executable.info.target.name]
        outputs = run_bundle(bundle, inputs, processor, runner=self._folder / RUNNER)
        shutil.rmtree(bundle)
        return outputs
