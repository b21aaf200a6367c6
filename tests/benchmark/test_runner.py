"""Runs: what is skipped, what runs again, and what a result depends on."""

import json
import math

import numpy as np
import pytest
import torch

from sbi_boed_plugin import sbibm as plugin_sbibm
from sbi_boed_plugin.benchmark import methods
from sbi_boed_plugin.sbibm import RunOutcome
from tests.benchmark.conftest import MODULE, timeless


def lines(path):
    return path.read_text().splitlines() if path.exists() else []


def test_finished_jobs_are_not_run_again(bench, records, tmp_path):
    log = tmp_path / "log"
    hyper = {"log": str(log)}
    assert bench("logged", hyper=hyper) == 0
    before = records()
    assert len(before) == len(lines(log)) == 2
    assert bench("logged", hyper=hyper, observations=[1, 2, 3]) == 0
    assert len(lines(log)) == 3
    after = records()
    assert {key: after[key] for key in before} == before


def test_a_record_holds_what_there_is_to_know(bench, records):
    bench("likely", observations=[4], hyper={"scale": 0.5})
    ((key, record),) = records().items()
    assert key == ("two_moons", f"{MODULE}:likely", 100, 0, 4)
    assert record["status"] == "done"
    assert record["job"]["hyper"] == {"scale": 0.5}
    assert list(record["metrics"]) == ["mmd"]
    assert record["num_simulations_used"] == 100
    assert record["log_prob_true_parameters"] == 1.5
    assert record["training_seconds"] is None
    assert record["sampling_seconds"] > 0 and record["metric_seconds"] > 0
    packages = {"sbi_boed_plugin", "sbi", "sbibm", "torch"}
    assert set(record["versions"]) == {*packages, "code"}
    assert all(record["versions"].values())


def test_a_result_depends_on_its_job_only(bench, records, tmp_path):
    """Neither on the order, nor on other jobs, metrics, and what ran before."""
    many = {"observations": [1, 2], "seeds": [0, 1], "metrics": ["mmd", "ppc"]}
    bench("likely", **many)
    torch.manual_seed(12)
    state = torch.get_rng_state()
    alone = tmp_path / "alone"
    one = {"observations": [2], "seeds": [1], "metrics": ["ppc"], "output": alone}
    bench("likely", **one)
    assert torch.equal(torch.get_rng_state(), state)
    ((key, record),) = records(alone).items()
    every = records()
    assert record["metrics"]["ppc"] == every[key]["metrics"]["ppc"]
    values = [found["metrics"]["ppc"] for found in every.values()]
    assert len(set(values)) == len(values), "seeds and observations do not matter"


def test_a_job_has_one_thread_and_gives_the_others_back(bench, records):
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        bench("threads", observations=[1])
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)
    (record,) = records().values()
    assert record["log_prob_true_parameters"] == 1


def test_warnings_are_kept_once_each_and_shortened(bench, records, tmp_path, recwarn):
    folder = str(tmp_path / "out")
    assert bench("warning", hyper={"folder": folder}) == 1
    assert not [w for w in recwarn if "careful" in str(w.message)]
    for record in records().values():
        assert record["warnings"][0] == "<careful> in cache"
        assert len(record["warnings"]) == len(set(record["warnings"])) == 20
        assert "old" not in record["warnings"]
        assert max(map(len, record["warnings"])) == 500
    assert {record["status"] for record in records().values()} == {"done", "failed"}


@pytest.mark.parametrize("name", ["sbi", "torch", "code"])
def test_results_of_other_versions_are_kept_and_told_of_once(
    bench, records, tmp_path, capsys, name
):
    bench(observations=[1, 2, 3])
    assert "versions" not in capsys.readouterr().err
    paths = sorted((tmp_path / "out" / "results").rglob("*.json"))
    for path in paths[:2]:
        record = json.loads(path.read_text())
        record["versions"][name] = "0.20"
        path.write_text(json.dumps(record))
    before = records()
    bench(observations=[1, 2, 3])
    assert records() == before
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and err.count("versions") == 1
    assert "2 of sbi_boed_plugin" in err and f"{name} 0.20" in err and "--output" in err


