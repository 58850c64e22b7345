"""Which templates can compute a workload, and with which knobs: the whole space that tuning searches.

The first option is the analytic default, used where nothing has been measured. Points that a target's registers, caches
or the divisibility of the shapes rule out are never listed: see ``candidates`` of each template. To add a template, see
docs/kernels.md.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from types import ModuleType
from typing import overload

from ..machines.target import Cpu
from ..templates.attention.spec import AttentionSpec
from ..templates.conv2d import int8_amx as conv2d_int8_amx
from ..templates.conv2d import winograd
from ..templates.conv2d.spec import Conv2dSpec
from ..templates.conv2d.transposed import TransposedSpec
from ..templates.matmul.packed import PackedSpec
from ..templates.matmul.spec import MatmulSpec
from ..templates.option import Option, Workload
from ..templates.registry import Knobs, Spec, template_module
from ..templates.vector.operand_types import is_integer

WINOGRAD_GAIN = 1.2  # estimated speed-up below which direct convolution is used, which is more accurate
# Templates for 8-bit integers, the fastest first.
_INTEGER_CONVOLUTIONS = ("conv2d_int8_amx", "conv2d_int8_amx_narrow", "conv2d_int8_narrow", "conv2d_int8")
_BF16_CONVOLUTIONS = ("conv2d_bf16", "conv2d_bf16_dot", "conv2d_bf16_patches", "conv2d_bf16_narrow")
_BF16_PRODUCTS = ("matmul_bf16_dot", "matmul_bf16")
_INTEGER_PRODUCTS = ("matmul_int8_amx", "matmul_int8", "matmul_int8_activations")
_PACKED_PRODUCTS = ("matmul_packed", "matmul_packed_int8")


@dataclass(frozen=True)
class Algorithm:
    """A template that computes a workload, and the spec that it takes."""

    template: str
    spec: Spec

    @property
    def module(self) -> ModuleType:
        """Where the template's ``candidates`` and ``build`` are."""
        return template_module(self.template)


class Options(Sequence[Option]):
    """All options for a workload on a target, the default first; knobs are enumerated when they are asked for."""

    def __init__(self, workload: Workload, target: Cpu) -> None:
        self.workload = workload
        self.target = target
        self.algorithms = algorithms(workload, target)

    @property
    def default(self) -> Option:
        """The analytic choice."""
        first = self.algorithms[0]
        return Option(first.template, _candidates(first, self.target)[0])

    def algorithm(self, option: Option) -> Algorithm:
        """The algorithm of an option; raises LookupError when its template does not compute the workload."""
        for one in self.algorithms:
            if one.template == option.template:
                return one
        raise LookupError(f"{option.template} does not compute {self.workload}")

    @cached_property
    def _all(self) -> tuple[Option, ...]:
        return tuple(Option(one.template, knobs) for one in self.algorithms for knobs in _candidates(one, self.target))

    @cached_property
    def _members(self) -> frozenset[Option]:
        return frozenset(self._all)

    def __contains__(self, option: object) -> bool:
        return option in self._members or self._accepts(option)

    def _accepts(self, option: object) -> bool:
        """Whether a template takes knobs that it does not list."""
        if not isinstance(option, Option):
            return False
        accepts = {one.template: getattr(one.module, "accepts", None) for one in self.algorithms}.get(option.template)
        return accepts is not None and accepts(option.knobs)

    def __iter__(self) -> Iterator[Option]:
        return iter(self._all)

    def __len__(self) -> int:
        return len(self._all)

    @overload
    def __getitem__(self, index: int) -> Option: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Option]: ...
    def __getitem__(self, index: int | slice) -> Option | Sequence[Option]:
        return self._all[index]


@lru_cache(maxsize=4096)
def _candidates(algorithm: Algorithm, target: Cpu) -> tuple[Knobs, ...]:
    return tuple(algorithm.module.candidates(algorithm.spec, target))


