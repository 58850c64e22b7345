"""The benchmark of compression: what it compares is alike, and its file and tables say what was measured."""

from __future__ import annotations

import io
import json

import numpy as np
import pytest
import torch
from rich.console import Console
from torch import nn

from benchmarks import compression
from benchmarks.accuracy import TASKS
from benchmarks.harness import LatencyStatistics, difference
from benchmarks.peers import Network, Precision
from benchmarks.photographs import crops, photographs
from benchmarks.sentences import _drawn, sentences

PLACE = {"processor": "a processor", "threads": 2}
VERSIONS = {"openvino": "1.0", "nncf": "2.0"}


def rows(**medians: float) -> list[dict]:
    return [
        {"runner": name.replace("_", " "), "latency": {"median": LatencyStatistics.from_blocks([[seconds]]).median}}
        for name, seconds in medians.items()
    ]


INT8 = {
    "net": {
        "model": "net",
        "rows": rows(tersor=0.008, tersor_bf16=0.005, tersor_int8=0.002, openvino=0.004),
        "layers": {"all": 21, "integer": 20, "left_in_float32": ["head"]},
    }
}
PRUNED = {
    "net": {
        "model": "net",
        "rows": [*rows(tersor=0.008), *({**row, "runner": "macs=0.5"} for row in rows(half=0.004))],
        "macs": {"tersor": 2_000_000, "macs=0.5": 1_000_000},
    }
}
ACCURACY = {
    "minilm": {
        "model": "minilm",
        "answers": [{"runner": "tersor", "agreement": 0.998, "lowest": 0.99, "error": 0.05}],
    }
}


def test_tables_have_the_ratios_that_matter() -> None:
    assert compression.int8_sheet(INT8.values()).rows == (
        ("net", "8.000", "5.000", "2.000", "4.00x", "4.000", "", "2.00", "20/21"),
    )
    assert compression.pruned_sheet(PRUNED.values()).rows[1] == ("net", "macs=0.5", "1", "4.000", "2.00x")
    assert compression.accuracy_sheet(ACCURACY["minilm"]).rows == (("tersor", "99.80%", "0.9900", "5.00%"),)
    for sheet in (compression.int8_sheet(INT8.values()), compression.pruned_sheet(PRUNED.values())):
        assert Console(width=200).measure(sheet.view()).maximum <= 80


def test_a_page_has_all_tables() -> None:
    measured = {part: {"net": records["net"] | PLACE} for part, records in (("int8", INT8), ("pruned", PRUNED))}
    measured["int8"]["elsewhere"] = INT8["net"] | {"model": "elsewhere", "processor": "another", "threads": 1}
    page = compression.page({"versions": VERSIONS, "accuracy": ACCURACY} | measured)
    assert "Batch 1; openvino 1.0, nncf 2.0." in page
    assert "layers in int8 (a processor, 2 threads):" in page
    assert "layers in int8 (another, 1 threads):" in page
    assert "| net | 8.000 | 5.000 | 2.000 | 4.00x | 4.000 |  | 2.00 | 20/21 |" in page
    assert "| tersor | 99.80% | 0.9900 | 5.00% |" in page


def test_a_command_replaces_its_networks_only(tmp_path) -> None:
    path = tmp_path / "results.json"
    compression.keep("int8", INT8, 2, path)
    compression.keep("accuracy", ACCURACY, 2, path)
    compression.keep("int8", {"other": {}}, 1, path)
    content = json.loads(path.read_text("utf-8"))
    assert set(content["int8"]) == {"net", "other"}
    assert (content["int8"]["net"]["threads"], content["int8"]["other"]["threads"]) == (2, 1)
    assert content["accuracy"]["minilm"]["answers"] == ACCURACY["minilm"]["answers"]
    assert "nncf" in content["versions"]


def test_answers_say_how_far_they_agree() -> None:
    classes, meaning = TASKS
    right = np.array([0.0, 3.0, 1.0])
    assert classes.agrees(np.array([0.0, 2.0, 1.0]), right) == 1
    assert classes.agrees(np.array([4.0, 2.0, 1.0]), right) == 0
    assert meaning.agrees(2 * right, right) == pytest.approx(1)
    mask = torch.tensor([[1, 1, 0]])
    states = np.array([[[1.0, 2.0], [3.0, 4.0], [100.0, 100.0]]])
    assert meaning.answer(states, (mask, mask)).tolist() == [2.0, 3.0]


def test_sentences_are_seeded_and_apart() -> None:
    known = sentences()
    assert len(known) > 500
    assert all(one.endswith(".") for one in known)
    first, again, other = (_drawn(250, seed) for seed in (0, 0, 1))
    assert first == again
    assert not set(first) & set(other)


def test_crops_are_seeded_and_of_all_photographs() -> None:
    pytest.importorskip("skimage", reason="pip install 'tersor[bench]' brings the pictures")
    pytest.importorskip("sklearn", reason="it comes with nncf, which pip install 'tersor[bench]' brings")
    first, again, other = (list(crops(9, seed)) for seed in (1, 1, 2))
    names = [name for name, _ in first]
    assert set(names) == set(photographs())
    assert names[:2] == names[7:]
    for (_, crop), (_, same), (_, different) in zip(first, again, other, strict=True):
        assert crop.shape == (1, 3, 224, 224)
        assert -1 <= crop.min() < crop.max() <= 1.01
        assert torch.equal(crop, same)
        assert not torch.equal(crop, different)


def test_the_peer_computes_on_integers(tmp_path) -> None:
    pytest.importorskip("nncf", reason="pip install 'tersor[bench]' brings it")
    from benchmarks.int8_peers import OpenVinoInt8

    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(288, 5)).eval()
    batches = [(torch.randn(1, 3, 8, 8),) for _ in range(4)]
    network = Network(module, batches[0], tmp_path, Precision.INT8, batches)
    peer = OpenVinoInt8(network, 1)
    outputs = peer.run(network.arrays)
    assert [output.dtype for output in outputs] == [np.float32]
    assert 1e-4 < difference(network.expected, outputs) < 0.1  # float32 would be below


def test_options_in_brackets_are_shown() -> None:
    view = compression.Sheet("", ("integers by",), (("tersor accuracy=[gptq]",),)).view()
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(view)
    assert "accuracy=[gptq]" in console.export_text()
