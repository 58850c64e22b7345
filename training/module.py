"""A graph with calibrated notes as a module: trained with rounded numbers, evaluated in integers.

In training mode, what ``quantize-realize`` will round is rounded, in floating point and with gradients
(`quantizers`): activations at their notes, and the weights of the layers that read them (`layers`). In evaluation mode
the module runs the integer graph that its present numbers make, op by op. So what it computes is what `from_torch`
makes a graph of, and what compiled code computes, bit for bit. Biases are integers then, too, which training leaves
unrounded.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence, Set
from dataclasses import dataclass, replace

import torch
from torch import nn

from ..frontend.to_torch import GraphModule, free_place
from ..ir import Graph, Op, Rewriter, TersorError, Value, WeightStore, at_hints
from ..ir.ops import BatchNormOp, LayerOp, ObserveOp, WeightOp
from ..passes.fold_batchnorm import fold_into_layer
from ..passes.matching import numbers
from ..passes.quantization import IntegerLayer, integer_layer
from ..passes.quantization.integer_graph import IntegerGraph, step_of
from ..passes.quantization.placement import name_of, underlying
from ..passes.quantization.scheme import weight_scales
from ..passes.quantization.tidy import tidy
from ..passes.unfuse import take_apart
from .divergence import check_finite, check_numbers, check_step, check_weights
from .layers import TrainedLayer, TrainingPlan, plan_of
from .quantizers import QUANTIZERS, ActivationQuantizer, WeightQuantizer

_RULE = "trained"


@dataclass(frozen=True)
class _Rounded:
    """Integers, and the tensors that they were made of, with the versions that PyTorch counts.

    In a module it is no part of that: neither of its state nor of its parameters.
    """

    module: GraphModule
    made_of: list[tuple[torch.Tensor, int]]

    def is_of(self, tensors: Sequence[torch.Tensor]) -> bool:
        """Whether the tensors are the same, with the same numbers."""
        return len(tensors) == len(self.made_of) and all(
            tensor is other and tensor._version == version
            for tensor, (other, version) in zip(tensors, self.made_of, strict=True)
        )


class QuantizedModule(GraphModule):
    """Runs a graph with notes: rounding with gradients in training mode, integers in evaluation mode.

    Parameters, buffers and names of the state are those of a `GraphModule`. Beside them are the quantizers: for each
    note one called ``quantizer`` behind the name of what makes the value (notes between which integers are moved share
    one), and for the weight of each layer one called ``weight_quantizer``. A state loads into the module of the same
    graph for another batch size.

    Parameters
    ----------
    graph
        With calibrated notes. Batch normalisations behind layers may be there (``quantize-annotate{keep_norms=true}``)
        or be folded already. Is copied.
    quantizer
        How step sizes of activations learn: ``lsq`` or ``pact``.
    weight_scales
        The layers whose weights are rounded, with their step sizes, [O] each; by default all layers that read a
        note, with those that ``quantize-realize`` takes, and all products of noted values.
    products
        Beside those layers, the products of computed operands that are of integers in inference.
    integers
        The integer graph that the module computes as long as its numbers are those of ``graph``, where one is known.
    momentum
        Of the statistics of batch normalisations, as in `GraphModule`.

    Raises
    ------
    TersorError
        When a note has no range yet, or the quantizer is unknown; in use, when training diverged, with the layer.
    """

    _plan = TrainingPlan([], {})  # of the class, so that no weight takes the names
    _rounded: _Rounded | None = None

    def __init__(
        self,
        graph: Graph,
        quantizer: str = "lsq",
        *,
        weight_scales: Mapping[Op, torch.Tensor] | None = None,
        products: Collection[Op] = (),
        integers: Graph | None = None,
        momentum: float = 0.1,
    ) -> None:
        try:
            kind = QUANTIZERS.find(quantizer)
        except ValueError as error:
            raise TersorError(str(error)) from None
        scales = None if weight_scales is None else [weight_scales.get(op) for op in graph.ops]
        others = [] if weight_scales is None else [op not in {*weight_scales, *products} for op in graph.ops]
        graph = at_hints(graph).clone()
        take_apart(graph, Rewriter(graph), _RULE)
        super().__init__(graph, momentum)
        begin = {} if scales is None else dict(zip(self._program.graph.ops, scales, strict=True))
        skipped = {op for op, other in zip(self._program.graph.ops, others, strict=bool(others)) if other}
        self._plan = self._planned(graph.weights, skipped)
        for group in self._plan.groups:
            value = underlying(group[0].inputs[0])
            made = kind(step_of(group[0]))
            path = self._add(
                f"{value.name if value.op is None else value.op.location or value.op.name}.quantizer", made
            )
            for note in group:
                self._plan.notes[note] = path
        for op, layer in self._plan.layers.items():
            weight = layer.op.weight.op
            name = self._keys[weight.attrs.id] if isinstance(weight, WeightOp) else f"{layer.name}.weight"
            rounding = WeightQuantizer(self._numbers(layer.op.weight), layer.bits, begin.get(op))
            self._plan.weights[op] = self._add(f"{name}_quantizer", rounding)
        if integers is not None:
            self._rounded = self._remembered(GraphModule(integers))

    # Public -----------------------------------------------------------------------------------------------------

    def integer_graph(self) -> Graph:
        """The graph of integers that the present numbers make; raises TersorError if training diverged."""
        self._check()
        graph, mapping = self._program.graph.clone_with_map()
        graph.weights = WeightStore({id: tensor.cpu().clone() for id, tensor in self.numbers_by_id().items()})
        rewriter = Rewriter(graph)
        for note in self._plan.notes:
            _set_range(mapping[note.result], self._quantizer(note), rewriter)
        layers = {_folded_twin(layer, mapping, rewriter): layer for layer in self._plan.layers.values()}

        def integers_of(op: LayerOp, input_scale: float) -> IntegerLayer:
            layer, bias = layers[op], None if op.bias is None else numbers(op.bias)
            scales = self._scales(layer, numbers(op.weight))
            made = integer_layer(numbers(op.weight), bias, input_scale, layer.bits, scales)
            check_weights(layer.name, numbers(op.weight), made.weight)
            return made

        products = [made for op in self._plan.products if (made := mapping[op.result].op) is not None]
        IntegerGraph(rewriter, _RULE, [*layers, *products], integers_of).build()
        tidy(graph, rewriter, _RULE)
        graph.forget_unused_weights()
        return graph

    def for_inference(self) -> GraphModule:
        """The integer graph as a module, which is made again only when a number has changed."""
        if self._rounded is None or not self._rounded.is_of(self._deciding()):
            self._rounded = self._remembered(GraphModule(self.integer_graph()))
        return self._rounded.module

    # Running ----------------------------------------------------------------------------------------------------

    def _compute(self, inputs: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
        if torch.compiler.is_exporting():
            raise TersorError("torch.export cannot round this module's weights; export module.for_inference() instead")
        if not self.training:
            return self.for_inference()._compute(inputs)
        self._check_steps()
        results = super()._compute(inputs)
        if any(bool(one.isnan().any()) for one in results):
            self._blame(inputs)
        return results

    def _evaluate(self, op: Op, operands: list[torch.Tensor | None]) -> torch.Tensor | tuple[torch.Tensor, ...]:
        if op in self._plan.notes:
            rounded: torch.Tensor = self._quantizer(op)(operands[0])
            return rounded
        layer = self._plan.layers.get(op)
        if layer is None:
            return super()._evaluate(op, operands)
        weight = self._weight_quantizer(layer)(operands[1])
        return super()._evaluate(op, [operands[0], weight, *operands[2:]])

    def _scales(self, layer: TrainedLayer, folded: torch.Tensor) -> torch.Tensor:
        """[O]: the step sizes of a layer's weight as inference has it, ``folded``."""
        steps = self._weight_quantizer(layer).steps.detach().cpu()
        if layer.norm is None:
            return steps
        factor = torch.rsqrt(self._numbers(layer.norm.variance) + layer.norm.attrs.eps)
        if layer.norm.gamma is not None:
            factor = factor * self._numbers(layer.norm.gamma)
        scales = steps * factor.detach().cpu().abs()
        return torch.where(scales > 0, scales, weight_scales(folded).float())  # of a channel that is 0

    def _numbers(self, value: Value) -> torch.Tensor:
        """The present numbers of a constant."""
        if isinstance(value.op, WeightOp):
            return self._held(value.op.attrs.id)
        return numbers(value)

    # Quantizers -------------------------------------------------------------------------------------------------

    def _deciding(self) -> list[torch.Tensor]:
        """All that decides which integers there are: parameters and buffers, but no state."""
        states = {id(self._held(id_)) for id_ in self._program.graph.states}
        return [one for one in (*self.parameters(), *self.buffers()) if id(one) not in states]

    def _remembered(self, module: GraphModule) -> _Rounded:
        tensors = self._deciding()
        return _Rounded(
            module.to(next((one.device for one in tensors), "cpu")), [(one, one._version) for one in tensors]
        )

    def _planned(self, weights: WeightStore, skipped: Set[Op]) -> TrainingPlan:
        program = self._program.graph
        program.weights = weights  # which tell what can be rounded
        try:
            return plan_of(program, skipped)
        finally:
            program.weights = WeightStore()

    def _add(self, wanted: str, part: nn.Module) -> str:
        owner, name, path = free_place(self, wanted)
        owner.add_module(name, part.train(self.training))
        return path

    def _quantizer(self, note: Op) -> ActivationQuantizer:
        found = self.get_submodule(self._plan.notes[note])
        assert isinstance(found, ActivationQuantizer)
        return found

    def _weight_quantizer(self, layer: TrainedLayer) -> WeightQuantizer:
        found = self.get_submodule(self._plan.weights[layer.op])
        assert isinstance(found, WeightQuantizer)
        return found

    # Divergence -------------------------------------------------------------------------------------------------

    def _check_steps(self) -> None:
        """Raise TersorError for the first step size, in execution order, that means nothing any more."""
        for op in self._program.graph.ops:
            if op in self._plan.notes:
                quantizer = self._quantizer(op)
                check_step(name_of(op.inputs[0]), quantizer.scale.detach(), torch.tensor(quantizer.initial))
            elif op in self._plan.layers:
                layer = self._plan.layers[op]
                weights = self._weight_quantizer(layer)
                check_step(f"the weight of {layer.name}", weights.step_sizes.detach(), weights.initial)

    def _check(self) -> None:
        self._check_steps()
        for id, key in self._keys.items():
            check_finite(key, self._held(id).detach())

    def _blame(self, inputs: Sequence[torch.Tensor]) -> None:
        """Raise TersorError for the first op whose result has NaN, though its operands have none."""
        graph = self._program.graph
        for value, given in zip(graph.inputs, inputs, strict=True):
            check_numbers(f"input {value.name!r}", given)
        self._check()
        values: dict[Value, torch.Tensor] = dict(zip(graph.inputs, inputs, strict=True))
        with torch.no_grad():
            for op in graph.ops:
                results = self._evaluate(op, [None if value is None else values[value] for value in op.operands])
                for value, result in zip(
                    op.results, results if isinstance(results, tuple) else (results,), strict=True
                ):
                    check_numbers(name_of(value), result)
                    values[value] = result


def _set_range(value: Value, quantizer: ActivationQuantizer, rewriter: Rewriter) -> None:
    """Let a note of the copy say the step that was learned."""
    note = value.op
    assert isinstance(note, ObserveOp)
    scale = quantizer.step.scale
    low, high = (limit * scale for limit in quantizer.limits)
    if rewriter.commit(_RULE, note):
        rewriter.update(note, replace(note.attrs, low=low, high=high))


def _folded_twin(layer: TrainedLayer, mapping: dict[Value, Value], rewriter: Rewriter) -> LayerOp:
    """A layer of the copy, with the batch normalisation folded into it."""
    op = mapping[layer.op.result].op
    if layer.norm is not None:
        norm = mapping[layer.norm.result].op
        assert isinstance(norm, BatchNormOp)
        op = fold_into_layer(norm, rewriter)
        if op is None:
            raise TersorError(f"training diverged: {rewriter.log.refused[-1]}")
    assert isinstance(op, LayerOp)
    return op
