"""Small compiled models, made once."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import torch
from torch import nn

import tersor
from tersor.targets import Executable
from tersor.targets.machines.toolchain import Toolchain


class ConvNet(nn.Module):
    """A convolution with batch norm, a residual sum, pooling and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU())
        self.body = nn.Conv2d(16, 16, 3, padding=1)
        self.head = nn.Linear(16, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        x = torch.relu(x + self.body(x))
        return self.head(x.mean((2, 3)))


@pytest.fixture(scope="session")
def module() -> nn.Module:
    torch.manual_seed(0)
    return ConvNet().eval()


@pytest.fixture(scope="session")
def example() -> torch.Tensor:
    return torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="session")
def executable(module: nn.Module, example: torch.Tensor) -> Executable:
    return tersor.compile(module, (example,))


@pytest.fixture(scope="session")
def artifact(executable: Executable, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The saved model; tests must not change it."""
    return executable.save(tmp_path_factory.mktemp("artifact") / "model.tersor")


@pytest.fixture(scope="session", autouse=True)
def _runners_are_built_once(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Bundles take the program that was built from the same source before: a compiler needs seconds for it."""
    original = Toolchain.build_program
    built: dict[tuple[Toolchain, tuple[bytes, ...], tuple[str, ...]], Path | str] = {}
    folder = tmp_path_factory.mktemp("runners")

    def build(toolchain: Toolchain, output: Path, source: Path, include: Path, libraries: Sequence[Path]) -> None:
        contents = tuple(path.read_bytes() for path in (source, *sorted(include.iterdir())) if path.is_file())
        key = toolchain, contents, tuple(library.name for library in libraries)
        if key not in built:
            original(toolchain, output, source, include, libraries)
            built[key] = shutil.copy2(output, folder / str(len(built)))
        shutil.copy2(built[key], output)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Toolchain, "build_program", build)
        yield
