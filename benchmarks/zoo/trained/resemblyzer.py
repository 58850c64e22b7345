"""Resemblyzer: whose voice it is."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
import torch

from .case import Answer, Loaded, Trained
from .sounds import voice
from .sources import Call, TorchSource

SPEAKERS = ((110.0, 1.0), (215.0, 0.85))  # pitch in Hz, and length of the throat
SECONDS = 2.5  # of each of two utterances of a speaker


def cases() -> Iterator[Trained]:
    """The one network."""
    needs = ("resemblyzer", "librosa", "webrtcvad")
    yield Trained("resemblyzer", "resemblyzer", needs, "which of two voices speaks, both synthesized", load)


def load() -> Loaded:
    """The encoder: three LSTMs and a linear layer."""
    from resemblyzer import VoiceEncoder, preprocess_wav

    encoder = VoiceEncoder("cpu", verbose=False)
    spoken = [
        voice(pitch, SECONDS, 16000, length, seed=2 * speaker + utterance)
        for speaker, (pitch, length) in enumerate(SPEAKERS)
        for utterance in range(2)
    ]
    sounds = [preprocess_wav(one) for one in spoken]
    network = TorchSource(VoiceEncoder("cpu", verbose=False))  # another one: the first will hand its calls on

    def ask(networks: Mapping[str, Call]) -> Answer:
        encoder.forward = lambda mels: torch.from_numpy(networks["network"](mels.numpy())[0])
        try:
            embedded = np.stack([encoder.embed_utterance(one) for one in sounds])
        finally:
            del encoder.forward
        first, second, *others = embedded
        same, *different = (float(first @ one) for one in (second, *others))
        return Answer(f"cosine with the same voice {same:.3f}, with the other {max(different):.3f}", (embedded,))

    return Loaded({"network": network}, ask)
