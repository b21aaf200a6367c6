"""Hybrid posteriors: a base times an energy ratio, on Gaussians with exact answers."""

import math
import pickle

import pytest
import torch
from sbi.neural_nets import posterior_nn
from sbi.neural_nets.estimators import ConditionalDensityEstimator
from sbi.utils import BoxUniform
from torch import nn
from torch.distributions import Normal

from benchmarks.exact_estimators import exact_estimators, slope
from sbi_boed_plugin import _memory
from sbi_boed_plugin.estimators.energy import EnergyRatio, bounded
from sbi_boed_plugin.estimators.hybrid import HybridEstimator
from sbi_boed_plugin.objectives.generalized_kl import hybrid_loss, partition_function
from sbi_boed_plugin.posteriors.hybrid_posterior import HybridPosterior
from tests.hybrids import Energy
from tests.oracles import EnergyBetween

SLOPE = {"dim_theta": 1, "dim_design": 1}
TILT = 0.8


def tilt(input, condition):
    """ρ = a θ: of a Normal base it shifts the mean by a σ²."""
    return TILT * input.sum(dim=-1)


def exact_posterior(**wrong):
    return exact_estimators(slope, **SLOPE, **wrong).posterior


def data_and_moments(base, num):
    """Data, and mean and variance of the one-dimensional Gaussian base given them."""
    data = torch.stack([torch.linspace(-2, 2, num), torch.ones(num)], dim=1)
    mean, factor = base.moments(data)
    return data, mean[:, 0], factor[:, 0, 0] ** 2


def test_the_partition_function_is_unbiased():
    base = exact_posterior()
    estimator = HybridEstimator(base, Energy(tilt))
    data, mean, variance = data_and_moments(base, 5)
    exact = torch.exp(TILT * mean + 0.5 * TILT**2 * variance)
    repeats = torch.stack([estimator.partition(data) for _ in range(4_000)])
    assert repeats.shape == (4_000, 5)
    error = repeats.std(dim=0) / 4_000**0.5
    assert ((repeats.mean(dim=0) - exact).abs() < 4 * error).all()
    many = estimator.partition(data, 40_000)
    torch.testing.assert_close(many, exact, rtol=0.03, atol=0)
    assert not estimator.partition(data.requires_grad_()).requires_grad


class LearnedNormal(ConditionalDensityEstimator):
    """N(weight x + bias, 1), which counts the rows of a draw or an evaluation."""

    most = 0

    def __init__(self):
        super().__init__(nn.Linear(1, 1), torch.Size((1,)), torch.Size((1,)))
        nn.init.ones_(self.net.weight)
        nn.init.zeros_(self.net.bias)

    def log_prob(self, input, condition, **kwargs):
        self.most = max(self.most, input.shape[:2].numel())
        return Normal(self.net(condition), 1.0).log_prob(input).sum(dim=-1)

    def loss(self, input, condition, **kwargs):
        return -self.log_prob(input.unsqueeze(0), condition)[0]

    def sample(self, sample_shape, condition, **kwargs):
        self.most = max(self.most, torch.Size(sample_shape).numel() * len(condition))
        return Normal(self.net(condition), 1.0).sample(sample_shape)


class LearnedTilt(nn.Module):
    """ρ = a θ + c θ x."""

    def __init__(self, slope=0.5, product=-0.3):
        super().__init__()
        self.weights = nn.Parameter(torch.tensor([slope, product]))

    def forward(self, input, condition):
        slope, product = self.weights
        return (input * (slope + product * condition)).sum(dim=-1)


BOX = BoxUniform(torch.zeros(1), torch.ones(1))


def log_partition(estimator, x, low, high):
    """By quadrature, with its gradient, of shape (batch_dim,)."""
    grid = torch.linspace(low, high, 2_001).reshape(-1, 1, 1)
    values = estimator.log_unnormalized(grid.expand(-1, len(x), -1), x)
    return torch.trapezoid(values.exp(), grid[:, 0, 0], dim=0).log()


