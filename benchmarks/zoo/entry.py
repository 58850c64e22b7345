"""What the zoo knows of an architecture before it is built."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn


@dataclass(frozen=True)
class Numbers:
    """An input of standard normal numbers.

    Attributes
    ----------
    shape
        With the batch, which is 1, in front.
    """

    shape: tuple[int, ...]

    def draw(self, generator: torch.Generator) -> torch.Tensor:
        """float32 of the shape."""
        return torch.randn(self.shape, generator=generator)


@dataclass(frozen=True)
class Integers:
    """An input of row numbers of a table, of classes or of tokens.

    Attributes
    ----------
    shape
        With the batch, which is 1, in front.
    bound, least
        They are less than the one, and no less than the other.
    """

    shape: tuple[int, ...]
    bound: int
    least: int = 0

    def draw(self, generator: torch.Generator) -> torch.Tensor:
        """int64 of the shape."""
        return torch.randint(self.least, self.bound, self.shape, generator=generator)


Input = Numbers | Integers


@dataclass(frozen=True)
class Entry:
    """An architecture with the shapes that it is called with.

    Attributes
    ----------
    name
        Unique in the zoo.
    family
        Heading under which it stands in the table.
    make
        Builds the module, with whatever random weights it gives itself.
    inputs
        Positional arguments of a call.
    """

    name: str
    family: str
    make: Callable[[], nn.Module]
    inputs: tuple[Input, ...]

    def build(self, seed: int = 0) -> tuple[nn.Module, tuple[torch.Tensor, ...]]:
        """The module in evaluation mode with seeded weights, and seeded inputs."""
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            module = self.make().eval()
        return module, self.draw(seed)

    def draw(self, seed: int) -> tuple[torch.Tensor, ...]:
        """Inputs of one call."""
        generator = torch.Generator().manual_seed(seed)
        return tuple(one.draw(generator) for one in self.inputs)
