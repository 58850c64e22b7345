"""The static memory plan: no two live buffers overlap, and Relax's planner alone needs no less."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import tvm
from tvm import relax

import tersor
from tersor.ir import Graph, TensorType, Value, ops
from tersor.targets.codegen import lowering
from tersor.targets.codegen.lowering import Program
from tersor.targets.codegen.memory import plan_memory
from tersor.targets.codegen.places import resolve
from tersor.targets.templates.vector.storage import STORAGE
from tersor.tests.random_graphs import GraphBuilder

from .compiled import compiled, lowered


def chain() -> Graph:
    """Every value but two at a time is dead."""
    b = GraphBuilder({"x": TensorType((1, 16, 12, 12))})
    x = b.graph.inputs[0]
    for width in (16, 64, 32, 64, 16):
        x = b.conv(x, width, kernel=1)
    return b.done(x)


def residual() -> Graph:
    b = GraphBuilder({"x": TensorType((1, 16, 12, 12))})
    x = b.conv(b.graph.inputs[0], 32)
    for _ in range(3):
        x = b.op(ops.AddOp, x, b.conv(b.conv(x, 48), 32))
    return b.done(b.op(ops.MaxPool2dOp, x, kernel=(2, 2), stride=(2, 2)))


def dense() -> Graph:
    """Growing concatenations, as in DenseNet."""
    b = GraphBuilder({"x": TensorType((1, 16, 12, 12))})
    x = b.conv(b.graph.inputs[0], 32)
    for _ in range(4):
        x = b.op(ops.ConcatOp, x, b.conv(b.conv(x, 64, kernel=1), 16), axis=1)
    return b.done(b.conv(x, 16))


def branches() -> Graph:
    """Concatenated branches, as in GoogLeNet, and a second output."""
    b = GraphBuilder({"x": TensorType((1, 16, 12, 12))})
    x = b.conv(b.graph.inputs[0], 32)
    for _ in range(2):
        pooled = b.op(ops.MaxPool2dOp, x, kernel=(3, 3), stride=(1, 1), padding=(1, 1))
        parts = (b.conv(x, 16, kernel=1), b.conv(b.conv(x, 32, kernel=1), 48), b.conv(pooled, 32, kernel=1))
        x = b.op(ops.ConcatOp, *parts, axis=1)
    return b.done(x, b.op(ops.MeanOp, x, axes=(2, 3)))


GRAPHS = pytest.mark.parametrize("make", [chain, residual, dense, branches], ids=lambda make: make.__name__)


@GRAPHS
def test_no_two_live_buffers_overlap(make: Callable[[], Graph]):
    program = lowered(make())
    plan = plan_memory(program)
    first: dict[Value, int] = {}
    last: dict[Value, int] = {}
    for index, call in enumerate(program.calls):
        for value in (call.result, *(a for a in call.arguments if isinstance(a, Value))):
            base = resolve(value, program.places).base
            first.setdefault(base, index)
            last[base] = index
    owned = [base for base in first if base not in program.graph.inputs]
    for index, base in enumerate(owned):
        start, storage = plan.regions[base].offset, plan.regions[base].storage
        stop = start + base.type.physical_size * base.type.dtype.itemsize
        assert stop <= plan.storages[storage]
        assert start % 64 == 0
        for other in owned[:index]:
            both_alive = first[base] <= last[other] and first[other] <= last[base]
            region = plan.regions[other]
            if both_alive and region.storage == storage:
                other_stop = region.offset + other.type.physical_size * other.type.dtype.itemsize
                assert stop <= region.offset or other_stop <= start


@GRAPHS
def test_relax_alone_needs_no_less_for_the_same_calls(make: Callable[[], Graph], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(lowering, "find_places", lambda graph: {})
    program = lowered(make())
    assert 0 < plan_memory(program).activation_bytes <= relax_bytes(program)


def test_growing_concatenations_in_place_need_no_more(monkeypatch: pytest.MonkeyPatch):
    planned = plan_memory(lowered(dense())).activation_bytes
    monkeypatch.setattr(lowering, "find_places", lambda graph: {})
    assert planned < relax_bytes(lowered(dense()))


def test_a_chain_needs_two_buffers_at_a_time():
    program = lowered(chain())
    largest = max(
        call.result.type.bytes + sum(a.type.bytes for a in call.arguments if isinstance(a, Value))
        for call in program.calls
        if call.result not in program.outputs and not set(call.arguments) & set(program.graph.inputs)
    )
    returned = sum(value.type.bytes for value in program.outputs)
    assert plan_memory(program).activation_bytes == largest + returned


def test_the_artifact_tells_how_much_memory_a_call_needs(tmp_path):
    executable = compiled(dense())
    assert executable.info.activation_bytes > 0
    loaded = tersor.load(executable.save(tmp_path / "dense.tersor"))
    assert loaded.info.activation_bytes == executable.info.activation_bytes
    timing = loaded.benchmark(repeat=1, warmup=0, min_seconds=0.0)
    assert timing.activation_bytes == executable.info.activation_bytes
    assert f"{timing.activation_bytes / 1e6:.1f} MB of activations" in str(timing)


def relax_bytes(program: Program) -> int:
    """Bytes of all storages that Relax's planner allocates for the same kernel calls."""
    builder = relax.BlockBuilder()
    inputs = {value: relax.Var(value.name, buffer_type(value)) for value in program.graph.inputs}
    constant_types = [relax.TensorType((tensor.numel(),), "float32") for tensor in program.constants]
    constants = [relax.Var(f"c{index}", type) for index, type in enumerate(constant_types)]
    with builder.function("main", [*inputs.values(), *constants]):
        with builder.dataflow():
            buffers = dict(inputs)
            for index, call in enumerate(program.calls):
                function = builder.add_func(call.kernel.build(), f"kernel_{index}")
                arguments = [constants[a] if isinstance(a, int) else buffers[a] for a in call.arguments]
                result = relax.call_tir(function, relax.Tuple(arguments), buffer_type(call.result))
                buffers[call.result] = builder.emit(result)
            output = builder.emit_output(relax.Tuple([buffers[value] for value in program.outputs]))
        builder.emit_func_output(output)
    transform = relax.transform
    passes = [
        transform.ToNonDataflow(),
        transform.RemovePurityChecking(),
        transform.CallTIRRewrite(),
        transform.StaticPlanBlockMemory(),
        transform.LowerAllocTensor(),
    ]
    module = tvm.transform.Sequential(passes)(builder.get())
    sizes: list[int] = []

    def visit(node: object) -> None:
        if isinstance(node, relax.Call) and getattr(node.op, "name", "") == "relax.memory.alloc_storage":
            sizes.append(int(node.args[0].values[0]))

    relax.analysis.post_order_visit(module["main"], visit)
    assert sizes
    return sum(sizes)


def buffer_type(value: Value) -> relax.TensorType:
    return relax.TensorType((value.type.physical_size,), STORAGE[value.type.dtype])
