r"""Energy ratios :math:`\rho(\theta, x)`: the network, and what it is shown."""

from typing import Any, cast

import torch
from nflows.distributions.normal import StandardNormal
from sbi.neural_nets.estimators import ConditionalDensityEstimator, NFlowsFlow, ZukoFlow
from sbi.neural_nets.estimators.mixture_density_estimator import MixtureDensityEstimator
from torch import Tensor, nn

from sbi_boed_plugin._memory import rows_at_once
from sbi_boed_plugin.estimators.design_conditioned_posterior import (
    DesignConditionedPosterior,
)
from sbi_boed_plugin.estimators.reparameterize import mixture_to_noise, to_noise
from sbi_boed_plugin.estimators.transformed import TransformedEstimator
from sbi_boed_plugin.estimators.units import Units

__all__ = [
    "EnergyRatio",
    "FlowNoise",
    "bounded",
    "draw_noise",
    "embed_condition",
    "has_latent",
    "latent",
    "log_prob_with_latent",
    "sample_with_latent",
]

# Ratios are what networks say between the inner numbers of nats, and never beyond the
# outer ones. Upwards there is little room: where no partition function had a draw, a
# network may say anything, and one such draw with a huge ratio would fill the samples.
# A base that must be corrected by more would have hardly a draw accepted.
_LOWEST, _FREE_BELOW, _FREE_ABOVE, _HIGHEST = -20.0, -15.0, 3.0, 5.0


class EnergyRatio(nn.Module):
    r"""Residual network for :math:`\rho(\theta, x)`, zero before training.

    Args:
        input: Parameters to take the standardization from, of shape
            `(num_samples, dim_theta)`.
        condition: Conditions likewise, of shape `(num_samples, dim_condition)`.
        hidden_features: Width of the layers.
        num_blocks: Number of residual blocks.
        dropout: Probability to leave out a hidden feature during training.
        sees_parameters: Whether the network is shown parameters, or conditions only.
    """

    mean: Tensor
    scale: Tensor

    def __init__(
        self,
        input: Tensor,
        condition: Tensor,
        *,
        hidden_features: int = 64,
        num_blocks: int = 2,
        dropout: float = 0.0,
        sees_parameters: bool = True,
    ) -> None:
        """Initialize the network."""
        super().__init__()
        self.sees_parameters = sees_parameters
        features = self._features(input, condition)
        self.units = Units(features)
        features = cast(Tensor, self.units(features))
        scale = features.std(dim=0)
        self.register_buffer("mean", features.mean(dim=0))
        self.register_buffer("scale", torch.where(scale > 1e-6, scale, 1.0))
        self.first = nn.Linear(features.shape[-1], hidden_features)
        self.blocks = nn.ModuleList(
            nn.Sequential(
                nn.SiLU(),
                nn.Linear(hidden_features, hidden_features),
                nn.SiLU(),
                *([nn.Dropout(dropout)] if dropout else []),
                nn.Linear(hidden_features, hidden_features),
            )
            for _ in range(num_blocks)
        )
        self.last = nn.Linear(hidden_features, 1)
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)

    def forward(self, input: Tensor, condition: Tensor) -> Tensor:
        r"""Return :math:`\rho`.

        Args:
            input: Parameters of shape `(*batch_shape, dim_theta)`.
            condition: Conditions of shape `(*batch_shape, dim_condition)`.

        Returns:
            Ratios of shape `batch_shape`.
        """
        features = cast(Tensor, self.units(self._features(input, condition)))
        features = (features - self.mean) / self.scale
        hidden = self.first(features)
        for block in self.blocks:
            hidden = hidden + block(hidden)
        return self.last(hidden).squeeze(-1)

    def _features(self, input: Tensor, condition: Tensor) -> Tensor:
        if not self.sees_parameters:
            return condition
        return torch.cat([input, condition], dim=-1)


