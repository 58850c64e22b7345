"""Networks of the zoo lose 30 % of their multiply-adds, and what is left is the network with zeros in that place."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from benchmarks.zoo.catalog import ZOO
from benchmarks.zoo.entry import Entry, Numbers
from benchmarks.zoo.page import write_page
from benchmarks.zoo.pruning import SHARE, PruningStage, UnequalError, _require, apart, examine_pruning

QUICK = ("vit", "swin", "llama")
SLOW = ("bert", "convnext", "mobilevit", "unet", "resnet20_cifar10", "qwen3", "segformer", "wav2vec2")
COMPILED = ("vit",)


def found(entry: Entry, stage: PruningStage = PruningStage.PRUNE) -> dict:
    """The last record, made in this process."""
    records: list[dict] = []
    examine_pruning(entry, stage, records.append)
    return records[-1]


def check(record: dict) -> None:
    assert "failed" not in record, record["why"]
    assert "why_less" not in record and record["left"] <= 1 - SHARE


@pytest.mark.parametrize("name", QUICK)
def test_networks_are_pruned(name: str) -> None:
    check(found(ZOO[name]))


@pytest.mark.slow
@pytest.mark.parametrize("name", SLOW)
def test_more_networks_are_pruned(name: str) -> None:
    check(found(ZOO[name]))


@pytest.mark.slow
@pytest.mark.parametrize("name", COMPILED)
def test_pruned_networks_compile(name: str) -> None:
    record = found(ZOO[name], PruningStage.COMPILE)
    check(record)
    assert record["as_program"] < 1e-4


def small(*layers: nn.Module) -> Entry:
    return Entry("small", "Small", lambda: nn.Sequential(*layers), (Numbers((1, 4)),))


def test_what_cannot_be_pruned_says_why() -> None:
    record = found(small(nn.Linear(4, 3)))
    assert record["stage"] == "prune" and "left" not in record
    assert "since they reach output 0 of the graph" in record["why_less"]


def test_a_network_that_is_mostly_held_loses_what_it_can() -> None:
    held = nn.Sigmoid(), nn.LayerNorm(64)
    record = found(
        small(nn.Linear(4, 64), *held, nn.Linear(64, 64), *held, nn.Linear(64, 4), nn.ReLU(), nn.Linear(4, 2))
    )
    assert record["asked"] == "ratio=0.3" and record["left"] < 1
    assert record["why_less"].startswith("macs=0.7 would empty a layer")


def test_another_result_is_a_failure() -> None:
    assert _require(1e-4, "twin") == 1e-4
    for number in (0.5, float("nan")):
        with pytest.raises(UnequalError, match="and twin differ by"):
            _require(number, "twin")
    assert _require(0.5, "twin", allowed=0.6) == 0.5


def test_the_page_says_what_was_found(tmp_path) -> None:
    known = {"stage": "prune", "machine": "Abacus", "groups": 4}
    results: dict[str, dict] = {
        "unet": {**known, "left": 0.69},
        "segnet_cityscapes": {**known, "left": 0.7, "as_program": 0.07, "rounding": 0.05},
        "vit": {**known, "left": 0.8, "why_less": "macs=0.7 would empty a layer"},
        "ssd": {**known, "why_less": "nothing to prune: no layer can lose channels"},
        "bert": {"stage": "import", "machine": "Abacus", "failed": "prune", "why": "UnequalError: too far"},
    }
    path = tmp_path / "models.md"
    write_page(path, {}, {}, {name: {"model": name, **record} for name, record in results.items()})
    page = path.read_text("utf-8")
    assert f"5 of {len(ZOO)} were tried. 2 were pruned to 0.7 of their multiply-adds, 1 to more" in page
    assert "outputs of segnet_cityscapes (5.0e-02; its program\ndiffers by 7.0e-02): choices between" in page
    assert "| bert | prune | UnequalError: too far |" in page
    assert "| vit | 4 | 0.800 | macs=0.7 would empty a layer |" in page
    assert "| ssd | nothing to prune: no layer can lose channels |" in page


def test_choices_differ_by_their_share_and_numbers_by_their_size():
    chosen = torch.arange(1000)
    other = chosen.clone()
    other[3] = 999  # one of a thousand, however far the numbers of the classes are apart
    assert apart([chosen], [other]) == pytest.approx(1e-3)
    assert apart([chosen, torch.tensor([4.0])], [chosen, torch.tensor([3.0])]) == pytest.approx(0.25)
