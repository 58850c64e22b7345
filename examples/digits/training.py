"""Seeded training on two threads, and the cache of what was trained.

A trained network is a file in ``~/.cache/tersor/digits`` (or below ``$XDG_CACHE_HOME``), named by a hash of all that it
depends on: the numbers that training starts from, the recipe, and the code of training, data and networks without its
comments. So nothing stale is ever read, and whatever was trained once is there in milliseconds.
"""

from __future__ import annotations

import ast
import contextlib
import hashlib
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional

from . import data
from .data import Digits, augment

THREADS = 2
BATCH = 50  # a graph has a fixed batch size, so it is one for all, and divides the number of pictures
_CODE = ("data.py", "networks.py", "training.py")


@dataclass(frozen=True)
class Recipe:
    """How to train: SGD with Nesterov momentum, the rate up and down again once (Smith and Topin 2017).

    Attributes
    ----------
    epochs
        Times that each picture is seen.
    rate
        Largest learning rate.
    decay
        Weight decay.
    seed
        Of the order of pictures, of how they are changed, and of layers that draw numbers.
    """

    epochs: int
    rate: float
    decay: float = 5e-4
    seed: int = 0


@contextlib.contextmanager
def two_threads() -> Iterator[None]:
    """PyTorch with two threads: sums, and so all numbers, depend on how many there are."""
    before = torch.get_num_threads()
    torch.set_num_threads(THREADS)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def train(name: str, module: nn.Module, recipe: Recipe, digits: Digits) -> None:
    """Train a module, which takes batches of `BATCH` pictures, in place; it is left in evaluation mode.

    Of a module with several outputs, the losses of all of them are added.

    Parameters
    ----------
    name
        What is trained, for the lines on stderr that tell how it goes on.
    """
    console = Console(stderr=True, highlight=False)
    generator = torch.Generator().manual_seed(recipe.seed)
    steps = len(digits) // BATCH
    optimizer = torch.optim.SGD(
        module.parameters(), lr=recipe.rate, momentum=0.9, nesterov=True, weight_decay=recipe.decay
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, recipe.rate, epochs=recipe.epochs, steps_per_epoch=steps, pct_start=0.2
    )
    # Channels last are a quarter faster; torch's overloads of Module.to lack the keyword, here and below.
    module.train().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    with two_threads(), torch.random.fork_rng():
        torch.manual_seed(recipe.seed)
        for epoch in range(recipe.epochs):
            order = torch.randperm(len(digits), generator=generator)[: steps * BATCH]
            losses = 0.0
            for chosen in order.split(BATCH):
                images = augment(digits.images[chosen], generator)
                optimizer.zero_grad()
                loss = _loss(module(images), digits.labels[chosen])
                loss.backward()
                optimizer.step()
                schedule.step()
                losses += loss.item()
            console.print(f"training {name}: epoch {epoch + 1} of {recipe.epochs}, loss {losses / steps:.4f}")
    module.eval().to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]


def _loss(outputs: Tensor | tuple[Tensor, ...], labels: Tensor) -> Tensor:
    every = (outputs,) if isinstance(outputs, Tensor) else outputs
    return torch.stack([functional.cross_entropy(logits, labels) for logits in every]).sum()


def trained(name: str, module: nn.Module, recipe: Recipe) -> float:
    """Give ``module`` the numbers that training it by ``recipe`` leads to, from the cache if they are there.

    Parameters
    ----------
    name
        What is trained, for the file's name and for messages.

    Returns
    -------
    Seconds that training took, now or when the file was written.
    """
    path = cache_folder() / f"{name}-{_key(module, recipe)}.safetensors"
    if not path.exists():
        start = time.perf_counter()
        train(name, module, recipe, data.load()[0])
        _write(path, module, time.perf_counter() - start)
    with safe_open(path, "pt") as file:
        module.load_state_dict({key: file.get_tensor(key) for key in file.keys()})  # noqa: SIM118 (not a mapping)
        return float(file.metadata()["seconds"])


def cache_folder() -> Path:
    """Where trained networks are kept; outside of the checkout."""
    root = os.environ.get("XDG_CACHE_HOME")
    return (Path(root) if root else Path.home() / ".cache") / "tersor" / "digits"


def _write(path: Path, module: nn.Module, seconds: float) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.{os.getpid()}")
    state = {key: tensor.contiguous() for key, tensor in module.state_dict().items()}
    save_file(state, partial, metadata={"seconds": f"{seconds:.1f}"})
    partial.replace(path)  # at once: a reader sees the whole file or none


def _key(module: nn.Module, recipe: Recipe) -> str:
    """A hash of what training starts from; statistics of normalisations, which it replaces, do not count."""
    found = hashlib.sha256(f"{recipe} {BATCH} {torch.__version__}".encode())
    for file in _CODE:
        found.update(_code((Path(__file__).parent / file).read_text("utf-8")).encode())
    for name, parameter in module.named_parameters():
        found.update(f"{name} {tuple(parameter.shape)}".encode())
        found.update(parameter.detach().contiguous().numpy().tobytes())
    return found.hexdigest()[:16]


def _code(text: str) -> str:
    """Python code without comments, docstrings and formatting."""
    tree = ast.parse(text)
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node) is not None:
            node.body = node.body[1:]
    return ast.dump(tree)