def bounded(ratio: Tensor) -> Tensor:
    """Return ratios between -20 and 5 nats, which are the same between -15 and 3.

    Args:
        ratio: What a network returned, of any shape.

    Returns:
        Ratios of the same shape, a smooth and increasing function of them.

    Raises:
        ValueError: If a ratio is not a number.
    """
    if torch.isnan(ratio).any():
        raise ValueError(
            f"energy_net returned NaN for {int(torch.isnan(ratio).sum())} of "
            f"{ratio.numel()} rows. Check it, and the parameters and data that it is "
            "given, for values that are not finite."
        )
    free = ratio.clamp(_FREE_BELOW, _FREE_ABOVE)
    room = torch.where(ratio < 0.0, _FREE_BELOW - _LOWEST, _HIGHEST - _FREE_ABOVE)
    return free + room * torch.tanh((ratio - free) / room)


def embed_condition(base: ConditionalDensityEstimator, condition: Tensor) -> Tensor:
    """Return conditions as the base sees them: standardized and embedded.

    Args:
        base: Estimator of the posterior.
        condition: Conditions of shape `(batch_dim, *condition_event_shape)`.

    Returns:
        Features of shape `(batch_dim, num_features)`.
    """
    if isinstance(base, DesignConditionedPosterior):
        return embed_condition(base.net, base.with_design(condition))
    if isinstance(base, TransformedEstimator):
        return embed_condition(base.net, base.condition_transform(condition))
    if base.embedding_net is not None:
        condition = base.embedding_net(condition)
    return condition.flatten(1)


def has_latent(
    base: ConditionalDensityEstimator, input: Tensor, condition: Tensor
) -> bool:
    """Return whether a base can say which noise a parameter was made of.

    Args:
        base: Estimator of the posterior.
        input: Some parameters of shape `(batch_dim, dim_theta)`.
        condition: Their conditions of shape `(batch_dim, *condition_event_shape)`.
    """
    try:
        with torch.no_grad():
            latent(base, input[:2].unsqueeze(0), condition[:2])
    except NotImplementedError:
        return False
    return True


def latent(
    base: ConditionalDensityEstimator, input: Tensor, condition: Tensor
) -> Tensor:
    """Return the noise that parameters are made of, by the base.

    Args:
        base: Estimator of the posterior, of a kind that
            :func:`~sbi_boed_plugin.estimators.reparameterize.to_noise` knows.
        input: Parameters of shape `(sample_dim, batch_dim, dim_theta)`.
        condition: Conditions of shape `(batch_dim, *condition_event_shape)`.

    Returns:
        Noise of shape `(sample_dim, batch_dim, dim_theta)`.
    """
    if isinstance(base, DesignConditionedPosterior):
        return latent(base.net, input, base.with_design(condition))
    if isinstance(base, TransformedEstimator):
        return latent(
            base.net,
            cast(Tensor, base.input_transform(input)),
            cast(Tensor, base.condition_transform(condition)),
        )
    if isinstance(base, MixtureDensityEstimator) and not hasattr(base, "to_noise"):
        return mixture_to_noise(base, input, condition)
    if isinstance(base, ZukoFlow):
        return base.inverse_transform(input, condition)
    if _is_gaussian_flow(base):
        return _flow_to_noise(base, input, condition)[0]
    sample_dim, batch_dim = input.shape[:2]
    flat = input.flatten(0, 1)
    rows = torch.arange(batch_dim, device=input.device).repeat(sample_dim)
    # Conditions are repeated for each sample.
    num_values = input[0, :1].numel() + condition[:1].numel()
    size = rows_at_once(base, num_values)
    noise = [
        to_noise(base, some, condition[of])
        for some, of in zip(flat.split(size), rows.split(size), strict=True)
    ]
    return torch.cat(noise).reshape(sample_dim, batch_dim, -1).to(input)


def _is_gaussian_flow(base: ConditionalDensityEstimator) -> bool:
    return isinstance(base, NFlowsFlow) and isinstance(
        cast(Any, base.net)._distribution, StandardNormal
    )


def _flow_to_noise(
    base: ConditionalDensityEstimator, input: Tensor, condition: Tensor
) -> tuple[Tensor, Tensor]:
    """Return noise of the shape of `input`, and logarithms of determinants."""
    flow = cast(Any, base.net)
    # Embedded once, not once per sample.
    context = flow._embedding_net(condition)
    context = context.expand(len(input), *context.shape).flatten(0, 1)
    noise, log_det = flow._transform(input.flatten(0, 1), context=context)
    return noise.reshape(input.shape), log_det.reshape(input.shape[:2])


