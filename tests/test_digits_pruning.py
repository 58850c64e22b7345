"""What the example with digits shows of pruning: curves, fewer blocks and early exits, on tiny untrained networks.

The slow tests train (minutes, unless it is in the cache) and hold what is said of trained networks.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from rich.console import Console
from torch.nn import functional
from typer.testing import CliRunner

from benchmarks import torch_pruning_digits
from benchmarks.harness import Schedule
from examples.digits import __main__ as command
from examples.digits import blocks, chart, curves, data, exits, models, networks, report, training
from examples.digits.curves import RANDOM, STAGES, Curve, Curves
from examples.digits.data import Digits
from examples.digits.exits import ChosenExits, Exits
from examples.digits.models import DigitNetwork
from examples.digits.studies import Change
from examples.digits.training import Recipe

TINY = Recipe(epochs=1, rate=0.05)


@pytest.fixture
def untrained(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """Tiny networks, few pictures, and training that does nothing."""
    train, test = data.load()
    few = (Digits(train.images[:100], train.labels[:100]), Digits(test.images[:100], test.labels[:100]))
    net = DigitNetwork("tiny", lambda: networks.ResNet20((4, 4, 8), 2), TINY, multiple=1)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(training, "THREADS", 1)
    monkeypatch.setattr(training, "train", lambda name, module, recipe, digits: module.eval())
    monkeypatch.setattr(data, "load", lambda: few)
    for place in (models, curves, command):
        monkeypatch.setattr(place, "NETWORKS", {"resnet20": net})
    monkeypatch.setattr(models, "PREPARED", {"resnet20-stochastic": net})
    monkeypatch.setattr(models, "EXITS", {2: 4, 4: 4})
    monkeypatch.setattr(exits, "EXITS", {2: 4, 4: 4})
    cached = (models.original, models._graph, models.changed, models.reestimated)
    for found in cached:
        found.cache_clear()
    yield
    for found in cached:
        found.cache_clear()


def change(reestimated: float, tuned: float, macs: float = 0.5) -> Change:
    return Change("prune-channels{}", macs, 0.1, reestimated, tuned, 1.0)


def made_up() -> Curves:
    drawn = tuple(change(0.7 + seed / 10, 0.9 + seed / 100, 0.48) for seed in range(3))
    one = Curve("l1", ((change(0.9, 0.95),), (change(0.8, 0.90),)))
    return Curves("net", 0.99, 1, (0.5, 0.25), (one, Curve(RANDOM, (drawn, drawn))), {0.25: 0.85})


def test_branches_are_left_out_in_training_only() -> None:
    torch.manual_seed(0)
    layer, ones = networks.StochasticDepth(0.25), torch.ones(4000, 2, 1, 1)
    found = layer.train()(ones)
    assert torch.equal(found[:, 0], found[:, 1])  # of a sample the whole branch
    assert set(found.unique().tolist()) == {0.0, float(torch.tensor(1 / 0.75))}
    assert float((found == 0).float().mean()) == pytest.approx(0.25, abs=0.03)
    assert torch.equal(layer.eval()(ones), ones)
    network = networks.ResNet20(probability=0.5)
    probabilities = [part.probability for part in network.modules() if isinstance(part, networks.StochasticDepth)]
    assert probabilities == pytest.approx([0.5 * number / 9 for number in range(1, 10)])


def test_layers_that_draw_numbers_train_by_the_seed_of_the_recipe() -> None:
    train = data.load()[0]
    few = Digits(train.images[:100], train.labels[:100])

    def numbers(global_seed: int) -> torch.Tensor:
        torch.manual_seed(0)
        module = networks.ResNet20((4,), 2, probability=0.9)
        torch.manual_seed(global_seed)
        before = torch.get_rng_state()
        training.train("test", module, TINY, few)
        assert torch.equal(torch.get_rng_state(), before)
        return torch.cat([tensor.flatten().float() for tensor in module.state_dict().values()])

    assert torch.equal(numbers(1), numbers(2))


def test_losses_of_all_exits_are_added() -> None:
    torch.manual_seed(0)
    module = networks.WithExits(networks.ResNet20((4, 4, 8), 1), {1: 4, 2: 4})
    with torch.no_grad():
        outputs, labels = module(torch.rand(6, 1, 28, 28)), torch.arange(6)
    assert [tuple(one.shape) for one in outputs] == [(6, 10)] * 3
    expected = sum(functional.cross_entropy(one, labels) for one in outputs)
    assert float(training._loss(outputs, labels)) == pytest.approx(float(expected))
    assert float(training._loss(outputs[0], labels)) == float(functional.cross_entropy(outputs[0], labels))


def test_where_a_criterion_does_not_beat_random() -> None:
    found = made_up()
    assert found.curves[1].means(STAGES["fine-tuned"]) == pytest.approx([0.91, 0.91])
    assert found.not_above_random(STAGES["fine-tuned"]) == {"l1": (0.25,)}
    assert found.not_above_random(STAGES["no training"]) == {"l1": (0.25,)}


def test_tables_and_chart(tmp_path: Path) -> None:
    console = Console(width=160, record=True)
    for stage in STAGES:
        console.print(report.curves_table(made_up(), stage))
    chosen = ChosenExits("max_drop=0.01", (0.5, 0.3, 0.2), 14e6, 0.985, 0.9, 2e-4)
    console.print(report.exits_table(Exits("net", 30_000_000, 0.989, (9, 20, 32), (0.9, 0.95, 0.99), 4e-4, (chosen,))))
    text = console.export_text()
    for part in ("91.0 (90.0-92.0)", "l1, from scratch", "85.0", "max_drop=0.01", "14.0", "98.5", "0.200", "99.0"):
        assert part in text
    path = tmp_path / "chart.svg"
    written = []
    for _ in range(2):
        chart.draw([made_up(), made_up()], path)
        written.append(path.read_bytes())
    assert written[0] == written[1]
    assert all(chart.LINES[name][0].lower().encode() in written[0] for name in ("l1", RANDOM))
    assert set(chart.LINES) == set(curves.OPTIONS)


def test_curves_command(untrained: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(curves, "OPTIONS", {name: curves.OPTIONS[name] for name in ("l1", RANDOM)})
    path = tmp_path / "out.json"
    options = ["--networks", "resnet20", "--ratios", "0.6,0.4", "--scratch", "0.4", "--json", str(path)]
    result = CliRunner().invoke(command.app, ["curves", *options, "--chart", str(tmp_path / "curves.svg")])
    assert result.exit_code == 0, result.output
    assert (tmp_path / "curves.svg").exists()
    (found,) = json.loads(path.read_text("utf-8"))["curves"]["networks"]
    assert [one["name"] for one in found["curves"]] == ["l1", RANDOM]
    assert [len(one) for one in found["curves"][1]["changes"]] == [3, 3]
    for one in found["curves"]:
        for ratio, changes in zip((0.6, 0.4), one["changes"], strict=True):
            assert all(ratio - 0.15 < each["macs"] <= ratio for each in changes)
    assert list(found["scratch"]) == ["0.4"]


def test_budgets_command(untrained: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Fine-tuning, and training from scratch for the same epochs, and for those of the network besides."""
    recipes = []

    def train(name: str, module: torch.nn.Module, recipe: Recipe, digits: Digits) -> None:
        recipes.append((name, recipe.epochs, recipe.seed))
        module.eval()

    monkeypatch.setattr(training, "train", train)
    path = tmp_path / "out.json"
    options = ["--networks", "resnet20", "--epochs", "2", "--json", str(path)]
    result = CliRunner().invoke(command.app, ["budgets", *options, "--whole"])
    assert result.exit_code == 0 and "random weights, and" in result.output, result.output
    tuned, scratch = ([one[1:] for one in recipes if one[0] == f"resnet20-{kind}"] for kind in ("tuned", "scratch"))
    assert scratch == [(2, 0), (2, 1), (2, 2), (3, 0), (3, 1), (3, 2)]
    assert tuned == [(2, 0), (2, 1), (2, 2)] * 2
    (found,) = json.loads(path.read_text("utf-8"))["budgets"]["networks"][0]["budgets"]
    assert [len(one) for one in (*found["tuned"].values(), found["scratch"], found["whole"])] == [3, 3, 3, 3]
    result = CliRunner().invoke(command.app, ["budgets", *options])
    assert result.exit_code == 0 and "random weights, and" not in result.output, result.output
    (again,) = json.loads(path.read_text("utf-8"))["budgets"]["networks"][0]["budgets"]
    assert again == {**found, "whole": []}


