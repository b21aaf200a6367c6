"""Runs of any jobs: what is kept, skipped, ended and run again."""

import os
import random
import signal
import subprocess
import sys
import threading
import time
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

from sbi_boed_plugin.benchmark.runner import run_jobs
from sbi_boed_plugin.benchmark.store import FolderInUseError, Store

REPOSITORY = Path(__file__).parents[2]


def draw(settings):
    """Return draws of all global generators."""
    return {
        "draws": [random.random(), float(np.random.rand()), float(torch.rand(()))],
        "threads": torch.get_num_threads(),
        "process": os.getpid(),
        "infinite": float("inf"),
    }


def misbehave(settings):
    """Do what a setting says."""
    does = settings["does"]
    if does == "raise":
        print("about to divide")
        raise ZeroDivisionError("division by <zero>")
    if does == "sleep":
        time.sleep(60.0)
    if does == "ignore":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        while True:
            time.sleep(0.1)
    if does == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    if does == "leave":
        raise SystemExit("no configuration")
    if does == "tensor":
        return {"eig": torch.zeros(())}
    if does == "linger":  # after its result is there.
        threading.Thread(target=time.sleep, args=(60.0,)).start()
        time.sleep(0.5)
    if does == "nap":
        time.sleep(1.0)
    if does == "warn":
        for number in (0, 0, *range(30)):
            warnings.warn(f"{number} " + "x" * 1_000, stacklevel=2)
        warnings.warn("old", DeprecationWarning, stacklevel=2)
    return {"eig": 1.0}


def run(tmp_path, function, jobs, **settings):
    store = Store(tmp_path / "out")
    return run_jobs(function, jobs, store, show_progress=False, **settings)


def test_a_result_depends_on_its_settings_only(tmp_path):
    state = torch.get_rng_state()
    jobs = [{"seed": seed} for seed in (0, 1)]
    first, second = run(tmp_path, draw, jobs, num_workers=2)
    (alone,) = run_jobs(draw, jobs[1:], Store(tmp_path / "alone"), show_progress=False)
    assert torch.equal(torch.get_rng_state(), state)
    assert second["result"]["draws"] == alone["result"]["draws"]
    assert first["result"]["draws"] != second["result"]["draws"]
    processes = {record["result"]["process"] for record in (first, second, alone)}
    assert len(processes) == 3 and os.getpid() not in processes
    assert first["result"]["threads"] == 1
    assert first["result"]["infinite"] is None


def test_what_is_finished_is_not_run_again(tmp_path):
    """Nor is it by a run of more jobs, which keep their order."""
    before = run(tmp_path, draw, [{"seed": 1}])
    after = run(tmp_path, draw, [{"seed": 0}, {"seed": 1}, {"seed": 2}])
    assert [record["job"]["seed"] for record in after] == [0, 1, 2]
    assert after[1] == before[0]
    again = run(tmp_path, draw, [{"seed": 1}], is_complete=lambda record: False)
    assert again[0]["result"]["process"] != before[0]["result"]["process"]


def test_failures_are_kept_with_what_is_known_of_them(tmp_path, capfd):
    names = ["raise", "die", "leave", "tensor", "warn", "good"]
    store = Store(tmp_path / "out")
    records = run_jobs(misbehave, [{"does": name} for name in names], store)
    assert records == [store.read({"does": name}) for name in names]
    found = {record["job"]["does"]: record for record in records}
    assert found["raise"]["error"] == "ZeroDivisionError: division by <zero>"
    assert found["raise"]["traceback"].endswith("about to divide\n")
    # Where Python is installed is nobody's business.
    assert 'File "tests/benchmark/test_runner.py"' in found["raise"]["traceback"]
    assert "exit code -9" in found["die"]["error"]
    assert found["leave"]["error"] == "SystemExit: no configuration"
    assert "not JSON serializable" in found["tensor"]["error"]
    assert len(found["warn"]["warnings"]) == len(set(found["warn"]["warnings"])) == 20
    assert max(map(len, found["warn"]["warnings"])) == 500
    assert found["good"]["status"] == "done" and found["good"]["error"] == ""
    assert "does=raise: ZeroDivisionError" in capfd.readouterr().err
    assert run_jobs(misbehave, [{"does": "raise"}], store) == records[:1]
    assert "1 of 1 jobs failed earlier" in capfd.readouterr().err


