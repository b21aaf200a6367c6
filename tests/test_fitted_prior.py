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
    fitted.log_prob(draws)
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


def test_draws_may_have_double_precision():
    torch.manual_seed(0)
    draws = torch.randn(1_000, 2).double()
    fitted = FittedPrior(draws)
    assert torch.isfinite(fitted.log_prob(draws)).all()
    assert fitted.sample((3,)).dtype == torch.float32


def test_whole_numbers_are_values_like_others():
    torch.manual_seed(0)
    fitted = FittedPrior(torch.randn(1_000, 2))
    whole = torch.tensor([[0, 1]])
    assert torch.equal(fitted.log_prob(whole), fitted.log_prob(whole.float()))
    with pytest.raises(ValueError, match=r"\(4, 1\), but the last dimension must be 2"):
        fitted.log_prob(torch.zeros(4, 1))


def test_draws_that_rounding_puts_onto_a_bound_have_no_part():
    """Near 1, single precision has steps of 1e-7, where the density has a pole."""
    torch.manual_seed(0)
    prior = BoxUniform(torch.ones(1), torch.full((1,), 2.0))
    draws = 1.0 + torch.rand(10_000, 1) ** 3
    assert (draws == 1.0).any()
    fitted = FittedPrior(draws, prior)
    own = fitted.sample((50_000,))
    assert (own > 1.0).all() and (own < 2.0).all()
    assert fitted.log_prob(torch.tensor([[1.0], [2.0]])).tolist() == [-math.inf] * 2
    # The entropy of 1 + u**3 is log(3) - 2 nats.
    assert abs(fitted.log_prob(own).mean() - (2.0 - math.log(3.0))) < 0.1


def test_copies_of_a_row_do_not_judge_each_other():
    """Particles that were drawn with replacement; the truth is a unit Normal."""
    torch.manual_seed(0)
    different = torch.randn(1_000, 5)
    copies = FittedPrior(different[torch.randint(1_000, (10_000,))])
    fresh = torch.randn(10_000, 5)
    known = Independent(Normal(torch.zeros(5), 1.0), 1)
    loss = (known.log_prob(fresh) - copies.log_prob(fresh)).mean()
    assert loss < 0.05


def test_too_few_draws_are_told():
    torch.manual_seed(0)
    with pytest.warns(UserWarning, match="nats worse than its own"):
        FittedPrior(torch.randn(200, 20))


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
        ((torch.rand(5_000, 1) * 1.06 - 0.03).clamp(0, 1), None, "in columns [0]"),
        (torch.rand(500, 2).round(decimals=2).clamp(0, 1), BOX, "repeat in columns"),
        (torch.randn(500, 1), Normal(0.0, 1.0), "Independent"),
        (torch.rand(500, 2), "box", "must be a torch Distribution"),
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
