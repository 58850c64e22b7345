"""The programs about pruning in docs/compression.md run as they stand there."""

from __future__ import annotations

import re
from pathlib import Path

import torch
from torch import nn

import tersor

DOCUMENT = Path(__file__).parents[3] / "docs" / "compression.md"


def test_prune_fine_tune_compile():
    generator = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    images = torch.randn(256, 1, 8, 8, generator=generator)
    labels = (images[:, 0, :4].mean((1, 2)) > images[:, 0, 4:].mean((1, 2))).long()
    layers = [nn.Conv2d(1, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(), nn.Conv2d(32, 32, 3, padding=1)]
    model = nn.Sequential(*layers, nn.BatchNorm2d(32), nn.ReLU(), nn.AvgPool2d(4), nn.Flatten(), nn.Linear(128, 2))
    programs = re.findall(r"```python\n(.*?)```", DOCUMENT.read_text("utf-8"), re.DOTALL)
    (program,) = (one for one in programs if "optimizer" in one)
    assert len([line for line in program.splitlines() if line.strip()]) <= 16

    found = {"tersor": tersor, "torch": torch, "model": model.eval(), "images": images, "labels": labels}
    exec(compile(program, str(DOCUMENT), "exec"), found)

    tuned, deployed, executable = found["tuned"].eval(), found["deployed"], found["program"]
    answers = torch.cat([tuned(part) for part in images.split(32)]).argmax(1)
    assert (answers == labels).float().mean() > 0.9
    with torch.no_grad():
        torch.testing.assert_close(deployed(images[5:6]), tuned(images[:32])[5:6], rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(executable(images[5:6]), deployed(images[5:6]), rtol=1e-4, atol=1e-4)
    macs = [tersor.from_torch(module, images[:1]).cost().macs for module in (deployed, model)]
    assert macs[0] <= 0.5 * macs[1]


def test_prune_in_steps():
    torch.manual_seed(0)
    images = torch.randn(64, 1, 8, 8)
    layers = [nn.Conv2d(1, 40, 3, padding=1, bias=False), nn.BatchNorm2d(40), nn.ReLU(), nn.Conv2d(40, 20, 3)]
    model = nn.Sequential(*layers, nn.ReLU(), nn.Flatten(), nn.Linear(720, 2)).eval()
    programs = re.findall(r"```python\n(.*?)```", DOCUMENT.read_text("utf-8"), re.DOTALL)
    (program,) = (one for one in programs if "for ratio in" in one)
    names = [name for name, _ in model.named_parameters()]
    widths, averages = [], {name: [] for name in names}

    def fine_tune(module: nn.Module) -> None:
        """Training code that goes by names: no decay of biases, and an average of what each parameter was."""
        module.train()
        decayed = [one for name, one in module.named_parameters() if name.endswith("weight")]
        others = [one for name, one in module.named_parameters() if name.endswith("bias")]
        optimizer = torch.optim.SGD(others, lr=0.01)
        optimizer.add_param_group({"params": decayed, "weight_decay": 0.1})
        module(images[:32]).square().sum().backward()
        optimizer.step()
        for name in names:
            averages[name].append(module.get_parameter(name).detach().mean())
        assert {name for name, _ in module.named_parameters()} == set(names)
        widths.append(sum(module.get_parameter(name).shape[0] for name in ("0.weight", "3.weight")))

    found = {"tersor": tersor, "torch": torch, "model": model, "images": images, "fine_tune": fine_tune}
    exec(compile(program, str(DOCUMENT), "exec"), found)
    assert widths == [48, 36]
    assert sorted(found["model"].state_dict()) == sorted(key for key in model.state_dict() if "batches" not in key)


def test_stochastic_depth_prepares_for_fewer_blocks():
    programs = re.findall(r"```python\n(.*?)```", DOCUMENT.read_text("utf-8"), re.DOTALL)
    (program,) = (one for one in programs if "class StochasticDepth" in one)
    found: dict = {"torch": torch, "nn": nn}
    exec(compile(program, str(DOCUMENT), "exec"), found)
    torch.manual_seed(0)
    model = nn.Sequential(*(found["Block"](4, depth, 3) for depth in (1, 2, 3)))
    branch = found["StochasticDepth"](0.5)(torch.ones(400, 2, 1, 1))
    assert set(branch.unique().tolist()) == {0.0, 2.0}
    assert 0.8 < branch.mean() < 1.2
    images = torch.randn(2, 4, 6, 6)
    model(images).sum().backward()
    graph = tersor.from_torch(model.eval(), images)
    small = tersor.run_passes(graph, "prune-blocks{count=1}", calibration=[images])
    assert small.cost().macs * 3 == graph.cost().macs * 2
