"""Random samples of a network: uniform, resumable, marked as such, and what a held-out network is judged by."""

from __future__ import annotations

from collections import Counter

from benchmarks.held_out import held_out
from benchmarks.sampling import SAMPLES, Sampler, uniform_order
from tersor.targets.codegen.options import Options
from tersor.targets.tuning.log import read_log
from tersor.targets.tuning.scheduler import Budget
from tersor.targets.tuning.session import TuningSession
from tersor.tests.tuning.fakes import FakeMeasurer, conv_tasks, true_seconds


def test_a_sample_goes_on_where_it_was_and_is_marked(tmp_path):
    tasks = conv_tasks(2)
    assert Sampler(tasks, FakeMeasurer(), 12, tmp_path).run() == 24
    records = read_log(tmp_path).records
    assert Sampler(tasks, FakeMeasurer(), 20, tmp_path, records=records).run() == 16
    records = [record for record in read_log(tmp_path).records if record.purpose == "random"]
    for task in tasks:
        drawn = [one.option for one in records if one.workload == task.workload]
        assert drawn == uniform_order(task)[:20]
        assert set(uniform_order(task)) == set(Options(task.workload, task.target))


def test_the_fastest_of_a_sample_are_measured_again(tmp_path):
    (task,) = conv_tasks(1)
    Sampler([task], FakeMeasurer(noise=0.001), 20, tmp_path).run()
    records = read_log(tmp_path).records
    drawn = [record.option for record in records if record.purpose == "random"]
    seconds = {option: true_seconds(task, option) for option in drawn}
    limit = 1.05 * min(seconds.values())
    again = Counter(record.option for record in records if record.purpose == "final")
    assert again == {option: SAMPLES - 1 for option in drawn if seconds[option] <= limit}
    Sampler([task], FakeMeasurer(), 20, tmp_path, records=records).run()
    assert len(read_log(tmp_path).records) == len(records)


def test_a_held_out_network_is_judged_by_its_random_sample(tmp_path):
    *seen, held = conv_tasks(4)
    measurer = FakeMeasurer()
    records = TuningSession([*seen, held], measurer, Budget(trials=60), clock=measurer.clock).run().records
    searched = held_out("net", {held.workload}, records)
    Sampler([held], FakeMeasurer(), 20, tmp_path).run()
    drawn = held_out("net", {held.workload}, [*records, *read_log(tmp_path).records])
    assert not searched.uniform
    assert (drawn.uniform, drawn.tasks, drawn.candidates) == (True, 1, 20)
