"""Failures: what they leave behind, what survives them, and when they run again."""

import contextlib
import json
import math
import re
import threading
import time
from functools import partial

import numpy as np
import pytest

from sbi_boed_plugin.benchmark import _queue, _time_limit, metrics
from sbi_boed_plugin.benchmark._old_store import Store
from sbi_boed_plugin.benchmark._time_limit import TimeLimitError, call_within
from sbi_boed_plugin.benchmark.jobs import Job
from sbi_boed_plugin.benchmark.worker import Orders, is_settled
from tests.benchmark.conftest import add, failed_record, timeless

JOB = Job("two_moons", "npe", 100, seed=0, num_observation=1)


def test_a_failure_is_kept_skipped_and_retried(bench, records, tmp_path, capsys):
    mended = tmp_path / "mended"
    hyper = {"mended": str(mended)}
    assert bench("failing", hyper=hyper) == 1
    failed, done = records().values()
    assert (failed["status"], done["status"]) == ("failed", "done")
    assert failed["error"] == "ZeroDivisionError: division by <zero> & more"
    assert "in failing" in failed["traceback"]
    # Where Python is installed is nobody's business.
    assert 'File "tests/benchmark/tiny_methods.py"' in failed["traceback"]
    assert failed["output"] == "about to divide <by> zero\n"
    assert "ZeroDivisionError" in capsys.readouterr().err

    mended.touch()
    assert bench("failing", hyper=hyper) == 1
    assert records()[next(iter(records()))]["status"] == "failed"
    assert bench("failing", hyper=hyper, retry_failed=True) == 0
    assert {record["status"] for record in records().values()} == {"done"}


def test_a_failure_runs_again_once_per_run_that_asks_for_it(tmp_path):
    record = failed_record(JOB, "an error", "")
    record["finished"] = 10.0
    for started, retry_failed, settled in (
        (5.0, False, True),
        (15.0, False, True),
        (15.0, True, False),
        # Another process on the folder has tried it since.
        (5.0, True, True),
    ):
        orders = Orders(Store(tmp_path), ("mmd",), retry_failed, started=started)
        assert is_settled(record, orders) is settled


@pytest.mark.parametrize(
    ("method", "message"),
    [
        ("misshapen", r"shape \(49, 2\), which must be \(50, 2\)"),
        ("infinite", "3 of 50 samples"),
        ("bare", "returned Tensor"),
    ],
)
def test_what_methods_must_not_return_is_a_failure(bench, records, method, message):
    assert bench(method, observations=[1]) == 1
    (record,) = records().values()
    assert re.search(message, record["error"])


def test_a_method_that_ends_the_program_fails_alone(bench, records):
    assert bench("leaving") == 1
    failed, done = records().values()
    assert failed["error"] == "SystemExit: no configuration"
    assert done["status"] == "done"


# Limits are generous, as others must not pass them on a machine that is busy.
def test_a_method_that_does_not_end_fails_alone(bench, records):
    assert bench("endless", time_limit=4.0, num_workers=2) == 1
    failed, done = records().values()
    assert failed["error"] == "TimeLimitError: it took longer than 4 s"
    assert "in endless" in failed["traceback"]
    assert done["status"] == "done"


def test_a_metric_that_does_not_end_costs_neither_samples_nor_other_metrics(
    bench, records, monkeypatch
):
    def wait(task, samples, number):
        while True:
            time.sleep(0.01)

    monkeypatch.setitem(metrics.METRICS, "c2st", wait)
    wanted = ["c2st", "mmd", "ppc"]
    assert bench(metrics=wanted, observations=[1], time_limit=4.0) == 1
    (record,) = records().values()
    assert set(record["metrics"]) == {"mmd", "ppc"}
    assert "longer than 4 s" in record["metric_errors"]["c2st"]["error"]


@pytest.mark.parametrize("seconds", [0.0, -1.0, math.nan, math.inf])
def test_a_limit_is_a_positive_number(bench, seconds):
    with pytest.raises(ValueError, match="time_limit=.* positive number of seconds"):
        bench(time_limit=seconds)


