"""What an energy is said to gain, and whether it is kept, against known ratios."""

import math

import pytest
import torch

from sbi_boed_plugin.estimators.energy import energy_nn
from sbi_boed_plugin.estimators.hybrid import HybridEstimator
from sbi_boed_plugin.trainers._energy_training import (
    EnergyConfig,
    EnergyHistory,
    _gains,
    _judge,
    train_energy,
)
from tests.hybrids import GaussianBase

NUM_ROWS, NUM_DRAWS = 50, 400


class KnownRatios:
    """Stands in for a hybrid; the parameters are the ratios."""

    energy = torch.nn.Linear(1, 1)

    def ratio_of_features(self, theta, features, noise):
        return theta[..., 0]


def rows(own, pool, inside=None):
    """Validation rows with ratios `own` and pools with ratios `pool`."""
    ratios = torch.cat([own.unsqueeze(0), pool]).T
    log_weight = torch.zeros_like(ratios)
    if inside is not None:
        log_weight[:, 1:][~inside.T] = -torch.inf
    nothing = torch.zeros(NUM_ROWS, 1 + NUM_DRAWS, 0)
    return [ratios.unsqueeze(-1), nothing, log_weight, nothing[:, 0]]


def judge(gains, of_objective):
    return EnergyHistory([], [], *_judge(gains, of_objective, 2.0))


def test_gains_are_those_of_normalized_densities():
    torch.manual_seed(0)
    own, pool = torch.randn(NUM_ROWS), torch.randn(NUM_DRAWS, NUM_ROWS)
    gains, of_objective = _gains(KnownRatios(), rows(own, pool))
    partition = pool.exp().mean(dim=0)
    torch.testing.assert_close(gains, own - partition.log())
    torch.testing.assert_close(of_objective, own - partition + 1.0)
    # log Z is at most Z - 1.
    assert (of_objective <= gains + 1e-5).all()


def test_gains_are_beside_a_base_that_is_normalized_inside_the_prior():
    own, pool = torch.zeros(NUM_ROWS), torch.zeros(NUM_DRAWS, NUM_ROWS)
    inside = torch.arange(NUM_DRAWS).unsqueeze(1).expand_as(pool) % 4 == 0
    gains, _ = _gains(KnownRatios(), rows(own, pool, inside))
    # An energy that says nothing gains nothing, whatever the base loses outside.
    torch.testing.assert_close(gains, torch.zeros(NUM_ROWS))
    # Nor where no draw is inside at all.
    gains, _ = _gains(KnownRatios(), rows(own, pool, inside & False))
    assert gains.isfinite().all()


def test_a_steady_gain_is_kept_and_a_noisy_one_is_not():
    torch.manual_seed(0)
    steady = 0.3 + 0.1 * torch.randn(NUM_ROWS)
    kept = judge(steady, steady)
    assert kept.kept
    assert kept.gain == pytest.approx(0.3, abs=0.1)
    noisy = torch.linspace(-9.0, 9.2, NUM_ROWS)
    assert not judge(noisy, noisy).kept
    assert not judge(steady[:1], steady[:1]).kept


def test_rare_draws_with_huge_ratios_are_refused():
    """In logarithms one row of fifty is off; samples given it would be of that draw."""
    own, pool = torch.full((NUM_ROWS,), 0.8), torch.zeros(NUM_DRAWS, NUM_ROWS)
    harmless = judge(*_gains(KnownRatios(), rows(own, pool)))
    assert harmless.kept
    pool[17, 3] = 15.0
    gains, of_objective = _gains(KnownRatios(), rows(own, pool))
    spoilt = judge(gains, of_objective)
    assert spoilt.gain > 2.0 * spoilt.gain_standard_error > 0.0
    assert of_objective.mean() < -math.exp(15.0) / (NUM_DRAWS * NUM_ROWS) / 2.0
    assert spoilt.objective_gain == of_objective.mean()
    assert not spoilt.kept


def trained_energy(theta, x, num_train, **kwargs):
    """Train a small energy on a base that is a Gaussian around the data."""
    build = energy_nn(hidden_features=16, num_blocks=1, dropout=0.0)
    hybrid = HybridEstimator(GaussianBase(1.0), build(theta, x), frozen_base=True)
    rows = torch.arange(len(theta))
    split = {"train_rows": rows[:num_train], "validation_rows": rows[num_train:]}
    config = EnergyConfig(learning_rate=0.03, weight_decay=0.0, **kwargs)
    return hybrid, train_energy(hybrid, theta, x, config=config, **split)


def test_simulations_that_choose_the_epoch_do_not_decide():
    torch.manual_seed(0)
    x = torch.randn(400, 2)
    # The base is three times too wide, and only a little for those that choose.
    theta = x + 0.3 * torch.randn(400, 2)
    theta[200::2] = x[200::2] + 0.6 * torch.randn(100, 2)
    hybrid, history = trained_energy(theta, x, 200, max_num_epochs=30)
    assert history.kept
    gains = hybrid.log_prob(theta[None], x)[0] - hybrid.base.log_prob(theta[None], x)[0]
    # Partition functions from other draws: 1,000 or more, with weights up to e^3.
    assert history.gain == pytest.approx(gains[201::2].mean().item(), abs=0.05)
    assert history.gain > gains[200:].mean().item() + 0.1


@pytest.mark.slow
def test_an_energy_that_fits_noise_is_hardly_ever_kept():
    """At two standard errors of ten simulations chance keeps one in 26."""
    num_kept = 0
    for seed in range(40):
        torch.manual_seed(seed)
        x = torch.randn(60, 2)
        theta = x + torch.randn(60, 2)
        num_kept += trained_energy(theta, x, 40, max_num_epochs=12)[1].kept
    assert num_kept <= 4