def log_prob_with_latent(
    base: ConditionalDensityEstimator, input: Tensor, condition: Tensor
) -> tuple[Tensor, Tensor]:
    """Return log-densities of a base, and the noise, from one pass of a flow.

    Args:
        base: As for `latent`.
        input: Parameters of shape `(sample_dim, batch_dim, dim_theta)`.
        condition: Conditions of shape `(batch_dim, *condition_event_shape)`.

    Returns:
        Log-densities of shape `(sample_dim, batch_dim)` in nats, and what `latent`
        returns.
    """
    if isinstance(base, DesignConditionedPosterior):
        return log_prob_with_latent(base.net, input, base.with_design(condition))
    if not _is_gaussian_flow(base):
        return base.log_prob(input, condition), latent(base, input, condition)
    noise, log_det = _flow_to_noise(base, input, condition)
    gaussian = cast(Any, base.net)._distribution.log_prob(noise.flatten(0, 1))
    return gaussian.reshape(log_det.shape) + log_det, noise


def sample_with_latent(
    base: ConditionalDensityEstimator, num_samples: int, condition: Tensor
) -> tuple[Tensor, Tensor]:
    """Draw from a base, and return the noise that it made the draws of.

    Flows of nflows are given the noise, which saves the way back from the draws. The
    draws are those that `base.sample` would return, to the last bit.

    Args:
        base: As for `latent`.
        num_samples: Number of draws of each condition.
        condition: Conditions of shape `(batch_dim, *condition_event_shape)`.

    Returns:
        Draws and noise, of shape `(num_samples, batch_dim, dim_theta)`.
    """
    drawn = draw_noise(base, num_samples, condition)
    if drawn is not None:
        return drawn.parameters(), drawn.noise
    draws = base.sample(torch.Size((num_samples,)), condition)
    return draws, latent(base, draws, condition)


class FlowNoise:
    """Noise of a flow of nflows, of which parameters are made when they are wanted.

    Args:
        base: The flow.
        num_samples: Number of draws of each condition.
        condition: Conditions of shape `(batch_dim, *condition_event_shape)`.
    """

    def __init__(self, base: NFlowsFlow, num_samples: int, condition: Tensor) -> None:
        """Draw the noise."""
        self._flow = cast(Any, base.net)
        context = self._flow._embedding_net(condition)
        self._context = context.repeat_interleave(num_samples, dim=0)
        # One row per draw, those of a condition in succession, as the flow has them.
        self._rows = torch.randn(
            len(self._context),
            *base.input_shape,
            device=context.device,
            dtype=context.dtype,
        )
        self._shape = (len(condition), num_samples, *base.input_shape)

    @property
    def noise(self) -> Tensor:
        """The noise, of shape `(num_samples, batch_dim, dim_theta)`."""
        return self._rows.reshape(self._shape).transpose(0, 1)

    def parameters(self, chosen: Tensor | None = None) -> Tensor:
        """Return what the flow makes of the noise.

        Args:
            chosen: Booleans of shape `(num_samples, batch_dim)`; all draws if `None`.

        Returns:
            Parameters of shape `(num_samples, batch_dim, dim_theta)`. Those that were
            not chosen are NaN.
        """
        if chosen is None or bool(chosen.all()):
            draws = self._flow._transform.inverse(self._rows, context=self._context)[0]
        else:
            rows = chosen.transpose(0, 1).flatten()
            draws = torch.full_like(self._rows, torch.nan)
            if rows.any():
                draws[rows] = self._flow._transform.inverse(
                    self._rows[rows], context=self._context[rows]
                )[0]
        return draws.reshape(self._shape).transpose(0, 1)


def draw_noise(
    base: ConditionalDensityEstimator, num_samples: int, condition: Tensor
) -> FlowNoise | None:
    """Draw the noise of a base alone, or return `None` if it cannot be told apart.

    Args:
        base: Estimator of the posterior.
        num_samples: Number of draws of each condition.
        condition: Conditions of shape `(batch_dim, *condition_event_shape)`.

    Returns:
        The noise; its parameters are those that `base.sample` would have drawn.
    """
    if isinstance(base, DesignConditionedPosterior):
        return draw_noise(base.net, num_samples, base.with_design(condition))
    if _is_gaussian_flow(base):
        return FlowNoise(cast(NFlowsFlow, base), num_samples, condition)
    return None
