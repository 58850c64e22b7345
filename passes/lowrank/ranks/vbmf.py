r"""The rank above the noise, by variational Bayesian matrix factorization: nothing to choose.

A weight is taken for a matrix of low rank plus independent noise of one variance. For a given variance s2, the
Bayesian estimate of a matrix of L rows and M columns (L <= M) keeps exactly the singular values above

    sqrt(M s2 (1 + t) (1 + a / t)),     a = L / M,  t = 2.5129 sqrt(a),

and the variance that explains the spectrum best is the minimum of a function of one variable. Closed form by Nakajima,
Sugiyama, Babacan and Tomioka, "Global Analytic Solution of Fully-observed Variational Bayesian Matrix Factorization",
JMLR 14 (2013), theorem 2 and corollary 3; for ranks of convolutions: Kim et al., ICLR 2016.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..spectrum import Spectrum
from .registry import RankRule, register_rank_rule

_TAU = 2.5129  # the zero of the free energy's difference, approximately; times sqrt(a)


@register_rank_rule("vbmf")
@dataclass(frozen=True)
class Vbmf(RankRule):
    """``vbmf``; at least 1."""

    def rank(self, spectrum: Spectrum) -> int:
        return max(1, vbmf_rank(spectrum))


def vbmf_rank(spectrum: Spectrum) -> int:
    """Number of singular values that are not noise."""
    short, long = sorted((spectrum.rows, spectrum.columns))
    largest = float(spectrum.values[0])
    if not largest:
        return 0
    # Singular values below rounding are no data: without a floor, the noise of an exactly singular matrix would be 0.
    values = np.maximum(spectrum.values / largest, np.finfo(np.float64).eps * long)
    variance = _noise_variance(values**2, short, long)
    return int((values**2 > long * variance * _limit(short / long)).sum())


def _limit(ratio: float) -> float:
    tau = _TAU * math.sqrt(ratio)
    return (1 + tau) * (1 + ratio / tau)


def _noise_variance(squares: NDArray[np.float64], short: int, long: int) -> float:
    """The variance of the noise in which squared singular values ``squares`` are the most likely."""
    ratio = short / long
    most = math.ceil(short / (1 + ratio)) - 1  # signals that can be told from noise
    high = squares.sum() / (short * long)
    low = max(squares[most] / (long * _limit(ratio)), squares[most:].mean() / long)
    if low >= high:
        return float(high)
    from scipy.optimize import minimize_scalar  # takes half a second to import, and 30 MiB

    # In the logarithm: the bounds are up to 30 decades apart.
    found = minimize_scalar(
        lambda log_variance: _free_energy(squares / (long * math.exp(log_variance)), ratio),
        bounds=(math.log(low), math.log(high)),
        method="bounded",
    )
    return math.exp(found.x)


def _free_energy(scaled: NDArray[np.float64], ratio: float) -> float:
    """Up to constants; ``scaled`` are squared singular values over ``long`` times the variance."""
    is_signal = scaled > _limit(ratio)
    signal, noise = scaled[is_signal], scaled[~is_signal]
    tau = _tau(signal, ratio)
    return float(
        np.sum(noise - np.log(noise))
        + np.sum(signal - tau + np.log((tau + 1) / signal) + ratio * np.log(tau / ratio + 1))
    )


def _tau(scaled: NDArray[np.float64], ratio: float) -> NDArray[np.float64]:
    """The larger ``t`` with ``(1 + t) (1 + ratio / t) = scaled``."""
    rest = scaled - (1 + ratio)
    return 0.5 * (rest + np.sqrt(rest**2 - 4 * ratio))
