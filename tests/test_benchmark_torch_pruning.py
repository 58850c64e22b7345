"""The comparison with Torch-Pruning: what is counted, and what its table and page say."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
from rich.console import Console
from torch import nn
from typer.testing import CliRunner

import tersor
from benchmarks import torch_pruning
from benchmarks.pruners import PrunedNetwork, parameters, prune_with_tersor

PRUNED = {
    "net": {
        "original": {"macs": 2_000_000, "parameters": 100},
        "tersor": {"groups": 12, "macs": 998_000, "parameters": 50, "seconds": 1.0},
        "torch-pruning": {"groups": 11, "macs": 990_000, "parameters": 49, "seconds": 2.0},
    },
    "odd": {
        "original": {"macs": 4_000_000, "parameters": 100},
        "tersor": {"groups": 3, "macs": 2_000_000, "parameters": 50, "seconds": 1.0},
        "torch-pruning": {"failed": "RuntimeError: shapes"},
    },
}
LATENCY = {
    "net": {
        "rows": [
            {"runner": name, "latency": {"median": seconds}}
            for name, seconds in (("original", 0.008), ("tersor", 0.004), ("torch-pruning", 0.005))
        ]
    }
}
CONTENT = {
    "machine": {"processor": "a processor"},
    "versions": {"torch": "2", "torch-pruning": "1.6.1"},
    "threads": 2,
    "pruned": PRUNED,
    "latency": LATENCY,
}


def test_table_and_page() -> None:
    table = torch_pruning.sheet(CONTENT)
    assert table.rows == (
        ("net", "12, 11", "2", "0.499", "0.495", "8.000", "4.000", "5.000"),
        ("odd", "3, fails", "4", "0.500", "", "", "", ""),
    )
    assert Console(width=200).measure(table.view()).maximum <= 80
    page = torch_pruning.page(CONTENT)
    assert "a processor, 2 threads, batch 1; torch-pruning 1.6.1." in page
    assert "- odd, torch-pruning: `RuntimeError: shapes`" in page
    assert torch_pruning.sheet({**CONTENT, "latency": {}}).rows[0][-3:] == ("", "", "")


def test_half_of_the_operations_by_ours() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 64, 3), nn.ReLU(), nn.Conv2d(64, 64, 3), nn.ReLU(), nn.Conv2d(64, 8, 1)).eval()
    inputs = (torch.zeros(1, 3, 12, 12),)
    found = prune_with_tersor(model, inputs).record()
    whole = tersor.from_torch(model, inputs)
    assert found["groups"] == 2
    assert found["macs"] <= 0.5 * whole.cost().macs
    assert parameters(whole) == sum(one.numel() for one in model.parameters())


def test_a_tool_that_fails_is_a_result(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(module: nn.Module, inputs: object) -> PrunedNetwork:
        raise RuntimeError("two\nlines")

    model = nn.Sequential(nn.Conv2d(3, 64, 3), nn.Conv2d(64, 8, 1)).eval()
    monkeypatch.setitem(torch_pruning.NETWORKS, "net", lambda: (model, (torch.zeros(1, 3, 8, 8),)))
    monkeypatch.setitem(torch_pruning.TOOLS, "torch-pruning", fail)
    found = torch_pruning.examine("net")
    assert found["torch-pruning"] == {"failed": "RuntimeError: two lines"}
    assert found["tersor"]["groups"] == 1


def test_page_only_and_not_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    results, page = tmp_path / "results.json", tmp_path / "page.md"
    results.write_text(json.dumps(CONTENT))
    page.write_text("\n".join(torch_pruning.MARKERS))
    options = ["--json", str(results), "--markdown", str(page)]
    assert CliRunner().invoke(torch_pruning.app, ["--stage", "page", *options]).exit_code == 0
    assert "| net | 12, 11 | 2 | 0.499 | 0.495 | 8.000 | 4.000 | 5.000 |" in page.read_text()
    monkeypatch.setitem(sys.modules, "torch_pruning", None)
    result = CliRunner().invoke(torch_pruning.app, options)
    assert (result.exit_code, "pip install --no-deps" in result.output) == (2, True)
