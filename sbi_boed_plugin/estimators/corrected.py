r"""A base with an energy ratio: what the energy is given, what it says, and draws.

In this package inputs are parameters of shape `(sample_dim, batch_dim, dim_theta)`,
conditions have shape `(batch_dim, *condition_event_shape)`, and ratios
`(sample_dim, batch_dim)`.
"""

from collections.abc import Callable
from copy import deepcopy

import torch
from sbi.neural_nets.estimators import ConditionalDensityEstimator
from sbi.utils.sbiutils import within_support
from sbi.utils.user_input_checks_utils import move_distribution_to_device
from torch import Tensor, nn
from torch.distributions import Distribution

from sbi_boed_plugin.estimators.energy import bounded
from sbi_boed_plugin.estimators.noise import draw_noise, embed_condition, to_noise

__all__ = ["CorrectedBase"]


class CorrectedBase(ConditionalDensityEstimator):
    r"""A base :math:`b(\theta \mid x)` with an energy ratio :math:`\rho(\theta, x)`.

    Ratios are finite by construction: they are what the energy says between -15 and 3
    nats, and never beyond -20 and 5.
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
            prior: Distribution outside whose support the posterior is zero. None is
                asked if `None`.
            embedded: Whether the energy is given conditions as the base's embedding
                network returns them, rather than conditions.
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

    def inside(self, input: Tensor) -> Tensor | None:
        """Return which parameters are in the support of the prior, if there is one."""
        if self.prior is None:
            return None
        inside = within_support(self.prior, input.flatten(0, -2))
        return inside.reshape(input.shape[:-1])

    def fill_outside(self, values: Tensor, input: Tensor, fill: float) -> Tensor:
        """Return values of parameters, another one outside the support of the prior."""
        inside = self.inside(input)
        return values if inside is None else values.masked_fill(~inside, fill)

    def condition_features(self, condition: Tensor) -> Tensor:
        """Return what the energy is given of conditions, a row of each."""
        return embed_condition(self.net, condition) if self.embedded else condition

    def latent(self, input: Tensor, condition: Tensor) -> Tensor:
        """Return the noise that the energy is given, of no values if it is not."""
        if not self.latent_features:
            return input[..., :0]
        return to_noise(self.net, input, condition)

    def ratio_of_features(
        self, input: Tensor, features: Tensor, noise: Tensor
    ) -> Tensor:
        """Return ratios from what `condition_features` and `latent` returned.

        They are `-inf` where parameters or noise are not finite: a flow may overflow
        given what is far from all simulations.
        """
        features = features.expand(len(input), *features.shape)
        finite = input.isfinite().all(dim=-1) & noise.isfinite().all(dim=-1)
        is_finite = bool(finite.all())
        if not is_finite:
            input = input.where(finite.unsqueeze(-1), 0.0)
            noise = noise.where(finite.unsqueeze(-1), 0.0)
        ratio = bounded(self.energy(input, torch.cat([features, noise], dim=-1)))
        return ratio if is_finite else ratio.masked_fill(~finite, -torch.inf)

    def log_ratio(
        self, input: Tensor, condition: Tensor, noise: Tensor | None = None
    ) -> Tensor:
        """Return ratios; `noise` is what `draw` returned beside the parameters."""
        if not self.corrects:
            finite = input.isfinite().all(dim=-1)
            return input.new_zeros(()).where(finite, -torch.inf)
        if noise is None:
            noise = self.latent(input, condition)
        return self.ratio_of_features(input, self.condition_features(condition), noise)

    def draw(self, num_samples: int, condition: Tensor) -> tuple[Tensor, Tensor]:
        """Draw what the base's method `sample` would, and its noise if it is needed."""
        if self.latent_features and self.corrects:
            drawn = draw_noise(self.net, num_samples, condition)
            if drawn is not None:  # which saves the way back from the draws.
                return drawn.from_noise(), drawn.noise
        draws = self.net.sample(torch.Size((num_samples,)), condition)
        noise = self.latent(draws, condition) if self.corrects else draws[..., :0]
        return draws, noise

    def draw_weighted(
        self, num_draws: int, condition: Tensor, *, reject_outside_prior: bool = True
    ) -> tuple[Tensor, Tensor]:
        """Draw from the base, with log-weights.

        Draws outside the support of the prior weigh nothing or, if they are kept, what
        the base says: no energy was trained there.
        """
        draws, noise = self.draw(num_draws, condition)
        log_weights = self.log_ratio(draws, condition, noise)
        outside = -torch.inf if reject_outside_prior else 0.0
        return draws, self.fill_outside(log_weights, draws, outside)

    def draw_accepted(
        self,
        num_samples: int,
        condition: Tensor,
        accept: Callable[[Tensor], Tensor],
        *,
        reject_outside_prior: bool = True,
    ) -> tuple[Tensor, Tensor]:
        """Draw from the base, and return which draws `accept` accepts by their ratios.

        Where the energy is given noise but no parameters, it is asked before the base
        makes parameters of the noise, which is most of the work: the others are NaN.
        """
        drawn = None
        # Where draws outside are kept their ratios are one, whatever the energy says.
        keeps_outside = self.prior is not None and not reject_outside_prior
        sees_parameters = getattr(self.energy, "sees_parameters", True)
        judges_noise = not (sees_parameters or keeps_outside)
        if self.latent_features and self.corrects and judges_noise:
            drawn = draw_noise(self.net, num_samples, condition)
        if drawn is not None:
            noise, features = drawn.noise, self.condition_features(condition)
            accepted = accept(self.ratio_of_features(noise, features, noise))
            draws = drawn.from_noise(accepted)
        else:
            draws, noise = self.draw(num_samples, condition)
            log_ratio = self.log_ratio(draws, condition, noise)
            if keeps_outside:
                log_ratio = self.fill_outside(log_ratio, draws, 0.0)
            accepted = accept(log_ratio)
        if reject_outside_prior and self.prior is not None:
            accepted = accepted.clone()
            chosen = draws[accepted]
            if len(chosen):
                accepted[accepted.clone()] = within_support(self.prior, chosen)
        return draws, accepted
