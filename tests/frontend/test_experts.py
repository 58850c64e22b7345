"""Products of rows with the matrices of their experts, an operator that `transformers` defines."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import tersor

pytest.importorskip("transformers.integrations.moe")


class Experts(nn.Module):
    def __init__(self):
        super().__init__()
        self.weights = nn.Parameter(torch.randn(4, 6, 5))

    def forward(self, x, ends):
        return torch.ops.transformers.grouped_mm_fallback(x, self.weights, ends)


@pytest.mark.parametrize("ends", [[2, 2, 5, 7], [7, 7, 7, 7], [0, 0, 0, 7], [1, 2, 3, 5]], ids=str)
def test_each_row_has_its_own_matrix(ends, check):
    check(Experts(), torch.randn(7, 6), torch.tensor(ends, dtype=torch.int32))


def test_ends_are_known_at_the_call(same):
    module = Experts().eval()
    x = torch.randn(7, 6)
    executable = tersor.compile(module, (x, torch.tensor([2, 2, 5, 7])))
    ends = torch.tensor([1, 3, 3, 6])
    same(executable(x, ends), module(x, ends).detach())
