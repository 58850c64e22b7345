"""Calibration data in the forms that people have it, and what is said of data that does not fit."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

import tersor
from tersor import TersorError
from tersor.ir import Graph, TersorWarning
from tersor.passes.calibration import Batches, CalibrationData, read_calibration

SHAPE = (2, 3, 6, 6)


class Net(nn.Module):
    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return image.relu()


class Pair(nn.Module):
    def forward(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return ids * mask


@pytest.fixture(scope="module")
def graph() -> Graph:
    return tersor.from_torch(Net(), torch.zeros(SHAPE))


@pytest.fixture(scope="module")
def single() -> Graph:
    return tersor.from_torch(Net(), torch.zeros(1, *SHAPE[1:]))


@pytest.fixture(scope="module")
def pair() -> Graph:
    return tersor.from_torch(Pair(), (torch.zeros(1, 4), torch.zeros(1, 4)))


def images(count: int = 3, size: int = 2) -> Iterator[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    for _ in range(count):
        yield torch.randn(size, *SHAPE[1:], generator=generator)


def bound(source: Any, graph: Graph, **options: Any) -> Batches:
    found = read_calibration(CalibrationData(source, name="data", **options), graph)
    assert found is not None
    return found


def values(source: Any, graph: Graph, **options: Any) -> torch.Tensor:
    """The one input of all batches, joined."""
    return torch.cat([x for (x,) in bound(source, graph, **options)])


class Pictures(Dataset[tuple[torch.Tensor, int]]):
    """Has a length and items, and cannot be iterated otherwise."""

    def __init__(self, tensor: torch.Tensor) -> None:
        self.tensor = tensor

    def __len__(self) -> int:
        return len(self.tensor)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return self.tensor.clone()[index % len(self)], 7  # no IndexError behind the end


def test_a_batch_in_every_form(graph: Graph):
    (x,) = images(1)
    for batch in (x, x.numpy(), (x,), [x.numpy()], {"image": x, "label": 1}):
        assert torch.equal(values([batch], graph), x)


def test_a_source_in_every_form(graph: Graph):
    wanted = torch.cat([*images()])
    for source in (
        [*images()],
        images,
        images(),
        iter([*images()]),
        wanted,
        wanted.numpy(),
        torch.stack([*images()]),
        {"image": wanted},
        DataLoader(TensorDataset(wanted), batch_size=2),
        lambda: {"image": wanted},
    ):
        data = bound(source, graph)
        for _ in range(2):
            assert torch.equal(torch.cat([x for (x,) in data]), wanted)


@pytest.mark.filterwarnings("ignore:.*taken for labels")
def test_data_sets_have_samples_without_a_batch_dimension(single: Graph):
    wanted = torch.cat([*images()])
    assert torch.equal(values(Pictures(wanted), single), wanted)
    assert torch.equal(values(DataLoader(Pictures(wanted), batch_size=4), single), wanted)
    assert torch.equal(values(wanted, single), wanted)


def test_labels_are_left_out_and_this_is_said_once(graph: Graph):
    batches = [(x, torch.zeros(2)) for x in images()]
    data = bound(batches, graph)
    with pytest.warns(TersorWarning, match="data: batches have one value more .* the last is taken for labels") as told:
        assert [len(batch) for batch in [*data, *data]] == [1] * 6
    assert len(told) == 1


def test_transformed_first(graph: Graph):
    items = [{"picture": x.numpy()} for x in images()]
    found = values(items, graph, transform_fn=lambda item: torch.from_numpy(item["picture"]) / 2)
    assert torch.equal(found, torch.cat([*images()]) / 2)


def test_longer_batches_are_cut_and_the_rest_is_left_out(graph: Graph):
    (long,) = images(1, size=7)
    with pytest.warns(TersorWarning, match="the model takes 2 samples at once; 1 of a batch of 7 are left out"):
        assert torch.equal(values([long], graph), long[:6])
    with pytest.warns(TersorWarning, match="1 of a batch of 1 are left out"):
        assert torch.equal(values([long[:6], long[6:]], graph), long[:6])


def test_several_inputs_by_name(pair: Graph):
    ids, mask = torch.rand(3, 4), torch.rand(3, 4)
    for source in ([{"mask": mask, "ids": ids, "labels": ids}], [(ids, mask)], {"ids": ids, "mask": mask}):
        parts = [*bound(source, pair)]
        assert torch.equal(torch.cat([part[0] for part in parts]), ids)
        assert torch.equal(torch.cat([part[1] for part in parts]), mask)


def test_data_is_streamed(graph: Graph):
    alive = []

    def loader() -> Iterator[torch.Tensor]:
        for number in range(1000):
            alive.append(number)
            yield torch.zeros(SHAPE)

    next(iter(bound(loader, graph)))
    assert alive == [0]


def test_how_many_batches_there_are(graph: Graph):
    data = bound(images, graph)
    assert data.total is None
    assert len([*data]) == data.total == 3
    assert bound([*images()], graph).total == 3


def broken() -> Iterator[torch.Tensor]:
    yield from images(1)
    raise RuntimeError("disk\nis gone")


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (3, "data: is a int; give an iterable of batches, or a function"),
        ("text", "data: is a str; give"),
        ([], "data: yields no batch; give at least one"),
        (iter([]), "data: yields no batch; give at least one"),
        (lambda: None, "data: returns a NoneType, not an iterable of batches"),
        (lambda: 1 // 0, "data: raised ZeroDivisionError: "),
        (broken, "data: raised RuntimeError: disk is gone"),
        ([torch.zeros(2, 3, 6)], r"batch 0 does not fit: .* got \[2, 3, 6\]"),
        ([torch.zeros(SHAPE), torch.zeros(2, 3, 6, 5)], r"batch 1 does not fit: .* got \[2, 3, 6, 5\]"),
        ([torch.zeros(SHAPE, dtype=torch.float64)], "must be f32, got torch.float64; cast it first"),
        ([[torch.zeros(SHAPE)] * 3], "takes 1 inputs .*, got 3"),
        ([{"images": 1}], "batch 0 does not fit: it has no array for input 'image', only 'images'; a transform_fn can"),
        ([torch.zeros(SHAPE, device="meta")], "it holds a tensor on the device 'meta', which has no numbers"),
        ([torch.zeros(SHAPE).to_sparse()], r"it holds a sparse tensor; call its to_dense\(\) first"),
        ([["a"]], "it holds a str; inputs are torch tensors or NumPy arrays"),
        ([np.full(SHAPE, "x")], "an array of <U1 cannot be used"),
    ],
)
def test_bad_data(graph: Graph, source: Any, message: str):
    with pytest.raises(TersorError, match=message):
        list(bound(source, graph))


def test_too_few_samples_for_one_batch(graph: Graph):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(TersorError, match="yields no batch that is as long as the model's"):
            list(bound([torch.zeros(1, 3, 6, 6)], graph))


def test_what_transforms_must_be_a_function():
    with pytest.raises(TersorError, match="transform_fn must be a function, not a str"):
        CalibrationData([], transform_fn="upper")  # type: ignore[arg-type]


def test_a_function_whose_iterable_is_exhausted_after_one_pass(graph: Graph):
    stream = images()
    data = bound(lambda: stream, graph)
    assert len(list(data)) == 3
    with pytest.raises(TersorError, match="has no batches the second time; return a new iterable for each call"):
        list(data)


# As users give it -------------------------------------------------------------------------------------------------


def test_a_loader_with_labels_calibrates_a_model():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3)).eval()
    pictures = torch.randn(6, *SHAPE[1:])
    loader = DataLoader(TensorDataset(pictures, torch.zeros(6)), batch_size=4)
    graph = tersor.from_torch(net, pictures[:1])
    pipeline = "quantize-annotate,quantize-calibrate"
    with pytest.warns(TersorWarning, match="taken for labels"):
        found = tersor.run_passes(graph, pipeline, calibration=loader)
    assert str(found) == str(tersor.run_passes(graph, pipeline, calibration=[(one[None],) for one in pictures]))


@pytest.mark.parametrize(
    ("pipeline", "name"),
    [
        ("O3,quantize", "quantize-calibrate"),
        ("prune-channels{criterion=taylor}", "prune-channels"),
        ("prune-channels{reconstruct=lasso}", "prune-channels"),
        ("dce,reestimate-batchnorm", "reestimate-batchnorm"),
    ],
)
def test_missing_data_is_found_before_any_work(pipeline: str, name: str):
    """Even before the model is exported: this one cannot be."""
    with pytest.raises(TersorError, match=f"pass '{name}' needs calibration data: give at least one batch of inputs"):
        tersor.compile(nn.Bilinear(2, 2, 2), torch.zeros(1), pipeline=pipeline)
