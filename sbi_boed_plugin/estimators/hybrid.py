r"""A normalized base times an energy ratio."""

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
from torch.utils.checkpoint import checkpoint

from sbi_boed_plugin._rng import isolated_rng
from sbi_boed_plugin.estimators.design_conditioned_posterior import (
    DesignConditionedPosterior,
)
from sbi_boed_plugin.estimators.energy import (
    bounded,
    draw_noise,
    embed_condition,
    latent,
    log_prob_with_latent,
    sample_with_latent,
)
from sbi_boed_plugin.estimators.rejection import sample_corrected
from sbi_boed_plugin.estimators.weights import (
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


class HybridEstimator(ConditionalDensityEstimator):
    r"""The posterior :math:`b(\theta \mid x) \, e^{\rho(\theta, x)} / Z(x)`.

    Ratios are finite by construction: they are what the energy says between -15 and 3
    nats, and never beyond -20 and 5.

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
            prior: Distribution outside whose support the posterior is zero. None is
                asked if `None`.
            embedded: Whether the energy is shown conditions as the base's embedding
                network returns them, rather than conditions.
            latent_features: Whether the noise that the base makes a parameter of is
                added to the conditions that the energy is shown.
            frozen_base: Whether the base stays in evaluation mode, whatever
                `train()` says.
            trained_partition: Whether the energy is trained to make :math:`Z(x)` one.
            corrects: Whether the energy is asked at all. Otherwise all ratios are one,
                and the posterior is that of the base.
        """
        super().__init__(
            net=base,
            input_shape=base.input_shape,
            condition_shape=base.condition_shape,
        )
        self.net: ConditionalDensityEstimator
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

    def train(self, mode: bool = True) -> "HybridEstimator":
        """Set the mode of training, of the base only if it is not frozen."""
        super().train(mode)
        if self.frozen_base:
            self.net.eval()
        return self

    def at_design(self, design: Tensor) -> "HybridEstimator":
        """Return the estimator with a design filled in, sharing its networks.

        Args:
            design: Design of shape `(dim_design,)`.

        Returns:
            Estimator conditioned on `x` in the place of `(x, design)` in one row.

        Raises:
            ValueError: If `design` has a wrong shape or is not finite.
        """
        base = DesignConditionedPosterior(self.net, design)
        energy = self.energy
        if not self.embedded:
            energy = _EnergyAtDesign(energy, base)
        return self._view(base, energy, self.prior)

    def with_prior(self, prior: Distribution) -> "HybridEstimator":
        """Return the estimator for another prior, sharing its networks.

        Args:
            prior: Distribution outside whose support the posterior is zero.

        Returns:
            The estimator.
        """
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

    def inside(self, input: Tensor) -> Tensor | None:
        """Return which parameters are in the support of the prior, if there is one.

        Args:
            input: Parameters of shape `(*batch_shape, dim_theta)`.

        Returns:
            Booleans of shape `batch_shape`.
        """
        if self.prior is None:
            return None
        inside = within_support(self.prior, input.flatten(0, -2))
        return inside.reshape(input.shape[:-1])

    def condition_features(self, condition: Tensor) -> Tensor:
        """Return what the energy is shown of conditions.

        Args:
            condition: Conditions of shape `(batch_dim, *condition_event_shape)`.

        Returns:
            Features of shape `(batch_dim, num_features)`.
        """
        return embed_condition(self.net, condition) if self.embedded else condition

    def latent(self, input: Tensor, condition: Tensor) -> Tensor:
        """Return the noise that the energy is shown, if any.

        Args:
            input: Parameters of shape `(sample_dim, batch_dim, dim_theta)`.
            condition: Conditions of shape `(batch_dim, *condition_event_shape)`.

        Returns:
            Noise of shape `(sample_dim, batch_dim, dim_theta)`, or with no values.
        """
        if not self.latent_features:
            return input[..., :0]
        return latent(self.net, input, condition)

    def draw(self, num_samples: int, condition: Tensor) -> tuple[Tensor, Tensor]:
        """Draw from the base, and return the noise that the energy is shown, too.

        Args:
            num_samples: Number of draws of each condition.
            condition: Conditions of shape `(batch_dim, *condition_event_shape)`.

        Returns:
            Draws of shape `(num_samples, batch_dim, dim_theta)`, and what `latent`
            returns for them; no values if the energy is not asked.
        """
        if self.latent_features and self.corrects:
            return sample_with_latent(self.net, num_samples, condition)
        draws = self.net.sample(torch.Size((num_samples,)), condition)
        return draws, draws[..., :0]

    def draw_accepted(
        self,
        num_samples: int,
        condition: Tensor,
        accept: Callable[[Tensor], Tensor],
        *,
        reject_outside_prior: bool = True,
    ) -> tuple[Tensor, Tensor]:
        """Draw from the base, and accept some draws by their ratios.

        Where the energy is shown noise but no parameters, it is asked before the base
        makes parameters of the noise, which is most of the work: only what is accepted
        is worth it.

        Args:
            num_samples: Number of draws of each condition.
            condition: Conditions of shape `(batch_dim, *condition_event_shape)`.
            accept: From ratios of shape `(num_samples, batch_dim)` to booleans.
            reject_outside_prior: Whether nothing outside the support of the prior is
                accepted. Otherwise ratios there are one.

        Returns:
            Draws of shape `(num_samples, batch_dim, dim_theta)`, and which of them are
            accepted. Those that are not may be NaN.
        """
        drawn = None
        # Where draws outside are kept their ratios are one, whatever the energy says.
        needs_parameters = self.prior is not None and not reject_outside_prior
        sees_parameters = getattr(self.energy, "sees_parameters", True)
        judges_noise = not (sees_parameters or needs_parameters)
        if self.latent_features and self.corrects and judges_noise:
            drawn = draw_noise(self.net, num_samples, condition)
        if drawn is None:
            draws, noise = self.draw(num_samples, condition)
            log_ratio = self.log_ratio(draws, condition, noise)
            inside = self.inside(draws) if needs_parameters else None
            if inside is not None:
                log_ratio = log_ratio.masked_fill(~inside, 0.0)
            accepted = accept(log_ratio)
        else:
            noise, shown = drawn.noise, self.condition_features(condition)
            accepted = accept(self.ratio_of_features(noise, shown, noise))
            draws = drawn.parameters(accepted)
        if reject_outside_prior and self.prior is not None:
            accepted = accepted.clone()
            chosen = draws[accepted]
            if len(chosen):
                accepted[accepted.clone()] = within_support(self.prior, chosen)
        return draws, accepted

    def ratio_of_features(self, input: Tensor, shown: Tensor, noise: Tensor) -> Tensor:
        r"""Return :math:`\rho(\theta, x)` from what the energy is shown.

        Args:
            input: Parameters of shape `(sample_dim, batch_dim, dim_theta)`.
            shown: What `condition_features` returned, of shape
                `(batch_dim, num_features)`.
            noise: What `latent` returned.

        Returns:
            Ratios of shape `(sample_dim, batch_dim)`; `-inf` where parameters or noise
            are not finite.
        """
        shown = shown.expand(len(input), *shown.shape)
        # A flow may overflow given what is far from all simulations.
        finite = input.isfinite().all(dim=-1) & noise.isfinite().all(dim=-1)
        if finite.all():
            return bounded(self.energy(input, torch.cat([shown, noise], dim=-1)))
        given = finite.unsqueeze(-1)
        input, noise = input.where(given, 0.0), noise.where(given, 0.0)
        ratio = bounded(self.energy(input, torch.cat([shown, noise], dim=-1)))
        return ratio.masked_fill(~finite, -torch.inf)

    def log_ratio(
        self, input: Tensor, condition: Tensor, noise: Tensor | None = None
    ) -> Tensor:
        r"""Return :math:`\rho(\theta, x)`.

        Args:
            input: Parameters of shape `(sample_dim, batch_dim, dim_theta)`.
            condition: Conditions of shape `(batch_dim, dim_condition)`.
            noise: What `draw` returned beside the parameters, if they come from there.

        Returns:
            Ratios of shape `(sample_dim, batch_dim)`.
        """
        if not self.corrects:
            finite = input.isfinite().all(dim=-1)
            return input.new_zeros(()).where(finite, -torch.inf)
        if noise is None:
            noise = self.latent(input, condition)
        return self.ratio_of_features(input, self.condition_features(condition), noise)

    def _ratio_in_training(self, input: Tensor, condition: Tensor) -> Tensor:
        """Return ratios whose gradient reaches the energy, but not the base."""
        with torch.no_grad():
            noise = self.latent(input, condition)
            shown = self.condition_features(condition)
        return self.ratio_of_features(input, shown, noise)

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
        cross the edge of the support.

        Args:
            condition: Conditions of shape `(batch_dim, dim_condition)`.
            num_samples: Number of draws; that of the estimator if `None`.
            whole_gradient: Whether the gradient is that in conditions and all weights.
                Otherwise it reaches the weights of the energy alone, as their training
                needs.

        Returns:
            Estimates of shape `(batch_dim,)`.
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

    def log_unnormalized(self, input: Tensor, condition: Tensor, **kwargs) -> Tensor:
        r"""Return :math:`\log b(\theta \mid x) + \rho(\theta, x)`, inside and outside.

        Args:
            input: Parameters of shape `(sample_dim, batch_dim, dim_theta)`.
            condition: Conditions of shape `(batch_dim, dim_condition)`.
            **kwargs: Passed to the base.

        Returns:
            Logarithms of shape `(sample_dim, batch_dim)`, in nats.
        """
        if not (self.latent_features and self.corrects) or kwargs:
            log_base = self.net.log_prob(input, condition, **kwargs)
            return log_base + self.log_ratio(input, condition)
        log_base, noise = log_prob_with_latent(self.net, input, condition)
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
            condition: Conditions of shape `(batch_dim, dim_condition)`.
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
        weights = measure_weights(self, condition, num_draws=num_partition_samples)
        weights.check_not_empty()
        log_prob = log_prob - weights.log_partition
        log_prob = log_prob - self.gradient_of_log_partition(condition)
        inside = self.inside(input)
        if inside is None:
            return log_prob
        return log_prob.masked_fill(~inside, -torch.inf)

    def gradient_of_log_partition(self, condition: Tensor) -> Tensor:
        r"""Return zeros that have the gradient of :math:`\log Z(x)`.

        It is :math:`E_q[\nabla \log b + \nabla \rho]`, in the condition and in all
        weights, from draws of the hybrid :math:`q`, the same at each call.

        Args:
            condition: Conditions of shape `(batch_dim, dim_condition)`.

        Returns:
            Zeros of shape `(batch_dim,)`.

        Raises:
            RuntimeError: If the base has no draw in the support of the prior.
        """
        learns = any(weight.requires_grad for weight in self.parameters())
        if not (torch.is_grad_enabled() and (learns or condition.requires_grad)):
            return torch.zeros(len(condition), device=condition.device)
        # Fewer of each if there are many conditions, or if memory is short.
        share = min(1.0, _MAX_ROWS / max(len(condition), 1))
        num_base = int(max(share, 0.1) * _NUM_BASE_DRAWS)
        at_once = draws_at_once(self, condition)
        num_draws = 1 + min(int(share * _NUM_GRADIENT_DRAWS), at_once)
        chosen, largest = [], []
        with torch.no_grad(), isolated_rng(_GRADIENT_SEED):
            for draws, log_weights in draw_in_parts(self, num_base, condition):
                largest.append(log_weights.amax(dim=0))
                indices = draw_by_ratio(
                    log_weights.clamp(min=-100.0),  # as good as none.
                    num_draws,
                )
                indices = indices.unsqueeze(-1).expand(-1, -1, draws.shape[2])
                chosen.append(draws.gather(0, indices))
        check_not_empty(torch.cat(largest), num_base)
        draws = torch.cat(chosen, dim=1)
        size = max(1, at_once // num_draws)
        evaluate = self.log_unnormalized
        if len(condition) > size:
            # What does not fit at once is evaluated again for its gradient.
            evaluate = partial(checkpoint, evaluate, use_reentrant=False)
        parts = zip(draws.split(size, dim=1), condition.split(size), strict=True)
        mean = torch.cat([evaluate(*part).mean(dim=0) for part in parts])
        return mean - mean.detach()

    def loss(self, input: Tensor, condition: Tensor, **kwargs) -> Tensor:
        """Return the generalized Kullback-Leibler loss of each row.

        Args:
            input: Parameters of shape `(batch_dim, dim_theta)`.
            condition: Conditions of shape `(batch_dim, dim_condition)`.
            **kwargs: Passed to the base.

        Returns:
            Losses of shape `(batch_dim,)`, in nats.
        """
        log_base = self.net.log_prob(input.unsqueeze(0), condition, **kwargs)[0]
        log_ratio = self._ratio_in_training(input.unsqueeze(0), condition)[0]
        return hybrid_loss(log_base, log_ratio, self.partition(condition))

    def sample(self, sample_shape: torch.Size, condition: Tensor, **kwargs) -> Tensor:
        """Draw by rejection from the base.

        Args:
            sample_shape: Shape of the draw.
            condition: Conditions of shape `(batch_dim, dim_condition)`.
            **kwargs: Passed to
                :func:`~sbi_boed_plugin.estimators.rejection.sample_corrected`.

        Returns:
            Samples of shape `(*sample_shape, batch_dim, dim_theta)`.
        """
        num_samples = torch.Size(sample_shape).numel()
        samples = sample_corrected(self, num_samples, condition, **kwargs)
        return samples.reshape(*sample_shape, len(condition), *self.input_shape)


class UnnormalizedHybrid(ConditionalDensityEstimator):
    r"""A hybrid without its normalization, for samplers that need none.

    A partition function for each of their many calls would cost more than the density.
    """

    def __init__(self, hybrid: HybridEstimator) -> None:
        """Initialize the view, which shares the networks.

        Args:
            hybrid: The estimator.
        """
        super().__init__(
            net=hybrid,
            input_shape=hybrid.input_shape,
            condition_shape=hybrid.condition_shape,
        )
        self.net: HybridEstimator

    def log_prob(self, input: Tensor, condition: Tensor, **kwargs) -> Tensor:
        r"""Return :math:`\log b(\theta \mid x) + \rho(\theta, x)`.

        Args:
            input: Parameters of shape `(sample_dim, batch_dim, dim_theta)`.
            condition: Conditions of shape `(batch_dim, dim_condition)`.
            **kwargs: Passed to the base.

        Returns:
            Logarithms of shape `(sample_dim, batch_dim)`, in nats.
        """
        return self.net.log_unnormalized(input, condition, **kwargs)

    def loss(self, input: Tensor, condition: Tensor, **kwargs) -> Tensor:
        """Return the loss of the hybrid."""
        return self.net.loss(input, condition, **kwargs)

    def sample(self, sample_shape: torch.Size, condition: Tensor, **kwargs) -> Tensor:
        """Draw from the hybrid."""
        return self.net.sample(sample_shape, condition, **kwargs)


class _EnergyAtDesign(nn.Module):
    """An energy that is shown raw conditions, with the design added to them."""

    def __init__(self, energy: nn.Module, base: DesignConditionedPosterior) -> None:
        super().__init__()
        self.energy = energy
        self._dim_x = base.condition_shape[0]
        self.register_buffer("design", base.design.clone())

    def forward(self, input: Tensor, features: Tensor) -> Any:
        x, rest = features[..., : self._dim_x], features[..., self._dim_x :]
        design: Any = self.design
        design = design.expand(*x.shape[:-1], -1)
        return self.energy(input, torch.cat([x, design, rest], dim=-1))
