"""Buffers that a model updates in evaluation: state that goes from call to call."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import tersor
from tersor import TersorError
from tersor.frontend import from_torch
from tersor.ir import parse, structurally_equal, verify
from tersor.targets import DynamicExecutable, Executable

TOLERANCE = 1e-5


class Stream(nn.Module):
    """A causal convolution over chunks: the end of a chunk is kept for the next one; chunks are counted, and known."""

    inner: Any
    count: torch.Tensor
    begun: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Module()
        self.inner.register_buffer("past", torch.zeros(1, 3, 4))
        self.register_buffer("count", torch.zeros(1, dtype=torch.long))
        self.register_buffer("begun", torch.zeros(1, dtype=torch.bool), persistent=False)
        self.register_buffer("scale", torch.full((3,), 0.5))
        self.conv = nn.Conv1d(3, 5, 5)
        self.place = nn.Embedding(8, 5)

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        whole = torch.cat([self.inner.past, x], -1)
        self.inner.past = whole[:, :, -4:]
        place = self.place(self.count)
        self.count += 1
        self.begun.fill_(True)
        return {"y": self.conv(whole) + place.reshape(1, 5, 1), "count": self.count * 2, "begun": self.begun}


CHUNKS = torch.randn(5, 1, 3, 6, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def model() -> Stream:
    torch.manual_seed(0)
    return Stream().eval()


@pytest.fixture(scope="module")
def compiled(model: Stream) -> Executable:
    return tersor.compile(model, CHUNKS[0])


@pytest.fixture
def executable(compiled: Executable) -> Executable:
    compiled.reset_state()
    return compiled


def assert_same(actual: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert actual.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(actual[name], tensor, rtol=TOLERANCE, atol=TOLERANCE)


def test_calls_continue_where_the_last_one_ended(model: Stream, executable: Executable) -> None:
    assert executable.report.agreement.difference < TOLERANCE
    assert int(model.count) == 0  # neither the export nor the comparison has changed the model
    for run in (executable, executable.graph.to_torch(), tersor.compile(executable.graph.to_torch(), CHUNKS[0])):
        reference = copy.deepcopy(model)
        for chunk in CHUNKS:
            assert_same(run(chunk), reference(chunk))
        if isinstance(run, Executable):
            buffers = dict(reference.named_buffers())
            assert run.state.keys() == buffers.keys() - {"scale"}
            assert_same(run.state, {name: buffers[name] for name in run.state})
        else:
            assert int(torch.as_tensor(run.count)) == 5


def test_state_is_reset_assigned_and_copied(executable: Executable) -> None:
    first = executable(CHUNKS[0])
    middle = executable.state
    second = executable(CHUNKS[1])
    other = copy.copy(executable)
    third = executable(CHUNKS[2])
    assert_same(other(CHUNKS[2]), third)
    executable.state = middle
    middle["count"].fill_(7)  # a copy
    assert_same(executable(CHUNKS[1]), second)
    assert int(other.state["count"]) == 3
    executable.state = {"count": torch.tensor([5])}
    assert int(executable.flat(CHUNKS[0])[1]) == 12
    assert int(executable.state["count"]) == 5  # `flat` keeps nothing
    executable.benchmark(repeat=2, min_seconds=0, kernels=True)
    executable.kernel_seconds(CHUNKS[0])
    assert int(executable.state["count"]) == 5
    executable.reset_state()
    assert_same(executable(CHUNKS[0]), first)


def test_state_in_files(executable: Executable, tmp_path: Path) -> None:
    first, second = executable(CHUNKS[0]), executable(CHUNKS[1])
    executable.reset_state()
    executable(CHUNKS[0])
    anew = tersor.load(executable.save(tmp_path / "anew.tersor"))
    going_on = tersor.load(executable.save(tmp_path / "going_on.tersor", keep_state=True))
    assert_same(anew(CHUNKS[0]), first)
    assert_same(going_on(CHUNKS[1]), second)
    going_on.reset_state()
    assert_same(going_on(CHUNKS[1]), second)
    sent = pickle.loads(pickle.dumps(executable))
    assert_same(sent(CHUNKS[1]), second)
    sent.reset_state()
    assert_same(sent(CHUNKS[0]), first)
    with pytest.raises(TersorError, match=r"keeps no state, which stream has \(count, begun, inner.past\); save an"):
        executable.save_bundle(tmp_path / "bundle")


def test_text_and_interpreter(model: Stream) -> None:
    graph = from_torch(model, CHUNKS[0])
    verify(graph)
    assert [value.name for value in graph.user_inputs] == ["x"]
    assert '%count: i64[1] = "count"' in str(graph)
    assert structurally_equal(parse(str(graph), graph.weights), graph)
    outputs = graph.evaluate(CHUNKS[0])
    assert len(outputs) == 6
    expected = copy.deepcopy(model)
    assert_same(graph.returned(outputs), expected(CHUNKS[0]))
    assert_same(graph.returned(graph.evaluate(CHUNKS[1], *outputs[3:])), expected(CHUNKS[1]))
    graph.weights.add(torch.zeros(1), "unused")
    graph.forget_unused_weights()
    assert {"count", "inner.past"} < set(graph.weights) and "unused" not in graph.weights


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"cuont": torch.tensor([1])}, "has no state 'cuont'; did you mean 'count'"),
        ({"count": torch.tensor([1, 2])}, r"input 'count' must have shape \[1\], got \[2\]"),
        ({"count": torch.tensor([1.0])}, "input 'count' must be int64, got float32"),
        ({"count": torch.tensor([8])}, "input 'count' must hold row numbers from 0 to 7, got 8 to 8"),
    ],
)
def test_wrong_states_are_refused(values: dict[str, torch.Tensor], message: str, executable: Executable) -> None:
    with pytest.raises(TersorError, match=message):
        executable.state = values
    assert int(executable.state["count"]) == 0


def test_row_numbers_that_run_out(executable: Executable) -> None:
    executable.state = {"count": torch.tensor([7])}
    executable(CHUNKS[0])
    with pytest.raises(TersorError, match="'count' must hold row numbers from 0 to 7, got 8"):
        executable(CHUNKS[0])


@pytest.mark.parametrize("pipeline", ["O3,to-bf16", "O3,quantize"])
def test_approximate_pipelines_keep_state(pipeline: str, model: Stream) -> None:
    executable = tersor.compile(model, CHUNKS[0], pipeline=pipeline, calibration=[(chunk,) for chunk in CHUNKS])
    assert executable.report.agreement.decibels > 20
    for _ in range(2):
        result = executable(CHUNKS[0])
    assert int(result["count"]) == 4
    torch.testing.assert_close(executable.state["inner.past"], CHUNKS[0][:, :, -4:])


def test_programs_of_several_shapes_have_one_state(model: Stream, tmp_path: Path) -> None:
    executable = tersor.compile(model, CHUNKS[0], dynamic_shapes={"x": {2: "n"}}, shapes=[6, 3])
    assert isinstance(executable, DynamicExecutable)
    reference = copy.deepcopy(model)
    for count, chunk in zip((6, 3, 6, 5), CHUNKS, strict=False):  # there is no program for 5
        assert_same(executable(chunk[..., :count]), reference(chunk[..., :count]))
    assert executable.shapes[-1] == {"n": 5}
    assert int(executable.at(n=3).state["count"]) == int(executable.state["count"]) == 4
    others = [copy.copy(executable), pickle.loads(pickle.dumps(executable))]
    others.append(tersor.load(executable.save(tmp_path / "going_on.tersor", keep_state=True)))
    anew = tersor.load(executable.save(tmp_path / "anew.tersor"))
    executable.flat(CHUNKS[4])  # keeps nothing
    expected = reference(CHUNKS[4])
    for one in (executable, *others):
        assert_same(one(CHUNKS[4]), expected)
    executable.reset_state()
    for one in (executable, anew):
        assert_same(one(CHUNKS[0]), copy.deepcopy(model)(CHUNKS[0]))
