"""Interrupted design searches go on as if nothing had happened."""

import os
import pickle
import random
import signal

import numpy as np
import pytest
import torch

from sbi_boed_plugin import TruncatedNormalPolicy
from tests.contract_cases import seed_everything
from tests.trainers.cases import (
    CHECK,
    HIGH,
    LOW,
    SCORING,
    CountingTracker,
    FailsAt,
    make,
    simulator,
)
from tests.trainers.cases import SEARCH as OF_SIX_STEPS

# Of the six steps, the last ones refine the networks at the design found.
SEARCH = {**OF_SIX_STEPS, "num_steps": 3, "num_refinement_steps": 3}


@pytest.fixture(scope="module")
def uninterrupted():
    """Result and weights of a search from seed 0 that nothing disturbed."""
    trainer = make()
    seed_all()
    result = trainer.optimize_design(simulator, **SEARCH)
    return result, trainer._neural_net.state_dict()


def seed_all():
    seed_everything(0)
    random.seed(0)


def global_states():
    return torch.get_rng_state().tolist(), str(np.random.get_state()), random.getstate()


def resume_after_other_work(trainer):
    """Resume when the global generators are somewhere else; they must stay there."""
    torch.rand(3), np.random.rand(3), random.random()
    before = global_states()
    result = trainer.optimize_design(simulator, resume_training=True, **SCORING)
    assert global_states() == before
    return result


def assert_same_search(result, network, uninterrupted, num_scored_before=0):
    expected, weights = uninterrupted
    assert torch.equal(result.design, expected.design)
    assert result.eig == expected.eig
    assert result.num_simulations == expected.num_simulations + num_scored_before
    assert result.stop_reason == expected.stop_reason
    for key in set(expected.history) - {"seconds"}:
        assert result.history[key] == expected.history[key], key
    assert len(result.history["seconds"]) == len(expected.history["seconds"])
    state = network.state_dict()
    assert state.keys() == weights.keys()
    assert all(torch.equal(state[key], weights[key]) for key in weights)
    for key, value in expected.policy.state_dict().items():
        assert torch.equal(result.policy.state_dict()[key], value), key


@pytest.mark.filterwarnings("ignore:When the inference object is pickled")
@pytest.mark.parametrize("pickled", [False, True], ids=["same trainer", "pickled"])
@pytest.mark.parametrize("call", [2, 4, 7], ids=["step 2", "step 4", "scoring"])
@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_an_interrupted_search_ends_as_if_it_had_not_been(
    uninterrupted, error, call, pickled
):
    tracker = CountingTracker()
    trainer = make(tracker=tracker)
    seed_all()
    with pytest.raises(error, match="lights out") as caught:
        trainer.optimize_design(FailsAt(error("lights out"), call), **SEARCH)
    completed = call - 1
    assert tracker.counts["design_loss"] == completed
    notes = getattr(caught.value, "__notes__", ["resume_training=True"])
    assert any("resume_training=True" in note for note in notes)
    assert trainer.build_posterior(design=torch.ones(1)) is not None

    if pickled:
        trainer = pickle.loads(pickle.dumps(trainer))
    result = resume_after_other_work(trainer)
    assert_same_search(result, trainer._neural_net, uninterrupted)


def test_a_search_interrupted_before_its_first_step_starts_again(uninterrupted):
    trainer = make()
    seed_all()
    with pytest.raises(RuntimeError, match="lights out"):
        trainer.optimize_design(FailsAt(RuntimeError("lights out"), 1), **SEARCH)
    result = resume_after_other_work(trainer)
    assert_same_search(result, trainer._neural_net, uninterrupted)


class FailsOnce(TruncatedNormalPolicy):
    """A policy whose first log-density fails: the network is built by then."""

    failed = False

    def log_prob(self, design):
        if not self.failed:
            self.failed = True
            raise KeyboardInterrupt
        return super().log_prob(design)


def test_a_search_interrupted_within_its_first_step_starts_again(uninterrupted):
    trainer = make(design_policy=FailsOnce(LOW, HIGH))
    seed_all()
    with pytest.raises(KeyboardInterrupt):
        trainer.optimize_design(simulator, **SEARCH)
    result = resume_after_other_work(trainer)
    assert_same_search(result, trainer._neural_net, uninterrupted)


def test_a_search_interrupted_again_and_again_ends_the_same(uninterrupted):
    trainer = make()
    seed_all()
    with pytest.raises(KeyboardInterrupt):
        trainer.optimize_design(FailsAt(KeyboardInterrupt(), 2), **SEARCH)
    for _ in range(2):  # each gets one step further.
        with pytest.raises(KeyboardInterrupt):
            trainer.optimize_design(
                FailsAt(KeyboardInterrupt(), 2), resume_training=True
            )
    result = resume_after_other_work(trainer)
    assert_same_search(result, trainer._neural_net, uninterrupted)


def test_a_search_stopped_by_its_budget_ends_the_same(uninterrupted):
    trainer = make()
    seed_all()
    num_simulations = 3 * SEARCH["training_batch_size"] + SEARCH["num_eig_samples"]
    num_simulations += CHECK
    budget = {"max_num_simulations": num_simulations + 1}
    partial = trainer.optimize_design(simulator, **SEARCH, **budget)
    assert partial.stop_reason == "max_num_simulations"
    assert len(partial.history["loss"]) == 3
    result = resume_after_other_work(trainer)
    assert len(partial.history["loss"]) == 3  # the earlier result stays as it was.
    assert_same_search(
        result, trainer._neural_net, uninterrupted, SEARCH["num_eig_samples"]
    )


def test_a_finished_search_can_be_resumed_without_effect(uninterrupted):
    trainer = make()
    seed_all()
    trainer.optimize_design(simulator, **SEARCH)
    result = resume_after_other_work(trainer)
    assert_same_search(
        result, trainer._neural_net, uninterrupted, SEARCH["num_eig_samples"]
    )


def test_without_a_completed_step_there_is_nothing_to_keep():
    trainer = make()
    with pytest.raises(RuntimeError, match="lights out") as caught:
        trainer.optimize_design(FailsAt(RuntimeError("lights out"), 1), **SEARCH)
    notes = getattr(caught.value, "__notes__", [])
    assert not any("resume_training" in note for note in notes)
    with pytest.raises(RuntimeError, match="no likelihood yet"):
        trainer.build_posterior(design=torch.ones(1))


@pytest.mark.filterwarnings("ignore:When the inference object is pickled")
def test_a_trainer_pickled_before_its_first_step_says_what_is_missing():
    trainer = make()
    with pytest.raises(RuntimeError, match="lights out"):
        trainer.optimize_design(FailsAt(RuntimeError("lights out"), 1), **SEARCH)
    loaded = pickle.loads(pickle.dumps(trainer))
    with pytest.raises((RuntimeError, ValueError), match="density_estimator|pickle"):
        loaded.optimize_design(simulator, resume_training=True)


class InterruptsItself(TruncatedNormalPolicy):
    """Presses Ctrl-C in the middle of an update, once."""

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
def test_ctrl_c_within_an_update_waits_for_its_end(uninterrupted):
    trainer = make(design_policy=InterruptsItself(LOW, HIGH))
    seed_all()
    with pytest.raises(KeyboardInterrupt):
        trainer.optimize_design(simulator, **SEARCH)
    assert trainer._design_optimizer.progress.step == 3
    result = resume_after_other_work(trainer)
    assert_same_search(result, trainer._neural_net, uninterrupted)
