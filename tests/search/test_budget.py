"""The budget of a search is its budget."""

import time
import warnings

import pytest
import torch
from sbi.neural_nets import likelihood_nn, posterior_nn

from sbi_boed_plugin import DesignSearchConfig, MultiStartConfig
from sbi_boed_plugin.search.budget import num_ranking, with_all_numbers
from tests.oracles import LinearGaussian as Model
from tests.trainers.cases import make_trainer

CHECK = 7


def shares(budget, has_networks=False, **settings):
    config = DesignSearchConfig(max_num_simulations=budget, **settings)
    return with_all_numbers(config, has_networks=has_networks, num_check_calls=CHECK)


@pytest.mark.parametrize("ready", [False, True])
@pytest.mark.parametrize("method", ["joint", "multi_start"])
@pytest.mark.parametrize("budget", [200, 300, 1_000, 5_000, 20_000, 10**6])
def test_shares_use_the_budget_and_no_more(budget, method, ready):
    ready = ready and method == "multi_start"
    config = shares(budget, ready, method=method)
    spent = config.num_steps * config.training_batch_size
    spent += config.num_eig_samples + num_ranking(config.multi_start) + CHECK
    assert spent <= budget
    if budget <= 20_000 and not ready:
        assert spent > 0.9 * budget - config.training_batch_size
    assert ready == (config.num_steps == 0)


def test_what_is_given_stays_and_the_rest_is_as_usual():
    config = shares(None, method="multi_start")
    assert (config.num_steps, config.training_batch_size) == (1_000, 256)
    assert config.num_eig_samples == 4_000
    assert config.multi_start == MultiStartConfig()
    given = {"num_steps": 7, "training_batch_size": 33, "num_eig_samples": 44}
    config = shares(10_000, **given)
    assert {name: getattr(config, name) for name in given} == given
    search = MultiStartConfig(num_candidates=2, num_candidate_samples=11)
    config = shares(10_000, method="multi_start", multi_start=search)
    assert config.multi_start == search and num_ranking(config.multi_start) == 22
    config = shares(2_000, num_refinement_steps=20)
    training = 2_000 - config.num_eig_samples - CHECK
    assert config.num_steps > 0
    steps = config.num_steps + 20
    assert 0 <= training - steps * config.training_batch_size < 100


@pytest.mark.parametrize("budget", [1, 10, 25])
def test_a_budget_too_small_is_refused_with_what_it_takes(budget):
    with pytest.raises(ValueError, match=f"max_num_simulations={budget} is too few"):
        shares(budget)


def test_networks_learn_again_from_what_is_there():
    """Six steps of 32 simulations are worth more when they are seen again.

    To networks of sbi, which do not start from a regression.
    """
    values = []
    plain = {"posterior_estimator": posterior_nn("mdn")}
    for budget in (None, 600):
        torch.manual_seed(0)
        trainer = make_trainer(Model.prior, model=likelihood_nn("mdn"), **plain)
        result = trainer.optimize_design(
            Model.simulate,
            num_steps=6,
            training_batch_size=32,
            max_num_simulations=budget,
            num_eig_samples=200,
        )
        exact = Model.eig(result.design).item()
        values.append(result.eig.value / exact)
    # Over eight seeds 0.1 to 0.3 against 0.8 to 1.1 of the information.
    assert values[1] > values[0] + 0.2


@pytest.mark.slow
def test_time_is_kept_where_a_step_is_slow():
    """A step takes half a second here, and the score as long as sixteen steps."""

    def slow(theta, design):
        time.sleep(0.03 * len(theta))
        return Model.simulate(theta, design)

    started = time.monotonic()
    result = make_trainer(Model.prior).optimize_design(
        slow, training_batch_size=16, max_seconds=4.0
    )
    seconds = time.monotonic() - started
    assert result.stop_reason == "max_seconds"
    # Steps of at most 3.2 seconds, and the hundred simulations that score at least.
    assert result.num_simulations < 300 and result.seconds < 4.0
    assert len(result.history["loss"]) > 3
    assert seconds < 60.0  # On a busy machine; without the limit it were 120.


def test_the_score_takes_the_time_that_steps_leave():
    def slow(theta, design):
        time.sleep(0.005 * len(theta))
        return Model.simulate(theta, design)

    result = make_trainer(Model.prior).optimize_design(
        slow, num_steps=10, training_batch_size=16, max_seconds=3.0
    )
    # A pace of at least 5 ms a simulation; without the limit 4,000 would score.
    assert result.stop_reason == "num_steps" and result.num_simulations < 800


def test_a_resumed_search_pays_for_what_was_spent_before():
    trainer = make_trainer(Model.prior)
    settings = {"num_steps": 40, "training_batch_size": 16, "num_eig_samples": 50}
    trainer.optimize_design(Model.simulate, **settings, max_num_simulations=200)
    again = {"resume_training": True, "num_eig_samples": 50}
    with pytest.raises(ValueError, match="there have been 1[89]"):
        trainer.optimize_design(Model.simulate, **again, max_num_simulations=200)
    result = trainer.optimize_design(Model.simulate, **again, max_num_simulations=400)
    assert 300 < result.num_simulations <= 400


def test_rows_that_a_limit_left_out_are_no_failures():
    """The first error comes when the design is scored, with hardly a call to spare."""
    num_rows = 0

    def fails_late(theta, design):
        nonlocal num_rows
        num_rows += len(theta)
        if num_rows > 170 and (theta > 1.5).any():
            raise RuntimeError("the solver diverged")
        return Model.simulate(theta, design)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        result = make_trainer(Model.prior).optimize_design(
            fails_late, num_steps=10, training_batch_size=16, max_num_simulations=300
        )
    assert num_rows == result.num_simulations <= 300
    scored = next(iter(result.bounds.values()))
    # Some rows fail (7 % of the prior), many were never tried.
    assert scored.num_invalid_simulations < 0.3 * scored.num_simulations < 30
