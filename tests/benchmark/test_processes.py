"""Processes: killed ones, interrupted ones, several on one folder, and dask's."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.benchmark.conftest import MODULE, timeless

REPOSITORY = Path(__file__).parents[2]
OBSERVATIONS = 6


def start(folder, log, *options, seconds=0.4, observations=f"1-{OBSERVATIONS}"):
    """Start the command in a process group of its own, as a shell does."""
    arguments = ["bench", "--tasks", "two_moons", "--methods", f"{MODULE}:logged"]
    arguments += ["--budgets", "100", "--observations", observations]
    arguments += ["--num-samples", "20", "--metrics", "mmd", "--output", str(folder)]
    arguments += ["--set", f"log={str(log)!r}", f"seconds={seconds}", *options]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-m", "sbi_boed_plugin", *arguments],
        env=environment,
        start_new_session=True,
        # Whoever runs the tests in the background has shells ignore interrupts.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for_lines(log, number, process, seconds=60.0):
    """Wait until a method has been called so many times."""
    end = time.monotonic() + seconds
    while len(lines(log)) < number:
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < end, "the jobs do not start"
        time.sleep(0.05)


def lines(log):
    return log.read_text().splitlines() if log.exists() else []


def contents(folder):
    """Return all results by observation; none is half-written."""
    found = {}
    for path in (folder / "results").rglob("*.json"):
        record = json.loads(path.read_text())
        assert record["status"] == "done"
        found[record["job"]["num_observation"]] = timeless(record)
    return found


def test_a_killed_run_goes_on_and_ends_as_an_undisturbed_one(bench, tmp_path):
    log, folder = tmp_path / "log", tmp_path / "killed"
    process = start(folder, log, "--jobs", "2")
    wait_for_lines(log, 4, process)
    # The workers with it, in the middle of their jobs, which nothing moves meanwhile.
    while True:
        os.killpg(process.pid, signal.SIGSTOP)
        time.sleep(0.05)
        if len(list(folder.rglob("*.begun"))) == 2:
            break
        os.killpg(process.pid, signal.SIGCONT)
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    started = len(lines(log))
    kept = contents(folder)
    assert 0 < len(kept) < OBSERVATIONS
    assert len(list(folder.rglob("*.begun"))) == 2

    settings = {
        "observations": range(1, OBSERVATIONS + 1),
        "num_samples": 20,
        "hyper": {"log": str(log), "seconds": 0.4},
    }
    assert bench("logged", output=folder, **settings) == 0
    ended = contents(folder)
    assert {number: ended[number] for number in kept} == kept
    assert not list(folder.rglob("*.begun"))
    assert len(lines(log)) - started == OBSERVATIONS - len(kept)
    assert bench("logged", output=tmp_path / "undisturbed", **settings) == 0
    assert ended == contents(tmp_path / "undisturbed")


def test_two_runs_on_one_folder_share_the_jobs(tmp_path):
    log, folder = tmp_path / "log", tmp_path / "shared"
    processes = [start(folder, log) for _ in range(2)]
    for process in processes:
        out, err = process.communicate(timeout=120)
        assert process.returncode == 0, err
        assert out == ""
    calls = [line.split() for line in lines(log)]
    assert sorted(int(observation) for _, observation, _ in calls) == list(
        range(1, OBSERVATIONS + 1)
    )
    assert len({process for *_, process in calls}) == 2, "one did everything"
    assert set(contents(folder)) == set(range(1, OBSERVATIONS + 1))
    assert not list(folder.rglob("*.tmp")) and not list(folder.rglob("*.damaged"))


@pytest.mark.slow
def test_an_interrupted_run_says_how_to_go_on(tmp_path):
    log, folder = tmp_path / "log", tmp_path / "interrupted"
    process = start(folder, log, "--jobs", "2", seconds=20.0)
    wait_for_lines(log, 2, process)
    os.killpg(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "the same command goes on" in err
    assert "Traceback" not in err
    # It has not waited for the jobs, which would have left their results.
    assert contents(folder) == {}
    # No worker has outlived it, which would go on with the jobs.
    workers = {int(line.split()[2]) for line in lines(log)}
    end = time.monotonic() + 10.0
    while any(_is_running(worker) for worker in workers):
        assert time.monotonic() < end, "a worker goes on"
        time.sleep(0.1)


def _is_running(process):
    try:
        status = Path(f"/proc/{process}/stat").read_text()
    except FileNotFoundError:
        return False
    return status.rpartition(")")[2].split()[0] != "Z"


@pytest.mark.slow
def test_jobs_of_another_process_are_waited_for(bench, tmp_path, monkeypatch):
    """A run returns when its jobs are done, whoever does them."""
    from sbi_boed_plugin.benchmark import _queue

    log = tmp_path / "log"
    settings = {"observations": [1], "num_samples": 20}
    process = start(tmp_path / "out", log, seconds=2.0, observations="1")
    wait_for_lines(log, 1, process)
    monkeypatch.setattr(_queue, "WAIT_SECONDS", 0.2)
    hyper = {"log": str(log), "seconds": 2.0}
    assert bench("logged", hyper=hyper, **settings) == 0
    process.communicate(timeout=60)
    assert process.returncode == 0
    assert len(lines(log)) == 1
    assert set(contents(tmp_path / "out")) == {1}


@pytest.mark.slow
def test_a_job_that_kills_its_process_fails_alone(bench, records):
    """Whoever ran beside it is tried again, and the others are not touched."""
    assert bench("deadly", observations=[1, 2, 3, 4, 5, 6], num_workers=2) == 1
    found = {key[-1]: record for key, record in records().items()}
    assert set(found) == {1, 2, 3, 4, 5, 6}
    assert found[2]["status"] == "failed"
    assert "killed" in found[2]["error"]
    assert sum(record["status"] == "done" for record in found.values()) == 5


@pytest.mark.slow
def test_jobs_run_on_a_dask_cluster(bench, records, tmp_path):
    joblib = pytest.importorskip("joblib")
    distributed = pytest.importorskip("distributed")
    log = tmp_path / "log"
    with (
        distributed.LocalCluster(
            n_workers=2, threads_per_worker=2, dashboard_address=None
        ) as cluster,
        distributed.Client(cluster),
        joblib.parallel_config(backend="dask"),
    ):
        hyper = {"log": str(log)}
        assert (
            bench("logged", observations=[1, 2, 3], hyper=hyper, num_workers=None) == 0
        )
    assert {key[-1] for key in records()} == {1, 2, 3}
    assert str(os.getpid()) not in {line.split()[2] for line in lines(log)}


@pytest.mark.slow
def test_networks_are_the_same_from_whichever_worker(bench, records, tmp_path):
    """Trained beside another worker, found trained, or trained in this process."""
    settings = {"metrics": ["mmd", "ppc"], "num_simulations": [50]}
    settings |= {"methods": ["npe", "nre"], "num_samples": 20}
    bench(observations=[1, 2], num_workers=2, **settings)
    alone = tmp_path / "alone"
    bench(observations=[2], output=alone, **settings)
    every = records()
    for key, record in records(alone).items():
        assert record["metrics"] == every[key]["metrics"]