@pytest.mark.parametrize("errors", [Exception, BaseException])
def test_a_limit_is_not_swallowed(errors):
    laps = []

    def call():
        while len(laps) < 300:
            with contextlib.suppress(errors):
                time.sleep(0.01)
            laps.append(1)

    with pytest.raises(TimeLimitError, match=r"longer than 0\.1 s"):
        call_within(0.1, call)
    assert len(laps) < 300 or errors is BaseException


def test_who_survives_an_interruption_is_given_another(monkeypatch):
    monkeypatch.setattr(_time_limit, "_AGAIN_SECONDS", 0.05)
    times = []

    def call():
        while len(times) < 3:
            try:
                while True:
                    time.sleep(0.01)
            except BaseException:
                times.append(time.perf_counter())

    with pytest.raises(TimeLimitError):
        call_within(0.05, call)
    assert len(times) == 3


@pytest.mark.parametrize("in_main_thread", [True, False])
def test_what_ends_just_in_time_is_left_alone(in_main_thread):
    ended = []

    def call(started):
        while time.perf_counter() - started < 0.00195:
            pass

    def run():
        for _ in range(200):
            try:
                call_within(0.002, partial(call, time.perf_counter()))
            except TimeLimitError:
                ended.append("late")
            else:
                ended.append("in time")
            for _ in range(1_000):
                pass

    if in_main_thread:
        run()
    else:
        thread = threading.Thread(target=run)
        thread.start()
        thread.join()
    assert len(ended) == 200, "an error has arrived outside"


def test_results_and_errors_of_calls_come_through():
    for seconds in (None, 60.0):
        assert call_within(seconds, lambda: 3) == 3
        with pytest.raises(ZeroDivisionError):
            call_within(seconds, lambda: 1 / 0)


@pytest.fixture
def ppc(monkeypatch):
    """Let a metric do what is in a list."""
    does = []

    def compute(task, samples, number):
        (result,) = does
        if isinstance(result, Exception):
            raise result
        return result

    monkeypatch.setitem(metrics.METRICS, "ppc", compute)
    return does


@pytest.mark.parametrize(
    ("result", "error"),
    [
        (MemoryError("too many pairs"), "MemoryError: too many pairs"),
        (math.nan, "ValueError: its value is nan"),
        (math.inf, "ValueError: its value is inf"),
    ],
)
def test_a_metric_that_fails_costs_neither_samples_nor_other_metrics(
    bench, records, tmp_path, capsys, ppc, result, error
):
    ppc[:] = [result]
    settings = {"metrics": ["mmd", "ppc"], "observations": [1], "save_samples": True}
    assert bench(**settings) == 1
    (record,) = records().values()
    assert record["status"] == "done" and set(record["metrics"]) == {"mmd"}
    assert record["metric_errors"]["ppc"]["error"] == error
    assert "Traceback" in record["metric_errors"]["ppc"]["traceback"]
    assert f"ppc: {error}" in capsys.readouterr().err
    (path,) = (tmp_path / "out").rglob("*.npz")
    with np.load(path) as content:
        assert content["samples"].shape == (50, 2)

    # It is skipped, and does not count where nobody asks for it.
    ppc[:] = [0.5]
    assert bench(**settings) == 1
    assert bench(**settings | {"metrics": ["mmd"]}) == 0
    assert records() == {next(iter(records())): record}
    assert bench(**settings, retry_failed=True) == 0
    (mended,) = records().values()
    assert mended["metrics"] == {**record["metrics"], "ppc": 0.5}
    assert mended["metric_errors"] == {}


def test_a_metric_that_failed_does_not_keep_others_from_being_measured(
    bench, records, ppc
):
    ppc[:] = [math.nan]
    assert bench(metrics=["ppc"], observations=[1]) == 1
    assert bench(metrics=["ppc", "mmd"], observations=[1]) == 1
    (record,) = records().values()
    assert set(record["metrics"]) == {"mmd"} and set(record["metric_errors"]) == {"ppc"}
    assert bench(metrics=["ppc", "mmd"], observations=[1]) == 1
    assert list(records().values()) == [record], "it has run again for nothing"