def test_hyperparameters_for_one_method_reach_it_only(bench, records):
    methods = [f"{MODULE}:likely", f"{MODULE}:prior"]
    assert bench(methods=methods, hyper={f"{MODULE}:likely.scale": 0.5}) == 0
    found = {key[1]: record["job"]["hyper"] for key, record in records().items()}
    assert found == {methods[0]: {"scale": 0.5}, methods[1]: {}}


def test_a_damaged_file_is_named_moved_aside_and_made_again(
    bench, records, tmp_path, capsys
):
    bench()
    before = records()
    path = next((tmp_path / "out" / "results").rglob("*obs1*.json"))
    damaged = path.read_bytes()[:100]
    path.write_bytes(damaged)
    assert bench() == 0
    assert path.name in capsys.readouterr().err
    assert path.with_name(f"{path.name}.damaged").read_bytes() == damaged
    after = records()
    assert {k: timeless(r) for k, r in after.items()} == {
        k: timeless(r) for k, r in before.items()
    }


def test_numbers_may_be_those_of_numpy(bench, records):
    numbers = {"seeds": np.arange(2), "observations": np.array([3])}
    assert bench(num_simulations=np.array([100]), **numbers) == 0
    assert {key[2:] for key in records()} == {(100, 0, 3), (100, 1, 3)}


def test_samples_may_be_in_double_precision(bench, records):
    metrics = ["mmd", "ppc", "c2st_forest"]
    assert bench("double", observations=[1], metrics=metrics) == 0
    (record,) = records().values()
    assert set(record["metrics"]) == set(metrics)
    assert record["log_prob_true_parameters"] == 1.5


def test_metrics_asked_for_later_are_added(bench, records):
    bench(metrics=["mmd"])
    (first, _) = records().values()
    bench(metrics=["ppc"])
    (second, _) = records().values()
    assert set(second["metrics"]) == {"mmd", "ppc"}
    assert second["metrics"]["mmd"] == first["metrics"]["mmd"]
    bench(metrics=["mmd"])
    assert next(iter(records().values())) == second, "it has run again for nothing"


def test_samples_are_kept_if_wanted(bench, records, tmp_path):
    bench(observations=[1])
    assert not list((tmp_path / "out").rglob("*.npz"))
    bench(observations=[1], save_samples=True)
    (path,) = (tmp_path / "out").rglob("*.npz")
    (record,) = records().values()
    assert record["samples"] == path.name
    with np.load(path) as kept:
        assert kept["samples"].shape == (50, 2)


def test_kept_samples_are_measured_without_another_run(bench, records, tmp_path):
    log = tmp_path / "log"
    settings = {"hyper": {"log": str(log)}, "observations": [1]}
    bench("logged", save_samples=True, **settings)
    bench("logged", metrics=["ppc"], **settings)
    assert len(lines(log)) == 1
    (kept,) = records().values()
    bench("logged", metrics=["mmd", "ppc"], output=tmp_path / "new", **settings)
    (new,) = records(tmp_path / "new").values()
    assert kept["metrics"] == new["metrics"]

    # Those of another version are not those that would be made now.
    (file,) = (tmp_path / "out" / "results").rglob("*.json")
    kept["versions"]["torch"] = "1.0"
    file.write_text(json.dumps(kept))
    bench("logged", metrics=["ppc", "c2st_forest"], **settings)
    assert len(lines(log)) == 3
    (kept,) = records().values()
    assert kept["versions"]["torch"] == new["versions"]["torch"]

    # Half of them is none, and so are none.
    (path,) = (tmp_path / "out").rglob("*.npz")
    path.write_bytes(path.read_bytes()[:50])
    bench("logged", metrics=["c2st"], **settings)
    assert len(lines(log)) == 4
    (again,) = records().values()
    assert again["metrics"] == kept["metrics"] | {"c2st": again["metrics"]["c2st"]}
    with np.load(path) as content:
        assert content["samples"].shape == (50, 2)
    path.unlink()
    bench("logged", metrics=["mmd"], save_samples=True, **settings)
    assert path.exists()


