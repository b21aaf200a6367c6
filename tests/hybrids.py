"""Bases and energies with exact answers, and hybrids of them."""

import time

import torch
from sbi.neural_nets.estimators import ConditionalDensityEstimator
from sbi.utils import BoxUniform
from torch import nn
from torch.distributions import Independent, Normal

from sbi_boed_plugin import HybridEstimator, HybridPosterior

PRIOR = BoxUniform(-3.0 * torch.ones(2), 3.0 * torch.ones(2))
X_O = torch.tensor([[0.5, -0.4]])


class GaussianBase(ConditionalDensityEstimator):
    """N(x, scale²), in sbi's calling convention; perhaps slow."""

    def __init__(self, scale=0.7, seconds=0.0):
        super().__init__(
            net=nn.Linear(1, 1), input_shape=(2,), condition_shape=torch.Size((2,))
        )
        self.scale, self.seconds = scale, seconds

    def _normal(self, condition):
        return Independent(Normal(condition, self.scale), 1)

    def log_prob(self, input, condition, **kwargs):
        return self._normal(condition).log_prob(input)

    def loss(self, input, condition, **kwargs):
        # A weight without effect, as optimisers need one.
        return 0.0 * self.net.weight.sum() - self.log_prob(input, condition)

    def sample(self, sample_shape, condition, **kwargs):
        time.sleep(self.seconds)
        return self._normal(condition).sample(sample_shape)


class Energy(nn.Module):
    """An energy that is a function."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, input, condition):
        return self.function(input, condition)


def zero(input, condition):
    return input.sum(dim=-1) * 0.0


def ring(input, condition):
    """Two bumps that a Gaussian does not have."""
    return 2.0 * torch.cos(4.0 * input[..., 0]) - input[..., 1].square()


def spike(input, condition):
    """As good as all mass where the base has next to none."""
    near = (input - condition - 1.0).norm(dim=-1) < 0.1
    return torch.where(near, 15.0, -15.0)


class Tilt(nn.Module):
    """exp(a (theta_1 + theta_2)), which moves a Gaussian."""

    def __init__(self):
        super().__init__()
        self.a = nn.Parameter(torch.tensor(0.5))

    def forward(self, input, condition):
        return self.a * input.sum(dim=-1)


def hybrid_posterior(energy=ring, prior=PRIOR, base=None, **kwargs):
    """The posterior of a base and an energy, which may be a function."""
    energy = energy if isinstance(energy, nn.Module) else Energy(energy)
    base = base or GaussianBase()
    return HybridPosterior(HybridEstimator(base, energy, prior=prior), prior, **kwargs)
