"""A ratio at many pairs of data and parameters."""

from typing import Any

import torch
from sbi.neural_nets.ratio_estimators import RatioEstimator
from torch import Tensor

__all__ = ["RatioPairs", "embed_parameters"]

# Pairs that are evaluated at once. Larger batches are slower by half on a CPU, whose
# caches they leave.
_MAX_PAIRS = 4_096


def embed_parameters(ratio: Any, theta: Tensor) -> Tensor:
    """Return parameters as `RatioPairs` evaluates them.

    Args:
        ratio: The ratio; any module that takes parameters and data.
        theta: Parameters of shape `(num_parameters, *theta_event_shape)`.

    Returns:
        What the ratio makes of each by itself, or the parameters themselves.
    """
    return ratio.embedding_net_theta(theta) if _embeds(ratio) else theta


def _embeds(ratio: Any) -> bool:
    # A class derived from sbi's may combine them in another way.
    return type(ratio) is RatioEstimator


class RatioPairs:
    """Data of a batch, and parameters to pair them with, embedded once each.

    Args:
        ratio: The ratio; any module that takes parameters and data.
        theta: Parameters of shape `(batch_dim, *theta_event_shape)`.
        x: Data of shape `(batch_dim, *x_event_shape)`.

    Attributes:
        theta: The parameters, as `embed_parameters` returns them.
    """

    def __init__(self, ratio: Any, theta: Tensor, x: Tensor) -> None:
        self.theta = embed_parameters(ratio, theta)
        self._ratio = ratio
        self._x = ratio.embedding_net_x(x) if _embeds(ratio) else x

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
        if _embeds(self._ratio):
            both = torch.cat([theta, x], dim=-1).flatten(1)
            return self._ratio.net(both).squeeze(-1)
        return self._ratio(theta, x)