def test_blocks_command(untrained: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(command, "_schedule", lambda rounds: Schedule(rounds, 0.0, 2, 2, 1, 0.0))
    path = tmp_path / "out.json"
    result = CliRunner().invoke(command.app, ["blocks", "--counts", "1,2", "--rounds", "1", "--json", str(path)])
    assert result.exit_code == 0, result.output
    found = json.loads(path.read_text("utf-8"))["blocks"]["networks"]
    assert len(found) == len(blocks.PREPARATIONS)
    for study in found:
        assert [one["name"] for one in study["programs"]] == ["float32", "1 blocks less", "2 blocks less"]
        first, second = (one["macs"] for one in study["changes"])
        assert 1 > first > second
    options = ["--counts", "1", "--no-latency", "--json", str(path)]
    result = CliRunner().invoke(command.app, ["blocks", *options])
    assert result.exit_code == 0 and "as it is" in result.output, result.output
    again = json.loads(path.read_text("utf-8"))["blocks"]["networks"]
    assert [(one["programs"], one["changes"][0]) for one in again] == [([], one["changes"][0]) for one in found]


def test_exits_command(untrained: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(exits, "ASKED", ({"max_drop": 0.01}, {"macs": 0.9}))
    path = tmp_path / "out.json"
    result = CliRunner().invoke(command.app, ["exits", "--json", str(path)])
    assert result.exit_code == 0, result.output
    (found,) = json.loads(path.read_text("utf-8"))["exits"]["networks"]
    assert found["macs"] == sorted(found["macs"]) and found["macs"][-1] > found["plain_macs"]
    assert [one["asked"] for one in found["chosen"]] == ["max_drop=0.01", "macs=0.9"]
    for one in found["chosen"]:
        assert sum(one["shares"]) == pytest.approx(1, abs=1e-4)
        expected = sum(share * macs for share, macs in zip(one["shares"], found["macs"], strict=True))
        assert one["macs"] == pytest.approx(expected, rel=1e-3)
        assert min(found["accuracies"]) - 0.1 <= one["by_chance"] <= max(found["accuracies"]) + 0.1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["curves", "--networks", "resnet20,lenet"], "lenet is none of"),
        (["curves", "--ratios", "0.5,1.5"], "no list of ratios between 0 and 1"),
        (["curves", "--ratios", "half"], "no list of ratios between 0 and 1"),
        (["curves", "--scratch", "2"], "no list of ratios between 0 and 1"),
        (["blocks", "--counts", "0"], "no list of numbers of blocks"),
        (["budgets", "--epochs", "1,"], "no list of numbers of epochs"),
        (["few-bits", "--networks", "lenet"], "lenet is none of"),
    ],
)
def test_mistakes_on_the_command_line(arguments: list[str], message: str) -> None:
    result = CliRunner().invoke(command.app, arguments)
    assert result.exit_code == 2
    assert message in " ".join(result.output.replace("│", " ").split())


