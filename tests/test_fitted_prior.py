"""Densities fitted to draws of what is known, in the place of the prior."""

import math
import pickle
import re

import pytest
import torch
from sbi.utils import BoxUniform
from torch.distributions import (
    Beta,
    Gamma,
    Independent,
    MultivariateNormal,
    Normal,
    StudentT,
)

from sbi_boed_plugin import NLE_INCE, FittedPrior, TruncatedNormalPolicy
from sbi_boed_plugin.search.belief import ParticleBelief

BOX = BoxUniform(torch.zeros(2), torch.ones(2))
RATE = Independent(Gamma(torch.tensor([2.0]), torch.tensor([1.0])), 1)
NARROW = MultivariateNormal(
    torch.tensor([3.0, -200.0]), torch.tensor([[4e-6, 1e-3], [1e-3, 1.0]])
)


@pytest.mark.parametrize(
    "known, prior",
    [
        (NARROW, None),
        (Independent(Beta(torch.tensor([0.8, 5.0]), torch.ones(2)), 1), BOX),
        (Independent(Gamma(torch.tensor([3.0]), torch.tensor([1e4])), 1), RATE),
        (Independent(StudentT(torch.tensor([3.0])), 1), None),
    ],
    ids=["narrow and correlated", "at the edges", "tiny and positive", "heavy tails"],
)
def test_the_density_is_that_of_the_draws(known, prior):
    torch.manual_seed(0)
    fitted = FittedPrior(known.sample((10_000,)), prior)
    fresh = known.sample((10_000,))
    log_ratio = known.log_prob(fresh) - fitted.log_prob(fresh)
    # The divergence from the true density, in nats.
    assert -0.01 < log_ratio.mean() < 0.03
    draws = fitted.sample((10_000,))
    assert draws.shape == (10_000, *known.event_shape)
    assert -0.01 < (fitted.log_prob(draws) - known.log_prob(draws)).mean() < 0.03
    assert fitted.support.check(draws).all()


def test_the_density_is_normalized_and_vanishes_outside():
    torch.manual_seed(0)
    prior = BoxUniform(torch.zeros(1), torch.full((1,), 5.0))
    fitted = FittedPrior(5.0 * torch.rand(1_000, 1) ** 0.7, prior)
    points = torch.linspace(1e-6, 5.0 - 1e-6, 200_001).unsqueeze(1)
    total = fitted.log_prob(points).exp().mean() * 5.0
    assert abs(total - 1.0) < 0.01
    outside = torch.tensor([[-1.0], [6.0], [math.nan]])
    assert (fitted.log_prob(outside) == -torch.inf).all()
    assert fitted.log_prob(torch.rand(3, 4, 1)).shape == (3, 4)
    assert fitted.log_prob(torch.tensor([2.0])).shape == ()


def test_it_keeps_the_random_numbers_and_pickles():
    draws = torch.randn(500, 2)
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    fitted = FittedPrior(draws)
    assert torch.equal(torch.rand(3), expected)
    again = pickle.loads(pickle.dumps(fitted))
    assert torch.equal(again.log_prob(draws), fitted.log_prob(draws))


def test_gradients_flow_through_the_density():
    torch.manual_seed(0)
    fitted = FittedPrior(torch.rand(1_000, 2) ** 2, BOX)
    theta = torch.tensor([[0.3, 0.6]], requires_grad=True)
    fitted.log_prob(theta).sum().backward()
    step = torch.tensor([[1e-3, 0.0]])
    with torch.no_grad():
        change = fitted.log_prob(theta + step) - fitted.log_prob(theta - step)
    assert theta.grad is not None
    assert abs(theta.grad[0, 0] - change / 2e-3) < 0.01 * theta.grad.abs().max() + 0.01


@pytest.mark.filterwarnings("error::UserWarning")
def test_a_misfit_is_told_and_a_fit_is_not():
    torch.manual_seed(0)
    corners = torch.randint(2, (4_000, 6)) * 2.0 - 1.0
    with pytest.warns(UserWarning, match="differs from them"):
        FittedPrior(corners + 0.05 * torch.randn(4_000, 6))
    FittedPrior(torch.randn(4_000, 6))
    FittedPrior(torch.rand(300, 2), BOX)


@pytest.mark.parametrize(
    "samples, prior, expected",
    [
        ([[1.0]], None, "posterior.sample"),
        (torch.rand(500), None, "(500,)"),
        (torch.rand(50, 2), None, "at least 200"),
        (torch.rand(500, 2) / torch.tensor([1.0, 0.0]), None, "infinite"),
        (torch.randint(3, (500, 2)).float(), None, "repeat in columns [0, 1]"),
        (torch.randn(500, 2), BOX, "outside the support"),
        (torch.rand(500, 3), BOX, "3 columns"),
        (torch.ones(500, 2) * torch.rand(500, 1), None, "determine each other"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_draws_without_a_density_are_refused(samples, prior, expected):
    with pytest.raises((ValueError, TypeError), match=re.escape(expected)):
        FittedPrior(samples, prior)


def test_beliefs_go_on_from_it():
    """Two data one after the other tell what both tell together."""
    torch.manual_seed(0)
    first = Normal(0.6, math.sqrt(0.2))  # Of a unit Normal and 0.75 +- 0.5.
    belief = ParticleBelief(FittedPrior(first.sample((10_000, 1))))
    belief.update(lambda theta: Normal(theta[:, 0], 0.5).log_prob(torch.tensor(-0.3)))
    mean, variance = (0.6 / 0.2 - 0.3 / 0.25) / 9.0, 1.0 / 9.0
    assert abs(belief.particles.mean() - mean) < 0.03
    assert abs(belief.particles.std() / math.sqrt(variance) - 1.0) < 0.05


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Designs", "ignore:A linear", "ignore:The networks")
def test_searches_report_the_information_beyond_it():
    torch.manual_seed(0)
    draws = Normal(2.0, 0.5).sample((10_000, 1))
    policy = TruncatedNormalPolicy(torch.zeros(1), torch.ones(1))
    trainer = NLE_INCE(
        FittedPrior(draws), "mdn", design_policy=policy, show_progress_bars=False
    )
    result = trainer.optimize_design(
        lambda theta, design: theta * design + 0.1 * torch.randn_like(theta),
        max_num_simulations=1_000,
    )
    exact = 0.5 * math.log(1.0 + 25.0 * float(result.design) ** 2)
    assert result.design > 0.9
    assert abs(result.eig.value - exact) < 0.15 + 3.0 * result.eig.standard_error
