"""Trained networks of packages: compiled, they answer as their own runtime, and a wrong answer is seen."""

from __future__ import annotations

import importlib
import sys

import numpy as np
import pytest
import torch
from torch import nn

from benchmarks.zoo.page import write_page
from benchmarks.zoo.suite import read_results
from benchmarks.zoo.trained import __main__ as command
from benchmarks.zoo.trained.case import INSTALL, Answer, Loaded, Trained
from benchmarks.zoo.trained.catalog import TRAINED
from benchmarks.zoo.trained.examine import examine, is_same
from benchmarks.zoo.trained.mtcnn import suppress
from benchmarks.zoo.trained.sources import Programs, TorchSource
from benchmarks.zoo.trained.stand_ins import stand_ins

QUICK = {"minilm": "sentence 2"}
AGREEMENT = 2e-4  # of the detector of rapidocr_v4, of which ONNX Runtime is 1.1e-4 from double precision, we 3e-5


def ask_installed(name: str) -> dict:
    """The record of a network; skips the test where its packages are not installed."""
    missing = TRAINED[name].missing()
    if missing:
        pytest.skip(f"no {', '.join(missing)}; {INSTALL}")
    record = examine(TRAINED[name], latency=False)
    assert record["same"], f"{record['theirs']} but compiled {record['ours']}"
    assert all(one["difference"] < AGREEMENT for one in record["networks"])
    assert all(one["macs"] and one["parameters"] and one["calls"] for one in record["networks"])
    return record


@pytest.mark.parametrize("name", QUICK)
def test_networks_answer_as_their_runtime(name: str) -> None:
    assert QUICK[name] in ask_installed(name)["ours"]


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in TRAINED if name not in QUICK])
def test_networks_of_other_packages_answer_as_their_runtime(name: str) -> None:
    ask_installed(name)


class Sum(nn.Module):
    """The sum of all that it was called with."""

    total: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("total", torch.zeros(()))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.total.add_(x.sum())
        return self.total * 1.0


class Original:
    """`Sum` by hand, with what it answers too much."""

    def __init__(self, error: float) -> None:
        self.total, self.error = 0.0, error

    def __call__(self, *inputs: np.ndarray) -> list[np.ndarray]:
        self.total += float(inputs[0].sum())
        return [np.array(self.total + self.error, np.float32)]

    def reset(self) -> None:
        self.total = 0.0


def summing(error: float = 0.0) -> Trained:
    """A network with a state, which is called twice."""

    def ask(networks) -> Answer:
        networks["sum"].reset()
        for value in (1, 2):
            (found,) = networks["sum"](np.full(2, value, np.float32))
        return Answer(f"about {float(found):.0f}", (found,))

    return Trained(
        "sum", "torch", ("torch",), "a sum", lambda: Loaded({"sum": TorchSource(Sum(), Original(error))}, ask)
    )


def test_a_program_for_each_shape_keeps_its_own_state() -> None:
    programs = Programs(TorchSource(Sum()))
    twos, threes = np.ones(2, np.float32), np.ones(3, np.float32)
    assert [programs(one)[0].item() for one in (twos, threes, twos)] == [2.0, 3.0, 4.0]
    assert len(programs.made) == 2
    programs.reset()
    assert programs(twos)[0].item() == 2.0


def test_answers_are_the_same_in_text_and_numbers() -> None:
    one = Answer("a", (np.array([1.0, 2.0]),))
    assert is_same(one, Answer("a", (np.array([1.0, 2.001]),)))
    assert not is_same(one, Answer("a", (np.array([1.0, 2.01]),)))
    assert not is_same(one, Answer("b", one.numbers))
    assert not is_same(one, Answer("a", (np.array([1.0]),)))


def test_a_failure_is_an_answer() -> None:
    def load() -> Loaded:
        raise ValueError("no\nweights")

    record = examine(Trained("x", "torch", (), "nothing", load), latency=False)
    assert not record["same"] and record["ours"] == "fails: ValueError: no weights"


