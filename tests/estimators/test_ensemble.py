"""The mean density of several networks."""

import math

import torch
from sbi.neural_nets.estimators import ConditionalDensityEstimator
from scipy.stats import kstest
from torch import nn
from torch.distributions import Normal

from sbi_boed_plugin.estimators.ensemble import EnsembleEstimator
from sbi_boed_plugin.estimators.likelihood_with_failures import LikelihoodWithFailures
from sbi_boed_plugin.estimators.noise import reparameterize

SLOPES, SCALES = (1.0, -0.5), (0.3, 0.8)


class LinearGaussian(ConditionalDensityEstimator):
    """The density of a Normal around a multiple of the condition."""

    def __init__(self, slope, scale):
        super().__init__(nn.Linear(1, 1), torch.Size([1]), torch.Size([1]))
        self.slope, self.scale = slope, scale

    def log_prob(self, input, condition, **kwargs):
        normal = Normal(self.slope * condition, self.scale)
        return normal.log_prob(input).squeeze(-1)

    def loss(self, input, condition, **kwargs):
        return -self.log_prob(input.unsqueeze(0), condition)[0]

    def sample(self, sample_shape, condition, **kwargs):
        return Normal(self.slope * condition, self.scale).sample(sample_shape)

    def to_noise(self, input, condition):
        return (input - self.slope * condition) / self.scale


def ensemble():
    return EnsembleEstimator(list(map(LinearGaussian, SLOPES, SCALES)))


def test_the_density_is_the_mean_and_samples_follow_it():
    network, condition = ensemble(), torch.tensor([[2.0]])
    x = torch.linspace(-4, 4, 9).reshape(9, 1, 1)
    parts = [
        Normal(slope * 2.0, scale).log_prob(x[..., 0]).exp()
        for slope, scale in zip(SLOPES, SCALES, strict=True)
    ]
    expected = torch.stack(parts).mean(dim=0)
    torch.testing.assert_close(network.log_prob(x, condition).exp(), expected)
    torch.manual_seed(1)
    samples = network.sample(torch.Size((4_000,)), condition)
    assert samples.shape == (4_000, 1, 1)

    def cdf(values):
        values = torch.as_tensor(values).float()
        parts = [
            Normal(2.0 * a, s).cdf(values) for a, s in zip(SLOPES, SCALES, strict=True)
        ]
        return torch.stack(parts).mean(dim=0).numpy()

    assert kstest(samples.flatten().numpy(), cdf).pvalue > 1e-3


def test_each_condition_has_a_choice_of_its_own():
    torch.manual_seed(2)
    condition = torch.full((2_000, 1), 4.0)
    samples = ensemble().sample(torch.Size((1,)), condition)[0]
    share = (samples > 1.0).float().mean()  # The means are 4 and -2.
    assert abs(share - 0.5) < 5 * 0.5 / math.sqrt(2_000)


def test_moving_samples_give_the_gradient_of_an_expectation():
    network = ensemble()
    torch.manual_seed(3)
    condition = torch.full((20_000, 1), 1.5, requires_grad=True)
    with torch.no_grad():
        x = network.sample(torch.Size((1,)), condition)[0]
    for estimator in (network, LikelihoodWithFailures(network)):
        moving = reparameterize(estimator, x, condition)
        torch.testing.assert_close(moving.detach(), x)
        (gradient,) = torch.autograd.grad(moving.square().sum(), condition)
        # E[x^2] is the mean of (slope * c)^2 + scale^2.
        exact = sum(slope**2 for slope in SLOPES) / 2 * 2 * 1.5
        error = gradient.std() / math.sqrt(len(gradient))
        assert abs(gradient.mean() - exact) < 5 * error


def test_losses_are_the_mean_of_the_members():
    network, condition = ensemble(), torch.randn(5, 1)
    x = torch.randn(5, 1)
    expected = torch.stack([m.loss(x, condition) for m in network.members]).mean(0)
    torch.testing.assert_close(network.loss(x, condition), expected)
