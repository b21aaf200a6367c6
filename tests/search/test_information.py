"""What drives a policy: densities of a batch and the bounds made of them."""

import pytest
import torch
from sbi.neural_nets import likelihood_nn, posterior_nn

from benchmarks.exact_estimators import (
    exact_estimators,
    information,
    normal_prior,
    slope,
)
from sbi_boed_plugin.estimators.energy import EnergyRatio
from sbi_boed_plugin.estimators.hybrid import HybridEstimator
from sbi_boed_plugin.objectives.info_nce import (
    in_batch_contrast,
    info_nce_loss,
)
from sbi_boed_plugin.search.estimators import DesignEstimators
from sbi_boed_plugin.search.information import (
    POLICY_OBJECTIVES,
    Densities,
    training_losses,
)
from tests.oracles import EnergyBetween

PRIOR = normal_prior(1)
# Targets have tests of their own.
OF_ALL = sorted(set(POLICY_OBJECTIVES) - {"target"})
SLOPE = {"dim_theta": 1, "dim_design": 1}


def batch(num):
    theta, design = torch.randn(num, 1), 1.0 + torch.rand(num, 1)
    return theta, theta * design + torch.randn(num, 1), design


def networks(theta, x, design):
    """Untrained networks of every kind."""
    data = torch.cat([x, design], dim=1)
    posterior = HybridEstimator(
        posterior_nn("mdn")(theta, data), EnergyRatio(theta, data)
    )
    torch.nn.init.normal_(posterior.energy.last.weight, std=0.1)
    return DesignEstimators(
        likelihood_nn("mdn")(torch.cat([theta, design], dim=1), x),
        posterior,
        likelihood_nn("mdn")(design, x),
    )


def exact_hybrid(**wrong):
    """Exact densities, the posterior made of a base and an energy."""
    exact = exact_estimators(slope, **SLOPE)
    base = exact_estimators(slope, **SLOPE, **wrong).posterior
    exact.posterior = HybridEstimator(base, EnergyBetween(exact.posterior, base))
    return exact


def densities_of(estimators, num, num_contrastive=31, rows=None):
    theta, x, design = rows or batch(num)
    contrast = in_batch_contrast(theta, num_contrastive)
    return Densities(estimators, PRIOR, theta, x, design, contrast)


def test_densities_are_evaluated_once_and_only_if_asked(monkeypatch):
    rows = batch(10)
    estimators = networks(*rows)
    calls, log_prob = [], estimators.likelihood.log_prob

    def counted(input, condition):
        calls.append(len(condition))
        return log_prob(input, condition)

    monkeypatch.setattr(estimators.likelihood, "log_prob", counted)
    densities = densities_of(estimators, 10, 3, rows)
    assert densities.log_posterior.shape == (10,) and not calls
    assert torch.equal(densities.log_likelihoods[0], densities.log_likelihood)
    assert calls == [40]


def test_training_losses_are_those_of_each_network():
    theta, x, design = rows = batch(30)
    estimators = networks(*rows)
    densities = densities_of(estimators, 30, 3, rows)
    data = torch.cat([x, design], dim=1)
    torch.manual_seed(2)
    losses = training_losses(densities, 0.5)
    torch.manual_seed(2)
    expected = {
        "posterior": estimators.posterior.loss(theta, data),
        "likelihood": info_nce_loss(densities.log_likelihoods, 0.5),
        "marginal": estimators.marginal.loss(x, design),
    }
    torch.testing.assert_close(losses, expected)

    plain = DesignEstimators(estimators.likelihood, estimators.posterior_base)
    densities = densities_of(plain, 30, 3, rows)
    losses = training_losses(densities, 0.5)
    assert set(losses) == {"likelihood", "posterior"}
    expected = plain.posterior.loss(theta, data)
    torch.testing.assert_close(losses["posterior"], expected)


@pytest.mark.parametrize("name", OF_ALL)
def test_with_exact_densities_each_objective_is_the_information(name):
    densities = densities_of(exact_hybrid(noise_scale=1.3), 4_000, 100)
    terms = POLICY_OBJECTIVES[name].terms(densities)
    assert terms.shape == (4_000,) and torch.isfinite(terms).all()
    exact = information(slope, densities.design).mean().item()
    error = terms.std().item() / 4_000**0.5
    # With 100 contrastive samples the contrastive bound is lower by less than 0.02.
    bias = 0.02 if name == "info_nce" else 0.0
    if name == "barber_agakov":  # the base alone, which is wrong: a bound.
        assert terms.mean() < exact - 2 * error
    else:
        assert abs(terms.mean() - exact) < 3.5 * error + bias


@pytest.mark.parametrize("wrong", [{"noise_scale": 0.7}, {"error": 0.5}], ids=str)
@pytest.mark.parametrize("name", sorted(set(OF_ALL) - {"marginal"}))
def test_with_wrong_densities_each_is_a_lower_bound(name, wrong):
    bad = exact_estimators(slope, **SLOPE, **wrong)
    far = exact_estimators(slope, **SLOPE, noise_scale=2.0).posterior
    bad.posterior = HybridEstimator(bad.posterior, EnergyBetween(far, bad.posterior))
    densities = densities_of(bad, 4_000)
    terms = POLICY_OBJECTIVES[name].terms(densities)
    exact = information(slope, densities.design).mean().item()
    assert terms.mean() < exact - 2 * terms.std().item() / 4_000**0.5


def test_each_objective_knows_what_it_needs():
    estimators, hybrid = exact_estimators(slope, **SLOPE), exact_hybrid()
    likelihood = DesignEstimators(estimators.likelihood)
    for name in OF_ALL:
        objective = POLICY_OBJECTIVES[name]
        assert hybrid.has_networks_for(objective.needs)
        assert likelihood.has_networks_for(objective.needs) == (name == "info_nce")
        assert estimators.has_networks_for(objective.needs) == (name != "gkl")
