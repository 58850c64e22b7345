"""What the benchmark writes: the record, the tables in Markdown and the chart."""

from __future__ import annotations

import json

import pytest
import typer
from rich.console import Console

from benchmarks import chart, cpu, kernels, readme, torch_pruning
from benchmarks.harness import Comparison, LatencyStatistics, Row, Schedule
from benchmarks.peers import Precision
from benchmarks.probe import Probe
from benchmarks.results import ModelResult, read, record, write
from benchmarks.roofline import KernelUse, Roofline, probe_table, roofline_tables
from benchmarks.startup import Startup
from benchmarks.sweep import sweep_table

MEDIANS = {"torch": 0.004, "onnxruntime": 0.003, "openvino": 0.0021, "tersor": 0.001}
PROBE = Probe(2, 100.0, 200.0, 150.0, 20.0, 5.0, 2**22, 2**25)
CONV = KernelUse("conv2d_0", "conv2d+relu", "features.block", 3, 4e-4, 3e-4, 6e7, 400_000)
POOL = KernelUse("pool2d_1", "max_pool2d", "", 1, 1e-4, 1e-5, 0.0, 800_000)
STARTUP = Startup(12.34, 2**30, 3 * 2**20, 1.5, 0.0123, 0.02)


BEGIN, END = readme.MARKERS[Precision.FLOAT32]


def result(left_out: dict[str, str] | None = None, slow_blocks: int = 0) -> ModelResult:
    latencies = {name: LatencyStatistics.from_blocks([[seconds]], slow_blocks) for name, seconds in MEDIANS.items()}
    rows = tuple(Row(name, latency, 1.0, 1e-6) for name, latency in latencies.items())
    roofline = Roofline(1e-3, (CONV, POOL), (CONV, POOL))
    return ModelResult(Comparison("net", 2, rows), left_out or {}, roofline, STARTUP)


def test_a_record_survives_its_file(tmp_path) -> None:
    content = record([result({"ncnn": "it lacks a layer"})], Schedule(), PROBE)
    path = tmp_path / "folder" / "r.json"
    write(content, path)
    assert read(path) == content
    (model,) = content["models"]
    assert model["best_runtime"] == "openvino"
    assert model["best_runtime_over_tersor"] == pytest.approx(2.1)
    assert model["torch_over_tersor"] == pytest.approx(4.0)
    assert model["left_out"] == {"ncnn": "it lacks a layer"}
    assert model["startup"]["compile_seconds"] == 12.34
    assert model["roofline"]["between_kernels_seconds"] == pytest.approx(5e-4)
    assert model["roofline"]["kernels"][0]["gflops"] == pytest.approx(150)
    assert content["probe"]["gflops"] == 200
    assert content["machine"]["cores"] >= 1
    assert "torch" in content["versions"]


def test_a_record_without_options_says_so() -> None:
    content = record([ModelResult(result().comparison)], Schedule())
    assert content["probe"] is None
    assert content["models"][0]["roofline"] is content["models"][0]["startup"] is None
    text = readme.render(content)
    assert "limit" not in text
    assert "compile s" not in text


def test_files_of_another_schema_are_refused(tmp_path) -> None:
    path = tmp_path / "old.json"
    path.write_text(json.dumps({"schema": 1}), "utf-8")
    with pytest.raises(ValueError, match="schema 1"):
        read(path)


def test_the_readme_gets_its_tables_between_the_markers(tmp_path) -> None:
    path = tmp_path / "README.md"
    path.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n", "utf-8")
    content = record([result({"ncnn": "it lacks a layer"})], Schedule(), PROBE)
    readme.update(path, content, tmp_path / "results" / "c.svg")
    text = path.read_text("utf-8")
    assert text.startswith("before\n")
    assert text.endswith(f"{END}\nafter\n")
    assert "old" not in text
    assert "(results/c.svg)" in text
    assert "| net | 1.000 | 4.000 | 3.000 | 2.100 | 4.00 | **2.10** |" in text
    assert "ncnn does not run net: it lacks a layer." in text
    assert "| net | 12.3 | 1.00 | 3.0 | 1.50 | 0.012 | 20.00 |" in text
    assert "| net | 0.500 | 0.310 | 62% | 50% | conv2d_0 80% at 75% of peak; pool2d_1 20% at 8 GB/s |" in text
    readme.update(path, content, tmp_path / "results" / "c.svg")
    assert path.read_text("utf-8") == text


