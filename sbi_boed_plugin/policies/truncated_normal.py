"""Independent Normals truncated to a box."""

import math

import torch
from torch import Tensor
from torch.distributions import Distribution, Independent, constraints
from torch.distributions.utils import broadcast_all

from sbi_boed_plugin.policies.located import LocatedPolicy, Scale

__all__ = ["TruncatedNormal", "TruncatedNormalPolicy"]

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
        self._below, above = (
            torch.special.ndtr((end - self.loc) / self.scale)
            for end in (self.low, self.high)
        )
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

    def cdf(self, value: Tensor) -> Tensor:
        """Return the probability below values inside the intervals."""
        below = torch.special.ndtr((value - self.loc) / self.scale)
        return (below - self._below) / self._mass


class TruncatedNormalPolicy(LocatedPolicy):
    r"""Independent Normals truncated to a box, with learned locations.

    .. math:: \pi_\psi(\xi) = \prod_j \frac{N(\xi_j; \mu_j, \sigma_j^2)}
        {\Phi\big(\frac{h_j - \mu_j}{\sigma_j}\big)
        - \Phi\big(\frac{l_j - \mu_j}{\sigma_j}\big)},
        \quad l_j \leq \xi_j \leq h_j.

    The locations :math:`\mu` are learned and stay inside the box, where the mode of the
    policy is :math:`\mu` itself. The scales :math:`\sigma` follow a schedule from wide,
    which explores, to narrow, which lets the estimator concentrate on designs like the
    best one.

    Args:
        low: Lower corner of the box, of shape `(dim_design,)`.
        high: Upper corner of the box, likewise.
        loc: Initial locations, of shape `(dim_design,)`, inside the box. If `None`, the
            centre of the box for one design value; several are spread evenly over its
            middle half: where measurements are interchangeable, equal locations would
            be a saddle point.
        scale: Scale of the Normals relative to the width of the box: a number, or its
            schedule as `(start, end)`. If `None`, from 0.3 to 0.1, the schedule that
            SBI-BOED uses for the SIR model.

    Raises:
        ValueError: If the box is empty or not finite, shapes do not match, `loc` lies
            outside the box or a scale is not positive.

    Example:
        >>> import torch
        >>> policy = TruncatedNormalPolicy(low=torch.zeros(1), high=torch.ones(1))
        >>> policy.log_prob(policy.sample((5,))).shape
        torch.Size([5])
    """

    def __init__(
        self,
        low: Tensor,
        high: Tensor,
        *,
        loc: Tensor | None = None,
        scale: Scale | None = None,
    ) -> None:
        super().__init__(loc, (low, high), scale=(0.3, 0.1) if scale is None else scale)

    def distribution(self) -> Independent:
        """Return the truncated Normals."""
        normals = TruncatedNormal(self.loc, self.scale, self.low, self.high)
        return Independent(normals, 1, validate_args=False)
