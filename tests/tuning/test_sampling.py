"""Random samples of a network: uniform, resumable, marked as such, and what a held-out network is judged by."""

from __future__ import annotations

from tersor.targets.algorithms import Options
from tersor.targets.tuning.log import read_log
from tersor.targets.tuning.scheduler import Budget
from tersor.targets.tuning.session import TuningSession
from tersor.tests.tuning.fakes import FakeMeasurer, conv_tasks

from benchmarks.held_out import held_out
from benchmarks.sampling import sample, uniform_order


def test_a_sample_goes_on_where_it_was_and_is_marked(tmp_path):
    tasks = conv_tasks(2)
    assert sample(tasks, FakeMeasurer(), 12, tmp_path) == 24
    records = read_log(tmp_path).records
    assert {record.purpose for record in records} == {"random"}
    assert sample(tasks, FakeMeasurer(), 20, tmp_path, records=records) == 16
    for task in tasks:
        drawn = [one.option for one in read_log(tmp_path).records if one.workload == task.workload]
        assert drawn == uniform_order(task)[:20]
        assert set(uniform_order(task)) == set(Options(task.workload, task.target))


def test_a_held_out_network_is_judged_by_its_random_sample(tmp_path):
    *seen, held = conv_tasks(4)
    measurer = FakeMeasurer()
    records = TuningSession([*seen, held], measurer, Budget(trials=60), clock=measurer.clock).run().records
    searched = held_out("net", {held.workload}, records)
    sample([held], FakeMeasurer(), 20, tmp_path)
    drawn = held_out("net", {held.workload}, [*records, *read_log(tmp_path).records])
    assert not searched.uniform
    assert (drawn.uniform, drawn.tasks, drawn.candidates) == (True, 1, 20)
