"""Settings of all tests."""

from __future__ import annotations

import torch

# Two workers share two cores: PyTorch's own threads would only get in the way.
torch.set_num_threads(1)
