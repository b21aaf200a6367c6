"""Normals truncated to a box: their density, their edges and their gradients."""

import pytest
import torch
from scipy.stats import truncnorm

from sbi_boed_plugin import TruncatedNormalPolicy
from tests.policies.expectations import finite_differences


def policy(loc=30.0, scale=0.1, dtype=torch.float32):
    low, high, loc = (torch.tensor([v], dtype=dtype) for v in (0.0, 100.0, loc))
    return TruncatedNormalPolicy(low, high, loc=loc, scale=scale)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("loc", [0.0, 2.0, 50.0, 99.9, 100.0])
@pytest.mark.parametrize("scale", [0.003, 0.05, 0.3, 30.0])
def test_density_and_draws_are_scipys(loc, scale, dtype):
    """Also in single precision, where a Normal ends 5.4 scales above its location."""
    this, width = policy(loc, scale, dtype), 100.0 * scale
    expected = truncnorm(-loc / width, (100.0 - loc) / width, loc, width)
    grid = torch.linspace(0.0, 100.0, 2_001, dtype=dtype)
    exact = expected.logpdf(grid.double().numpy())
    log_prob = this.log_prob(grid.unsqueeze(1)).detach().double().numpy()
    assert log_prob == pytest.approx(exact, rel=1e-4, abs=1e-3)
    assert (this.log_prob(torch.tensor([[-1.0], [100.1]])) == -torch.inf).all()

    drawn = this.sample((20_000,))
    assert this.support.check(drawn).all() and this.log_prob(drawn).isfinite().all()
    # Four standard errors of mean and quantile of 20,000 draws.
    error = 4 * expected.std() / 141 + 1e-4
    assert drawn.mean().item() == pytest.approx(expected.mean(), abs=error)
    for level in (0.1, 0.5, 0.9):
        below = (drawn <= expected.ppf(level)).float().mean().item()
        assert below == pytest.approx(level, abs=4 * 0.5 / 141)


def test_gradient_of_log_prob_against_finite_differences():
    this = TruncatedNormalPolicy(
        torch.tensor([0.0, -1.0], dtype=torch.float64),
        torch.tensor([2.0, 5.0], dtype=torch.float64),
        loc=torch.tensor([0.1, 4.0], dtype=torch.float64),
        scale=0.3,
    )
    design = this.sample(torch.Size((4,)))
    finite = finite_differences(this, lambda: this.log_prob(design).sum(), 1e-6)
    (gradient,) = torch.autograd.grad(
        this.log_prob(design).sum(), list(this.parameters())
    )
    torch.testing.assert_close(gradient, finite, rtol=1e-5, atol=0.0)


@pytest.mark.parametrize("uniform", [0.0, 1.0 - 2.0**-24])
@pytest.mark.parametrize("loc", [0.0, 50.0, 87.0, 100.0])
def test_gradient_is_finite_at_the_ends_of_the_random_numbers(
    uniform, loc, monkeypatch
):
    monkeypatch.setattr(torch, "rand_like", lambda x: torch.full_like(x, uniform))
    this = policy(loc)
    design = this.rsample(torch.Size((3,)))
    assert this.support.check(design).all()
    (gradient,) = torch.autograd.grad(design.sum(), list(this.parameters()))
    assert gradient.isfinite().all()


def test_annealing_and_projection():
    this = policy(97.0, (0.3, 0.1))
    assert this.mode.item() == pytest.approx(97.0, abs=1e-4)
    for progress, scale in ((0.0, 30.0), (0.5, 100 * 0.03**0.5), (1.0, 10.0)):
        this.anneal(progress)
        assert this.scale.item() == pytest.approx(scale)
    with torch.no_grad():
        next(this.parameters()).fill_(1.5)
    this.project()
    assert this.mode.item() == 100.0


def test_default_locations_differ_between_interchangeable_measurements():
    this = TruncatedNormalPolicy(torch.full((4,), -10.0), torch.full((4,), 10.0))
    assert len(set(this.mode.tolist())) == 4
    assert TruncatedNormalPolicy(torch.zeros(1), torch.ones(1)).mode.item() == 0.5


def test_numbers_are_corners_of_a_box_of_one_value():
    this = TruncatedNormalPolicy(0.0, 2.0, loc=0.5)
    assert this.mode.tolist() == [0.5]
    assert this.sample(torch.Size((3,))).shape == (3, 1)
