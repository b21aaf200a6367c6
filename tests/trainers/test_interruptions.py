"""Interrupted searches go on from their last completed step, and lose nothing."""

import os
import pickle
import random
import signal
from copy import deepcopy

import pytest
import torch

from sbi_boed_plugin import TruncatedNormalPolicy
from sbi_boed_plugin.search.information import POLICY_OBJECTIVES
from tests.contract_cases import seed_everything
from tests.trainers.cases import (
    CHECK,
    HIGH,
    LOW,
    SCORING,
    FailsAt,
    make,
    simulator,
)
from tests.trainers.cases import SEARCH as OF_SIX_STEPS

# Of the six steps, the last ones refine the networks at the design found.
SEARCH = {**OF_SIX_STEPS, "num_steps": 3, "num_refinement_steps": 3}
NUM_STEPS, BATCH = 6, SEARCH["training_batch_size"]
pytestmark = pytest.mark.filterwarnings("ignore:When the inference object is pickled")


def interrupted(error, call, **kwargs):
    """A trainer whose search was interrupted at a call of the simulator."""
    trainer = make(**kwargs)
    seed_everything(0), random.seed(0)
    with pytest.raises(type(error)) as caught:
        trainer.optimize_design(FailsAt(error, call), **SEARCH)
    return trainer, caught.value


def pickled(trainer):
    return pickle.loads(pickle.dumps(trainer))


@pytest.mark.parametrize("through", [lambda trainer: trainer, pickled])
@pytest.mark.parametrize("call", [2, 4, 7], ids=["step 2", "step 4", "scoring"])
def test_an_interrupted_search_goes_on_from_its_last_step(call, through):
    error = KeyboardInterrupt if call == 4 else RuntimeError
    trainer, caught = interrupted(error("lights out"), call)
    completed = call - 1
    notes = getattr(caught, "__notes__", ["resume_training=True"])
    assert any("resume_training=True" in note for note in notes)
    before = trainer.search.optimizer.progress

    other = through(trainer)
    mode = trainer.design_policy.mode
    assert torch.equal(other.design_policy.mode, mode)
    calls = []

    def counting(theta, design):
        calls.append(len(theta))
        return simulator(theta, design)

    history = deepcopy(before.history)
    result = other.optimize_design(counting, resume_training=True, **SCORING)
    # No step is repeated, and the simulations of all of them are counted and kept.
    scoring = SCORING["num_eig_samples"]
    assert calls == [BATCH] * (NUM_STEPS - completed) + [scoring]
    assert result.num_simulations == CHECK + NUM_STEPS * BATCH + scoring
    assert len(other.search.optimizer.progress.stored) == NUM_STEPS
    for name, values in history.items():
        assert result.history[name][:completed] == values
        assert len(result.history[name]) == NUM_STEPS
    assert result.stop_reason == "num_steps"
    assert (result.design != mode) == (completed < SEARCH["num_steps"])


@pytest.mark.parametrize("objective", POLICY_OBJECTIVES)
def test_optimizers_go_on_with_their_momentum(objective):
    """From a pickle and the trainer itself, in the same random state."""
    settings = {**SEARCH, "objective": objective}
    if objective == "target":
        settings["target"] = 0
    trainer = make()
    with pytest.raises(KeyboardInterrupt):
        trainer.optimize_design(FailsAt(KeyboardInterrupt(), 3), **settings)
    results = []
    for other in (pickled(trainer), trainer):
        seed_everything(1), random.seed(1)
        result = other.optimize_design(simulator, resume_training=True, **SCORING)
        results.append((result.design, result.eig, result.history["loss"]))
    assert results[0] == results[1]


class FailsOnce(TruncatedNormalPolicy):
    """A policy whose first log-density fails: the network is built by then."""

    failed = False

    def log_prob(self, design):
        if not self.failed:
            self.failed = True
            raise KeyboardInterrupt
        return super().log_prob(design)


@pytest.mark.parametrize("within", [False, True])
def test_networks_of_a_first_step_that_failed_are_not_kept(within):
    policy = (FailsOnce if within else TruncatedNormalPolicy)(LOW, HIGH)
    trainer = make(design_policy=policy)
    fails = simulator if within else FailsAt(RuntimeError("lights out"), 1)
    with pytest.raises((KeyboardInterrupt, RuntimeError)) as caught:
        trainer.optimize_design(fails, **SEARCH)
    notes = getattr(caught.value, "__notes__", [])
    assert not any("resume_training" in note for note in notes)
    assert trainer.search.networks is None
    with pytest.raises(RuntimeError, match="no likelihood yet"):
        trainer.build_posterior(design=torch.ones(1))
    result = trainer.optimize_design(simulator, resume_training=True, **SCORING)
    assert len(result.history["loss"]) == NUM_STEPS


def test_a_search_stopped_by_its_budget_goes_on_with_another():
    trainer = make()
    budget = CHECK + 3 * BATCH + SEARCH["num_eig_samples"] + 1
    partial = trainer.optimize_design(simulator, **SEARCH, max_num_simulations=budget)
    assert partial.stop_reason == "max_num_simulations"
    result = trainer.optimize_design(simulator, resume_training=True, **SCORING)
    assert len(partial.history["loss"]) == 3  # the earlier result stays as it was.
    assert result.history["loss"][:3] == partial.history["loss"]
    total = CHECK + NUM_STEPS * BATCH + 2 * SEARCH["num_eig_samples"]
    assert result.num_simulations == total
    # A finished search can be resumed without effect.
    second = trainer.optimize_design(simulator, resume_training=True, **SCORING)
    assert second.history == result.history
    assert torch.equal(second.design, result.design)


def test_a_trainer_pickled_before_its_first_step_says_what_is_missing():
    def build(theta, x):
        raise AssertionError("not picklable, and never called")

    trainer, _ = interrupted(RuntimeError(), 1, density_estimator=build)
    with pytest.raises(RuntimeError, match="pickling leaves out density_estimator"):
        pickled(trainer).optimize_design(simulator, resume_training=True)


class InterruptsItself(TruncatedNormalPolicy):
    """Presses Ctrl-C in the middle of its third update."""

    num_projections = 0

    def project(self):
        self.num_projections += 1
        if self.num_projections == 3:
            os.kill(os.getpid(), signal.SIGINT)
        super().project()


@pytest.fixture
def ctrl_c():
    """Python's own reaction to Ctrl-C, which jobs in the background do not have."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("ctrl_c")
def test_ctrl_c_within_an_update_waits_for_its_end():
    trainer = make(design_policy=InterruptsItself(LOW, HIGH))
    with pytest.raises(KeyboardInterrupt):
        trainer.optimize_design(simulator, **SEARCH)
    assert trainer.search.optimizer.progress.step == 3
    result = trainer.optimize_design(simulator, resume_training=True, **SCORING)
    assert {len(values) for values in result.history.values()} == {NUM_STEPS}
