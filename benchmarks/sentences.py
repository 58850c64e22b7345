"""English sentences that install with Python: of the topics of ``help()``, as token ids for MiniLM."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator, Sequence

import torch

from benchmarks.models import SEQUENCE_LENGTH, minilm_tokenizer

_SENTENCE = re.compile(r"[A-Z][A-Za-z ,;'()-]+\.")  # without quotations, names of files and the like
_WORDS = range(6, 41)


def sentences() -> list[str]:
    """All sentences of 6 to 40 words, each once: some hundreds, how many depends on the version of Python."""
    from pydoc_data.topics import topics

    paragraphs = [" ".join(part.split()) for text in topics.values() for part in re.split(r"\n\s*\n", text)]
    parts = [one for paragraph in paragraphs for one in re.split(r"(?<=[.!?])\s+", paragraph)]
    return [one for one in dict.fromkeys(parts) if len(one.split()) in _WORDS and _SENTENCE.fullmatch(one)]


def tokens(count: int, seed: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Token ids and masks of sentences drawn without replacement; other sentences for each of the seeds 0 and 1.

    Yields
    ------
    int64 of shape [1, 128] each: the sentence, padded.
    """
    tokenizer = minilm_tokenizer()
    tokenizer.enable_padding(length=SEQUENCE_LENGTH)
    tokenizer.enable_truncation(SEQUENCE_LENGTH)
    for one in tokenizer.encode_batch(_drawn(count, seed)):
        yield torch.tensor([one.ids]), torch.tensor([one.attention_mask])


def _drawn(count: int, seed: int) -> Sequence[str]:
    known = sentences()
    random.Random(0).shuffle(known)
    part = known[seed::2]
    if len(part) < count:
        raise ValueError(f"there are {len(part)} sentences for each seed, not {count}")
    return part[:count]
