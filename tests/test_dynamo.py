"""``torch.compile(model, backend="tersor")``: what PyTorch's graphs become, and what stays in PyTorch."""

from __future__ import annotations

import copy
import tomllib
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch._dynamo.backends import registry
from torch._dynamo.exc import BackendCompilerFailed

from tersor import dynamo
from tersor.ir import TersorWarning

TOLERANCE = 1e-5


@pytest.fixture(autouse=True)
def _fresh() -> Iterator[None]:
    torch._dynamo.reset()
    torch.manual_seed(0)
    with torch.no_grad():
        yield


@pytest.fixture
def programs(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The graphs that were compiled."""
    made: list[Any] = []
    compile_in_stages = dynamo.compile_in_stages

    def noting(*args: Any, **kwargs: Any) -> Any:
        made.append(args)
        return compile_in_stages(*args, **kwargs)

    monkeypatch.setattr(dynamo, "compile_in_stages", noting)
    return made


def compiled(model: nn.Module | Callable[..., Any], **options: Any) -> Callable[..., Any]:
    return torch.compile(model, backend=dynamo.backend, **options)


def assert_same(actual: Any, expected: Any) -> None:
    torch.testing.assert_close(actual, expected, rtol=TOLERANCE, atol=TOLERANCE, check_stride=True)


class Net(nn.Module):
    """A small network with state, whose outputs are views, an input, and what is not contiguous."""

    count: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.head = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Linear(8, 4)
        self.register_buffer("count", torch.zeros(1))

    def forward(self, x: torch.Tensor) -> dict[str, Any]:
        self.count += 1
        y = self.head(torch.relu(self.norm(self.conv(x))).mean((2, 3))) + self.count
        return {"y": y, "views": (y.view(-1), y.t()), "x": x, "mask": y > 0, "none": None}


def test_shapes_weights_and_writes(programs: list[Any]) -> None:
    model = Net().eval()
    reference, fast = copy.deepcopy(model), compiled(model)
    for batch in (2, 3, 2, 4, 3):  # a shape is compiled when it is first seen
        x = torch.randn(batch, 3, 8, 8)
        result = fast(x)
        assert_same(result, reference(x))
        assert result["x"] is x
        assert result["views"][0].data_ptr() == result["y"].data_ptr()
    assert torch.equal(model.count, reference.count)
    assert len(programs) == 3
    for one in (model, reference):
        one.head.weight.mul_(2)  # trained, or loaded from a file
    assert_same(fast(x), reference(x))
    assert len(programs) == 4
    replaced = {name: value + 1 for name, value in model.state_dict().items() if name != "count"}
    for one in (model, reference):
        one.load_state_dict(replaced, strict=False, assign=True)
    assert_same(fast(x), reference(x))
    assert len(programs) == 5


def test_a_graph_break_and_one_graph_for_two_modules(programs: list[Any]) -> None:
    first, second, x = nn.Linear(6, 6), nn.Linear(6, 6), torch.randn(4, 6)

    def call(part: nn.Module, x: torch.Tensor) -> torch.Tensor:
        y = torch.relu(part(x))
        torch._dynamo.graph_break()
        return y.exp() - y

    fast = compiled(call)
    for part in (first, second, first, second):
        assert_same(fast(part, x), call(part, x))
    assert len(programs) == 3  # the part behind the break has no weights


class Middle(nn.Module):
    """An operator that no graph can hold, with complex numbers around it."""

    def __init__(self) -> None:
        super().__init__()
        self.before = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8))
        self.after = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        spectrum = torch.fft.fft(self.before(x))
        return self.after((spectrum / 8).exp().abs())


def test_unsupported_operators_stay_in_pytorch(programs: list[Any]) -> None:
    model, x = Middle().eval(), torch.randn(4, 8)
    fast = compiled(model)
    with pytest.warns(TersorWarning) as caught:
        assert_same(fast(x), model(x))
    (message,) = [str(one.message) for one in caught if issubclass(one.category, TersorWarning)]
    assert message.startswith("some of a graph of torch.compile stays in PyTorch: ") and "\n" not in message
    assert "aten.exp.default (complex numbers" in message
    assert [len([op for op in graph.ops if op.name == "linear"]) for graph, _ in programs] == [2, 2]
    assert_same(fast(-x), model(-x))
    assert len(programs) == 2


def test_options_reach_the_compiler(programs: list[Any]) -> None:
    model, x = nn.Linear(64, 64).eval(), torch.randn(4, 64)
    options = {"pipeline": "O3,to-bf16", "threads": 1, "check": False, "target": "x86:native"}
    difference = (compiled(model, options=options)(x) - model(x)).abs().max()
    assert 0 < difference < 0.1
    ((_, given),) = programs
    assert (given.pipeline, given.threads, given.check) == ("O3,to-bf16", 1, False)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"options": {"pipelin": "O3"}}, "the backend has no option 'pipelin'; did you mean 'pipeline'?"),
        ({"options": {"pipeline": "O9"}}, "unknown pass 'O9'; did you mean 'O3'"),
        ({"options": {"target": "vax"}}, "vax"),
        ({"mode": "max-autotune"}, "the backend has no mode 'max-autotune'; say what you want by options"),
    ],
)
def test_wrong_options_are_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(BackendCompilerFailed) as caught:
        compiled(nn.ReLU(), **given)(torch.randn(3))
    assert message in str(caught.value).splitlines()[1]


def test_what_needs_gradients_stays_in_pytorch(programs: list[Any]) -> None:
    model, x = nn.Linear(4, 4), torch.randn(2, 4)
    fast = compiled(model)
    with torch.enable_grad(), pytest.warns(TersorWarning, match="it is called with gradients; call it under torch.no_"):
        fast(x).sum().backward()
    assert model.weight.grad is not None
    assert programs == []
    with torch.inference_mode(), warnings.catch_warnings():
        warnings.simplefilter("error", TersorWarning)
        assert_same(fast(x), model(x))
    assert len(programs) == 1


def test_training_mode_without_gradients_is_that_of_pytorch() -> None:
    model, x = nn.Sequential(nn.Linear(4, 64), nn.Dropout(0.5)).train(), torch.ones(2, 4)
    with pytest.warns(TersorWarning, match="graph of torch.compile stays in PyTorch"):
        zeros = (compiled(model)(x) == 0).double().mean()
    assert 0.2 < zeros < 0.8


def test_an_input_of_another_kind_stays_in_pytorch() -> None:
    x = torch.randn(3, dtype=torch.complex64)
    with pytest.warns(TersorWarning, match="a graph of torch.compile stays in PyTorch: .*complex64"):
        assert_same(compiled(lambda x: (x * 2).real + 1)(x), (x * 2).real + 1)


def test_pytorch_lists_the_backend(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As it does for an installed package, whose metadata hold what stands in pyproject.toml."""
    project = tomllib.loads((Path(dynamo.__file__).parent / "pyproject.toml").read_text())["project"]
    metadata = tmp_path / "tersor_entry-1.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: tersor-entry\nVersion: 1\n")
    for group, places in project["entry-points"].items():
        lines = [f"[{group}]", *(f"{name} = {place}" for name, place in places.items())]
        (metadata / "entry_points.txt").write_text("\n".join(lines))
    monkeypatch.syspath_prepend(tmp_path)
    torch._dynamo.list_backends()
    for name in ("_BACKENDS", "_COMPILER_FNS"):
        table = {key: value for key, value in getattr(registry, name).items() if key != "tersor"}
        monkeypatch.setattr(registry, name, table)
    registry._discover_entrypoint_backends.cache_clear()
    registry._discover_entrypoint_backends()
    assert "tersor" in torch._dynamo.list_backends()
    model, x = nn.Linear(4, 3).eval(), torch.randn(2, 4)
    assert_same(torch.compile(model, backend="tersor")(x), model(x))
    assert registry.lookup_backend("tersor") is dynamo.backend
