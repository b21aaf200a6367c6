"""Densities fitted to particles of posteriors, as bases that cover them."""

from collections.abc import Sequence
from typing import Any

import torch
from sbi.neural_nets.estimators import ConditionalDensityEstimator
from sklearn.mixture import GaussianMixture
from torch import Tensor, nn
from torch.distributions import (
    Categorical,
    Distribution,
    MixtureSameFamily,
    MultivariateNormal,
)

from sbi_boed_plugin._prior import to_real_numbers
from sbi_boed_plugin.estimators.noise import EstimatorView

__all__ = ["ParticleDensity", "PatchedBase"]

# Numbers of Gaussians to choose from, and by how much they are wider than fitted: a
# base has to cover what particles show of the posterior.
_NUM_COMPONENTS, _WIDTH = (1, 2, 4, 8, 16), 1.2
_SEED = 20_261_130


class ParticleDensity(ConditionalDensityEstimator):
    """A mixture of Gaussians over the real numbers that a prior's support maps to.

    It is the same for all conditions. The number of Gaussians is chosen by the Bayesian
    information criterion.
    """

    def __init__(
        self, particles: Tensor, prior: Distribution, condition_shape: torch.Size
    ) -> None:
        """Fit the mixture to particles of shape `(num_particles, dim_theta)`."""
        super().__init__(nn.Identity(), particles.shape[1:], condition_shape)
        self._to_real: Any = to_real_numbers(prior)
        unbounded = self._to_real(particles).double().cpu()
        # A parameter that all particles agree on has no width.
        least = torch.finfo(particles.dtype).eps
        centre, scale = unbounded.mean(dim=0), unbounded.std(dim=0).clamp_min(least)
        standard = ((unbounded - centre) / scale).numpy()
        fits = [
            GaussianMixture(num, random_state=_SEED).fit(standard)
            for num in _NUM_COMPONENTS
            if num * particles.shape[1] ** 2 <= len(particles)
        ] or [GaussianMixture(1, "diag", random_state=_SEED).fit(standard)]
        best = min(fits, key=lambda fit: fit.bic(standard))
        covariances = torch.from_numpy(best.covariances_)
        if covariances.dim() == 2:
            covariances = torch.diag_embed(covariances)
        factors = _WIDTH * torch.linalg.cholesky(covariances) * scale.unsqueeze(-1)
        means = torch.from_numpy(best.means_) * scale + centre
        self.register_buffer("means", means.to(particles))
        self.register_buffer("factors", factors.to(particles))
        logits = torch.from_numpy(best.weights_).log()
        self.register_buffer("logits", logits.to(particles))

    @property
    def embedding_net(self) -> None:
        """None: there are no conditions to embed."""
        return None

    def _mixture(self) -> MixtureSameFamily:
        parts = MultivariateNormal(self.means, scale_tril=self.factors)
        return MixtureSameFamily(Categorical(logits=self.logits), parts)

    def log_prob(self, input: Tensor, condition: Tensor, **kwargs) -> Tensor:
        """Return log-densities `(sample_dim, batch_dim)`, in nats."""
        unbounded = self._to_real(input)
        log_det = self._to_real.log_abs_det_jacobian(input, unbounded)
        if log_det.dim() == input.dim():
            log_det = log_det.sum(dim=-1)
        return self._mixture().log_prob(unbounded) + log_det

    def sample(self, sample_shape: torch.Size, condition: Tensor, **kwargs) -> Tensor:
        """Draw parameters of shape `(*sample_shape, batch_dim, dim_theta)`.

        NaN stands for those that rounding takes out of the support of the prior.
        """
        shape = torch.Size((*sample_shape, len(condition)))
        unbounded = self._mixture().sample(shape)
        draws = self._to_real.inv(unbounded)
        # Draws that are rounded to the end of the support are no parameters.
        moved = (self._to_real(draws) - unbounded).abs() > 1.0
        return draws.masked_fill(moved.any(dim=-1, keepdim=True), torch.nan)

    def loss(self, input: Tensor, condition: Tensor, **kwargs) -> Tensor:
        """Return negative log-densities of rows, in nats."""
        return -self.log_prob(input.unsqueeze(0), condition)[0]


class PatchedBase(EstimatorView):
    """A base with densities of their own for some conditions."""

    def __init__(
        self,
        base: ConditionalDensityEstimator,
        conditions: Tensor,
        densities: Sequence[ParticleDensity],
    ) -> None:
        """Initialize the base, with a density for each row of conditions."""
        super().__init__(base, base.input_shape, base.condition_shape)
        self.densities = nn.ModuleList(densities)
        self.register_buffer("conditions", conditions.detach())

    def _parts(self, condition: Tensor) -> list[tuple[Any, Tensor]]:
        """Return estimators, and the rows of conditions that each is for."""
        is_own = condition.unsqueeze(1).eq(self.conditions).flatten(2).all(dim=2)
        parts = [(self.net, (~is_own.any(dim=1)).nonzero().flatten())]
        for density, column in zip(self.densities, is_own.T, strict=True):
            parts.append((density, column.nonzero().flatten()))
        return [(estimator, rows) for estimator, rows in parts if len(rows)]

    def log_prob(self, input: Tensor, condition: Tensor, **kwargs) -> Tensor:
        """Return log-densities `(sample_dim, batch_dim)`, in nats."""
        input, condition, _ = self._broadcast_and_align(input, condition)
        # All rows are the same condition where one is given for a batch of inputs.
        values = input.new_empty(input.shape[:2])
        for estimator, rows in self._parts(condition[0]):
            values[:, rows] = estimator.log_prob(input[:, rows], condition[0][rows])
        return values

    def sample(self, sample_shape: torch.Size, condition: Tensor, **kwargs) -> Tensor:
        """Draw parameters of shape `(*sample_shape, batch_dim, dim_theta)`."""
        num = torch.Size(sample_shape).numel()
        draws = condition.new_empty(num, len(condition), *self.input_shape)
        for estimator, rows in self._parts(condition):
            draws[:, rows] = estimator.sample(torch.Size((num,)), condition[rows])
        return draws.reshape(*sample_shape, *draws.shape[1:])
