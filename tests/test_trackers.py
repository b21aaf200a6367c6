"""Trackers see trainings and searches: that of sbi, and adapters like in its guide."""

import math
import re
from types import SimpleNamespace

import pytest
import torch
from sbi.utils.tracking import TensorBoardTracker
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.utils.tensorboard.writer import SummaryWriter

from sbi_boed_plugin import (
    NLE_INCE,
    NPE_GKL,
    NRE_GKL,
    Campaign,
    MultiStartConfig,
    run_experiments,
)
from tests.conftest import NoOpTracker
from tests.oracles import LinearGaussian as Model
from tests.path_parts import (
    BRIEF,
    EPOCHS,
    QUIET,
    ROUNDS,
    STEPS,
    normal,
    rows,
    trainer,
)

pytestmark = pytest.mark.filterwarnings("ignore")

OF_TRAINING = {"training_loss", "validation_loss", "best_validation_loss"}
OF_STEPS = {"design_loss", "design_eig", "design_log_likelihood"}
FOUND = {"best_design_eig", "best_design_eig_standard_error", "best_design_1"}


def check(name, value, step):
    """Fail as servers do, for other names and for values that are no numbers."""
    assert re.fullmatch(r"[\w\-. /]+", name)
    assert type(value) in (int, float) and type(step) is int


class Wandb:
    """The module, or its run, with what the adapter below calls."""

    def __init__(self):
        self.logged = {}

    def log(self, data, step):
        for name, value in data.items():
            check(name, value, step)
            self.logged.setdefault(name, []).append((step, value))


class WandbAdapter(NoOpTracker):
    """The adapter of sbi's guide to tracking."""

    def __init__(self, run):
        self.run = run

    def log_metric(self, name, value, step=None):
        self.run.log({name: value}, step=step)

    def log_metrics(self, metrics, step=None):
        self.run.log(metrics, step=step)


class MlflowAdapter(NoOpTracker):
    """Likewise."""

    def __init__(self, mlflow):
        self.mlflow = mlflow

    def log_metric(self, name, value, step=None):
        self.mlflow.log_metric(name, value, step=step)

    def log_metrics(self, metrics, step=None):
        for name, value in metrics.items():
            self.log_metric(name, value, step=step)


def wandb():
    run = Wandb()
    return WandbAdapter(run), lambda: run.logged


def mlflow():
    logged = {}

    def log_metric(key, value, step):
        check(key, value, step)
        logged.setdefault(key, []).append((step, value))

    return MlflowAdapter(SimpleNamespace(log_metric=log_metric)), lambda: logged


def tensorboard():
    tracker = TensorBoardTracker(SummaryWriter("logs"))

    def logged():
        events = EventAccumulator("logs").Reload()
        return {
            name: [(event.step, event.value) for event in events.Scalars(name)]
            for name in events.Tags()["scalars"]
        }

    return tracker, logged


@pytest.mark.parametrize("make", [wandb, mlflow, tensorboard])
def test_each_tracker_sees_a_search_and_a_training(make):
    tracker, logged = make()
    inference = trainer("cpu", tracker=tracker)
    result = inference.optimize_design(Model.simulate, **STEPS)
    inference.train(**EPOCHS)
    seen = logged()
    assert set(seen) >= OF_STEPS | FOUND | OF_TRAINING
    history = result.history["eig"]
    steps, values = zip(*seen["design_eig"], strict=True)
    assert [*steps] == [1, 2, 3, 4] and [*values] == pytest.approx(history)
    assert seen["best_design_eig"] == [(1, pytest.approx(result.eig.value))]
    assert seen["best_design_1"] == [(1, pytest.approx(float(result.design)))]


def test_a_summary_writer_is_one_as_with_sbi(tmp_path):
    writer = SummaryWriter(tmp_path / "logs")
    with pytest.warns(FutureWarning, match="Use tracker"):
        inference = trainer("cpu", summary_writer=writer)
    inference.optimize_design(Model.simulate, **STEPS)
    events = EventAccumulator(str(tmp_path / "logs")).Reload()
    assert set(events.Tags()["scalars"]) >= FOUND


@pytest.mark.parametrize(
    ("kind", "own"),
    [
        (NLE_INCE, {"validation_log_likelihood", "eig_lower_bound"}),
        (NPE_GKL, {"energy_training_loss", "energy_gain"}),
        (NRE_GKL, set()),
    ],
)
@pytest.mark.parametrize("schedule", ["constant", "averaged"])
def test_trainers_log_each_epoch(kind, own, schedule):
    tracker, logged = wandb()
    network = "mlp" if kind is NRE_GKL else "mdn"
    inference = kind(normal("cpu"), network, tracker=tracker, **QUIET)
    theta, _, x = rows("cpu")
    of_energy = BRIEF if kind is NPE_GKL else {}
    inference.append_simulations(theta, x)
    inference.train(**EPOCHS, **of_energy, schedule=schedule)
    seen = logged()
    assert OF_TRAINING | own <= set(seen)
    for name in ("training_loss", "validation_loss"):
        assert seen[name] == list(enumerate(inference.summary[name]))


MANY = MultiStartConfig(num_starts=8, num_climb_steps=3, num_candidate_samples=30)


@pytest.mark.parametrize(
    "settings",
    [
        {"method": "multi_start", "multi_start": MANY, **STEPS},
        pytest.param({**ROUNDS, "num_eig_samples": 20}, marks=pytest.mark.slow),
    ],
)
def test_every_search_logs_its_steps_and_its_design(settings):
    tracker, logged = wandb()
    inference = trainer("cpu", tracker=tracker)
    result = inference.optimize_design(Model.simulate, **settings)
    seen = logged()
    assert set(seen) > FOUND and "design_loss" in seen
    for name in ("loss", "eig"):
        history = result.history[name]
        assert seen[f"design_{name}"] == [*enumerate(history, 1)]
    assert seen["best_design_1"] == [(1, float(result.design))]


@pytest.mark.slow
def test_stored_simulations_and_policies_are_logged():
    tracker, logged = wandb()
    inference = trainer("cpu", tracker=tracker)
    theta, design, x = rows("cpu", 100)
    inference.append_simulations(theta, x, design=design)
    inference.optimize_design(None, num_networks=2)
    assert FOUND | {"design_loss", "design_eig"} <= set(logged())
    steps = {"num_steps": 6, "training_batch_size": 16, "num_eig_samples": 20}
    result = inference.optimize_policy(None, 2, **steps)
    seen = logged()
    assert [step for step, _ in seen["policy_eig"]] == [*range(1, 7)]
    assert seen["best_policy_eig"] == [(1, result.eig.value)]


def test_each_experiment_has_its_number(tmp_path):
    tracker, logged = wandb()
    settings = {"num_particles": 64, "seed": 1, **STEPS}
    given = trainer("cpu", tracker=tracker), Model.simulate
    run_experiments(*given, lambda d: Model.simulate(torch.ones(1), d), 2, **settings)
    assert [step for step, _ in logged()["best_design_eig"]] == [1, 2]
    tracker, logged = wandb()
    inference = trainer("cpu", tracker=tracker)
    with Campaign(tmp_path / "c", inference, Model.simulate, **settings) as campaign:
        design = campaign.propose()
    assert logged()["best_design_1"] == [(1, float(design))]
    assert all(math.isfinite(value) for _, value in logged()["design_loss"])