def test_the_command_appends_answers_and_leaves_out_what_is_not_installed(tmp_path, monkeypatch, capsys) -> None:
    absent = Trained("absent", "none", ("no_such_module",), "nothing", lambda: pytest.fail("it was loaded"))
    cases = {"sum": summing(), "wrong": Trained("wrong", *list(vars(summing(0.1)).values())[1:]), "absent": absent}
    monkeypatch.setattr(command, "TRAINED", cases)
    path, page = tmp_path / "trained.jsonl", tmp_path / "models.md"

    def run(models: str) -> bool:
        with pytest.raises(SystemExit) as ended:
            command.main(models, False, path, page)
        return bool(ended.value.code)

    assert not run("sum,absent")
    assert f"absent: left out, for lack of no_such_module; {INSTALL}" in capsys.readouterr().err
    assert run("all")
    assert "wrong: ANOTHER answer: about 6" in capsys.readouterr().err
    assert list(read_results(path)) == ["sum", "wrong"]
    text = page.read_text("utf-8")
    assert "1 of 2 answer the same." in text
    assert f"| sum | torch {torch.__version__} | a sum | about 6 | about 6 | yes |" in text
    assert "| about 6 | **no** |" in text and "| wrong | PyTorch | 0.00 | 2 | 0.0 | 4.8e-02 |  |  |  |" in text


def test_the_page_shows_networks_of_a_package(tmp_path) -> None:
    latency = {"original": 3e-3, "tersor": 2e-3}
    network = {"runtime": "X", "calls": 2, "difference": 1e-6, "parameters": 1_000_000, "macs": 2e6, "latency": latency}
    answers = {"package": "p 1", "task": "t", "theirs": "a|b", "ours": "a|b", "same": True, "machine": "Abacus"}
    record = answers | {"model": "m", "networks": [{"name": name} | network for name in ("n", "o")]}
    write_page(tmp_path / "models.md", {}, {"m": record}, {})
    page = (tmp_path / "models.md").read_text("utf-8")
    assert "| m | p 1 | t | a\\|b | a\\|b | yes |" in page and "Processor: Abacus." in page
    assert "| m: o | X | 1.00 | 2 | 2.0 | 1.0e-06 | 3.000 | 2.000 | 1.50 |" in page


def test_boxes_are_suppressed_within_their_group() -> None:
    boxes = torch.tensor(
        [[0.0, 0.0, 10.0, 10.0], [0.0, 1.0, 10.0, 11.0], [0.0, 5.0, 10.0, 15.0], [0.0, 0.0, 10.0, 10.0]]
    )
    scores, groups = torch.tensor([0.8, 0.9, 0.7, 0.6]), torch.tensor([0, 0, 0, 1])
    assert suppress(boxes, scores, groups, 0.5).tolist() == [1, 2, 3]  # 9/11 goes, 6/14 stays
    assert suppress(boxes, scores, groups, 0.4).tolist() == [1, 3]
    assert suppress(boxes[:0], scores[:0], groups[:0], 0.5).tolist() == []


def test_a_suppressed_box_suppresses_no_other() -> None:
    boxes = torch.tensor([[0.0, top, 10.0, top + 10.0] for top in (0.0, 4.0, 8.0)])  # 6/14 in common with the next
    assert suppress(boxes, torch.tensor([0.9, 0.8, 0.7]), torch.zeros(3), 0.4).tolist() == [0, 2]


def test_stand_ins_go_again() -> None:
    json = sys.modules["json"]
    with stand_ins({"absent": {}, "absent.inner": {"one": 1}, "json": {"two": 2}}):
        assert importlib.import_module("absent.inner").one == 1
        assert importlib.import_module("json").two == 2
    assert sys.modules["json"] is json and "absent" not in sys.modules and "absent.inner" not in sys.modules