def test_our_methods_are_given_seed_and_cache(bench, records, tmp_path, monkeypatch):
    given = []

    def run_method(name, task, *numbers, **settings):
        given.append((name, task.name, numbers, settings))
        samples = torch.zeros(numbers[0], task.dim_parameters)
        samples += torch.randn(1)
        return RunOutcome(samples, 90, None, 3.0, 2.0, True, {"log_z": math.nan})

    monkeypatch.setattr(plugin_sbibm, "run_method", run_method)
    bench(
        methods=["npe_gkl"],
        seeds=[5],
        observations=[3],
        num_rounds=2,
        hyper={"hidden_features": 50},
    )
    assert given == [
        (
            "npe_gkl",
            "two_moons",
            (50, 100, 3),
            {
                "seed": 5,
                "cache": tmp_path / "out" / "cache",
                "num_rounds": 2,
                "hidden_features": 50,
            },
        )
    ]
    (record,) = records().values()
    assert record["training_seconds"] == 3.0 and record["sampling_seconds"] == 2.0
    assert record["from_cache"] is True
    assert record["num_simulations_used"] == 90
    assert record["diagnostics"] == {"log_z": None}


def test_a_method_that_takes_rounds_is_told_how_many(bench, records):
    bench("several_rounds", metrics=["ppc"])
    one = [record["metrics"]["ppc"] for record in records().values()]
    bench("several_rounds", metrics=["ppc"], num_rounds=10)
    every = [record["metrics"]["ppc"] for record in records().values()]
    assert len(one) == 2 and set(every) != set(one)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"tasks": ["two_mons"]}, "two_mons"),
        ({"methods": ["npe_glk"]}, "npe_gkl"),
        ({"methods": ["nowhere:method"]}, "nowhere"),
        ({"methods": [f"{MODULE}:nothing"]}, "nothing"),
        ({"methods": [f"{MODULE}:constant"]}, "not a function"),
        ({"method": "prior", "num_rounds": 2}, "num_rounds"),
        ({"observations": [11]}, "at most 10"),
        ({"metrics": ["c2ts"]}, "c2st"),
        ({"num_workers": 0}, "num_workers=0"),
        ({"methods": ["npe"], "hyper": {"hidden_featurs": 3}}, "hidden_features"),
        (
            {"methods": ["npe"], "hyper": {"hidden_features": "3"}},
            "'3' must be an int",
        ),
        ({"methods": ["nre"], "hyper": {"neural_net": "maf"}}, "'maf'.*resnet"),
        ({"methods": ["npe", "nle"], "hyper": {"num_atoms": 3}}, "'nle'.*num_atoms"),
        ({"methods": ["npe"], "hyper": {"nle.num_atoms": 3}}, "'nle'.*npe"),
        ({"method": "likely", "hyper": {"scael": 3}}, "no scael, but .*scale"),
    ],
)
def test_wrong_arguments_leave_no_folder(bench, tmp_path, changed, message):
    with pytest.raises(ValueError, match=message):
        bench(**changed)
    assert not (tmp_path / "out").exists()


def test_a_module_that_fails_when_imported_is_named(bench, tmp_path, monkeypatch):
    (tmp_path / "licensed.py").write_text("raise RuntimeError('no licence')\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ValueError, match=r"licensed:run.*RuntimeError: no licence"):
        bench(methods=["licensed:run"])


def test_the_methods_of_the_package_are_known():
    methods.check_methods(["nle", "nle_ince", "npe", "npe_gkl", "nre", "nre_gkl"], 2)


def test_the_files_of_a_run_are_where_they_belong(bench, tmp_path):
    bench()
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {"results", ".locks"}
    paths = list((tmp_path / "out" / "results").rglob("*.json"))
    assert len(paths) == 2
    for path in paths:
        assert json.loads(path.read_text())["job"]["task"] == path.parts[-3]
