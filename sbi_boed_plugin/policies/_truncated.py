"""Normals truncated to intervals, one by one and differentiable in the locations."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["LOG_SQRT_2PI", "TruncatedNormals"]

LOG_SQRT_2PI = 0.5 * math.log(2.0 * math.pi)


@dataclass(frozen=True)
class TruncatedNormals:
    r"""Normals truncated to intervals that contain their locations.

    Shapes broadcast with each other and with those of the values. Inside its interval
    a location has a normalizer of at least half a Normal, or, where the Normal is
    wider than the interval, of about their ratio: never too small to divide by.

    Args:
        loc: Locations :math:`\mu`.
        scale: Scales :math:`\sigma`.
        low: Lower ends.
        high: Upper ends.

    Example:
        >>> import torch
        >>> zero, one = torch.zeros(1), torch.ones(1)
        >>> normals = TruncatedNormals(loc=zero, scale=one, low=-one, high=one)
        >>> normals.cdf(zero)
        tensor([0.5000])
    """

    loc: Tensor
    scale: Tensor
    low: Tensor
    high: Tensor

    def rsample(self) -> Tensor:
        """Draw a value from each, by inversion."""
        below, above = self._edge_probabilities()
        probability = below + torch.rand_like(self.loc) * (above - below)
        # Rounded to 0 or 1 it would be an infinite quantile with a NaN gradient.
        epsilon = torch.finfo(probability.dtype).eps
        standard = torch.special.ndtri(probability.clamp(epsilon, 1.0 - epsilon))
        return (self.loc + self.scale * standard).clamp(self.low, self.high)

    def log_density(self, value: Tensor) -> Tensor:
        """Return the log-density of values inside the intervals, in nats."""
        below, above = self._edge_probabilities()
        standard = (value - self.loc) / self.scale
        return (
            -0.5 * standard.square()
            - LOG_SQRT_2PI
            - self.scale.log()
            - torch.log(above - below)
        )

    def cdf(self, value: Tensor) -> Tensor:
        """Return the probability below values inside the intervals."""
        below, above = self._edge_probabilities()
        standard = (value - self.loc) / self.scale
        return (torch.special.ndtr(standard) - below) / (above - below)

    def _edge_probabilities(self) -> tuple[Tensor, Tensor]:
        below = torch.special.ndtr((self.low - self.loc) / self.scale)
        above = torch.special.ndtr((self.high - self.loc) / self.scale)
        return below, above
