"""Synthesized sounds, for networks that listen: notes, and a voice of five vowels."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.signal import lfilter

# Formants of a, e, i, o, u spoken by men, in Hz: Peterson and Barney, "Control Methods Used in a Study of the Vowels",
# 1952.
VOWELS = ((730, 1090, 2440), (530, 1840, 2480), (270, 2290, 3010), (570, 840, 2410), (300, 870, 2240))
BANDWIDTHS = (80, 90, 120)  # Hz
PARTIALS = 6


def notes(frequencies: Sequence[float], seconds: float, rate: int) -> np.ndarray:
    """Struck strings one after the other, each of so many seconds: float32 at a rate in Hz, at most 1."""
    time = np.arange(round(seconds * rate)) / rate
    envelope = np.minimum(time / 0.01, 1) * np.exp(-2 * time) * np.minimum((seconds - time) / 0.02, 1)
    partials = [
        [np.sin(2 * np.pi * frequency * partial * time) / partial**1.5 for partial in range(1, PARTIALS + 1)]
        for frequency in frequencies
    ]
    return (0.4 * np.concatenate([envelope * sum(one) for one in partials])).astype(np.float32)


def voice(pitch: float, seconds: float, rate: int, length: float = 1.0, seed: int = 0) -> np.ndarray:
    """Syllables of a voice, by a source and a filter: pulses of the vocal cords through resonances of the mouth.

    Parameters
    ----------
    pitch
        Of the voice in Hz; it falls by a third, and trembles a little.
    seconds, rate
        Duration, and samples per second.
    length
        Of the speaker's throat: formants are divided by it.
    seed
        Of the order of the vowels, and of the breath.
    """
    generator = np.random.default_rng(seed)
    count = round(seconds * rate)
    time = np.arange(count) / rate
    frequency = pitch * (1.15 - 0.35 * time / seconds + 0.03 * np.sin(2 * np.pi * 5 * time))
    phase = np.cumsum(frequency) / rate
    pulses = np.diff(np.floor(phase), prepend=0.0) + 0.003 * generator.standard_normal(count)
    source = lfilter([1.0], [1.0, -0.95], pulses)
    sound = np.zeros(count)
    syllable = round(0.22 * rate)
    for begin in range(0, count, syllable):
        part = source[begin : begin + syllable]
        formants = VOWELS[generator.integers(len(VOWELS))]
        for formant, bandwidth in zip(formants, BANDWIDTHS, strict=True):
            part = _resonance(part, formant / length, bandwidth, rate)
        rise = np.hanning(len(part)) ** 0.5
        sound[begin : begin + syllable] = part * rise / (np.abs(part).max() + 1e-9)
    return (0.5 * sound).astype(np.float32)


def _resonance(sound: np.ndarray, frequency: float, bandwidth: float, rate: int) -> np.ndarray:
    """Through two conjugate poles."""
    radius = np.exp(-np.pi * bandwidth / rate)
    return lfilter([1.0], [1.0, -2 * radius * np.cos(2 * np.pi * frequency / rate), radius**2], sound)
