"""Complex numbers within a model, and Fourier transforms, against PyTorch."""

from __future__ import annotations

import pytest
import torch

import tersor

from .conftest import Lambda, assert_same

X = torch.randn(2, 12, 40, generator=torch.Generator().manual_seed(0))


def transforms(x):
    spectrum, plane = torch.fft.rfft(x), torch.fft.fft2(x, norm="ortho")
    back = torch.fft.irfft(spectrum), torch.fft.irfft(spectrum, n=15), torch.fft.irfft2(torch.fft.rfft2(x[..., :7]))
    real = (
        spectrum.abs(),
        spectrum.angle(),
        torch.view_as_real(plane),
        plane.real,
        torch.fft.ifftn(plane * plane, dim=(0, 2)).imag,
    )
    odd = torch.fft.ihfft(x[..., :9], dim=1, norm="forward")
    return *back, *real, torch.fft.hfft(odd, n=8), odd.real, torch.fft.fft(x, n=16, dim=0).imag


def spectrogram(x):
    window = torch.hann_window(16)
    frames = torch.stft(x.reshape(2, -1), 16, 4, window=window, return_complex=True, normalized=True)
    power, masked = frames.abs() ** 2, frames * torch.sigmoid(frames.abs())
    sound = torch.istft(masked, 16, 4, window=window, normalized=True)
    return power, sound, torch.view_as_real(frames.transpose(1, 2)[:, ::2])


def arithmetic(x):
    z, w = torch.complex(x, x.flip(-1)), torch.polar(x.abs() + 1, x)
    results = z * w, z / w, z + w, z - 2, 2 * z, x * w, z / x.abs().clamp(1), z * 1j, -z, w.conj(), x + w, z - w * 2
    sums = z.sum(1), w.mean((0, 2)), torch.view_as_complex(x.view(2, 12, 20, 2))[1], x.to(torch.complex64) * 1j
    return tuple(torch.view_as_real(one.resolve_conj()) for one in (*results, *sums))


@pytest.mark.parametrize("function", [transforms, spectrogram, arithmetic], ids=lambda function: function.__name__)
def test_complex_numbers(function, check):
    check(function, X)
    check(lambda x: transforms(x)[:3], X.double())


def test_complex_numbers_compiled():
    def everything(x):
        return *transforms(x), *spectrogram(x), *arithmetic(x)

    for actual, expected in zip(tersor.compile(Lambda(everything), (X,))(X), everything(X), strict=True):
        assert_same(actual, expected, 1e-4)


REFUSED = {
    r"aten._fft_r2c.default \(it returns complex numbers to the caller; return torch.view_as_real": torch.fft.rfft,
    r"aten.exp.default \(complex numbers; compute with their real and imaginary parts": (
        lambda x: torch.complex(x, x).exp().real
    ),
    r"a Fourier transform of 4097 points, more than the 4096": lambda x: torch.fft.rfft(x, n=4097).real,
}


@pytest.mark.parametrize("reason", REFUSED)
def test_refusals(reason):
    with pytest.raises(tersor.ir.TersorError, match=reason):
        tersor.from_torch(Lambda(REFUSED[reason]), (X,))
