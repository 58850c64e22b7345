"""What ``quantize`` says of each layer: precision, how well its operand is stored, what to try."""

from __future__ import annotations

import json

import pytest
import torch

from tersor.ir import Graph, TensorType
from tersor.ir.ops import ReluOp
from tersor.passes.quantization.layer_report import _advice
from tersor.passes.quantization.quality import StoredRatio
from tersor.passes.report import LayerPrecision, worst_first
from tersor.tests.checks import record_of
from tersor.tests.passes.quantization.networks import builder, quantized
from tersor.tests.random_graphs import GraphBuilder


def three() -> Graph:
    b = builder()
    x = b.op(ReluOp, b.conv(b.graph.inputs[0], 8, location="first"))
    return b.done(b.conv(b.op(ReluOp, b.conv(x, 8, location="second")), 8, location="third"))


def layers_of(graph: Graph, text: str) -> dict[str, LayerPrecision]:
    return {one.name: one for one in record_of(quantized(graph, text), "quantize-realize").layers}


def test_every_layer_has_its_numbers_and_methods():
    found = layers_of(three(), "quantize{keep=all,method=auto,accuracy=[gptq],skip=[second]}")
    assert list(found) == ["first", "second", "third"]
    first, second = found["first"], found["second"]
    assert (first.computes, first.bits) == ("int8", "8 x 8")
    assert first.calibrator.startswith("auto:")
    assert first.accuracy == ("gptq",)
    assert first.method == f"{first.calibrator}, gptq"
    assert 0.01 < first.scale < 0.1
    assert 30 < first.sqnr < 60
    assert 0 <= first.saturated < 0.01
    assert (second.computes, second.bits, second.accuracy) == ("float32", "32 x 32", ())
    assert second.scale is second.sqnr is second.times is None


def test_bits_and_accuracy_passes_are_those_that_were_asked_for():
    found = layers_of(three(), "quantize{keep=all,weight_bits=4,accuracy=[cross-layer-equalization,adaround]}")
    assert {one.bits for one in found.values()} == {"4 x 8"}
    assert {one.calibrator for one in found.values()} == {"minmax"}
    assert "adaround" in found["third"].accuracy
    assert any("cross-layer-equalization" in one.accuracy for one in found.values())
    corrected = layers_of(three(), "quantize{keep=all}")
    assert {one.accuracy for one in corrected.values()} == {("bias-correction",)}


def test_other_ways_say_what_they_are():
    b = GraphBuilder({"x": TensorType((8, 32))})
    graph = b.done(b.linear(b.op(ReluOp, b.linear(b.graph.inputs[0], 32, location="a")), 32, location="b"))
    text = "quantize-annotate{skip=[b]},quantize-calibrate,quantize-realize{keep=all,others=int4}"
    found = layers_of(graph, text)
    assert (found["a"].computes, found["a"].bits) == ("int8", "8 x 8")
    assert (found["b"].computes, found["b"].bits, found["b"].method) == ("int4 weights", "4 x 32", "")


def test_saturated_numbers_are_counted():
    graph = three()
    cut = layers_of(graph, "quantize{keep=all,method=percentile:90}")
    assert 0.05 < cut["first"].saturated < 0.3  # a tenth at each end of a signed input
    assert layers_of(graph, "quantize{keep=all}")["first"].saturated == 0


def test_the_record_is_data():
    record = record_of(quantized(three(), "quantize{keep=all}"), "quantize-realize")
    described = json.loads(json.dumps(record.to_json()))
    assert described["layers"][0]["name"] == "first"
    assert described["layers"][0]["accuracy"] == ["bias-correction"]


def test_the_noisiest_come_first():
    ratios = {"a": 30.0, "b": None, "c": 10.0, "d": 20.0, "e": 25.0, "f": 40.0, "g": 12.0, "h": 50.0}
    layers = [LayerPrecision(name, "int8", 8, 8, sqnr=ratio) for name, ratio in ratios.items()]
    worst, others = worst_first(layers)
    assert [one.name for one in worst] == ["c", "g", "d", "e", "a"]
    assert [one.name for one in others] == ["b", "f", "h"]


@pytest.mark.parametrize(
    ("ratio", "calibrator", "accuracy", "told"),
    [
        (StoredRatio(1000.0, 1.0, 1.0), "minmax", (), ""),
        (StoredRatio(10.0, 1.0, 0.1), "minmax", (), "its noise comes from layers before it: accuracy=["),
        (StoredRatio(10.0, 1.0, 0.1), "minmax", ("gptq",), "its noise comes from layers before it: min_sqnr"),
        (StoredRatio(10.0, 1.0, 0.9, 5, 100), "mse", (), "5.0% of the numbers are beyond its range: method=minmax"),
        (StoredRatio(10.0, 1.0, 0.9), "minmax", (), "its range is too wide for most of its numbers: method=auto"),
        (StoredRatio(10.0, 1.0, 0.9), "auto:mse", (), "its numbers differ too much for 8 bits"),
    ],
)
def test_advice_names_where_the_noise_comes_from(ratio, calibrator, accuracy, told):
    advice = _advice(ratio, calibrator, accuracy)
    assert advice.startswith(told)
    assert bool(advice) == bool(told)


def test_a_table_fits_in_a_terminal(monkeypatch):
    from rich.console import Console

    from tersor.cli import tables

    name = "encoder.layer.11.attention.output.dense.and.more"
    one = LayerPrecision(
        name, "int4 weights", 32, 32, 1.25e-5, 0.1234, 12.345, None, "auto:percentile:99.99", ("smooth-quant", "gptq")
    )
    monkeypatch.setattr(tables, "console", lambda: Console(width=80, force_terminal=True))
    table = tables.precision_table("title", [one])
    console = Console(width=80)
    with console.capture() as captured:
        console.print(table)
    lines = captured.get().splitlines()
    assert max(map(len, lines)) <= 80
    assert "…" in captured.get()
    assert "12.3%" in captured.get()
    for word in ("int4", "weights", "99.99", "gptq"):
        assert word in captured.get().replace("\n", "")


def test_noise_of_stored_values_is_told_apart():
    from tersor.ir import DType
    from tersor.passes.quantization.scheme import QuantizationStep

    step = QuantizationStep(0.1, 0, DType.U8)
    ratio = StoredRatio()
    ratio.add_stored(torch.tensor([1.0, 2.04, 30.0]), torch.tensor([10, 21, 255]), step)
    assert (ratio.outside, ratio.count) == (1, 3)
    assert ratio.rounding == pytest.approx(0.04**2 + 4.5**2, rel=1e-4)
    assert ratio.noise == pytest.approx(0.06**2 + 4.5**2, rel=1e-4)
