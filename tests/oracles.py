"""Models whose likelihood and information are known in closed form."""

import torch
from torch import Tensor
from torch.distributions import Distribution, Independent, Normal


class LinearGaussian:
    """x = theta * design + noise, with theta and noise standard Normal.

    The information gain is `log(1 + design**2) / 2` nats.
    """

    prior = Independent(Normal(torch.zeros(1), torch.ones(1)), 1)

    @staticmethod
    def simulate(theta: Tensor, design: Tensor) -> Tensor:
        return theta * design + torch.randn_like(theta)

    @staticmethod
    def log_likelihood(x: Tensor, theta: Tensor, design: Tensor) -> Tensor:
        return Normal(theta * design, 1.0).log_prob(x).sum(dim=-1)

    @staticmethod
    def log_prob(input: Tensor, condition: Tensor) -> Tensor:
        """The likelihood in the calling convention of sbi's estimators."""
        theta, design = condition[..., :1], condition[..., 1:]
        return LinearGaussian.log_likelihood(input, theta, design)

    @staticmethod
    def sample(sample_shape: torch.Size, condition: Tensor) -> Tensor:
        mean = condition[:, :1] * condition[:, 1:]
        return mean + torch.randn(*sample_shape, *mean.shape)

    @staticmethod
    def eig(design: Tensor) -> Tensor:
        return 0.5 * torch.log1p(design.square()).sum(dim=-1)

    @staticmethod
    def eig_gradient(design: Tensor) -> Tensor:
        return design / (1.0 + design.square())


class EnergyBetween(torch.nn.Module):
    """The energy ratio that makes one posterior out of another: ρ = log p - log b."""

    def __init__(self, posterior, base) -> None:
        super().__init__()
        self.posterior, self.base = posterior, base

    def forward(self, input: Tensor, condition: Tensor) -> Tensor:
        log_posterior = self.posterior.log_prob(input, condition)
        return log_posterior - self.base.log_prob(input, condition)


class WithConstant(Distribution):
    """A prior whose log-density is off by a constant."""

    arg_constraints = {}

    def __init__(self, prior, constant) -> None:
        super().__init__(event_shape=prior.event_shape, validate_args=False)
        self.prior, self.constant = prior, constant

    @property
    def support(self):
        return self.prior.support

    def sample(self, sample_shape=torch.Size()) -> Tensor:
        return self.prior.sample(sample_shape)

    def log_prob(self, value: Tensor) -> Tensor:
        return self.prior.log_prob(value) + self.constant