def test_accuracy_beside_torch_pruning(untrained: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch_pruning_digits, "_pruned", _ours_only)
    found = torch_pruning_digits.accuracy_of("resnet20", 1)
    assert list(found["ways"]) == ["tersor, l1"]
    one = found["ways"]["tersor, l1"]
    assert 0.3 < one["macs"] <= 0.5 and len(one["tuned"]) == len(torch_pruning_digits.SEEDS)
    assert one["tuned"] == [one["reestimated"]] * 3  # training does nothing here
    rows = torch_pruning_digits.accuracy_sheet({"net": {**found, "exact": 0.5}}).rows
    assert rows[0][:4] == ("net", "", "1", "50.0")
    assert rows[1][1:3] == ("tersor, l1", f"{one['macs']:.3f}")


def _ours_only(name: str) -> Iterator[tuple[str, object]]:
    yield "tersor, l1", models.changed(name, "prune-channels{macs=0.5}", training.BATCH)


@pytest.mark.slow
def test_pictures_leave_where_they_are_certain() -> None:
    found = exits.exits_of_resnet()
    (chosen,) = (one for one in found.chosen if one.asked == "max_drop=0.01")
    assert found.accuracies[-1] - chosen.accuracy <= 0.01 + 1e-9
    assert chosen.accuracy - chosen.by_chance > 0.02
    assert chosen.macs < 0.7 * found.plain_macs
