r"""A normalized base times an energy ratio: samples and densities.

Parameters have shape `(sample_dim, batch_dim, dim_theta)`, conditions
`(batch_dim, *condition_event_shape)`, and ratios `(sample_dim, batch_dim)`.
"""

from collections.abc import Callable
from copy import deepcopy
from functools import partial
from typing import Any

import torch
from sbi.neural_nets.estimators import ConditionalDensityEstimator
from sbi.utils.sbiutils import within_support
from sbi.utils.user_input_checks_utils import move_distribution_to_device
from torch import Tensor, nn
from torch.distributions import Distribution

from sbi_boed_plugin._rng import isolated_rng
from sbi_boed_plugin.estimators.design_conditioned import (
    DesignConditionedEstimator,
    posterior_at_design,
)
from sbi_boed_plugin.estimators.energy import bounded
from sbi_boed_plugin.estimators.noise import (
    EstimatorView,
    draw_noise,
    embed_condition,
    to_noise,
)
from sbi_boed_plugin.estimators.rejection import (
    Sampler,
    WeightDiagnostics,
    draws_at_once,
    measure_weights,
)
from sbi_boed_plugin.objectives.generalized_kl import (
    draw_by_ratio,
    hybrid_loss,
    partition_function,
)

__all__ = ["HybridEstimator", "UnnormalizedHybrid"]

_SETTINGS = (
    "num_partition_samples",
    "embedded",
    "latent_features",
    "frozen_base",
    "trained_partition",
    "corrects",
)
# Samples that tell the gradient of log Z, the same at each call.
_NUM_GRADIENT_SAMPLES, _GRADIENT_SEED = 4_000, 20_231_003


