"""Every template that records of measurements name: its module, its knobs, and the version of its code.

**Raise a template's version when the same knobs come to mean other code**: records of other versions are ignored.
Modules are imported when they are asked for, since most need TVM.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from types import ModuleType
from typing import Any

from ...ir.names import suggest

Spec = Any  # an instance of one of the classes in `SPECS`
Knobs = Any  # an instance of the class that a `Template` names


@dataclass(frozen=True)
class Template:
    """A kernel template.

    Attributes
    ----------
    module
        File in this folder.
    knobs
        Class of its knobs, in that module.
    version
        Of the code that it writes.
    products
        Element type of the numbers that it multiplies, which says what its limit is.
    """

    module: str
    knobs: str
    version: int = 1
    products: str = "float32"


TEMPLATES = {
    "attention": Template("attention.float32", "AttentionKnobs"),
    "attention_bf16": Template("attention.bf16", "AttentionBf16Knobs", products="bf16"),
    "attention_int8": Template("attention.int8", "AttentionKnobs", products="int8"),
    "conv2d": Template("conv2d.direct", "Conv2dKnobs"),
    "conv2d_bf16": Template("conv2d.bf16", "Conv2dBf16Knobs", products="bf16"),
    "conv2d_bf16_dot": Template("conv2d.bf16_dot", "Conv2dKnobs", products="bf16"),
    "conv2d_bf16_narrow": Template("conv2d.bf16_narrow", "Conv2dBf16Knobs", products="bf16"),
    "conv2d_bf16_patches": Template("conv2d.bf16_patches", "Conv2dBf16Knobs", products="bf16"),
    "conv2d_int8": Template("conv2d.int8", "Conv2dKnobs", products="int8"),
    "conv2d_int8_amx": Template("conv2d.int8_amx", "Conv2dInt8AmxKnobs", products="int8"),
    "conv2d_int8_amx_narrow": Template("conv2d.int8_amx_narrow", "Conv2dInt8AmxKnobs", products="int8"),
    "conv2d_int8_narrow": Template("conv2d.int8_narrow", "Conv2dInt8NarrowKnobs", products="int8"),
    "conv2d_transposed": Template("conv2d.transposed", "Conv2dKnobs"),
    "conv2d_transposed_int8": Template("conv2d.transposed_int8", "Conv2dKnobs", products="int8"),
    "conv3d": Template("conv2d.volume", "Conv2dKnobs"),
    "depthwise": Template("conv2d.depthwise", "DepthwiseKnobs"),
    "depthwise_int8": Template("conv2d.depthwise_int8", "DepthwiseInt8Knobs", version=2, products="int8"),
    "elementwise": Template("elementwise", "ElementwiseKnobs"),
    "layer_norm": Template("rows.layer_norm", "RowKnobs"),
    "loops": Template("loops", "LoopKnobs"),
    "matmul": Template("matmul.panels", "MatmulKnobs"),
    "matmul_bf16": Template("matmul.bf16", "MatmulBf16Knobs", products="bf16"),
    "matmul_bf16_dot": Template("matmul.bf16_dot", "MatmulKnobs", products="bf16"),
    "matmul_int8": Template("matmul.int8", "MatmulKnobs", products="int8"),
    "matmul_int8_activations": Template("matmul.int8_activations", "MatmulKnobs", products="int8"),
    "matmul_int8_amx": Template("matmul.int8_amx", "MatmulInt8AmxKnobs", products="int8"),
    "matmul_packed": Template("matmul.packed", "MatmulKnobs"),
    "matmul_packed_int8": Template("matmul.packed_int8", "MatmulKnobs", version=2, products="int8"),
    "pool2d": Template("windows.pooling", "PoolKnobs"),
    "recurrent": Template("recurrent", "RecurrentKnobs"),
    "reduce": Template("rows.reduce", "RowKnobs"),
    "relayout": Template("moves.relayout", "RelayoutKnobs"),
    "softmax": Template("rows.softmax", "RowKnobs"),
    "sparse_conv2d": Template("sparse.blocks", "SparseKnobs"),
    "sparse_linear": Template("sparse.blocks", "SparseKnobs"),
    "winograd": Template("conv2d.winograd", "WinogradKnobs"),
}

# What can be asked for, whichever template computes it: module and class of the spec.
SPECS = {
    "adaptive_pool2d": ("loops", "AdaptivePoolSpec"),
    "attention": ("attention.float32", "AttentionSpec"),
    "conv2d": ("conv2d.spec", "Conv2dSpec"),
    "conv2d_transposed": ("conv2d.transposed", "TransposedSpec"),
    "conv3d": ("conv2d.volume", "VolumeSpec"),
    "elementwise": ("elementwise", "ElementwiseSpec"),
    "integer_reduce": ("loops", "IntegerReduceSpec"),
    "layer_norm": ("rows.layer_norm", "LayerNormSpec"),
    "matmul": ("matmul.spec", "MatmulSpec"),
    "matmul_packed": ("matmul.packed", "PackedSpec"),
    "pool2d": ("windows.pooling", "PoolSpec"),
    "recurrent": ("recurrent", "RecurrentSpec"),
    "reduce": ("rows.reduce", "ReduceSpec"),
    "relayout": ("moves.relayout", "RelayoutSpec"),
    "softmax": ("rows.softmax", "SoftmaxSpec"),
    "sparse_conv2d": ("sparse.spec", "SparseConv2dSpec"),
    "sparse_linear": ("sparse.spec", "SparseLinearSpec"),
}


def template_module(name: str) -> ModuleType:
    """The module of a template: ``candidates``, ``build``, perhaps ``pack_weight`` and ``estimate_cycles``.

    Raises
    ------
    LookupError
        For an unknown template.
    """
    return _module(_template(name).module)


def template_version(name: str) -> int:
    """Version of a template's code; raises LookupError for an unknown template."""
    return _template(name).version


def products_of(name: str) -> str:
    """Element type of the numbers that a kernel multiplies; float32 for what is no template."""
    return TEMPLATES[name].products if name in TEMPLATES else "float32"


def knobs_type(name: str) -> type:
    """Class of a template's knobs; raises LookupError for an unknown template."""
    template = _template(name)
    return getattr(_module(template.module), template.knobs)


def spec_type(kind: str) -> type:
    """Class of the specs of one kind of kernel; raises LookupError for an unknown kind."""
    if kind not in SPECS:
        raise LookupError(f"unknown kind of kernel {kind!r}{suggest(kind, list(SPECS))}")
    module, name = SPECS[kind]
    return getattr(_module(module), name)


def _template(name: str) -> Template:
    if name not in TEMPLATES:
        raise LookupError(f"unknown template {name!r}{suggest(name, list(TEMPLATES))}")
    return TEMPLATES[name]


def _module(name: str) -> ModuleType:
    return import_module(f".{name}", __package__)
