"""The queue: who is tried again when a process is lost, and who has failed."""

from concurrent.futures.process import BrokenProcessPool

import pytest

from sbi_boed_plugin.benchmark import _queue
from sbi_boed_plugin.benchmark._old_store import Store
from sbi_boed_plugin.benchmark.jobs import expand_jobs
from sbi_boed_plugin.benchmark.worker import Orders, Outcome

NUM_WORKERS = 3


class KilledWorker(Exception):
    """Called as that of dask, and related to it by its name only."""


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Run jobs on a pool that is lost as soon as one of them is deadly."""

    def run(deadly, error, num_jobs=7):
        pools = []

        def outcomes(jobs, orders, num_workers, sent):
            pools.append([job.num_observation for job in jobs])
            for start in range(0, len(jobs), NUM_WORKERS):
                beside = jobs[start : start + NUM_WORKERS]
                sent.extend(beside)
                if any(job.num_observation in deadly for job in beside):
                    raise error
                for job in beside:
                    yield Outcome(job, "done")

        monkeypatch.setattr(_queue, "_outcomes", outcomes)
        settings = {"num_simulations": [10], "seeds": [0]}
        observations = list(range(1, num_jobs + 1))
        jobs = expand_jobs(["sir"], ["npe"], observations=observations, **settings)
        orders = Orders(Store(tmp_path), ("mmd",))
        found = {}
        for outcome in _queue.run_all(jobs, orders, NUM_WORKERS, False):
            assert outcome.job.num_observation not in found
            found[outcome.job.num_observation] = outcome.status
        assert set(found) == set(observations)
        failed = {number for number, status in found.items() if status == "failed"}
        recorded = {
            job.num_observation for job in jobs if orders.store.read(job) is not None
        }
        assert recorded == failed
        return failed, pools

    return run


@pytest.mark.parametrize("error", [BrokenProcessPool("lost"), KilledWorker("lost")])
@pytest.mark.parametrize("deadly", [set(), {2}, {1, 2}, {2, 6}, {1, 2, 3}, {7}])
def test_only_who_kills_its_process_fails(run, deadly, error):
    failed, pools = run(deadly, error)
    assert failed == deadly
    # Suspects have nobody beside them.
    alone = [pool for pool in pools if len(pool) == 1]
    assert [number for number in deadly if [number] not in alone] == []


def test_other_errors_are_not_taken_for_a_lost_process(run):
    with pytest.raises(OSError, match="disk full"):
        run({2}, OSError("disk full"))
