"""Particles and expected gains, against posteriors and information in closed form."""

import math

import pytest
import torch
from torch.distributions import Beta, Independent

from sbi_boed_plugin import TruncatedNormalPolicy
from sbi_boed_plugin.adaptive.beliefs import expected_gains, roll_out_beliefs
from sbi_boed_plugin.adaptive.rollout import LearnedExperiment
from tests.adaptive.models import FLAT, NORMAL, IsAbove, Scaled, make_training
from tests.adaptive.test_training import WIDE, FailsAbove

SKEWED = Independent(Beta(torch.tensor([1.5]), torch.tensor([4.0])), 1)


def beliefs_of(prior, likelihood, num_experiments, num=300, space=WIDE):
    torch.manual_seed(0)
    policy = make_training(prior, num_experiments, space).policy
    theta = prior.sample((num,))
    return roll_out_beliefs(policy, LearnedExperiment(likelihood), prior, theta)


def test_particles_of_a_normal_posterior():
    beliefs = beliefs_of(NORMAL, Scaled(), 4)
    assert beliefs.draws.shape == (5, 32, 300, 1)
    for step in range(5):
        precision = 1.0 + beliefs.design[:step].square().sum(dim=0)
        mean = (beliefs.design * beliefs.x)[:step].sum(dim=0) / precision
        z = (beliefs.draws[step] - mean) * precision.sqrt()
        assert float(z.mean()) == pytest.approx(0.0, abs=0.05)
        assert float(z.square().mean()) == pytest.approx(1.0, abs=0.1)


@pytest.mark.parametrize("prior", [FLAT, SKEWED])
def test_particles_of_a_bounded_prior_and_of_answers(prior):
    """Means and spreads by quadrature; no particle leaves the support."""
    box = make_training(prior, 1).policy.space
    beliefs = beliefs_of(prior, IsAbove(0.1), 5, space=box)
    assert prior.support.check(beliefs.draws).all()
    grid = torch.linspace(0.0005, 0.9995, 1_000)
    log_density = prior.log_prob(grid.unsqueeze(1)).unsqueeze(1).expand(-1, 300)
    for step in range(6):
        weights = log_density.softmax(dim=0)
        mean = (weights * grid.unsqueeze(1)).sum(dim=0)
        std = ((weights * grid.unsqueeze(1).square()).sum(dim=0) - mean.square()).sqrt()
        z = (beliefs.draws[step, :, :, 0] - mean) / std
        assert float(z.mean()) == pytest.approx(0.0, abs=0.08)
        assert float(z.square().mean()) == pytest.approx(1.0, abs=0.1)
        if step < 5:
            gap = (grid.unsqueeze(1) - beliefs.design[step].T) / 0.1
            sign = 2.0 * beliefs.x[step].T - 1.0
            log_density = log_density + torch.nn.functional.logsigmoid(sign * gap)


def test_one_experiment_that_tells_nearly_all():
    """Measured to a thousandth of the prior's spread: no particle is near at first."""
    space = TruncatedNormalPolicy(torch.zeros(1), torch.full((1,), 2_000.0))
    beliefs = beliefs_of(NORMAL, Scaled(), 2, space=space)
    precision = 1.0 + beliefs.design[0].square()
    told = beliefs.design[0, :, 0] > 500.0
    mean = beliefs.design[0] * beliefs.x[0] / precision
    z = ((beliefs.draws[1] - mean) * precision.sqrt())[:, told]
    assert told.sum() > 100
    assert float(z.square().mean()) == pytest.approx(1.0, abs=0.25)
    different = [len(each.unique()) for each in beliefs.draws[1, :, told, 0].T]
    assert min(different) > 5 and sum(different) / len(different) > 16


def test_an_experiment_that_failed_leaves_the_particles():
    beliefs = beliefs_of(NORMAL, FailsAbove(Scaled()), 2)
    failed = ~beliefs.x[0].isfinite().all(dim=-1)
    assert failed.any() and not failed.all()
    spread = beliefs.draws[1].std(dim=0)[:, 0]
    # The prior has one, and what succeeded is told by designs around two.
    assert float(spread[failed].mean()) == pytest.approx(1.0, abs=0.1)
    assert float(spread[~failed].mean()) < 0.8


def test_the_oldest_histories_are_renewed():
    old, new = (beliefs_of(NORMAL, Scaled(), 2, num) for num in (6, 2))
    renewed = old.renewed(new, 6)
    assert old.renewed(new, 9).design.shape == (2, 8, 1)
    torch.testing.assert_close(renewed.theta, torch.cat([old.theta[2:], new.theta]))
    expected = torch.cat([old.draws[:, :, 2:], new.draws], dim=2)
    torch.testing.assert_close(renewed.draws, expected)
    assert renewed.rows(torch.tensor([5, 0])).x.shape == (2, 2, 1)


def gains_and_gradient(likelihood, design, num=3_000):
    torch.manual_seed(0)
    draws, design = torch.randn(32, num, 1), torch.full((num, 1), design)
    found = expected_gains(LearnedExperiment(likelihood), draws, design)
    return [float(part.mean()) for part in found]


def test_gains_of_normal_data_and_their_gradient():
    value, gradient = gains_and_gradient(Scaled(), 1.5)
    # The information of a finite number of draws is less, by their number.
    assert value == pytest.approx(0.5 * math.log(1.0 + 1.5**2), abs=0.03)
    assert gradient == pytest.approx(1.5 / (1.0 + 1.5**2), abs=0.03)


@pytest.mark.parametrize("fails", [False, True])
def test_gains_of_answers_and_their_gradient(fails):
    """Yes or no, which does not follow the design, and may fail."""
    theta = torch.randn(400_000, 1).double()

    def information(design):
        chance = (theta - design).sigmoid()
        entropy = torch.special.entr(chance) + torch.special.entr(1.0 - chance)
        mean = chance.mean()
        value = torch.special.entr(mean) + torch.special.entr(1.0 - mean)
        return (value - entropy.mean()) * (1.0 - 0.249 * design if fails else 1.0)

    likelihood = FailsAbove(IsAbove(1.0)) if fails else IsAbove(1.0)
    value, gradient = gains_and_gradient(likelihood, 1.0, num=20_000)
    slope = float((information(1.01) - information(0.99)) / 0.02)
    assert value == pytest.approx(float(information(1.0)), abs=0.01)
    assert gradient == pytest.approx(slope, abs=0.015)
