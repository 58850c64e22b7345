"""Settings of all tests."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import pytest
import torch

import tersor.training  # noqa: F401  (registers `Graph.to_torch`, whichever file runs alone)
from tersor.targets.codegen.kernel_cache import KernelCache
from tersor.targets.machines.target import Cpu

# TVM's threads wait for work by yielding again and again, which takes minutes where other tests want the same cores.
os.environ.setdefault("TVM_THREAD_POOL_SPIN_COUNT", "0")

# Two workers share two cores: PyTorch's own threads would only get in the way.
torch.set_num_threads(1)

# What a shell starts in the background ignores Ctrl-C, and so would all that the tests start and interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)

_tvm_target = Cpu.tvm_target


@pytest.fixture(autouse=True)
def llvm_level(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let LLVM optimize less, which makes a compilation three times as fast.

    The tests of kernels and of networks override this: they run what users get. What the others look at are graphs,
    programs, files and commands.
    """
    monkeypatch.setattr(Cpu, "tvm_target", lambda target: _tvm_target(target) | {"opt-level": 0})


@pytest.fixture(scope="session", autouse=True)
def _kernels_are_compiled_once(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Tests share compiled kernels with each other, and nothing with the user."""
    cache = KernelCache(tmp_path_factory.mktemp("cache") / "kernels")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(KernelCache, "of_user", lambda: cache)
        yield
