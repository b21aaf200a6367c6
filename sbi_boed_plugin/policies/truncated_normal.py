"""Normals truncated to intervals."""

import math

import torch
from torch import Tensor
from torch.distributions import Distribution, constraints
from torch.distributions.utils import broadcast_all

__all__ = ["TruncatedNormal"]

_LOG_SQRT_2PI = 0.5 * math.log(2.0 * math.pi)


# torch has no truncated Normal. In single precision, that of zuko 1.6 has no density
# at its upper end, nor farther than 5.4 scales above the location.
class TruncatedNormal(Distribution):
    """Normals truncated to intervals that contain their locations.

    Inside its interval a location has a normalizer of at least half a Normal, or, where
    the Normal is wider than the interval, of about their ratio: never too small to
    divide by.
    """

    arg_constraints = {}  # type: ignore[assignment]
    has_rsample = True

    def __init__(self, loc: Tensor, scale: Tensor, low: Tensor, high: Tensor) -> None:
        self.loc, self.scale, self.low, self.high = broadcast_all(loc, scale, low, high)
        super().__init__(self.loc.shape, validate_args=False)
        self._below = torch.special.ndtr((self.low - self.loc) / self.scale)
        above = torch.special.ndtr((self.high - self.loc) / self.scale)
        self._mass = above - self._below

    @property
    def support(self) -> constraints.Constraint:
        """The intervals."""
        return constraints.interval(self.low, self.high)

    @property
    def mode(self) -> Tensor:
        """The locations."""
        return self.loc.clamp(self.low, self.high)

    def rsample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:
        """Draw by inversion, differentiable in the locations."""
        uniform = torch.rand_like(self.loc.expand(*sample_shape, *self.loc.shape))
        probability = self._below + uniform * self._mass
        # The quantiles of 0 and 1 are infinite, and their gradients NaN.
        epsilon = torch.finfo(probability.dtype).eps
        standard = torch.special.ndtri(probability.clamp(epsilon, 1.0 - epsilon))
        return (self.loc + self.scale * standard).clamp(self.low, self.high)

    def log_prob(self, value: Tensor) -> Tensor:
        """Return the log-density of values inside the intervals, in nats."""
        squares = ((value - self.loc) / self.scale).square()
        log_normal = -0.5 * squares - _LOG_SQRT_2PI - self.scale.log()
        return log_normal - self._mass.log()
