"""Benchmarks: which jobs there are, what each measures, and what is refused."""

import math
from dataclasses import asdict

import numpy as np
import pytest
import torch

from sbi_boed_plugin.benchmark import jobs, metrics
from sbi_boed_plugin.benchmark.jobs import Job
from sbi_boed_plugin.sbibm import RunOutcome, get_task
from tests.benchmark.conftest import MODULE, add


def lines(path):
    return path.read_text().splitlines() if path.exists() else []


@pytest.fixture
def expanded(bench, monkeypatch):
    """Return the jobs that a benchmark hands to the runner."""

    def expand(**settings):
        given = []
        collect = lambda run, found, *_, **__: given.extend(found) or []
        monkeypatch.setattr(jobs, "run_jobs", collect)
        bench(**settings)
        return [Job(**job) for job in given]

    return expand


def test_all_methods_have_a_result_before_any_has_two(expanded):
    found = expanded(
        tasks=["sir", "slcp"],
        methods=["npe", "nre"],
        num_simulations=[10_000, 1_000],
        seeds=[0, 1],
        observations=[3, 4],
    )
    assert [job.num_observation for job in found] == [3] * 16 + [4] * 16
    first = found[:16]
    # No two of them train the same network.
    trained = {(j.task, j.method, j.num_simulations, j.seed) for j in first}
    assert len(trained) == 16
    assert {job.method for job in found[:2]} == {"npe", "nre"}
    assert [job.num_simulations for job in found[:8]] == [1_000] * 4 + [10_000] * 4


def test_hyperparameters_for_one_method_are_those_of_its_jobs_only(expanded):
    name = f"{MODULE}:likely"
    hyper = {"npe.num_atoms": 2, "num_atoms": 9, f"{name}.scale": 3}
    with pytest.raises(ValueError, match="'num_atoms'"):
        expanded(methods=["npe", name], hyper=hyper)
    found = expanded(methods=["npe", "nre"], hyper={"num_atoms": 9, "npe.num_atoms": 2})
    assert {job.method: job.hyper["num_atoms"] for job in found} == {"npe": 2, "nre": 9}
    # Numbers may be NumPy's; whoever runs `nre` alone has the same jobs.
    alone = expanded(methods=["nre"], hyper={"nre.num_atoms": 9}, seeds=np.arange(1))
    assert alone == [job for job in found if job.method == "nre"]


def test_settings_that_differ_have_words_that_differ():
    values = [1, "1", 1.5, True, "True", None, "None", "nsf", [1], ["1"], "a=1, b"]
    found = [Job("sir", "npe", 10, 0, 1, hyper={"a": value}) for value in values]
    assert len({str(job) for job in found}) == len(values)
    assert [job.label for job in found[:2]] == ["npe, a=1", "npe, a='1'"]
    assert Job("sir", "npe", 10, 0, 1, tag="new").label == "npe, tag new"


def test_a_record_holds_what_there_is_to_know(bench, records):
    bench("likely", observations=[4], hyper={"scale": 0.5}, tag="new")
    ((key, record),) = records().items()
    assert key == (f"{MODULE}:likely", 0, 4)
    assert (record["status"], record["error"]) == ("done", "")
    assert record["job"]["hyper"] == {"scale": 0.5} and record["job"]["tag"] == "new"
    result = record["result"]
    assert list(result["metrics"]) == ["mmd"]
    assert result["num_simulations_used"] == 100
    assert result["log_prob_true_parameters"] == 1.5
    assert result["training_seconds"] is None
    assert result["sampling_seconds"] > 0 and result["metric_seconds"] > 0
    assert set(record["versions"]) == {"sbi_boed_plugin", "sbi", "sbibm", "torch"}
    assert all(record["versions"].values())


