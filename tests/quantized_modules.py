"""Modules in the form in which PyTorch's PT2E flow leaves quantized models: rounding between floating-point layers."""

from __future__ import annotations

import torch
import torch.ao.quantization.fx._decomposed
from torch import nn

ops = torch.ops.quantized_decomposed


class Rounded(nn.Module):
    """Numbers as integers and back; fewer bits than the type has where ``bits`` says so."""

    def __init__(self, scale: float, zero_point: int = 0, dtype: torch.dtype = torch.uint8, bits: int = 8) -> None:
        super().__init__()
        limits = torch.iinfo(dtype)
        self.meaning = (scale, zero_point, limits.min >> 8 - bits, limits.max >> 8 - bits, dtype)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return ops.dequantize_per_tensor(ops.quantize_per_tensor(x, *self.meaning), *self.meaning)


class RoundedLayer(nn.Module):
    """A convolution, or a linear layer, with i8 weights; the bias is floating-point, as in PyTorch, or i32."""

    def __init__(self, layer: nn.Conv2d | nn.ConvTranspose2d | nn.Linear, bias_scale: float | None = None) -> None:
        super().__init__()
        axis = 1 if isinstance(layer, nn.ConvTranspose2d) else 0
        weight = layer.weight.detach()
        scales = weight.abs().amax([one for one in range(weight.dim()) if one != axis]) / 120
        zeros = torch.zeros(len(scales), dtype=torch.int64)
        self.meaning = (axis, -128, 127, torch.int8)
        self.register_buffer("scales", scales)
        self.register_buffer("zeros", zeros)
        self.register_buffer("integers", ops.quantize_per_channel(weight, scales, zeros, *self.meaning))
        self.layer = layer
        self.bias_scale = bias_scale
        if bias_scale is not None:
            units = scales * bias_scale
            self.register_buffer("units", units)
            assert layer.bias is not None
            self.register_buffer("bias", (layer.bias.detach() / units).round().to(torch.int32))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        weight = ops.dequantize_per_channel(self.integers, self.scales, self.zeros, *self.meaning)
        bias = self.layer.bias
        if self.bias_scale is not None:
            limits = torch.iinfo(torch.int32)
            bias = ops.dequantize_per_channel(self.bias, self.units, self.zeros, 0, limits.min, limits.max, torch.int32)
        if isinstance(self.layer, nn.Linear):
            return nn.functional.linear(x, weight, bias)
        if isinstance(self.layer, nn.ConvTranspose2d):
            return nn.functional.conv_transpose2d(x, weight, bias, self.layer.stride)
        return self.layer._conv_forward(x, weight, bias)


class Residual(nn.Module):
    """Two convolutions, a shortcut, pooling, an average and a linear layer; input [N, 3, 8, 8], output [N, 5]."""

    def __init__(self, *, integer_biases: bool = True) -> None:
        super().__init__()
        scale = {True: 1.0, False: None}[integer_biases]
        self.input = Rounded(0.03, 120)
        self.first = RoundedLayer(nn.Conv2d(3, 8, 3, padding=1), scale and 0.03)
        self.middle = Rounded(0.011)
        self.second = RoundedLayer(nn.Conv2d(8, 8, 3, padding=1), scale and 0.011)
        self.sum = Rounded(0.013)
        self.averaged = Rounded(0.009)
        self.head = RoundedLayer(nn.Linear(8, 5), scale and 0.009)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.middle(torch.relu(self.first(self.input(x))))
        x = self.sum(torch.relu(self.second(x) + x))
        x = self.sum(nn.functional.max_pool2d(x, 2))  # the same integers again
        return self.head(self.averaged(x.mean((2, 3))))
