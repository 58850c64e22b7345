"""Silero's detector of voices, in two forms: one that keeps its state, and one that takes and returns it.

The form that the package loads unless it is told otherwise is TorchScript, which `torch.export` does not take. It holds
two networks, and chooses by the rate of the sound. `Silero` is the one for 16 kHz as a module. State, and the end of
the sound before, are buffers. The weights that the package ships for tinygrad are of another training.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from tersor.ir.foreign import UserObject

from .case import Answer, Loaded, Trained
from .sounds import voice
from .sources import Call, OnnxSource, TorchSource

RATE = 16000  # Hz
WINDOW, CONTEXT = 512, 64  # samples
BINS = 129  # of the spectrum
UNITS = 128
NEEDS = ("silero_vad",)


def cases() -> Iterator[Trained]:
    """The two forms."""
    task = "when a synthesized voice speaks, in seconds"
    yield Trained("silero_vad", "silero-vad", NEEDS, f"{task}; the state stays inside", load)
    yield Trained("silero_vad_onnx", "silero-vad", NEEDS, f"{task}; the state goes in and out", load_onnx)


def sound() -> torch.Tensor:
    """Two utterances with silence around, which is not quite silent: float32 at `RATE`."""
    silence = 1e-3 * np.random.default_rng(0).standard_normal(RATE // 2).astype(np.float32)
    first, second = voice(120.0, 1.0, RATE), voice(210.0, 0.8, RATE, 0.85, seed=1)
    return torch.from_numpy(np.concatenate([silence, first, silence, second, silence]))


def load() -> Loaded:
    """The network with a state."""
    scripted = _package().load_silero_vad()
    weights = {name: value for name, value in scripted.state_dict().items() if name.startswith("_model.")}
    module = Silero()
    module.load_state_dict({_renamed(name): value for name, value in weights.items()} | dict(module.named_buffers()))
    return Loaded({"network": TorchSource(module, _Scripted(scripted))}, _ask(_Stateful))


def load_onnx() -> Loaded:
    """The network whose state its caller keeps; which of the file's two networks computes is decided by the rate."""
    path = Path(_package().__file__).parent / "data" / "silero_vad.onnx"
    return Loaded({"network": OnnxSource(path, {"sr": RATE})}, _ask(_stateless))


def _package() -> UserObject:
    """Its import sets PyTorch to one thread, for all."""
    threads = torch.get_num_threads()
    import silero_vad

    torch.set_num_threads(threads)
    return silero_vad


def _ask(wrap: Callable[[Call, list[np.ndarray]], UserObject]) -> Callable[[Mapping[str, Call]], Answer]:
    """Asks when somebody speaks, through what the package's functions take for a model."""

    def ask(networks: Mapping[str, Call]) -> Answer:
        found: list[np.ndarray] = []
        model = wrap(networks["network"], found)
        spoken = _package().get_speech_timestamps(sound(), model, return_seconds=True, time_resolution=2)
        text = ", ".join(f"{one['start']:.2f} to {one['end']:.2f}" for one in spoken)
        return Answer(text, (np.concatenate(found).ravel(),))

    return ask


def _renamed(name: str) -> str:
    """A weight's name in `Silero`."""
    for old, new in (("_model.", ""), (".reparam_conv", ""), ("stft.forward_basis_buffer", "stft.weight")):
        name = name.replace(old, new)
    return name.replace("decoder.rnn", "cell_of_lstm").replace("decoder.decoder.2", "head")


class Silero(nn.Module):
    """The network for 16 kHz.

    Takes [1, 512] samples, and returns the probability of a voice, [1, 1].
    """

    hidden: torch.Tensor
    cell: torch.Tensor
    context: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.stft = nn.Conv1d(1, 2 * BINS, 256, stride=128, bias=False)
        self.encoder = nn.Sequential(
            nn.Conv1d(BINS, 128, 3, padding=1),
            nn.Conv1d(128, 64, 3, stride=2, padding=1),
            nn.Conv1d(64, 64, 3, stride=2, padding=1),
            nn.Conv1d(64, UNITS, 3, padding=1),
        )
        self.cell_of_lstm = nn.LSTMCell(UNITS, UNITS)
        self.head = nn.Conv1d(UNITS, 1, 1)
        for name, shape in (("hidden", (1, UNITS)), ("cell", (1, UNITS)), ("context", (1, CONTEXT))):
            self.register_buffer(name, torch.zeros(shape))

    def forward(self, samples: torch.Tensor) -> torch.Tensor:
        sound = functional.pad(torch.cat([self.context, samples], 1), (0, 64), mode="reflect")
        real, imaginary = self.stft(sound[:, None]).split(BINS, 1)
        x = (real**2 + imaginary**2).sqrt()
        for convolution in self.encoder:
            x = convolution(x).relu()
        hidden, cell = self.cell_of_lstm(x[..., 0], (self.hidden, self.cell))
        self.hidden.copy_(hidden)
        self.cell.copy_(cell)
        self.context.copy_(samples[:, -CONTEXT:])
        return self.head(hidden.relu()[..., None]).sigmoid()[..., 0]


class _Scripted:
    """TorchScript's module, which keeps its state."""

    def __init__(self, module: torch.jit.ScriptModule) -> None:
        self.module = module

    def __call__(self, *inputs: np.ndarray) -> list[np.ndarray]:
        with torch.inference_mode():
            return [self.module(torch.from_numpy(inputs[0]), RATE).numpy()]

    def reset(self) -> None:
        self.module.reset_states()


class _Stateful:
    """What the package's functions take for a model."""

    def __init__(self, call: Call, found: list[np.ndarray]) -> None:
        self.call, self.found = call, found

    def __call__(self, samples: torch.Tensor, rate: int) -> torch.Tensor:
        self.found += self.call(samples[None].numpy())
        return torch.from_numpy(self.found[-1])

    def reset_states(self) -> None:
        self.call.reset()


def _stateless(call: Call, found: list[np.ndarray]) -> UserObject:
    """The package's own wrapper of an ONNX file, with a call for its session."""
    model = _package().load_silero_vad(onnx=True)
    model.session = _Session(call, found)
    return model


class _Session:
    """A call with the interface of ONNX Runtime's session."""

    def __init__(self, call: Call, found: list[np.ndarray]) -> None:
        self.call, self.found = call, found

    def run(self, outputs: None, inputs: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        results = self.call(*(inputs[name] for name in ("input", "state")))
        self.found.append(results[0])
        return results