def test_a_result_depends_on_its_job_only(bench, records, tmp_path):
    """Neither on other jobs and metrics, nor on what ran before."""
    many = {"observations": [1, 2], "seeds": [0, 1], "metrics": ["mmd", "ppc"]}
    bench("likely", num_workers=2, **many)
    alone = tmp_path / "alone"
    one = {"observations": [2], "seeds": [1], "metrics": ["ppc"], "output": alone}
    bench("likely", **one)
    ((key, record),) = records(alone).items()
    every = records()
    found = record["result"]["metrics"]["ppc"]
    assert found == every[key]["result"]["metrics"]["ppc"]
    values = {found["result"]["metrics"]["ppc"] for found in every.values()}
    assert len(values) == 4, "seeds and observations do not matter"


def test_metrics_asked_for_later_are_added(bench, records, tmp_path):
    log = tmp_path / "log"
    settings = {"hyper": {"log": str(log)}, "observations": [1]}
    bench("logged", **settings)
    (first,) = records().values()
    bench("logged", metrics=["ppc"], **settings)
    (second,) = records().values()
    assert set(second["result"]["metrics"]) == {"mmd", "ppc"}
    assert second["result"]["metrics"]["mmd"] == first["result"]["metrics"]["mmd"]
    bench("logged", metrics=["mmd"], **settings)
    assert len(lines(log)) == 2, "it has run again for nothing"


def test_a_failure_is_kept_and_retried_and_a_result_survives_it(
    bench, records, tmp_path
):
    mended = tmp_path / "mended"
    hyper = {"mended": str(mended)}
    assert bench("failing", hyper=hyper) == 1
    failed, done = records().values()
    assert failed["error"] == "ZeroDivisionError: division by <zero> & more"
    assert done["status"] == "done"
    mended.touch()
    assert bench("failing", hyper=hyper) == 1
    assert bench("failing", hyper=hyper, retry_failed=True) == 0
    before = next(iter(records().values()))
    # Another metric needs other samples; that these cannot be had costs nothing.
    mended.unlink()
    assert bench("failing", hyper=hyper, metrics=["ppc"]) == 1
    after = next(iter(records().values()))
    assert after["status"] == "done" and after["result"] == before["result"]
    assert "ZeroDivisionError" in after["error"]


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_metric_that_is_not_finite_fails_its_job(tmp_path, monkeypatch, value):
    """Also if an earlier run has measured it, and this one does not ask for it."""
    monkeypatch.setitem(metrics.METRICS, "ppc", lambda *_: value)
    job = Job("two_moons", f"{MODULE}:likely", 100, 0, 1, num_samples=50)
    for wanted in (["mmd", "ppc"], ["mmd"]):
        with pytest.raises(ValueError, match=f"ppc is {value}"):
            jobs._run_job(asdict(job), folder=tmp_path, metrics=wanted)
        add(tmp_path, job, {"ppc": 0.5})


def test_our_methods_are_given_seed_cache_and_tag(tmp_path, monkeypatch):
    given = []

    def run_method(name, task, *numbers, **settings):
        given.append((name, task.name, numbers, settings))
        samples = np.zeros((numbers[0], task.dim_parameters))
        return RunOutcome(samples, 90, torch.tensor([1.5]), 3.0, 2.0, True)

    monkeypatch.setattr(jobs.sbibm, "run_method", run_method)
    job = Job("two_moons", "npe_gkl", 100, 5, 3, 2, 50, {"hidden_features": 50}, "v")
    outcome = jobs._run_method(job, get_task("two_moons"), tmp_path)
    settings = {"seed": 5, "cache": tmp_path, "num_rounds": 2, "hidden_features": 50}
    settings["cache_tag"] = "v"  # Another tag trains anew.
    assert given == [("npe_gkl", "two_moons", (50, 100, 3), settings)]
    # sbibm's simulators refuse NumPy's double precision.
    assert outcome.samples.dtype == torch.float32
    assert outcome.log_prob_true_parameters == 1.5
    assert (outcome.training_seconds, outcome.sampling_seconds) == (3.0, 2.0)


