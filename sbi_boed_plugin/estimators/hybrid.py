r"""A normalized base times an energy ratio."""

import torch
from sbi.neural_nets.estimators import ConditionalDensityEstimator
from torch import Tensor, nn

from sbi_boed_plugin.estimators.reparameterize import reparameterize
from sbi_boed_plugin.objectives.generalized_kl import hybrid_loss, partition_function

__all__ = ["EnergyRatio", "HybridEstimator"]


class EnergyRatio(nn.Module):
    r"""Residual network for :math:`\rho(\theta, x)`, zero before training.

    Args:
        input: Parameters to take the standardization from, of shape
            `(num_samples, dim_theta)`.
        condition: Conditions likewise, of shape `(num_samples, dim_condition)`.
        hidden_features: Width of the layers.
        num_blocks: Number of residual blocks.
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
    ) -> None:
        """Initialize the network."""
        super().__init__()
        features = torch.cat([input, condition], dim=-1)
        self.register_buffer("mean", features.mean(dim=0))
        self.register_buffer("scale", features.std(dim=0).clamp_min(1e-6))
        self.first = nn.Linear(features.shape[-1], hidden_features)
        self.blocks = nn.ModuleList(
            nn.Sequential(
                nn.SiLU(),
                nn.Linear(hidden_features, hidden_features),
                nn.SiLU(),
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
        features = (torch.cat([input, condition], dim=-1) - self.mean) / self.scale
        hidden = self.first(features)
        for block in self.blocks:
            hidden = hidden + block(hidden)
        return self.last(hidden).squeeze(-1)


class HybridEstimator(ConditionalDensityEstimator):
    r"""The posterior :math:`b(\theta \mid x) \, e^{\rho(\theta, x)} / Z(x)`.

    Args:
        base: Normalized estimator of the posterior.
        energy: Module from parameters and conditions to :math:`\rho`.
        num_partition_samples: Number of draws from the base that estimate
            :math:`Z(x)`.
    """

    def __init__(
        self,
        base: ConditionalDensityEstimator,
        energy: nn.Module,
        *,
        num_partition_samples: int = 8,
    ) -> None:
        """Initialize the estimator."""
        super().__init__(
            net=base,
            input_shape=base.input_shape,
            condition_shape=base.condition_shape,
        )
        self.net: ConditionalDensityEstimator
        self.energy = energy
        self.num_partition_samples = num_partition_samples

    @property
    def base(self) -> ConditionalDensityEstimator:
        """The normalized base."""
        return self.net

    def log_ratio(self, input: Tensor, condition: Tensor) -> Tensor:
        r"""Return :math:`\rho(\theta, x)`.

        Args:
            input: Parameters of shape `(sample_dim, batch_dim, dim_theta)`.
            condition: Conditions of shape `(batch_dim, dim_condition)`.

        Returns:
            Ratios of shape `(sample_dim, batch_dim)`.
        """
        return self.energy(input, condition.expand(len(input), *condition.shape))

    def partition(
        self,
        condition: Tensor,
        num_samples: int | None = None,
        *,
        draws_follow_condition: bool = False,
    ) -> Tensor:
        r"""Return estimates of :math:`Z(x)` from new draws of the base.

        Args:
            condition: Conditions of shape `(batch_dim, dim_condition)`.
            num_samples: Number of draws; that of the estimator if `None`.
            draws_follow_condition: Whether the gradient in the condition includes that
                of the draws. Otherwise the energy alone carries a gradient, as its
                training needs.

        Returns:
            Estimates of shape `(batch_dim,)`.
        """
        num_samples = num_samples or self.num_partition_samples
        with torch.no_grad():
            draws = self.net.sample(torch.Size((num_samples,)), condition)
        if draws_follow_condition:
            rows = condition.repeat(num_samples, *(1 for _ in self.condition_shape))
            flat = reparameterize(self.net, draws.flatten(0, 1), rows)
            draws = flat.reshape(draws.shape)
        return partition_function(self.log_ratio(draws, condition))

    def log_prob(
        self,
        input: Tensor,
        condition: Tensor,
        *,
        num_partition_samples: int = 1_000,
        **kwargs,
    ) -> Tensor:
        """Return log-densities, normalized with draws from the base.

        Args:
            input: Parameters of shape `(sample_dim, batch_dim, dim_theta)`.
            condition: Conditions of shape `(batch_dim, dim_condition)`.
            num_partition_samples: Number of draws for the normalization, drawn anew
                at each call.
            **kwargs: Passed to the base.

        Returns:
            Log-densities of shape `(sample_dim, batch_dim)`, in nats.
        """
        unnormalized = self.net.log_prob(input, condition, **kwargs)
        unnormalized = unnormalized + self.log_ratio(input, condition)
        return unnormalized - self.partition(condition, num_partition_samples).log()

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
        log_ratio = self.log_ratio(input.unsqueeze(0), condition)[0]
        return hybrid_loss(log_base, log_ratio, self.partition(condition))

    def sample(self, sample_shape: torch.Size, condition: Tensor, **kwargs) -> Tensor:
        """Draw by importance resampling from the base.

        Args:
            sample_shape: Shape of the draw.
            condition: Conditions of shape `(batch_dim, dim_condition)`.
            **kwargs: Passed to the base.

        Returns:
            Samples of shape `(*sample_shape, batch_dim, dim_theta)`, from sixteen
            times as many draws of the base.
        """
        num_samples = torch.Size(sample_shape).numel()
        draws = self.net.sample(torch.Size((16 * num_samples,)), condition, **kwargs)
        weights = torch.softmax(self.log_ratio(draws, condition), dim=0)
        chosen = torch.multinomial(weights.T, num_samples, replacement=True).T
        index = chosen.reshape(*chosen.shape, *(1 for _ in self.input_shape))
        samples = draws.gather(0, index.expand(*chosen.shape, *self.input_shape))
        return samples.reshape(*sample_shape, len(condition), *self.input_shape)