def algorithms(workload: Workload, target: Cpu) -> tuple[Algorithm, ...]:
    """The templates that compute ``workload`` on ``target``, the analytic choice first."""
    several = _ALGORITHMS.get(workload.kind)
    if several is None:
        return (Algorithm(workload.kind, workload.spec),)
    return tuple(several(workload.spec, target))


def _conv2d(spec: Conv2dSpec, target: Cpu) -> Iterator[Algorithm]:
    if spec.depthwise and spec.input_layout == "blocked":  # direct convolution would multiply by mostly zeros
        yield Algorithm("depthwise_int8" if is_integer(spec.dtype) else "depthwise", spec)
        return
    if is_integer(spec.dtype):
        yield from _integer_conv2d(spec, target)
        return
    direct = _direct_conv2d(spec, target)
    if winograd_pays(spec, target):
        yield Algorithm("winograd", spec)
        yield from direct
    else:
        yield from direct
        if winograd.supports(spec) is None:
            yield Algorithm("winograd", spec)


def _direct_conv2d(spec: Conv2dSpec, target: Cpu) -> list[Algorithm]:
    return [*_supporting(_BF16_CONVOLUTIONS, spec, target), Algorithm("conv2d", spec)]


def _integer_conv2d(spec: Conv2dSpec, target: Cpu) -> Iterator[Algorithm]:
    """The matrix unit first, but for few products a sum: it would multiply mostly zeros, and operands are copied."""
    found = list(_supporting(_INTEGER_CONVOLUTIONS, spec, target))
    is_short = spec.kernel == (1, 1) and 2 * spec.c <= conv2d_int8_amx.CHANNELS
    yield from sorted(found, key=lambda one: is_short and one.template == "conv2d_int8_amx")


def _supporting(templates: Sequence[str], spec: Spec, target: Cpu) -> Iterator[Algorithm]:
    return (Algorithm(name, spec) for name in templates if template_module(name).supports(spec, target))


def winograd_pays(spec: Conv2dSpec, target: Cpu) -> bool:
    """Whether Winograd's algorithm applies and is estimated to be clearly faster than direct convolution.

    A direct template without an estimate is one of the matrix unit, which nothing else comes near.
    """
    direct = _direct_conv2d(spec, target)[0]
    estimate = getattr(direct.module, "estimate_cycles", None)
    if winograd.supports(spec) is not None or estimate is None:
        return False
    transformed = winograd.estimate_cycles(spec, target, _candidates(Algorithm("winograd", spec), target)[0])
    return transformed * WINOGRAD_GAIN < estimate(spec, target, _candidates(direct, target)[0])


def _transposed(spec: TransposedSpec, target: Cpu) -> Iterator[Algorithm]:
    yield Algorithm("conv2d_transposed_int8" if is_integer(spec.dtype) else "conv2d_transposed", spec)


def _matmul(spec: MatmulSpec, target: Cpu) -> Iterator[Algorithm]:
    if is_integer(spec.dtype):
        yield from _supporting(_INTEGER_PRODUCTS, spec, target)
        return
    yield from _supporting(_BF16_PRODUCTS, spec, target)
    yield Algorithm("matmul", spec)


def _matmul_packed(spec: PackedSpec, target: Cpu) -> Iterator[Algorithm]:
    yield from _supporting(_PACKED_PRODUCTS, spec, target)


def _attention(spec: AttentionSpec, target: Cpu) -> Iterator[Algorithm]:
    if is_integer(spec.dtype):
        yield from _supporting(("attention_int8",), spec, target)
        return
    yield from _supporting(("attention_bf16",), spec, target)
    yield Algorithm("attention", spec)


def _loops(spec: Spec, target: Cpu) -> Iterator[Algorithm]:
    yield Algorithm("loops", spec)


_ALGORITHMS: dict[str, Callable[[Spec, Cpu], Iterator[Algorithm]]] = {
    "adaptive_pool2d": _loops,
    "attention": _attention,
    "conv2d": _conv2d,
    "conv2d_transposed": _transposed,
    "integer_reduce": _loops,
    "matmul": _matmul,
    "matmul_packed": _matmul_packed,
}