@pytest.mark.parametrize(
    ("method", "message"),
    [
        ("misshapen", r"shape \(49, 2\), which must be \(50, 2\)"),
        ("infinite", "3 of 50 samples"),
        ("bare", "returned Tensor"),
    ],
)
def test_what_methods_must_not_return_is_an_error(tmp_path, method, message):
    job = Job("two_moons", f"{MODULE}:{method}", 100, 0, 1, num_samples=50)
    with pytest.raises(ValueError, match=message):
        jobs._run_method(job, get_task("two_moons"), tmp_path)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"tasks": ["two_mons"]}, "two_mons"),
        ({"methods": ["npe_glk"]}, "npe_gkl"),
        ({"methods": ["nowhere:method"]}, "nowhere"),
        ({"methods": ["licensed:run"]}, "licensed:run.*RuntimeError: no licence"),
        ({"methods": [f"{MODULE}:nothing"]}, "nothing"),
        ({"methods": [f"{MODULE}:constant"]}, "not a function"),
        ({"num_simulations": []}, "num_simulations="),
        ({"num_simulations": [0]}, "num_simulations=0"),
        ({"num_simulations": [1e3]}, "num_simulations=1000.0"),
        ({"seeds": [2**32]}, "seeds=4294967296"),
        ({"seeds": [0, 0]}, "repeat"),
        ({"observations": [0]}, "observations=0"),
        ({"observations": [11]}, "at most 10"),
        ({"observations": "1"}, "must be a list"),
        ({"num_rounds": 2}, "num_rounds"),
        ({"num_rounds": 50_000}, "one round per simulation"),
        ({"num_rounds": True}, "num_rounds=True"),
        ({"num_samples": 1}, "num_samples=1"),
        ({"metrics": ["c2ts"]}, "c2st"),
        ({"metrics": []}, "c2st_forest"),
        ({"num_workers": 0}, "num_workers=0"),
        ({"time_limit": -1.0}, "positive number of seconds"),
        ({"methods": ["npe"], "hyper": {"num_rounds": 1}}, "num_rounds"),
        ({"methods": ["npe"], "hyper": {"npe.seed": 1}}, "multiple.*'seed'"),
        ({"methods": ["npe"], "hyper": {"nre.num_atoms": 1}}, "'nre'.*npe"),
        ({"methods": ["npe"], "hyper": {"hidden_featurs": 3}}, "hidden_features"),
        ({"methods": ["npe"], "hyper": {"hidden_features": "3"}}, "'3' must be an int"),
        ({"methods": ["nre"], "hyper": {"neural_net": "maf"}}, "'maf'.*resnet"),
        ({"methods": ["npe", "nle"], "hyper": {"num_atoms": 3}}, "'nle'.*num_atoms"),
        ({"method": "likely", "hyper": {"scale": math.inf}}, "must hold numbers"),
        ({"method": "likely", "hyper": {"scale": object()}}, "must hold numbers"),
        ({"method": "likely", "hyper": {"scael": 3}}, "'scael'"),
        ({"method": "likely", "hyper": {"num_samples": 3}}, "multiple.*'num_samples'"),
    ],
)
def test_wrong_arguments_leave_no_folder(
    bench, tmp_path, monkeypatch, changed, message
):
    (tmp_path / "licensed.py").write_text("raise RuntimeError('no licence')\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ValueError, match=message):
        bench(**changed)
    assert not (tmp_path / "out").exists()


def test_a_method_that_takes_rounds_is_told_how_many(tmp_path):
    for rounds in (1, 10):
        job = Job("two_moons", f"{MODULE}:several_rounds", 100, 0, 1, rounds, 50)
        outcome = jobs._run_method(job, get_task("two_moons"), tmp_path)
        assert (outcome.samples == rounds / 10).all()


@pytest.mark.slow
def test_networks_are_the_same_from_whichever_process(bench, records, tmp_path):
    """Trained beside another job, found trained, or trained alone."""
    settings = {"metrics": ["mmd", "ppc"], "num_simulations": [50]}
    settings |= {"methods": ["npe", "nre"], "num_samples": 20}
    settings["hyper"] = {"max_num_epochs": 3}
    bench(observations=[1, 2], num_workers=2, **settings)
    alone = tmp_path / "alone"
    bench(observations=[2], output=alone, **settings)
    every = records()
    for key, record in records(alone).items():
        assert record["result"]["metrics"] == every[key]["result"]["metrics"]
