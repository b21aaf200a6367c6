"""A training is made once, also by several processes, and taken for no other."""

import copy
import subprocess
import sys
import textwrap
from unittest.mock import Mock

import pytest
import torch

from sbi_boed_plugin.sbibm import TASKS, _cache, check_hyper, get_task
from sbi_boed_plugin.sbibm._cache import kept_or_made, training_key

X_O = torch.zeros(1, 2)


@pytest.fixture
def make():
    """Makes something; `make.call_count` tells how often."""
    return Mock(side_effect=lambda: torch.arange(3.0))


def test_a_file_holds_what_was_made_once_and_is_made_again_if_damaged(tmp_path, make):
    first, was_kept = kept_or_made("key", make, tmp_path)
    assert not was_kept
    loaded, was_kept = kept_or_made("key", make, tmp_path)
    assert was_kept and torch.equal(loaded, first)
    path = tmp_path / "key.pt"
    path.write_bytes(path.read_bytes()[:20])
    with pytest.warns(UserWarning, match=r"key\.pt cannot be read"):
        kept_or_made("key", make, tmp_path)
    assert make.call_count == 2
    assert kept_or_made("key", make, tmp_path)[1]


def test_a_full_disk_costs_no_training(tmp_path, make, monkeypatch):
    monkeypatch.setattr(_cache, "write_bytes", Mock(side_effect=OSError("disk full")))
    with pytest.warns(UserWarning, match=r"key\.pt cannot be written \(disk full\)"):
        made, was_kept = kept_or_made("key", make, tmp_path)
    assert torch.equal(made, torch.arange(3.0)) and not was_kept


# --- Under which key ------------------------------------------------------------------


def key(task, method="npe", num_simulations=100, x_o=X_O, **hyper):
    settings = check_hyper(method, **{"seed": 0, **hyper})
    return training_key(method, settings, task, num_simulations, x_o)


@pytest.mark.parametrize("name", TASKS)
def test_a_task_has_the_same_key_however_it_is_used(name):
    task = get_task(name)
    before = torch.get_rng_state()
    first = key(task)
    assert torch.equal(torch.get_rng_state(), before)
    task.get_simulator()(task.get_prior()(num_samples=2))
    task._lazy_de = object()  # as the solver in Julia is kept.
    assert first is not None
    assert key(task) == first == key(get_task(name))


def test_tasks_of_sbibm_are_told_apart():
    tasks = [get_task(name) for name in TASKS]
    tasks += [
        get_task("sir", total_count=500),
        get_task("gaussian_linear", simulator_scale=1.0),
        get_task("gaussian_linear", prior_scale=1.0),
    ]
    another_prior = copy.copy(get_task("gaussian_linear"))
    another_prior.prior_dist = get_task("gaussian_linear", prior_scale=2.0).prior_dist
    assert len({key(task) for task in [*tasks, another_prior]}) == len(tasks) + 1


@pytest.mark.parametrize(
    "change",
    [
        {"method": "npe_gkl", "energy": {"max_num_epochs": 3}},
        {"num_simulations": 101},
        {"seed": 1},
        {"hidden_features": 51},
        {"num_rounds": 2},
        {"cache_tag": "another"},
    ],
)
def test_other_trainings_have_other_keys(two_moons, change):
    unchanged = [key(two_moons), key(two_moons, method="npe_gkl")]
    assert key(two_moons, **change) not in unchanged
    assert key(two_moons, cache="here") == unchanged[0] != unchanged[1]


def test_observations_and_versions_matter(two_moons, monkeypatch):
    usual, other = key(two_moons), {"x_o": torch.ones(1, 2)}
    # Only later rounds depend on the observation.
    assert key(two_moons, **other) == usual
    assert key(two_moons, num_rounds=2, **other) != key(two_moons, num_rounds=2)
    assert set(_cache._VERSIONS) == {"sbi", "torch", "sbibm", "sbi_boed_plugin"}
    monkeypatch.setitem(_cache._VERSIONS, "sbi", "9")
    assert key(two_moons) != usual


@pytest.mark.slow
def test_keys_are_the_same_in_another_process():
    code = """
        import torch
        from sbi_boed_plugin.sbibm import _cache, check_hyper, get_task
        settings = check_hyper("npe", seed=0)
        for name in ("bernoulli_glm", "sir"):
            task = get_task(name)
            print(_cache.training_key("npe", settings, task, 100, torch.zeros(1, 2)))
    """
    run = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", textwrap.dedent(code)],
        capture_output=True,
        text=True,
    )
    assert run.stdout.split() == [key(get_task("bernoulli_glm")), key(get_task("sir"))]


def test_a_task_of_ones_own_needs_a_tag(two_moons):
    class Mine(type(two_moons)):
        pass

    changed = copy.copy(two_moons)
    changed.get_simulator = lambda max_calls=None: None
    for task in (Mine(), changed):
        with pytest.raises(ValueError, match="needs a cache_tag: .* is a task of your"):
            key(task)
        assert key(task, cache_tag="1") != key(task, cache_tag="2")
