"""The benchmark models are the standard ones, and the harness times and compares what it is given."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
import typer
from rich.console import Console
from rich.table import Table
from torch import nn

import tersor
from benchmarks.cpu import PIPELINES, available_peers
from benchmarks.harness import Comparison, ExecutableRunner, LatencyStatistics, Row, Schedule, difference, measure
from benchmarks.models import MODELS, batched, load
from benchmarks.peers import PEERS, Network, Precision, UnsupportedModel
from benchmarks.tables import disagreeing, summary, table

# Counts of torchvision's definitions; DeiT's for ViT-Tiny, the weight files' for EfficientNet-Lite0 and MiniLM.
PARAMETERS = {
    "resnet18": 11_689_512,
    "vgg16": 138_357_544,
    "mobilenetv2": 3_504_872,
    "efficientnet_lite0": 4_652_008,
    "minilm": 22_565_376,
    "resnet50": 25_557_032,
    "googlenet": 6_624_904,
    "squeezenet11": 1_235_496,
    "densenet121": 7_978_856,
    "densenet121_lists": 7_978_856,
    "shufflenetv2": 2_278_604,
    "vit_tiny": 5_717_416,
}
QUICK_MODELS = {"resnet18", "efficientnet_lite0", "minilm"}
QUICK = Schedule(rounds=2, block_seconds=0.0, minimum_calls=2, maximum_calls=2, dropped_calls=1, pause_seconds=0.0)


class Sleeper:
    """A runner that takes a known time and returns a constant."""

    def __init__(self, name: str, seconds: float) -> None:
        self.name = name
        self.seconds = seconds
        self.calls = 0

    def run(self, inputs: Sequence[np.ndarray]) -> list[np.ndarray]:
        self.calls += 1
        time.sleep(self.seconds)
        return [np.ones(3, dtype=np.float32)]


def latency(seconds: float) -> LatencyStatistics:
    return LatencyStatistics.from_blocks([[seconds]])


def assert_fits(view: Table) -> None:
    """The table needs no more than 80 columns: nothing is cut off or broken over two lines."""
    assert Console(width=200).measure(view).maximum <= 80


COMPARISON = Comparison(
    "net",
    2,
    tuple(
        Row(name, latency(seconds), build_seconds=0.0, difference=0.0)
        for name, seconds in {"torch": 4.0, "openvino": 2.0, "onnxruntime": 3.0, "tersor": 1.0}.items()
    ),
)


def test_every_model_has_an_expected_size() -> None:
    assert set(PARAMETERS) == set(MODELS)


@pytest.mark.parametrize(
    "name", [name if name in QUICK_MODELS else pytest.param(name, marks=pytest.mark.slow) for name in MODELS]
)
def test_models_are_standard_and_healthy(name: str) -> None:
    module, inputs = MODELS[name]()
    assert not module.training
    assert sum(parameter.numel() for parameter in module.parameters()) == PARAMETERS[name]
    with torch.inference_mode():
        output = module(*inputs)
    assert output.shape == ((1, 128, 384) if name == "minilm" else (1, 1000))
    assert 0.1 < output.std() < 10


def test_random_weights_are_reproducible() -> None:
    first, second = (MODELS["squeezenet11"]()[0].state_dict() for _ in range(2))
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_minilm_heeds_its_mask() -> None:
    module, (ids, mask) = MODELS["minilm"]()
    other = ids.clone()
    other[:, -1] = 2000  # a padded position
    with torch.inference_mode():
        expected, actual = module(ids, mask), module(other, mask)
        unmasked = module(other, torch.ones_like(mask))
    torch.testing.assert_close(actual[:, :100], expected[:, :100])
    assert (unmasked[:, :100] - expected[:, :100]).abs().max() > 1e-3


def small_network(folder: Path, precision: Precision = Precision.FLOAT32) -> Network:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(288, 5)).eval()
    return Network(module, (torch.randn(1, 3, 8, 8),), folder, precision)


@pytest.mark.parametrize("peer", [name for name in PEERS if name != "torch-compile"])
def test_peers_agree_with_pytorch(peer: str, tmp_path) -> None:
    reason = PEERS[peer].available()
    if reason is not None:
        pytest.skip(reason)
    network = small_network(tmp_path)
    assert difference(network.expected, PEERS[peer](network, threads=1).run(network.arrays)) < 1e-5


def test_peers_take_encoder_layers_of_pytorch(tmp_path) -> None:
    """In evaluation these are one operator to PyTorch, which its exporter does not know."""
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    network = Network(nn.TransformerEncoder(layer, 1).eval(), (torch.randn(1, 4, 8),), tmp_path)
    assert difference(network.expected, PEERS["onnxruntime"](network, threads=1).run(network.arrays)) < 1e-5
    assert torch.backends.mha.get_fastpath_enabled()


@pytest.mark.parametrize("peer", [name for name in PEERS if name not in ("torch-compile", "onnxruntime")])
def test_peers_compute_in_bf16_and_return_float32(peer: str, tmp_path) -> None:
    reason = PEERS[peer].available()
    if reason is not None:
        pytest.skip(reason)
    network = small_network(tmp_path, Precision.BF16)
    try:
        runner = PEERS[peer](network, threads=1)
    except UnsupportedModel as error:
        pytest.skip(f"{peer} cannot compute in bf16 here: {error}")
    outputs = runner.run(network.arrays)
    assert [output.dtype for output in outputs] == [np.float32]
    assert 1e-4 < difference(network.expected, outputs) < 2e-2  # float32 would be below
    assert all(parameter.dtype == torch.float32 for parameter in network.module.parameters())


def test_tersor_computes_in_bf16_with_its_pipeline(tmp_path) -> None:
    network = small_network(tmp_path, Precision.BF16)
    compiled = tersor.compile(network.module, network.inputs, pipeline=PIPELINES[Precision.BF16], threads=1)
    outputs = ExecutableRunner(compiled).run(network.arrays)
    assert 1e-4 < difference(network.expected, outputs) < 2e-2


def test_onnxruntime_is_left_out_in_bf16(tmp_path) -> None:
    with pytest.raises(UnsupportedModel, match="no bf16 kernels"):
        PEERS["onnxruntime"](small_network(tmp_path, Precision.BF16), threads=1)


def test_inputs_of_a_batch_differ_and_fit_together() -> None:
    ids, mask = torch.arange(4)[None], torch.tensor([[1, 1, 1, 0]])
    words, kept = batched((ids, mask), 3)
    assert words.tolist() == [[0, 1, 2, 3], [3, 0, 1, 2], [2, 3, 0, 1]]
    assert torch.equal(kept == 0, words == 3)  # each mask still belongs to its words


def test_integers_are_calibrated_and_compared_with_float32(tmp_path) -> None:
    network = small_network(tmp_path, Precision.INT8)
    network.calibration = [network.inputs]
    made = tersor.compile(
        network.module, network.inputs, pipeline="O3,quantize{keep=all}", calibration=network.calibration, threads=1
    )
    assert 1e-4 < difference(network.expected, ExecutableRunner(made).run(network.arrays)) < 0.1


def test_ncnn_refuses_what_its_converter_leaves_untranslated(tmp_path) -> None:
    reason = PEERS["ncnn"].available()
    if reason is not None:
        pytest.skip(reason)

    class Gather(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x[:, torch.tensor([0, 2, 1])]

    with pytest.raises(UnsupportedModel, match=r"ncnn lacks Tensor\.index"):
        PEERS["ncnn"](Network(Gather().eval(), (torch.randn(1, 3, 8),), tmp_path), threads=1)


def test_unknown_peers_are_refused() -> None:
    with pytest.raises(typer.BadParameter, match=r"unknown peer 'tensorflow'.*openvino"):
        available_peers("torch,tensorflow", Console())


def test_networks_in_training_mode_are_refused(tmp_path) -> None:
    with pytest.raises(ValueError, match=r"module\.eval\(\)"):
        Network(nn.Dropout(), (torch.ones(1),), tmp_path)


def test_measure_drops_the_first_calls_of_each_block() -> None:
    runners = [Sleeper("fast", 0.0), Sleeper("slow", 0.002)]
    seen: list[str] = []
    results = measure(runners, [], QUICK, progress=seen.append)
    assert [runner.calls for runner in runners] == [6, 6]
    assert {name: result.calls for name, result in results.items()} == {"fast": 4, "slow": 4}
    assert seen == ["fast", "slow", "slow", "fast"]  # the order rotates
    assert results["slow"].minimum >= 0.002


def test_measure_refuses_equal_names() -> None:
    with pytest.raises(ValueError, match="distinct"):
        measure([Sleeper("same", 0), Sleeper("same", 0)], [], QUICK)


def test_latency_statistics() -> None:
    result = LatencyStatistics.from_blocks([[1.0, 2.0], [3.0, 4.0, 5.0]])
    assert (result.median, result.lower_quartile, result.upper_quartile, result.minimum) == (3.0, 2.0, 4.0, 1.0)
    assert result.block_medians == (1.5, 4.0)
    assert result.calls == 5


def test_difference_is_relative_and_sees_doubling_nan_and_shapes() -> None:
    reference = [np.array([0.5, -2.0], dtype=np.float32), np.zeros(2, dtype=np.float32)]
    assert difference(reference, reference) == 0.0
    assert difference(reference, [reference[0] * 2, reference[1]]) == pytest.approx(1.0)
    assert math.isnan(difference(reference, [reference[0] * np.nan, reference[1]]))
    with pytest.raises(ValueError, match="shape"):
        difference(reference, [reference[0][:1], reference[1]])
    with pytest.raises(ValueError, match="1 outputs"):
        difference(reference, reference[:1])


def disagreeing_names(precision: Precision, **differences: float) -> list[str]:
    rows = tuple(Row(name, latency(1.0), 0.0, gap) for name, gap in differences.items())
    return [row.runner for row in disagreeing(Comparison("net", 2, rows, precision))]


def test_float32_runners_must_all_agree() -> None:
    assert disagreeing_names(Precision.FLOAT32, torch=0.0, openvino=2e-4, tersor=math.nan) == ["openvino", "tersor"]
    assert disagreeing_names(Precision.FLOAT32, torch=0.0, openvino=1e-5, tersor=1e-4) == []


def test_in_bf16_only_tersor_can_disagree_and_not_where_rounding_brings_others_as_far() -> None:
    assert disagreeing_names(Precision.BF16, openvino=0.5, tersor=0.01) == []
    assert disagreeing_names(Precision.BF16, openvino=0.08, tersor=0.07) == []
    assert disagreeing_names(Precision.BF16, openvino=0.01, tersor=0.07) == ["tersor"]
    assert disagreeing_names(Precision.BF16, openvino=0.01, tersor=math.nan) == ["tersor"]


def test_ratios_compare_with_the_fastest_that_took_part() -> None:
    assert COMPARISON.speedup("tersor", over=("torch",)) == 4.0
    assert COMPARISON.speedup("tersor", over=("onnxruntime", "openvino")) == 2.0
    assert COMPARISON.fastest(("onnxruntime", "openvino")) == "openvino"
    assert COMPARISON.speedup("tersor", over=("ncnn",)) is None
    assert COMPARISON.speedup("ncnn", over=("torch",)) is None


def test_tables_fit_eighty_columns() -> None:
    wide = Row(
        "torch-compile", LatencyStatistics.from_blocks([[1.2345, 1.9876]]), build_seconds=123.4, difference=1.2e-5
    )
    for view in (table(Comparison("efficientnet_lite0", 2, (wide, *COMPARISON.rows))), summary([COMPARISON])):
        assert_fits(view)


def test_load_takes_factories_and_names_the_models() -> None:
    module, inputs = load("benchmarks.models:squeezenet11")
    assert isinstance(module, nn.Module)
    assert len(inputs) == 1
    with pytest.raises(ValueError, match=r"unknown model 'resnet17'.*resnet18"):
        load("resnet17")
