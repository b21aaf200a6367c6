r"""A normalized base times an energy ratio: samples and densities."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from sbi.neural_nets.estimators import ConditionalDensityEstimator
from torch import Tensor, nn
from torch.distributions import Distribution
from torch.utils.checkpoint import checkpoint

from sbi_boed_plugin._rng import isolated_rng
from sbi_boed_plugin.estimators.corrected import CorrectedBase
from sbi_boed_plugin.estimators.design_conditioned import join, posterior_at_design
from sbi_boed_plugin.estimators.noise import EstimatorView, log_prob_and_noise
from sbi_boed_plugin.estimators.rejection import Sampler, warn_of_resampling
from sbi_boed_plugin.estimators.weights import (
    WeightDiagnostics,
    check_not_empty,
    draw_in_parts,
    draws_at_once,
    measure_weights,
)
from sbi_boed_plugin.objectives.generalized_kl import (
    draw_by_ratio,
    hybrid_loss,
    partition_function,
)

__all__ = ["HybridEstimator", "UnnormalizedHybrid"]

# Draws that tell the gradient of log Z of a condition: those of the base, and those of
# the hybrid that are chosen of them. Of more than 20 conditions each has fewer, but not
# less than a tenth of those of the base, which find the support of the prior.
_NUM_BASE_DRAWS, _NUM_GRADIENT_DRAWS, _MAX_ROWS = 10_000, 4_000, 20
_GRADIENT_SEED = 20_231_003


class HybridEstimator(CorrectedBase):
    r"""The posterior :math:`b(\theta \mid x) \, e^{\rho(\theta, x)} / Z(x)`.

    Example:
        >>> import torch
        >>> from sbi.neural_nets import posterior_nn
        >>> from sbi_boed_plugin.estimators.energy import EnergyRatio
        >>> theta, x = torch.randn(100, 2), torch.randn(100, 3)
        >>> base = posterior_nn("maf")(theta, x)
        >>> hybrid = HybridEstimator(base, EnergyRatio(theta, x))
        >>> hybrid.sample(torch.Size((7,)), x[:4]).shape
        torch.Size([7, 4, 2])
    """

    def at_design(self, design: Tensor) -> "HybridEstimator":
        """Return the estimator of `x` at a design `(dim_design,)`, sharing networks.

        Raises:
            ValueError: If `design` has a wrong shape or is not finite.
        """
        base, energy = posterior_at_design(self.net, design), self.energy
        if not self.embedded:
            energy = _EnergyAtDesign(energy, base.design[0], base.condition_shape[0])
        return self._view(base, energy, self.prior)

    def with_prior(self, prior: Distribution) -> "HybridEstimator":
        """Return the estimator for another prior, sharing its networks."""
        return self._view(self.net, self.energy, prior)

    def _view(
        self,
        base: ConditionalDensityEstimator,
        energy: nn.Module,
        prior: Distribution | None,
    ) -> "HybridEstimator":
        return HybridEstimator(
            base,
            energy,
            num_partition_samples=self.num_partition_samples,
            prior=prior,
            embedded=self.embedded,
            latent_features=self.latent_features,
            frozen_base=self.frozen_base,
            trained_partition=self.trained_partition,
            corrects=self.corrects,
        )

    def measure_weights(
        self, condition: Tensor, *, reject_outside_prior: bool = True, **kwargs: Any
    ) -> WeightDiagnostics:
        """Return diagnostics of the weights of draws of the base given each condition.

        Keyword arguments are those of the function
        :func:`~sbi_boed_plugin.estimators.weights.measure_weights`.
        """
        draw = partial(self.draw_weighted, reject_outside_prior=reject_outside_prior)
        at_once = draws_at_once(self, condition)
        return measure_weights(draw, condition, at_once=at_once, **kwargs)

    def sample_corrected(
        self,
        num_samples: int,
        condition: Tensor,
        *,
        weights: WeightDiagnostics | None = None,
        reject_outside_prior: bool = True,
        **settings: Any,
    ) -> Tensor:
        """Draw by rejection from the base, or by resampling where that is hopeless.

        Settings are those of `Sampler` with a default. Weights are measured, and a
        warning given, if they are not handed over; this is no sampling time. Samples
        that need not be in the support of the prior weigh outside what the base says.
        They have shape `(num_samples, batch_dim, dim_theta)`, fewer after a timeout.
        """
        outside = {"reject_outside_prior": reject_outside_prior}
        sampler = Sampler(
            partial(self.draw_accepted, **outside),
            partial(self.draw_weighted, **outside),
            draws_at_once(self, condition),
            self.input_shape.numel(),
            **settings,
        )
        if weights is None:
            weights = self.measure_weights(condition, **outside)
            weights.check_not_empty()
            warn_of_resampling(weights, sampler.min_acceptance_rate)
        return sampler.sample(num_samples, condition, weights)

    def sample(self, sample_shape: torch.Size, condition: Tensor, **kwargs) -> Tensor:
        """Draw samples of shape `(*sample_shape, batch_dim, dim_theta)`.

        Keyword arguments are those of `sample_corrected`.
        """
        num_samples = torch.Size(sample_shape).numel()
        samples = self.sample_corrected(num_samples, condition, **kwargs)
        return samples.reshape(*sample_shape, len(condition), *self.input_shape)

    def partition(
        self,
        condition: Tensor,
        num_samples: int | None = None,
        *,
        whole_gradient: bool = False,
    ) -> Tensor:
        r"""Return estimates of :math:`Z(x)` from new draws of the base.

        The whole gradient, :math:`E_b[w (\nabla \log b + \nabla \rho)]` with weights
        :math:`w = e^{\rho}` inside of the prior's support and zero outside, is taken at
        fixed draws. Draws that moved with the condition would not tell how many of them
        cross the boundary of the support. Otherwise the gradient reaches the weights of
        the energy alone, as their training needs.
        """
        num_samples = num_samples or self.num_partition_samples
        with torch.no_grad():
            draws = self.net.sample(torch.Size((num_samples,)), condition)
        inside = self.inside(draws)
        if not whole_gradient:
            return partition_function(self._ratio_in_training(draws, condition), inside)
        log_ratio = self.log_ratio(draws, condition)
        weights = log_ratio.detach().exp()
        if inside is not None:
            weights = weights * inside
        if num_samples > 1:
            # The other draws are the baseline, as the mean of the scores is zero.
            weights = (weights - weights.mean(dim=0)) * num_samples / (num_samples - 1)
        # A flow may overflow; such draws have no ratio, and no score either.
        finite = draws.isfinite().all(dim=-1)
        draws = draws.where(finite.unsqueeze(-1), 0.0)
        log_base = self.net.log_prob(draws, condition).masked_fill(~finite, 0.0)
        score = (weights * (log_base - log_base.detach())).mean(dim=0)
        return partition_function(log_ratio, inside) + score

    def _ratio_in_training(self, input: Tensor, condition: Tensor) -> Tensor:
        """Return ratios whose gradient reaches the energy, but not the base."""
        with torch.no_grad():
            noise = self.latent(input, condition)
            features = self.condition_features(condition)
        return self.ratio_of_features(input, features, noise)

    def log_unnormalized(self, input: Tensor, condition: Tensor, **kwargs) -> Tensor:
        r"""Return :math:`\log b(\theta \mid x) + \rho(\theta, x)`, inside and outside.

        Keyword arguments are passed to the base.
        """
        if not (self.latent_features and self.corrects) or kwargs:
            log_base = self.net.log_prob(input, condition, **kwargs)
            return log_base + self.log_ratio(input, condition)
        log_base, noise = log_prob_and_noise(self.net, input, condition)
        return log_base + self.log_ratio(input, condition, noise)

    def log_prob(
        self,
        input: Tensor,
        condition: Tensor,
        *,
        num_partition_samples: int | None = None,
        **kwargs,
    ) -> Tensor:
        """Return log-densities, normalized with draws from the base.

        The draws are the same at each call, and leave the random state alone. The
        gradient, in parameters, conditions and all weights, is that of the normalized
        density.

        Args:
            input: Parameters of shape `(sample_dim, batch_dim, dim_theta)`.
            condition: Conditions of shape `(batch_dim, *condition_event_shape)`.
            num_partition_samples: Number of draws for the normalization given each
                condition. If `None`, 10,000, or less for more than 20 conditions.
            **kwargs: Passed to the base.

        Returns:
            Log-densities of shape `(sample_dim, batch_dim)`, in nats; `-inf` outside
            the support of the prior.

        Raises:
            RuntimeError: If the base has no draw in the support of the prior.
        """
        log_prob = self.log_unnormalized(input, condition, **kwargs)
        weights = self.measure_weights(condition, num_draws=num_partition_samples)
        weights.check_not_empty()
        log_prob = log_prob - weights.log_partition
        log_prob = log_prob - self.gradient_of_log_partition(condition)
        return self.fill_outside(log_prob, input, -torch.inf)

    def gradient_of_log_partition(self, condition: Tensor) -> Tensor:
        r"""Return zeros, of shape `(batch_dim,)`, with the gradient of :math:`\log Z`.

        It is :math:`E_q[\nabla \log b + \nabla \rho]`, in the condition and in all
        weights, from draws of the hybrid :math:`q`, the same at each call.

        Raises:
            RuntimeError: If the base has no draw in the support of the prior.
        """
        learns = any(weight.requires_grad for weight in self.parameters())
        if not (torch.is_grad_enabled() and (learns or condition.requires_grad)):
            return torch.zeros(len(condition), device=condition.device)
        at_once = draws_at_once(self, condition)
        # Fewer of each if there are many conditions, or if memory is short.
        share = min(1.0, _MAX_ROWS / max(len(condition), 1))
        num_draws = 1 + min(int(share * _NUM_GRADIENT_DRAWS), at_once)
        draws = self._hybrid_draws(share, num_draws, condition)
        size = max(1, at_once // num_draws)
        evaluate: Callable[..., Any] = self.log_unnormalized
        if len(condition) > size:
            # What does not fit at once is evaluated again for its gradient.
            evaluate = partial(checkpoint, evaluate, use_reentrant=False)
        parts = zip(draws.split(size, dim=1), condition.split(size), strict=True)
        mean = torch.cat([evaluate(*part).mean(dim=0) for part in parts])
        return mean - mean.detach()

    @torch.no_grad()
    def _hybrid_draws(self, share: float, num_draws: int, condition: Tensor) -> Tensor:
        """Return draws of the hybrid, chosen from draws of the base by their weight."""
        num_base = int(max(share, 0.1) * _NUM_BASE_DRAWS)
        at_once = draws_at_once(self, condition)
        chosen, largest = [], []
        with isolated_rng(_GRADIENT_SEED):
            for draws, log_weights in draw_in_parts(
                self.draw_weighted, num_base, condition, at_once=at_once
            ):
                largest.append(log_weights.amax(dim=0))
                # Less than -100 is as good as no weight.
                indices = draw_by_ratio(log_weights.clamp(min=-100.0), num_draws)
                indices = indices.unsqueeze(-1).expand(-1, -1, draws.shape[2])
                chosen.append(draws.gather(0, indices))
        check_not_empty(torch.cat(largest), num_base)
        return torch.cat(chosen, dim=1)

    def loss(self, input: Tensor, condition: Tensor, **kwargs) -> Tensor:
        """Return the generalized Kullback-Leibler loss of each row, in nats.

        Parameters have shape `(batch_dim, dim_theta)`; keyword arguments are passed to
        the base.
        """
        log_base = self.net.log_prob(input.unsqueeze(0), condition, **kwargs)[0]
        log_ratio = self._ratio_in_training(input.unsqueeze(0), condition)[0]
        return hybrid_loss(log_base, log_ratio, self.partition(condition))


class UnnormalizedHybrid(EstimatorView):
    r"""A hybrid without its normalization, for samplers that need none.

    A partition function for each of their many calls would cost more than the density.
    """

    net: HybridEstimator

    def __init__(self, hybrid: HybridEstimator) -> None:
        """Initialize the view, which shares the networks."""
        super().__init__(hybrid, hybrid.input_shape, hybrid.condition_shape)

    def log_prob(self, input: Tensor, condition: Tensor, **kwargs) -> Tensor:
        """Return what `HybridEstimator.log_unnormalized` does."""
        return self.net.log_unnormalized(input, condition, **kwargs)


class _EnergyAtDesign(nn.Module):
    """An energy that is given raw conditions, with the design added to them."""

    design: Tensor

    def __init__(self, energy: nn.Module, design: Tensor, dim_x: int) -> None:
        super().__init__()
        self.energy, self._dim_x = energy, dim_x
        self.register_buffer("design", design.clone())

    def forward(self, input: Tensor, features: Tensor) -> Tensor:
        x, noise = features[..., : self._dim_x], features[..., self._dim_x :]
        return self.energy(input, torch.cat([join(x, self.design), noise], dim=-1))