@pytest.mark.parametrize("slope, product", [(0.5, -0.3), (0.0, 0.0)])
@pytest.mark.parametrize("prior, low, high", [(BOX, 0.0, 1.0), (None, -8.0, 8.0)])
def test_gradients_are_those_of_the_normalized_density(
    prior, low, high, slope, product, monkeypatch
):
    """In parameters, data, and weights of energy and base; most lies outside."""
    monkeypatch.setattr(_memory, "MAX_ROWS", 5_000)
    energy = LearnedTilt(slope, product)
    estimator = HybridEstimator(LearnedNormal(), energy, prior=prior)
    x = torch.tensor([[-1.0], [0.3], [1.5]], requires_grad=True)
    theta = torch.tensor([0.5, 0.2, 0.9]).reshape(1, 3, 1).requires_grad_()
    wanted = [x, theta, *estimator.parameters()]
    exact = estimator.log_unnormalized(theta, x)
    exact = exact - log_partition(estimator, x, low, high)
    expected = torch.autograd.grad(exact.sum(), wanted)
    estimator.net.most = 0
    densities = [estimator.log_prob(theta, x)]
    if prior is not None:
        posterior = HybridPosterior(estimator, prior)
        densities.append(posterior.log_prob_batched(theta, x, track_gradients=True))
    for found in densities:
        torch.testing.assert_close(found, exact, atol=0.05, rtol=0)
        gradient = torch.autograd.grad(found.sum(), wanted)
        # Sums over three rows of means over 1,600 draws, whose terms have deviations of
        # 1 to 1.5: three standard errors.
        torch.testing.assert_close(gradient, expected, atol=0.15, rtol=0)
    assert 0 < estimator.net.most <= 5_000


@pytest.mark.parametrize("prior, low, high", [(BOX, 0.0, 1.0), (None, -8.0, 8.0)])
@pytest.mark.parametrize("num_draws", [1, 4])
def test_few_draws_have_the_gradient_of_the_partition_function(
    num_draws, prior, low, high
):
    torch.manual_seed(0)
    estimator = HybridEstimator(LearnedNormal(), LearnedTilt(), prior=prior)
    x = torch.full((20_000, 1), -1.0, requires_grad=True)
    partition = estimator.partition(x, num_draws, whole_gradient=True)
    (found,) = torch.autograd.grad(partition.sum(), x)
    one = x[:1].detach().requires_grad_()
    exact = log_partition(estimator, one, low, high).exp()
    (expected,) = torch.autograd.grad(exact.sum(), one)
    error = found.std().item() / len(found) ** 0.5
    assert found.mean().item() == pytest.approx(expected.item(), abs=4 * error)
    assert error < 0.02


def test_a_condition_without_draws_in_the_prior_has_no_gradient():
    estimator = HybridEstimator(LearnedNormal(), LearnedTilt(), prior=BOX)
    theta = torch.full((1, 300, 1), 0.5)
    x = torch.full((300, 1), -2.0, requires_grad=True)  # 2 % are inside.
    (found,) = torch.autograd.grad(estimator.log_prob(theta, x).sum(), x)
    exact = estimator.log_unnormalized(theta, x)[0] - log_partition(estimator, x, 0, 1)
    (exact,) = torch.autograd.grad(exact.sum(), x)
    # Each is a mean of 54 values with a deviation of 0.27, and 0.06 off.
    assert found.mean().item() == pytest.approx(exact.mean().item(), abs=0.02)
    assert (found - exact).abs().max() < 0.4
    # Rows are numbered as the user numbers them.
    with torch.no_grad():
        x[290] = -50.0
    with pytest.raises(RuntimeError, match="None of 1000 draws.*row 290 of x"):
        estimator.log_prob(theta, x)


