"""Settings of all tests."""

from __future__ import annotations

import os

import torch

# TVM's threads wait for work by yielding again and again, which takes minutes where other tests want the same cores.
os.environ.setdefault("TVM_THREAD_POOL_SPIN_COUNT", "0")

# Two workers share two cores: PyTorch's own threads would only get in the way.
torch.set_num_threads(1)
