"""Normals truncated to a box: their density, their edges and their gradients."""

import pytest
import torch
from scipy.stats import truncnorm

from sbi_boed_plugin import TruncatedNormalPolicy
from sbi_boed_plugin.policies.truncated_normal import TruncatedNormal


def policy(low=0.0, high=100.0, loc=30.0, scale=0.1):
    low, high, loc = (torch.tensor([value]) for value in (low, high, loc))
    return TruncatedNormalPolicy(low, high, loc=loc, scale=scale)


def reference(loc, width):
    return truncnorm(-loc / width, (100.0 - loc) / width, loc, width)


@pytest.mark.parametrize("loc", [0.0, 2.0, 50.0, 99.9, 100.0])
@pytest.mark.parametrize("scale", [0.01, 0.3, 5.0])
def test_density_and_entropy_are_scipys(loc, scale):
    this, expected = policy(loc=loc, scale=scale), reference(loc, 100.0 * scale)
    grid = torch.linspace(0.0, 100.0, 20_001)
    density = this.log_prob(grid.unsqueeze(1)).exp().detach()
    exact = torch.from_numpy(expected.pdf(grid.double().numpy()))
    torch.testing.assert_close(density.double(), exact, atol=1e-5, rtol=1e-3)
    assert torch.trapezoid(density, grid).item() == pytest.approx(1.0, abs=1e-3)
    assert this.entropy().item() == pytest.approx(expected.entropy(), abs=1e-3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("loc", [0.0, 50.0, 100.0])
@pytest.mark.parametrize("scale", [0.003, 0.05, 30.0])
def test_tails_and_edges_have_their_mass(loc, scale, dtype):
    """Also in single precision, where a Normal ends 5.4 scales above its location."""
    zero, one = torch.zeros(1, dtype=dtype), torch.ones(1, dtype=dtype)
    normals = TruncatedNormal(loc * one, 100 * scale * one, zero, 100 * one)
    expected = reference(loc, 100.0 * scale)
    ends = torch.tensor([0.0, 0.1, 20.0, 80.0, 99.9, 100.0], dtype=dtype)
    for value, exact in zip(ends, expected.logpdf(ends.numpy()), strict=True):
        found = normals.log_prob(value).item()
        assert found == pytest.approx(exact, rel=1e-4, abs=1e-3)
    probabilities = normals.cdf(ends).double().numpy()
    assert probabilities == pytest.approx(expected.cdf(ends.numpy()), abs=1e-4)
    drawn = normals.sample((20_000,))
    assert (
        normals.support.check(drawn).all() and normals.log_prob(drawn).isfinite().all()
    )
    median = (drawn < expected.median()).float().mean().item()
    assert median == pytest.approx(0.5, abs=4 * 0.5 / 141)


@pytest.mark.parametrize("loc", [0.0, 50.0, 100.0])
def test_samples_follow_the_density(loc):
    samples, expected = policy(loc=loc, scale=0.2).sample((20_000,)), reference(loc, 20)
    # Four standard errors of mean and quantile of 20,000 draws.
    assert samples.mean().item() == pytest.approx(expected.mean(), abs=4 * 20 / 141)
    for level in (0.1, 0.5, 0.9):
        below = (samples <= expected.ppf(level)).float().mean().item()
        assert below == pytest.approx(level, abs=4 * 0.5 / 141)


def test_gradient_of_log_prob_against_finite_differences():
    this = TruncatedNormalPolicy(
        torch.tensor([0.0, -1.0], dtype=torch.float64),
        torch.tensor([2.0, 5.0], dtype=torch.float64),
        loc=torch.tensor([0.1, 4.0], dtype=torch.float64),
        scale=0.3,
    )
    design = this.sample(torch.Size((4,)))
    (parameter,) = this.parameters()
    (gradient,) = torch.autograd.grad(this.log_prob(design).sum(), parameter)
    for j in range(2):
        values = []
        for step in (1e-6, -1e-6):
            with torch.no_grad():
                parameter[j] += step
                values.append(this.log_prob(design).sum().item())
                parameter[j] -= step
        finite = (values[0] - values[1]) / 2e-6
        assert gradient[j].item() == pytest.approx(finite, rel=1e-5)


def test_score_has_mean_zero_because_the_normalizer_is_part_of_it():
    # Near the edge the truncation moves with the location: without its normalizer
    # the mean score would be about phi(0)/Phi(0)/width = 4 per unit of the box.
    this = policy(loc=100.0, scale=0.2)
    log_prob = this.log_prob(this.sample((100_000,))).mean()
    (gradient,) = torch.autograd.grad(log_prob, list(this.parameters()))
    # A score has standard deviation 0.6 / 0.2 = 3 here.
    assert abs(gradient.item()) < 4 * 3 / 316


def test_reparameterised_gradient_is_that_of_the_mean():
    this = policy(loc=90.0, scale=0.2)
    mean = this.rsample((50_000,)).mean()
    (gradient,) = torch.autograd.grad(mean, list(this.parameters()))
    finite = (reference(90.01, 20).mean() - reference(89.99, 20).mean()) / 0.02 * 100.0
    assert gradient.item() == pytest.approx(finite, rel=0.02)


@pytest.mark.parametrize("uniform", [0.0, 1.0 - 2.0**-24])
@pytest.mark.parametrize("loc", [0.0, 50.0, 87.0, 100.0])
def test_gradient_is_finite_at_the_ends_of_the_random_numbers(
    uniform, loc, monkeypatch
):
    monkeypatch.setattr(torch, "rand_like", lambda x: torch.full_like(x, uniform))
    this = policy(loc=loc, scale=0.1)
    design = this.rsample(torch.Size((3,)))
    assert this.support.check(design).all()
    (gradient,) = torch.autograd.grad(design.sum(), list(this.parameters()))
    assert gradient.isfinite().all()


def test_outside_the_box_the_density_is_zero():
    assert (policy().log_prob(torch.tensor([[-1.0], [100.1]])) == -torch.inf).all()


def test_annealing_and_projection():
    this = policy(scale=(0.3, 0.1), loc=97.0)
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
    assert this.dim_design == 1 and this.mode.tolist() == [0.5]
    assert this.sample(torch.Size((3,))).shape == (3, 1)