@pytest.mark.parametrize("save_samples", [False, True])
def test_a_value_survives_when_it_cannot_be_measured_again(
    bench, records, tmp_path, ppc, save_samples
):
    ppc[:] = [0.5]
    settings = {"observations": [1], "save_samples": save_samples}
    assert bench(metrics=["ppc"], **settings) == 0
    # Those of other versions are made, and measured, again.
    (file,) = (tmp_path / "out" / "results").rglob("*.json")
    record = json.loads(file.read_text())
    record["versions"]["code"] = "another"
    file.write_text(json.dumps(record))
    ppc[:] = [MemoryError("too many pairs")]
    assert bench(metrics=["mmd"], **settings) == 0
    (record,) = records().values()
    # It is no value of the new samples, with which others are compared.
    assert set(record["metrics"]) == {"mmd"}
    assert "MemoryError" in record["metric_errors"]["ppc"]["error"]
    (earlier,) = record["earlier"]
    assert earlier["metrics"] == {"ppc": 0.5}
    assert earlier["versions"]["code"] == "another"
    ppc[:] = [0.25]
    assert bench(metrics=["ppc"], **settings) == 1
    assert bench(metrics=["ppc"], **settings, retry_failed=True) == 0
    (record,) = records().values()
    assert record["metrics"]["ppc"] == 0.25 and record["metric_errors"] == {}


def test_a_result_survives_what_fails_later(bench, records, tmp_path):
    mended = tmp_path / "mended"
    mended.touch()
    settings = {"hyper": {"mended": str(mended)}, "observations": [1]}
    assert bench("failing", **settings) == 0
    (before,) = records().values()
    mended.unlink()
    # Without samples it must run again, for a metric as well as for samples.
    assert bench("failing", save_samples=True, **settings) == 1
    assert bench("failing", metrics=["ppc"], **settings) == 1
    (after,) = records().values()
    assert after["status"] == "done"
    assert after["metrics"] == before["metrics"]
    assert "ZeroDivisionError" in after["metric_errors"]["ppc"]["error"]
    assert "<by>" in after["metric_errors"]["ppc"]["output"]
    assert bench("failing", **settings) == 0
    mended.touch()
    assert bench("failing", metrics=["ppc"], retry_failed=True, **settings) == 0
    (after,) = records().values()
    assert after["metrics"]["mmd"] == before["metrics"]["mmd"]
    assert set(after["metrics"]) == {"mmd", "ppc"}


def test_a_result_survives_a_process_that_is_lost(tmp_path):
    add(tmp_path, JOB, {"mmd": 0.1})
    orders = Orders(Store(tmp_path), ("mmd", "ppc"))
    outcome = _queue._give_up(JOB, orders)
    assert outcome.status == "failed" and "killed" in outcome.error
    record = orders.store.read(JOB)
    assert record["metrics"] == {"mmd": 0.1}
    assert "killed" in record["metric_errors"]["ppc"]["error"]
    assert timeless(record)["status"] == "done"


def test_a_job_that_killed_its_run_comes_last(bench, tmp_path):
    """Nobody else notes it where jobs run in the process of the run itself."""
    log = tmp_path / "log"
    hyper = {"log": str(log)}
    bench("logged", observations=[1], hyper=hyper)
    (lock,) = (tmp_path / "out").rglob("*obs1_*.lock")
    # What a killed process leaves of the second.
    left = lock.with_name(lock.name.replace("obs1", "obs2")).with_suffix(".begun")
    left.touch()
    assert bench("logged", observations=[1, 2, 3, 4], hyper=hyper) == 0
    order = [line.split()[1] for line in log.read_text().splitlines()]
    assert order == ["1", "3", "4", "2"]
    assert not left.exists()
