"""Jobs: their order, their names, and what is refused before anything runs."""

import pytest

from sbi_boed_plugin.benchmark.jobs import Job, expand_jobs

SETTINGS = {"num_simulations": [10_000, 1_000], "seeds": [0, 1], "observations": [3, 4]}


def test_all_methods_have_a_result_before_any_has_two():
    jobs = expand_jobs(["sir", "slcp"], ["npe", "nre"], **SETTINGS)
    assert len(jobs) == 32
    assert [job.num_observation for job in jobs] == [3] * 16 + [4] * 16
    first = jobs[:16]
    # No two of them train the same network.
    trained = {(j.task, j.method, j.num_simulations, j.seed) for j in first}
    assert len(trained) == 16
    assert {job.method for job in jobs[:2]} == {"npe", "nre"}
    assert [job.num_simulations for job in jobs[:8]] == [1_000] * 4 + [10_000] * 4


def test_settings_that_differ_have_words_that_differ():
    values = [1, "1", 1.5, True, "True", None, "None", "nsf", [1], ["1"], "a=1, b"]
    jobs = [Job("sir", "npe", 10, 0, 1, hyper={"a": value}) for value in values]
    assert len({str(job) for job in jobs}) == len(values)
    assert [job.label for job in jobs[:2]] == ["npe, a=1", "npe, a='1'"]
    assert Job("sir", "npe", 10, 0, 1, tag="new").label == "npe, tag new"


def test_hyperparameters_for_one_method_are_those_of_its_jobs_only():
    hyper = {"a": [1, 2], "npe.a": 2, "my.module:f.b": 3}
    methods = ["npe", "nre", "my.module:f"]
    jobs = expand_jobs(["sir"], methods, **SETTINGS, hyper=hyper)
    assert {job.method: job.hyper for job in jobs} == {
        "npe": {"a": 2},
        "nre": {"a": [1, 2]},
        "my.module:f": {"a": [1, 2], "b": 3},
    }
    # Whoever runs `nre` alone, or without what is for others, has the same jobs.
    alone = expand_jobs(["sir"], ["nre"], **SETTINGS, hyper={"nre.a": [1, 2]})
    assert alone == [job for job in jobs if job.method == "nre"]


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"num_simulations": []}, "num_simulations="),
        ({"num_simulations": [0]}, "num_simulations=0"),
        ({"num_simulations": [1e3]}, "num_simulations=1000.0"),
        ({"seeds": [2**32]}, "seeds=4294967296"),
        ({"seeds": [0, 0]}, "repeat"),
        ({"observations": [0]}, "observations=0"),
        ({"observations": "1"}, "must be a list"),
        ({"num_rounds": 50_000}, "less than one per round"),
        ({"num_rounds": True}, "num_rounds=True"),
        ({"num_samples": 1}, "num_samples=1"),
        ({"hyper": {"num_rounds": 1}}, "num_rounds"),
        ({"hyper": {"npe.seed": 1}}, "must not hold seed"),
        ({"hyper": {"nre.num_atoms": 1}}, "'nre'.*npe"),
    ],
)
def test_what_cannot_be_run_is_refused(changed, message):
    with pytest.raises(ValueError, match=message):
        expand_jobs(["sir"], ["npe"], **{**SETTINGS, **changed})