def test_jobs_that_take_too_long_are_ended(tmp_path):
    """By force where they must be, and the others are not touched."""
    jobs = [{"does": name} for name in ("sleep", "ignore", "good", "warn")]
    started = time.monotonic()
    records = run(tmp_path, misbehave, jobs, num_workers=2, time_limit=5.0)
    assert time.monotonic() - started < 40.0
    errors = [record["error"] for record in records]
    assert errors == ["it took longer than 5 s"] * 2 + [""] * 2


def test_a_process_that_is_slow_to_end_costs_no_other_job_its_result(tmp_path):
    jobs = [{"does": "linger"}, {"does": "nap"}]
    started = time.monotonic()
    records = run(tmp_path, misbehave, jobs, num_workers=2, time_limit=3.0)
    assert time.monotonic() - started < 40.0
    assert [record["error"] for record in records] == ["", ""]


def test_results_of_other_versions_are_kept_and_told_of(tmp_path, capfd):
    store = Store(tmp_path / "out")
    (record,) = run(tmp_path, draw, [{"seed": 0}])
    record["versions"]["sbi"] = "0.20"
    store.write(record)
    assert run_jobs(draw, [{"seed": 0}], store) == [record]
    err = capfd.readouterr().err
    assert "1 of sbi_boed_plugin" in err and "sbi 0.20" in err and "--output" in err


def test_repeated_jobs_are_refused(tmp_path):
    with pytest.raises(ValueError, match="must differ"):
        run(tmp_path, draw, [{"seed": 0}, {"seed": 0}])


# Runs itself again if its processes did; each job notes its process.
SCRIPT = """
import os, sys, time
from sbi_boed_plugin.benchmark.runner import run_jobs
from sbi_boed_plugin.benchmark.store import Store

print("script")
log = sys.argv[1]

def run(settings):
    with open(log, "a") as file:
        file.write(f"{os.getpid()}\\n")
    time.sleep(float(sys.argv[2]))
    return {}

run_jobs(run, [{"seed": s} for s in range(6)], Store("out"), num_workers=2)
"""


def start(tmp_path, seconds):
    """Start the script in a process group of its own, as a shell does."""
    (tmp_path / "script.py").write_text(SCRIPT)
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    return subprocess.Popen(
        [sys.executable, "script.py", str(tmp_path / "log"), str(seconds)],
        cwd=tmp_path,
        env=environment,
        start_new_session=True,
        # Whoever runs the tests in the background has shells ignore interrupts.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_until(is_true, seconds=60.0):
    end = time.monotonic() + seconds
    while not is_true():
        assert time.monotonic() < end, "it does not happen"
        time.sleep(0.05)


def is_running(process):
    try:
        status = Path(f"/proc/{process}/stat").read_text()
    except FileNotFoundError:
        return False
    return status.rpartition(")")[2].split()[0] != "Z"


@pytest.mark.slow
@pytest.mark.parametrize("sign", [signal.SIGINT, signal.SIGKILL])
def test_a_run_that_was_stopped_goes_on(tmp_path, sign):
    """What was finished is kept, and no job outlives its run."""
    log, store = tmp_path / "log", Store(tmp_path / "out")
    process = start(tmp_path, 1.0)
    wait_until(lambda: log.exists() and len(log.read_text().split()) >= 4)
    with pytest.raises(FolderInUseError):
        run(tmp_path, draw, [{"seed": 0}])
    (os.killpg if sign == signal.SIGINT else os.kill)(process.pid, sign)
    process.communicate(timeout=60)
    workers = log.read_text().split()
    wait_until(lambda: not any(is_running(worker) for worker in workers), 20.0)
    kept = store.read_all()
    assert 2 <= len(kept) < 6
    assert {record["status"] for record in kept} == {"done"}

    process = start(tmp_path, 0.0)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert out == "script\n"
    assert len(log.read_text().split()) == len(workers) + 6 - len(kept)
    after = store.read_all()
    assert len(after) == 6 and all(record in after for record in kept)
