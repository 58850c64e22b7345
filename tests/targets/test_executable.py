"""Calling compiled models: kinds of arrays, wrong inputs, threads, timing."""

from __future__ import annotations

import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch._subclasses import FakeTensorMode

import tersor
from tersor import TersorError
from tersor.ir import DType, TensorType, ops
from tersor.targets import Executable
from tersor.targets.machines import toolchain
from tersor.targets.machines.features import required_features
from tersor.tests.random_graphs import GraphBuilder

from .compiled import compiled

TOLERANCE = 1e-5  # of the largest output


class Ports(nn.Module):
    """Inputs and outputs of several element types."""

    def forward(self, x: torch.Tensor, ids: torch.Tensor, mask: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return torch.where(mask, x, x * 2), ids + 1, x > 0


class Refusing(torch.Tensor):
    """A tensor that leaves every function to others."""

    @classmethod
    def __torch_function__(cls, function: Any, types: Any, arguments: Any = (), options: Any = None) -> Any:
        return NotImplemented


class Broken:
    """An array of a library that fails."""

    def __dlpack__(self, **options: Any) -> Any:
        raise KeyError("no such\nthing" + 10_000 * "!")

    def __dlpack_device__(self) -> Any:
        return 1, 0


def without_memory(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor after its memory was freed."""
    tensor.untyped_storage().resize_(0)
    return tensor


@pytest.fixture(scope="module")
def port_inputs() -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(3, 20, generator=generator)
    ids = torch.randint(-5, 5, (3, 20), generator=generator)
    return x, ids, torch.rand(3, 20, generator=generator) > 0.5


@pytest.fixture(scope="module")
def ports(port_inputs: tuple[torch.Tensor, ...]) -> Executable:
    return tersor.compile(Ports().eval(), port_inputs)


@pytest.fixture
def expected(module: nn.Module, example: torch.Tensor) -> torch.Tensor:
    with torch.inference_mode():
        return module(example)


def assert_close(actual: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=0, atol=TOLERANCE * expected.abs().max().item())


# Arrays -----------------------------------------------------------------------------------------------------------


def test_torch_in_torch_out(executable: Executable, example: torch.Tensor, expected: torch.Tensor) -> None:
    before = example.clone()
    first = executable(example)
    assert isinstance(first, torch.Tensor)
    assert_close(first, expected)
    kept = first.clone()
    executable(example * 2)
    assert torch.equal(first, kept), "a later call wrote into an earlier result"
    assert torch.equal(example, before)


def test_numpy_in_numpy_out(executable: Executable, example: torch.Tensor, expected: torch.Tensor) -> None:
    result = executable(example.numpy())
    assert isinstance(result, np.ndarray)
    assert_close(torch.from_numpy(result), expected)
    frozen = example.numpy().copy()
    frozen.flags.writeable = False
    assert np.array_equal(executable(frozen), result)


def test_whatever_speaks_dlpack(executable: Executable, example: torch.Tensor, expected: torch.Tensor) -> None:
    class Foreign:
        def __dlpack__(self, **options: Any) -> Any:
            return example.__dlpack__(**options)

        def __dlpack_device__(self) -> Any:
            return example.__dlpack_device__()

    assert_close(executable(Foreign()), expected)


def test_memory_of_any_layout(executable: Executable, example: torch.Tensor, expected: torch.Tensor) -> None:
    channels_last = example.to(memory_format=torch.channels_last)
    assert_close(executable(channels_last), expected)
    misaligned = torch.empty(example.numel() + 1)[1:].view(example.shape).copy_(example)
    assert misaligned.data_ptr() % 64 != 0
    assert_close(executable(misaligned), expected)
    reversed_twice = np.ascontiguousarray(example.numpy()[..., ::-1])[..., ::-1]
    assert_close(torch.from_numpy(executable(reversed_twice)), expected)
    negative = torch.complex(torch.zeros_like(example), -example).conj().imag
    assert negative.is_neg()
    assert_close(executable(negative), expected)
    assert_close(executable(example.clone().requires_grad_()), expected)
    one = example[:, :1, :1, :1]
    assert_close(executable(one.expand(example.shape)), executable(one.expand(example.shape).contiguous()))
    assert_close(executable(nn.Parameter(example)), expected)


def test_a_negated_view_that_is_contiguous() -> None:
    b = GraphBuilder({"x": TensorType((1,))})
    negated = torch.tensor([1 + 2j]).conj().imag
    assert negated.is_neg() and negated.is_contiguous()
    assert compiled(b.done(b.op(ops.AddOp, *b.graph.inputs * 2)))(negated).item() == -4


def test_several_inputs_and_outputs_of_several_types(ports: Executable, port_inputs: tuple[torch.Tensor, ...]) -> None:
    results = ports(*port_inputs)
    assert isinstance(results, tuple)
    for actual, expected in zip(results, Ports()(*port_inputs), strict=True):
        assert actual.dtype == expected.dtype
        assert torch.equal(actual, expected)
    arrays = ports(*(tensor.numpy() for tensor in port_inputs))
    assert [array.dtype for array in arrays] == [np.float32, np.int64, np.bool_]


# Wrong inputs -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ((), r"takes 1 inputs \(x: f32\[1,3,8,8\]\), got 0"),
        ((torch.ones(1, 3, 8, 8),) * 2, "takes 1 inputs .*, got 2"),
        ((torch.ones(1, 3, 8, 9),), r"input 'x' must have shape \[1, 3, 8, 8\], got \[1, 3, 8, 9\]"),
        ((torch.ones(3, 8, 8),), r"must have shape \[1, 3, 8, 8\], got \[3, 8, 8\]"),
        ((np.ones((1, 3, 8, 8)),), "input 'x' must be float32, got float64; cast it first"),
        ((torch.ones(1, 3, 8, 8, dtype=torch.int32),), "must be float32, got int32"),
        ((torch.ones(1, 3, 8, 8, dtype=torch.complex64),), "must be float32, got complex64"),
        ((torch.ones(1, 3, 8, 8, device="meta"),), "is on meta; move it to the CPU first"),
        ((torch.ones(1, 3, 8, 8).to_sparse(),), r"is sparse; call its to_dense\(\) first"),
        ((torch.nested.nested_tensor([torch.ones(3, 8, 8)], layout=torch.jagged),), "input 'x' is nested"),
        ((FakeTensorMode().from_tensor(torch.ones(1, 3, 8, 8)),), "input 'x' (cannot be read|has no numbers)"),
        ((without_memory(torch.ones(1, 3, 8, 8)),), "has no data in memory"),
        ((Broken(),), "input 'x' cannot be read .*no such"),
        ((torch.ones(1, 3, 8, 8).as_subclass(Refusing),), "input 'x' cannot be read"),
        (("x.npy",), "must be a torch tensor or NumPy array, got str"),
        ((None,), "argument 'x' must be a tensor, not None"),
        ((np.full((1, 3, 8, 8), "x"),), "input 'x' cannot be read .* give an array of torch.float32"),
        ((np.ones((1, 3, 8, 8), dtype=">f4"),), "input 'x' cannot be read"),
    ],
)
def test_wrong_inputs_are_named(inputs: tuple[Any, ...], message: str, executable: Executable) -> None:
    with pytest.raises(TersorError, match=message) as caught:
        executable(*inputs)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500


def test_numpy_has_no_bfloat16() -> None:
    b = GraphBuilder({"x": TensorType((8,))})
    halved = compiled(b.done(b.op(ops.CastOp, b.graph.inputs[0], dtype=DType.BF16)))
    assert halved(torch.ones(8)).dtype == torch.bfloat16
    with pytest.raises(TersorError, match="returns bfloat16, which NumPy does not have; give torch tensors"):
        halved(torch.ones(8).numpy())


def test_an_error_leaves_the_model_usable(executable: Executable, example: torch.Tensor) -> None:
    before = executable(example)
    with pytest.raises(TersorError):
        executable(example[0])
    assert torch.equal(executable(example), before)


def test_code_for_another_processor_can_be_made_and_saved_but_not_run(
    executable: Executable, example: torch.Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    has_no_fma = frozenset(required_features(executable.info.target)) - {"fma"}
    monkeypatch.setattr("tersor.targets.machines.features.host_features", lambda: has_no_fma)
    foreign = Executable(executable.model)
    assert foreign.save(tmp_path / "foreign.tersor").is_file()
    for call in (lambda: foreign(example), foreign.benchmark):
        with pytest.raises(TersorError, match="this processor lacks fma; save it and run it there"):
            call()


# Threads ----------------------------------------------------------------------------------------------------------


def test_the_thread_count_can_be_set(executable: Executable, example: torch.Tensor) -> None:
    before = executable.threads
    results = []
    for threads in range(1, (os.cpu_count() or 1) + 1):
        executable.threads = threads
        assert executable.threads == threads
        results.append(executable(example))
    executable.threads = before
    assert all(torch.equal(result, results[0]) for result in results)


@pytest.mark.parametrize("threads", [0, -1, 10_000, 1.5, "2", True, None])
def test_wrong_thread_counts_are_refused(threads: Any, executable: Executable) -> None:
    with pytest.raises(TersorError, match="threads must be a whole number between 1 and"):
        executable.threads = threads


def test_two_models_in_two_threads(
    executable: Executable, example: torch.Tensor, ports: Executable, port_inputs: tuple[torch.Tensor, ...]
) -> None:
    wanted = executable(example), ports(*port_inputs)

    def first(index: int) -> bool:
        return torch.equal(executable(example), wanted[0])

    def second(index: int) -> bool:
        return all(torch.equal(a, b) for a, b in zip(ports(*port_inputs), wanted[1], strict=True))

    with ThreadPoolExecutor(4) as pool:
        jobs = [pool.submit(job, index) for index in range(100) for job in (first, second)]
        assert all(job.result() for job in jobs)


# Timing -----------------------------------------------------------------------------------------------------------


def test_benchmark_counts_and_orders(executable: Executable, example: torch.Tensor) -> None:
    result = executable.benchmark(repeat=8, min_seconds=0.0, kernels=True)
    assert result.runs == 8
    assert result.threads == executable.threads
    assert 0 < result.min <= result.p10 <= result.median <= result.p90
    assert [timed.kernel for timed in result.kernels] == list(executable.info.kernels)
    assert all(timed.seconds > 0 for timed in result.kernels)
    assert json.loads(json.dumps(result.to_json()))["runs"] == 8
    assert executable.benchmark(example, repeat=1, min_seconds=0.0).runs == 1


def test_benchmark_refuses_nonsense(executable: Executable, example: torch.Tensor) -> None:
    with pytest.raises(TersorError, match="repeat must be 1 or more"):
        executable.benchmark(repeat=0)
    with pytest.raises(TersorError, match="must have shape"):
        executable.benchmark(example[0])


def test_random_inputs_are_valid_and_repeatable(ports: Executable) -> None:
    first, second = ports.random_inputs(), ports.random_inputs()
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert [tensor.dtype for tensor in first] == [torch.float32, torch.int64, torch.bool]
    ports(*first)


@pytest.mark.parametrize("dtype", [DType.I64, DType.I32])
def test_row_numbers_that_the_table_lacks(dtype: DType) -> None:
    b = GraphBuilder({"ids": TensorType((2, 3), dtype)})
    ids, table = b.graph.inputs[0], b.weight(10, 24)
    direct = b.op(ops.EmbeddingOp, table, b.op(ops.ReshapeOp, ids, shape=(6,)))
    doubled = b.op(ops.EmbeddingOp, table, b.op(ops.AddOp, ids, ids))
    graph = b.done(direct, doubled)
    executable = compiled(graph)
    rows = next(iter(graph.weights.values()))
    given = torch.tensor([[0, 9, 4], [1, 2, 3]], dtype=dtype.torch)
    first, second = executable(given)
    assert torch.equal(first, rows[given.reshape(-1).long()])
    assert torch.equal(second, rows[(2 * given).clamp(max=9).long()])  # computed ones are clamped
    for wrong in (10, -1, 2**31 - 1):
        given[0, 0] = wrong
        with pytest.raises(TersorError, match="input 'ids' must hold row numbers from 0 to 9"):
            executable(given)


def test_equal_outputs_have_memory_of_their_own() -> None:
    b = GraphBuilder({"x": TensorType((8,))})
    same = b.op(ops.ReluOp, b.graph.inputs[0])
    first, second, third = compiled(b.done(same, same, b.op(ops.ReshapeOp, same, shape=(2, 4))))(torch.ones(8))
    first.zero_()
    assert torch.equal(second, torch.ones(8))
    second.zero_()
    assert torch.equal(third, torch.ones(2, 4))


@pytest.mark.parametrize("threads", [0, 1.5, "2", True, 10**6])
def test_wrong_thread_counts_are_refused_before_anything_is_compiled(threads: Any) -> None:
    with pytest.raises(TersorError, match="threads must be a whole number between 1 and"):
        tersor.compile(None, threads=threads)


def test_a_target_must_be_a_name_or_a_record() -> None:
    with pytest.raises(TersorError, match="a target is a name such as 'x86:native'"):
        tersor.compile(None, target=None)  # type: ignore[arg-type]


def test_a_machine_without_a_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(toolchain.shutil, "which", lambda name: None)
    monkeypatch.setattr(toolchain.importlib.util, "find_spec", lambda name: None)
    b = GraphBuilder({"x": TensorType((8,))})
    with pytest.raises(TersorError, match=r"no compiler to link for .*apt-get install g\+\+, or pip install ziglang"):
        compiled(b.done(b.op(ops.ReluOp, b.graph.inputs[0])))
