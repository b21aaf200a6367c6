"""Linear models with Gaussian noise whose densities are known, as estimators of sbi.

x = A(design) theta + noise, with noise ~ N(0, 1) and theta ~ N(0, prior_scale²).
Likelihood, posterior and marginal are Gaussian, so that bounds and gradients can be
evaluated with the densities that training only approximates.
"""

import math
from typing import Callable, Tuple

import torch
from sbi.neural_nets.estimators import ConditionalDensityEstimator
from torch import Tensor
from torch.distributions import Independent, Normal

from sbi_boed_plugin.search.estimators import DesignEstimators

HALF_LOG_2PI = 0.5 * math.log(2.0 * math.pi)

Features = Callable[[Tensor], Tensor]


def slope(design: Tensor) -> Tensor:
    """x = theta * design: the information is log(1 + prior_scale² design²) / 2."""
    return design.unsqueeze(-1)


def straight_line(design: Tensor) -> Tensor:
    """x = theta_0 + theta_1 * design, as in the task `gaussian_linear`."""
    return torch.stack([torch.ones_like(design), design], dim=-1)


class GaussianEstimator(ConditionalDensityEstimator):
    """A Gaussian whose mean and Cholesky factor are functions of the condition."""

    def __init__(
        self,
        moments: Callable[[Tensor], Tuple[Tensor, Tensor]],
        dim: int,
        dim_condition: int,
    ) -> None:
        super().__init__(
            torch.nn.Identity(), torch.Size((dim,)), torch.Size((dim_condition,))
        )
        self.moments = moments

    def log_prob(self, input: Tensor, condition: Tensor, **kwargs) -> Tensor:
        mean, factor = self.moments(condition)
        noise = _whiten(factor, input - mean)
        log_scale = factor.diagonal(dim1=-2, dim2=-1).log() + HALF_LOG_2PI
        return -(0.5 * noise.square() + log_scale).sum(dim=-1)

    def loss(self, input: Tensor, condition: Tensor, **kwargs) -> Tensor:
        return -self.log_prob(input.unsqueeze(0), condition)[0]

    def sample(self, sample_shape: torch.Size, condition: Tensor, **kwargs) -> Tensor:
        mean, factor = self.moments(condition)
        noise = torch.randn(*sample_shape, *mean.shape).to(mean)
        return mean + (factor @ noise.unsqueeze(-1)).squeeze(-1)

    def to_noise(self, input: Tensor, condition: Tensor) -> Tensor:
        """Noise that a sample was made of; see `estimators.noise`."""
        mean, factor = self.moments(condition)
        return _whiten(factor, input - mean)


def _whiten(factor: Tensor, centred: Tensor) -> Tensor:
    if factor.shape[-1] == 1:
        return centred / factor.squeeze(-1)
    column = centred.unsqueeze(-1)
    return torch.linalg.solve_triangular(factor, column, upper=False).squeeze(-1)


def exact_estimators(
    features: Features,
    *,
    dim_theta: int,
    dim_design: int,
    prior_scale: float = 1.0,
    noise_scale: float = 1.0,
    error: float = 0.0,
) -> DesignEstimators:
    """Return likelihood, posterior and marginal, one measurement per design value.

    Args:
        features: Function from designs `(batch_dim, dim_design)` to the matrices
            A of shape `(batch_dim, dim_design, dim_theta)`.
        dim_theta: Number of parameters.
        dim_design: Number of values of a design.
        prior_scale: Standard deviation of the parameters.
        noise_scale: Standard deviation of the noise that the densities assume: 1 is
            the truth.
        error: What is added to every mean; other than 0, the densities are wrong.
    """

    def factor_of(covariance: Tensor) -> Tensor:
        return torch.linalg.cholesky(covariance)

    def likelihood(condition: Tensor) -> Tuple[Tensor, Tensor]:
        theta, design = condition[..., :dim_theta], condition[..., dim_theta:]
        mean = (features(design) @ theta.unsqueeze(-1)).squeeze(-1)
        identity = torch.eye(dim_design).to(mean).expand(*mean.shape, -1)
        return mean + error, noise_scale * identity

    def posterior(condition: Tensor) -> Tuple[Tensor, Tensor]:
        x, design = condition[..., :dim_design], condition[..., dim_design:]
        matrix = features(design) / noise_scale
        precision = matrix.mT @ matrix + torch.eye(dim_theta).to(x) / prior_scale**2
        covariance = torch.linalg.inv(precision)
        weighted = matrix.mT @ x.unsqueeze(-1) / noise_scale
        return (covariance @ weighted).squeeze(-1) + error, factor_of(covariance)

    def marginal(design: Tensor) -> Tuple[Tensor, Tensor]:
        matrix = prior_scale * features(design)
        identity = torch.eye(dim_design).to(design)
        covariance = matrix @ matrix.mT + noise_scale**2 * identity
        return torch.zeros_like(design) + error, factor_of(covariance)

    return DesignEstimators(
        GaussianEstimator(likelihood, dim_design, dim_theta + dim_design),
        GaussianEstimator(posterior, dim_theta, 2 * dim_design),
        GaussianEstimator(marginal, dim_design, dim_design),
    )


def normal_prior(dim_theta: int, prior_scale: float = 1.0) -> Independent:
    """Return the distribution of the parameters."""
    return Independent(Normal(torch.zeros(dim_theta), prior_scale), 1)


def information(features: Features, design: Tensor, prior_scale: float = 1.0) -> Tensor:
    """Return the information of designs of shape `(..., dim_design)`, in nats."""
    matrix = prior_scale * features(design)
    identity = torch.eye(matrix.shape[-1]).to(design)
    return 0.5 * torch.logdet(identity + matrix.mT @ matrix)
