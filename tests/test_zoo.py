"""The zoo: its definitions are usable, one bad model ends nothing, and its page says what was found."""

from __future__ import annotations

import os
import time

import pytest
import torch
from torch import nn

from benchmarks.zoo.catalog import ZOO
from benchmarks.zoo.entry import Entry, Integers, Numbers
from benchmarks.zoo.page import write_page
from benchmarks.zoo.stages import Stage, UnequalError, examine, require_near
from benchmarks.zoo.suite import in_one_line, read_results, run, try_model

IMPORTED = ("bert", "convnext", "efficientdet_bifpn", "resnet20_cifar10", "pointnet", "spatial_transformer", "yolov8")
COMPILED = ("espcn_x2", "deepfm")
SHAPE = (1, 4)


def found(entry: Entry, stage: Stage) -> dict:
    """The last record, made in this process."""
    records: list[dict] = []
    examine(entry, stage, records.append)
    return records[-1]


def entry(name: str, forward) -> Entry:
    """A module that does nothing else."""
    module = type("Small", (nn.Module,), {"forward": lambda self, x: forward(x)})
    return Entry(name, "Small", module, (Numbers(SHAPE),))


def test_the_zoo_is_large_and_seeded() -> None:
    assert len(ZOO) >= 150
    first, second = (ZOO["deepfm"].build() for _ in range(2))
    assert torch.equal(first[1][0], second[1][0])
    assert all(torch.equal(*pair) for pair in zip(first[0].parameters(), second[0].parameters(), strict=True))
    drawn = Integers((1000,), 7, 5).draw(torch.Generator())
    assert set(drawn.tolist()) == {5, 6}


@pytest.mark.parametrize("name", IMPORTED)
def test_architectures_are_imported(name: str) -> None:
    record = found(ZOO[name], Stage.IMPORT)
    assert record["stage"] == "import", record["why"]
    assert record["ops"] > 10 and record["parameters"] > 0 and record["macs"] > 0


@pytest.mark.parametrize("name", COMPILED)
def test_architectures_are_compiled(name: str) -> None:
    record = found(ZOO[name], Stage.COMPILE)
    assert record["stage"] == "compile" and record["difference"] < 1e-5 and record["compile_seconds"] > 0


def test_a_bad_model_ends_nothing_and_a_run_goes_on(tmp_path) -> None:
    entries = [
        entry("dies", lambda x: os._exit(3)),
        entry("broken", lambda x: x @ x),
        entry("refused", torch.nonzero),
        entry("right", torch.relu),
    ]
    path = tmp_path / "zoo.jsonl"
    said: list[dict] = []
    results = run(entries[:-1], Stage.IMPORT, path, 60.0, said.append)
    assert results["dies"]["why"] == "its process ended with 3"
    assert "PyTorch cannot run it: RuntimeError: mat1 and mat2" in results["broken"]["why"]
    assert any(one.startswith("aten.nonzero.default (") for one in results["refused"]["refused"])
    run(entries, Stage.IMPORT, path, 60.0, said.append)
    assert [record["model"] for record in said] == ["dies", "broken", "refused", "right"]
    assert read_results(path)["right"]["stage"] == "import"
    assert in_one_line(said[0]) == "[zoo] dies: import fails: its process ended with 3"
    assert in_one_line(said[-1]) == "[zoo] right: import done"


@pytest.mark.parametrize(("found", "rounding"), [(0.002, 0.0), (0.02, 0.004), (float("nan"), 1.0)])
def test_what_a_compilation_would_refuse_fails(found: float, rounding: float) -> None:
    require_near(0.0005, 0.0)
    require_near(0.02, 0.006)
    with pytest.raises(UnequalError, match="it differs from PyTorch by"):
        require_near(found, rounding)


def test_a_model_has_so_much_time() -> None:
    record = try_model(entry("sleeps", lambda x: time.sleep(60)), Stage.IMPORT, 0.5)
    assert record["failed"] == "import" and record["why"] == "it took more than 0.5 s"


def test_a_process_that_dies_later_keeps_what_was_found() -> None:
    def forward(x: torch.Tensor) -> torch.Tensor:
        if not torch.compiler.is_exporting():
            os._exit(4)
        return torch.relu(x)

    record = try_model(entry("dies late", forward), Stage.COMPILE, 60.0)
    assert record["stage"] == "import" and record["failed"] == "compile" and record["ops"] == 1


SHORT_KERNELS = {"count": 9, "median": 1e-6, "seconds": 9e-6, "shares": {"matmul": 1.0}}
LONG_KERNELS = {"count": 2, "median": 1e-3, "seconds": 2e-3, "shares": {"conv2d": 0.75, "resize": 0.25}}


def times(ours: float, theirs: float) -> dict[str, float]:
    return {"tersor": ours, "onnxruntime": theirs}


def test_the_page_says_what_was_found(tmp_path) -> None:
    sizes = {"import_seconds": 1.0, "ops": 7, "parameters": 5_000_000, "macs": 2_000_000, "machine": "Abacus"}
    numbers = {"compile_seconds": 2.0, "difference": 3e-6, "latency": times(1e-3, 2e-3)}
    results: dict[str, dict] = {
        "unet": {"stage": "latency", **sizes, **numbers},
        "alexnet": {"stage": "latency", **sizes, **numbers, "latency": times(2e-5, 1e-5), "kernels": SHORT_KERNELS},
        "vgg11": {"stage": "latency", **sizes, **numbers, "latency": times(2e-3, 1e-3), "kernels": LONG_KERNELS},
        "vit": {"stage": "import", **sizes},
        "ssd": {
            "stage": None,
            "failed": "import",
            "why": "long",
            "refused": ["aten.x.default (a | b)"],
            "machine": "Abacus",
        },
    }
    path = tmp_path / "models.md"
    write_page(path, {name: {"model": name, **record} for name, record in results.items()}, {}, {})
    page = path.read_text("utf-8")
    assert f"The zoo has {len(ZOO)} configurations. 5 were tried, and 4 of them import.\n3 were compiled" in page
    assert "3 with success, 3 of them within 0.0001 of PyTorch's result.\n3 were timed. Processor: Abacus." in page
    assert "| unet | 5.00 | 2.0 | 7 | 1.0 | 2.0 | 3.0e-06 | 1.000 | 2.00 |" in page
    assert "3 models were timed beside ONNX Runtime. The geometric mean of its time over ours is **0.79**." in page
    short = "9 kernels, half of them shorter than 1.0 µs, which is the cost of calling one; 11 µs outside of kernels"
    assert f"| alexnet | 0.020 | 0.50 | {short}; 100% in `matmul` |" in page
    assert "| vgg11 | 2.000 | 0.50 | 75% in `conv2d`, 25% in `resize` |" in page
    assert "| vit | 5.00 | 2.0 | 7 | 1.0 |  |  |  |  |" in page
    assert "| ssd | import | refused: aten.x.default (a \\| b) |" in page
    assert all(f"| {name} |" in page for name in ZOO)
