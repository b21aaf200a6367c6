"""A ratio at many pairs of data and parameters."""

from typing import Any

import torch
from sbi.neural_nets.ratio_estimators import RatioEstimator
from torch import Tensor

__all__ = ["RatioPairs"]

# Pairs that are evaluated at once. Larger batches are slower by half on a CPU, whose
# caches they leave.
_MAX_PAIRS = 4_096


class RatioPairs:
    """Data of a batch, and parameters to pair them with, embedded once each.

    Args:
        ratio: The ratio; any module that takes parameters and data.
        theta: Parameters of shape `(batch_dim, *theta_event_shape)`.
        x: Data of shape `(batch_dim, *x_event_shape)`.

    Attributes:
        theta: What there is to pair: embedded parameters, if the ratio embeds them.
        device: Device of the parameters.
    """

    def __init__(self, ratio: Any, theta: Tensor, x: Tensor) -> None:
        self.device = theta.device
        self._ratio = ratio
        # A class derived from sbi's may combine them in another way.
        self._embeds = type(ratio) is RatioEstimator
        self.theta = self.embed(theta)
        self._x = ratio.embedding_net_x(x) if self._embeds else x

    def embed(self, theta: Tensor) -> Tensor:
        """Return parameters as the attribute `theta` has them."""
        return self._ratio.embedding_net_theta(theta) if self._embeds else theta

    def evaluate(self, theta: Tensor) -> Tensor:
        """Return log-ratios of data and parameters.

        Args:
            theta: Embedded parameters of shape `(num_atoms, batch_dim, ...)`.

        Returns:
            Log-ratios of shape `(num_atoms, batch_dim)`.
        """
        pairs = theta.flatten(0, 1)
        # Data are large, perhaps: there are copies of a part of them at a time.
        rows = torch.arange(len(self._x), device=pairs.device).repeat(len(theta))
        parts = zip(pairs.split(_MAX_PAIRS), rows.split(_MAX_PAIRS), strict=True)
        found = [self._evaluate(part, self._x[row]) for part, row in parts]
        return torch.cat(found).reshape(theta.shape[:2])

    def _evaluate(self, theta: Tensor, x: Tensor) -> Tensor:
        if self._embeds:
            both = torch.cat([theta, x], dim=-1).flatten(1)
            return self._ratio.net(both).squeeze(-1)
        return self._ratio(theta, x)