def test_the_prior_moves_with_the_networks_and_others_keep_theirs():
    prior = BoxUniform(torch.zeros(1), torch.ones(1))
    estimator = HybridEstimator(LearnedNormal(), LearnedTilt(), prior=prior)
    moved = nn.Sequential(estimator).to("meta")[0]
    assert moved.prior.sample((3,)).device.type == "meta"
    assert moved.inside(torch.zeros(2, 3, 1, device="meta")).device.type == "meta"
    assert prior.sample((3,)).device.type == "cpu"
    same = HybridEstimator(LearnedNormal(), LearnedTilt(), prior=prior).double()
    assert same.prior is prior


def test_the_exact_correction_of_a_wrong_base_gives_the_posterior():
    wrong, exact = exact_posterior(noise_scale=2.0), exact_posterior()
    estimator = HybridEstimator(wrong, EnergyBetween(exact, wrong))
    theta, (data, *_) = torch.randn(50, 1, 1), data_and_moments(exact, 1)
    found = estimator.log_prob(theta, data)
    torch.testing.assert_close(found, exact.log_prob(theta, data), atol=0.03, rtol=0)


def test_training_starts_as_maximum_likelihood():
    """With ρ = 0, which a new energy is, the loss is that of the base plus one."""
    theta, data = torch.randn(100, 2), torch.randn(100, 3)
    base = posterior_nn("mdn")(theta, data)
    estimator = HybridEstimator(base, EnergyRatio(theta, data))
    pairs = theta.unsqueeze(0), data
    assert (estimator.log_ratio(*pairs) == 0).all()
    torch.testing.assert_close(estimator.loss(theta, data), base.loss(theta, data) + 1)
    torch.testing.assert_close(estimator.log_prob(*pairs), base.log_prob(*pairs))
    estimator.loss(theta, data).mean().backward()
    grads = [p.grad for p in estimator.energy.parameters() if p.grad is not None]
    assert any((grad != 0).any() for grad in grads)
    copy = pickle.loads(pickle.dumps(estimator))
    assert torch.equal(copy.loss(theta, data), estimator.loss(theta, data))


def test_the_loss_is_least_at_the_exact_correction():
    """Scaling the exact energy up or down by a fifth costs, with the same draws."""
    wrong, exact = exact_posterior(noise_scale=2.0), exact_posterior()
    theta = torch.randn(40_000, 1)
    data = torch.cat([theta + torch.randn_like(theta), torch.ones_like(theta)], dim=1)
    energy = EnergyBetween(exact, wrong)
    draws = wrong.sample(torch.Size((8,)), data)
    log_base = wrong.log_prob(theta.unsqueeze(0), data)[0]
    at_theta, at_draws = energy(theta, data), energy(draws, data)
    losses = [
        hybrid_loss(log_base, c * at_theta, partition_function(c * at_draws))
        for c in (0.8, 1.0, 1.2)
    ]
    for other in (losses[0], losses[2]):
        difference = other - losses[1]
        error = difference.std().item() / math.sqrt(len(difference))
        assert difference.mean().item() > 3 * error


def test_ratios_grow_with_the_energy_and_stay_within_their_bounds():
    energy = torch.linspace(-200.0, 200.0, 4_001)
    ratio = bounded(energy)
    free = (energy >= -15.0) & (energy <= 3.0)
    assert torch.equal(ratio[free], energy[free])
    assert ratio.min() >= -20.0
    assert ratio.max() <= 5.0
    assert (ratio.diff() >= 0.0).all()
    assert (ratio[(energy > -25.0) & (energy < 7.0)].diff() > 0.0).all()


def test_an_energy_that_does_not_correct_is_not_asked():
    theta, x = torch.randn(50, 1, 2), torch.randn(1, 3)
    base = posterior_nn("maf")(theta[:, 0], torch.randn(50, 3))
    hybrid = HybridEstimator(base, nn.Bilinear(2, 3, 1), corrects=False)
    assert torch.equal(hybrid.log_ratio(theta, x), torch.zeros(50, 1))
    assert torch.equal(hybrid.log_unnormalized(theta, x), base.log_prob(theta, x))
    theta[3] = torch.inf
    assert hybrid.log_ratio(theta, x)[3] == -torch.inf