def test_a_file_without_markers_is_refused(tmp_path) -> None:
    path = tmp_path / "README.md"
    path.write_text("nothing\n", "utf-8")
    with pytest.raises(ValueError, match="results float32: begin"):
        readme.update(path, record([result()], Schedule(), PROBE))


@pytest.mark.parametrize(("text", "problem"), [(None, "No such file"), ("nothing", "lacks the lines")])
def test_a_file_that_tables_cannot_go_into_is_refused_before_measuring(tmp_path, text, problem) -> None:
    path = tmp_path / "page.md"
    if text is not None:
        path.write_text(text, "utf-8")
    for command in (cpu, kernels, torch_pruning):
        with pytest.raises(typer.BadParameter, match=problem):
            command.main("no such network", markdown=path)


def test_tables_tell_of_blocks_with_slow_processors() -> None:
    text = readme.render(record([result(slow_blocks=2), result()], Schedule(rounds=5), PROBE))
    assert "While 8 of the 40 blocks were measured, the processors were slow each time." in text
    assert "slow" not in readme.render(record([result()], Schedule(), PROBE))


def test_the_own_readme_has_the_markers() -> None:
    text = readme.README.read_text("utf-8")
    assert all(text.count(marker) == 1 for pair in readme.MARKERS.values() for marker in pair)


def test_bf16_has_its_own_place_in_the_readme(tmp_path) -> None:
    bf16_begin, bf16_end = readme.MARKERS[Precision.BF16]
    path = tmp_path / "README.md"
    path.write_text(f"{BEGIN}\nkept\n{END}\n{bf16_begin}\nold\n{bf16_end}\n", "utf-8")
    rows = tuple(
        Row(name, LatencyStatistics.from_blocks([[0.001]]), 1.0, 0.0123) for name in ("torch", "openvino", "tersor")
    )
    reason = {"onnxruntime": "it lacks bf16"}
    results = [ModelResult(Comparison(name, 2, rows, Precision.BF16), reason) for name in ("a", "b")]
    content = record(results, Schedule())
    assert content["precision"] == "bf16"
    assert all(model["left_out"] == reason for model in content["models"])
    readme.update(path, json.loads(json.dumps(content)))
    text = path.read_text("utf-8")
    assert text.startswith(f"{BEGIN}\nkept\n{END}\n{bf16_begin}\n")
    assert "old" not in text
    assert "| b | 1.23% | 1.23% | 1.23% |" in text
    assert "ONNX Runtime does not run any model: it lacks bf16." in text
    assert "is the fastest of OpenVINO." in text


def test_the_chart_shows_who_took_part(tmp_path) -> None:
    path = tmp_path / "chart.svg"
    chart.draw(record([result(), result()], Schedule()), path)
    first = path.read_bytes()
    colours = {runner: colour.lower().encode() in first for runner, (_, colour, _) in chart.MARKS.items()}
    assert {runner for runner, shown in colours.items() if shown} >= {"torch", "onnxruntime", "openvino"}
    assert not colours["ncnn"]
    chart.draw(record([result(), result()], Schedule()), path)
    assert path.read_bytes() == first  # nothing changes in version control unless the figures do


def test_a_sweep_has_a_line_for_each_combination_in_eighty_columns() -> None:
    def comparison(batch: int, threads: int) -> Comparison:
        rows = tuple(
            Row(name, LatencyStatistics.from_blocks([[seconds]]), 1.0, 0.0)
            for name, seconds in {"onnxruntime": 3.0, "openvino": 2.0, "tersor": 1.6}.items()
        )
        return Comparison("efficientnet_lite0", threads, rows, Precision.INT8, batch)

    view = sweep_table([comparison(1, 1), comparison(32, 2)])
    assert Console(width=200).measure(view).maximum <= 80
    cells = [list(column.cells) for column in view.columns]
    assert [column[1] for column in cells] == ["efficientnet_lite0", "32", "2", "1600.0", "20.0", "openvino", "1.25"]


def test_roofline_tables_fit_eighty_columns() -> None:
    long = KernelUse("conv2d_0", "conv2d", "features.stage12.unit3.body.convolution", 18, 0.4, 0.3, 6e10, 400_000_000)
    views = (
        *roofline_tables("efficientnet_lite0", Roofline(0.5, (long, POOL), (long, POOL)), PROBE),
        probe_table(PROBE),
    )
    for view in views:
        view.title = None  # wraps
        assert Console(width=200).measure(view).maximum <= 80