class HybridEstimator(ConditionalDensityEstimator):
    r"""The posterior :math:`b(\theta \mid x) \, e^{\rho(\theta, x)} / Z(x)`.

    Ratios are what the energy says between -15 and 3 nats, and never beyond -20 and 5.

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

    net: ConditionalDensityEstimator

    def __init__(
        self,
        base: ConditionalDensityEstimator,
        energy: nn.Module,
        *,
        num_partition_samples: int = 8,
        prior: Distribution | None = None,
        embedded: bool = False,
        latent_features: bool = False,
        frozen_base: bool = False,
        trained_partition: bool = False,
        corrects: bool = True,
    ) -> None:
        """Initialize the estimator.

        Args:
            base: Normalized estimator of the posterior.
            energy: Module from parameters of shape `(*batch_shape, dim_theta)` and
                conditions of shape `(*batch_shape, num_features)` to ratios of shape
                `batch_shape`.
            num_partition_samples: Number of draws from the base that estimate
                :math:`Z(x)` in the loss.
            prior: Distribution outside whose support the posterior is zero.
            embedded: Whether the energy is given conditions as the base's embedding
                network returns them. Otherwise it is given the conditions, with the
                design behind them if the base has a fixed one.
            latent_features: Whether the noise that the base makes a parameter of is
                added to the conditions that the energy is given.
            frozen_base: Whether the base stays in evaluation mode, whatever
                `train()` says.
            trained_partition: Whether the energy is trained to make :math:`Z(x)` one.
            corrects: Whether the energy is asked at all. Otherwise all ratios are one,
                and the posterior is that of the base.
        """
        super().__init__(base, base.input_shape, base.condition_shape)
        self.energy = energy
        self.num_partition_samples = num_partition_samples
        self.prior = prior
        self.embedded = embedded
        self.latent_features = latent_features
        self.frozen_base = frozen_base
        self.trained_partition = trained_partition
        self.corrects = corrects
        if frozen_base:
            base.eval()

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True):
        """Move a copy of the prior, which others may share, with the networks."""
        like = next(self.parameters(), torch.empty(0)).new_empty(0)
        device = fn(like).device
        if self.prior is not None and device != like.device:
            self.prior = move_distribution_to_device(deepcopy(self.prior), device)
        return super()._apply(fn, recurse)

    @property
    def base(self) -> ConditionalDensityEstimator:
        """The normalized base."""
        return self.net

    @property
    def embedding_net(self) -> nn.Module | None:
        """Embedding network of the base."""
        return self.net.embedding_net

    def train(self, mode: bool = True):
        """Set the mode of training, of the base only if it is not frozen."""
        super().train(mode)
        if self.frozen_base:
            self.net.eval()
        return self

    def at_design(self, design: Tensor, x_shape: Any = None) -> "HybridEstimator":
        """Return the estimator of `x` at a design `(dim_design,)`, sharing networks."""
        return self._view(posterior_at_design(self.net, design, x_shape), self.prior)

    def with_prior(self, prior: Distribution) -> "HybridEstimator":
        """Return the estimator for another prior, sharing its networks."""
        return self._view(self.net, prior)

    def _view(
        self, base: ConditionalDensityEstimator, prior: Distribution | None
    ) -> "HybridEstimator":
        settings = {name: getattr(self, name) for name in _SETTINGS}
        return HybridEstimator(base, self.energy, prior=prior, **settings)

    def inside(self, input: Tensor) -> Tensor:
        """Return which parameters are in the support of the prior, all without one."""
        if self.prior is None:
            return torch.ones(input.shape[:-1], dtype=torch.bool, device=input.device)
        inside = within_support(self.prior, input.flatten(0, -2))
        return inside.reshape(input.shape[:-1])

    def condition_features(self, condition: Tensor) -> Tensor:
        """Return what the energy is given of conditions, a row of each."""
        if self.embedded:
            return embed_condition(self.net, condition)
        if isinstance(self.net, DesignConditionedEstimator):
            return self.net.condition_of_net(condition)
        return condition

    def latent(self, input: Tensor, condition: Tensor) -> Tensor:
        """Return the noise that the energy is given, of no values if it is not."""
        if not self.latent_features:
            return input[..., :0]
        return to_noise(self.net, input, condition)

    def ratio_of_features(
        self, input: Tensor, features: Tensor, noise: Tensor
    ) -> Tensor:
        """Return ratios from what `condition_features` and `latent` returned.

        They are `-inf` where parameters or noise are not finite: a flow may overflow.
        """
        features = features.expand(len(input), *features.shape)
        finite = input.isfinite().all(dim=-1) & noise.isfinite().all(dim=-1)
        input = input.where(finite.unsqueeze(-1), 0.0)
        noise = noise.where(finite.unsqueeze(-1), 0.0)
        ratio = bounded(self.energy(input, torch.cat([features, noise], dim=-1)))
        return ratio.masked_fill(~finite, -torch.inf)

    def log_ratio(self, input: Tensor, condition: Tensor) -> Tensor:
        """Return the ratios of parameters."""
        if not self.corrects:
            finite = input.isfinite().all(dim=-1)
            return input.new_zeros(()).where(finite, -torch.inf)
        features, noise = (
            self.condition_features(condition),
            self.latent(input, condition),
        )
        return self.ratio_of_features(input, features, noise)

    def draw_weighted(
        self, num_draws: int, condition: Tensor, *, reject_outside_prior: bool = True
    ) -> tuple[Tensor, Tensor]:
        """Draw what the base's method `sample` would, with log-weights.

        Draws outside the support of the prior weigh nothing or, if they are kept, one.
        """
        if self.latent_features and self.corrects:
            noise, from_noise = draw_noise(self.net, num_draws, condition)
            draws = from_noise()
            features = self.condition_features(condition)
            log_weights = self.ratio_of_features(draws, features, noise)
        else:
            draws = self.net.sample(torch.Size((num_draws,)), condition)
            log_weights = self.log_ratio(draws, condition)
        outside = -torch.inf if reject_outside_prior else 0.0
        return draws, log_weights.masked_fill(~self.inside(draws), outside)

    def draw_accepted(
        self,
        num_draws: int,
        condition: Tensor,
        accept: Callable[[Tensor], Tensor],
        *,
        reject_outside_prior: bool = True,
    ) -> tuple[Tensor, Tensor]:
        """Draw from the base, and return which draws `accept` accepts by log-weights.

        An energy that sees noise but no parameters is asked before the base makes
        parameters of the noise, which is most of the work: the others are NaN.
        """
        sees_parameters = getattr(self.energy, "sees_parameters", True)
        is_blind = self.latent_features and self.corrects and not sees_parameters
        # Where draws outside are kept their weight is one, whatever the energy says.
        if not is_blind or not (reject_outside_prior or self.prior is None):
            draws, log_weights = self.draw_weighted(
                num_draws, condition, reject_outside_prior=reject_outside_prior
            )
            return draws, accept(log_weights)
        noise, from_noise = draw_noise(self.net, num_draws, condition)
        features = self.condition_features(condition)
        accepted = accept(self.ratio_of_features(noise, features, noise))
        draws = from_noise(accepted)
        return draws, accepted & self.inside(draws.where(accepted.unsqueeze(-1), 0.0))

    def measure_weights(
        self, condition: Tensor, *, reject_outside_prior: bool = True, **kwargs: Any
    ) -> WeightDiagnostics:
        """Return diagnostics of the weights of draws of the base given each condition.

        Keyword arguments are those of the function `rejection.measure_weights`.
        """
        draw = partial(self.draw_weighted, reject_outside_prior=reject_outside_prior)
        at_once = draws_at_once(self, condition)
        return measure_weights(draw, condition, at_once=at_once, **kwargs)

    def sample(
        self,
        sample_shape: torch.Size,
        condition: Tensor,
        *,
        weights: WeightDiagnostics | None = None,
        **settings: Any,
    ) -> Tensor:
        """Draw samples of shape `(*sample_shape, batch_dim, dim_theta)`.

        They are drawn by rejection from the base, or resampled where that is hopeless.
        Settings are those of `Sampler`; after a timeout there are fewer samples, in one
        dimension. Weights are measured if `None`, which is no sampling time.
        """
        num_samples = torch.Size(sample_shape).numel()
        sampler = Sampler(self, **settings)
        if weights is None:
            outside = sampler.reject_outside_prior
            weights = self.measure_weights(condition, reject_outside_prior=outside)
        samples = sampler.sample(num_samples, condition, weights)
        if len(samples) < num_samples:
            return samples
        return samples.reshape(*sample_shape, *samples.shape[1:])

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
        fixed draws: moving ones would not tell how many cross the boundary. Otherwise
        the gradient reaches the weights of the energy alone.
        """
        num_samples = num_samples or self.num_partition_samples
        with torch.no_grad():
            draws = self.net.sample(torch.Size((num_samples,)), condition)
        inside = self.inside(draws)
        if not whole_gradient:
            return partition_function(self._ratio_in_training(draws, condition), inside)
        log_ratio = self.log_ratio(draws, condition)
        weights = log_ratio.detach().exp() * inside
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
        r"""Return :math:`\log b(\theta \mid x) + \rho(\theta, x)`, also outside."""
        log_base = self.net.log_prob(input, condition, **kwargs)
        return log_base + self.log_ratio(input, condition)

    def log_partition(self, condition: Tensor, weights: WeightDiagnostics) -> Tensor:
        r"""Return the measured :math:`\log Z` with its gradient, or raise.

        The gradient, in the condition and in all weights, is :math:`E_q[\nabla \log b +
        \nabla \rho]` over samples of the hybrid :math:`q`.
        """
        weights.check_not_empty()
        if not torch.is_grad_enabled():
            return weights.log_partition
        at_once = draws_at_once(self, condition)
        num_samples = max(1, min(at_once // len(condition), _NUM_GRADIENT_SAMPLES))
        num_draws = min(at_once, weights.num_draws)
        parts = []
        with torch.no_grad(), isolated_rng(_GRADIENT_SEED):
            for rows in condition.split(max(1, at_once // num_draws)):
                draws, log_weights = self.draw_weighted(num_draws, rows)
                # Where none of these draws is inside, any of them stands for one.
                # Weights by a likelihood may all be tiny.
                largest = log_weights.amax(dim=0).nan_to_num(neginf=0.0)
                relative = (log_weights - largest).clamp(min=-100.0)
                chosen = draw_by_ratio(relative, num_samples)
                parts.append(draws.take_along_dim(chosen.unsqueeze(-1), dim=0))
        samples = torch.cat(parts, dim=1)
        mean = self.log_unnormalized(samples, condition).mean(dim=0)
        return weights.log_partition + mean - mean.detach()

    def log_prob(self, input: Tensor, condition: Tensor, **kwargs: Any) -> Tensor:
        """Return log-densities, normalized with draws from the base.

        The draws are the same at each call, and leave the random state alone. The
        gradient, in parameters, conditions and all weights, is that of the normalized
        density.

        Args:
            input: Parameters of shape `(sample_dim, batch_dim, dim_theta)`.
            condition: Conditions of shape `(batch_dim, *condition_event_shape)`.
            **kwargs: Passed to the base.

        Returns:
            Log-densities of shape `(sample_dim, batch_dim)`, in nats; `-inf` outside
            the support of the prior.

        Raises:
            RuntimeError: If the base has no draw in the support of the prior.
        """
        log_partition = self.log_partition(condition, self.measure_weights(condition))
        log_prob = self.log_unnormalized(input, condition, **kwargs) - log_partition
        return log_prob.masked_fill(~self.inside(input), -torch.inf)

    def loss(self, input: Tensor, condition: Tensor, **kwargs: Any) -> Tensor:
        """Return the generalized Kullback-Leibler loss of each row, in nats.

        Parameters have shape `(batch_dim, dim_theta)`.
        """
        log_base = self.net.log_prob(input.unsqueeze(0), condition, **kwargs)[0]
        log_ratio = self._ratio_in_training(input.unsqueeze(0), condition)[0]
        return hybrid_loss(log_base, log_ratio, self.partition(condition))


class UnnormalizedHybrid(EstimatorView):
    """A hybrid without its normalization, for samplers that need none."""

    net: HybridEstimator

    def __init__(self, hybrid: HybridEstimator) -> None:
        """Initialize the view, which shares the networks."""
        super().__init__(hybrid, hybrid.input_shape, hybrid.condition_shape)

    def log_prob(self, input: Tensor, condition: Tensor, **kwargs: Any) -> Tensor:
        """Return unnormalized log-densities `(sample_dim, batch_dim)`, in nats."""
        return self.net.log_unnormalized(input, condition, **kwargs)
