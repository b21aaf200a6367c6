"""Policies around a learned location, in a box and without one."""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.distributions import Distribution, Independent, Normal, constraints
from torch.distributions.constraints import Constraint
from torch.distributions.utils import broadcast_all

from sbi_boed_plugin._numbers import check_real
from sbi_boed_plugin.policies.policy import DesignPolicy, ScaleSchedule, as_finite

__all__ = [
    "LocatedPolicy",
    "NormalPolicy",
    "PointPolicy",
    "Scale",
    "TruncatedNormal",
    "TruncatedNormalPolicy",
    "spread_loc",
]

Scale = float | Tensor | tuple[float | Tensor, float | Tensor] | ScaleSchedule


def spread_loc(dim_design: int) -> Tensor:
    """Return a location spread evenly over the middle half of the unit interval.

    Where measurements are interchangeable, equal locations would be a saddle point.
    """
    return torch.linspace(0.25, 0.75, dim_design + 2)[1:-1]


class LocatedPolicy(DesignPolicy):
    """Policies with learned locations, and scales that follow a schedule.

    Locations, of shape `(..., dim_design)`, are stored as distances from an origin in
    units of their own, so that one learning rate serves designs of any magnitude: in a
    box from its lower corner in units of its width, elsewhere from where they started
    in units of the first scale. In a box, scales are shares of its width, and `start`
    gives the locations to start from, as shares of it, if `loc` does not.
    """

    low: Tensor | None
    high: Tensor | None
    scale: Tensor
    _origin: Tensor
    _unit: Tensor
    _scale_ends: Tensor

    def __init__(
        self,
        loc: Tensor | None,
        box: tuple[Tensor, Tensor] | None = None,
        *,
        start: Callable[[int], Tensor] = spread_loc,
        scale: Scale | None = None,
    ) -> None:
        low = high = None
        if box is None:
            loc = origin = as_finite("loc", loc)
            unit = torch.ones_like(origin)
        else:
            low, high = _check_box(*box)
            loc = _place_in_box(loc, low, high, start(len(low)))
            origin, unit = low.clone(), high - low
        ends = torch.zeros(2, len(origin)).to(origin)
        if self.has_log_prob:  # A point has neither.
            ends = _check_scales(scale, origin) * unit
            unit = ends[0].clone() if box is None else unit
        super().__init__(dim_design=len(origin))
        self.register_buffer("low", low)
        self.register_buffer("high", high)
        self.register_buffer("_origin", origin)
        self.register_buffer("_unit", unit)
        self.register_buffer("_scale_ends", ends, persistent=False)
        self.register_buffer("scale", ends[0].clone())
        self._unit_loc = nn.Parameter((loc - origin) / unit)

    @property
    def loc(self) -> Tensor:
        """Locations, of shape `(..., dim_design)`, with gradient."""
        return self._origin + self._unit_loc * self._unit

    @property
    def support(self) -> Constraint:
        """The box, or all vectors of numbers if there is none."""
        if self.low is None:
            return constraints.real_vector
        return constraints.independent(constraints.interval(self.low, self.high), 1)

    def anneal(self, progress: float) -> None:
        """Set the scales for a training progress between 0 and 1."""
        start, end = self._scale_ends
        progress = min(max(progress, 0.0), 1.0)
        self.scale = start ** (1.0 - progress) * end**progress

    @torch.no_grad()
    def project(self) -> None:
        """Bring the locations back into the box, if there is one."""
        if self.low is not None:
            self._unit_loc.clamp_(0.0, 1.0)

    def describe(self) -> dict[str, Tensor]:
        """Return the mode and the scales."""
        return {**super().describe(), "scale": self.scale.clone()}


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
    def support(self) -> Constraint:
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
        log_normal = -0.5 * squares - 0.5 * math.log(2.0 * math.pi) - self.scale.log()
        return log_normal - self._mass.log()


class TruncatedNormalPolicy(LocatedPolicy):
    r"""Independent Normals truncated to a box, with learned locations.

    .. math:: \pi_\psi(\xi) = \prod_j \frac{N(\xi_j; \mu_j, \sigma_j^2)}
        {\Phi\big(\frac{h_j - \mu_j}{\sigma_j}\big)
        - \Phi\big(\frac{l_j - \mu_j}{\sigma_j}\big)},
        \quad l_j \leq \xi_j \leq h_j.

    The locations :math:`\mu` are learned and stay inside the box. The scales
    :math:`\sigma` follow a schedule from wide, which explores, to narrow, which lets
    the estimator concentrate on designs like the best one.

    Args:
        low: Lower corner of the box, of shape `(dim_design,)`.
        high: Upper corner of the box, likewise.
        loc: Initial locations, of shape `(dim_design,)`, inside the box. If `None`,
            spread evenly over its middle half: where measurements are
            interchangeable, equal locations would be a saddle point.
        scale: Scale of the Normals relative to the width of the box: a number, or its
            schedule as `(start, end)`. If `None`, from 0.3 to 0.1, as SBI-BOED has it.

    Raises:
        ValueError: If the box is empty or `loc` lies outside of it.

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


class NormalPolicy(LocatedPolicy):
    r"""Independent Normals on all of :math:`R^D`, with learned locations.

    .. math:: \pi_\psi(\xi) = \prod_j N(\xi_j; \mu_j, \sigma_j^2).

    Nothing but the information keeps the locations :math:`\mu` from wandering off:
    with bounds, :class:`TruncatedNormalPolicy` is the safer choice.

    Args:
        loc: Initial locations, of shape `(dim_design,)`; different ones, where
            measurements are interchangeable.
        scale: Scales in units of the design, a number or of shape `(dim_design,)`, or
            their geometric schedule as a tuple `(start, end)` of such scales.

    Example:
        >>> import torch
        >>> policy = NormalPolicy(torch.zeros(2), scale=(10.0, 1.0))
        >>> policy.anneal(1.0)
        >>> policy.scale
        tensor([1., 1.])
    """

    def __init__(self, loc: Tensor, scale: Scale) -> None:
        super().__init__(loc, scale=scale)

    def from_reals(self, reals: Tensor) -> Tensor:
        """Return designs that many first scales from the first locations."""
        return (self._origin + self._unit * reals).to(reals)

    def to_reals(self, design: Tensor) -> Tensor:
        """Return distances from the first locations in first scales."""
        return ((design - self._origin) / self._unit).to(design)

    def distribution(self) -> Independent:
        """Return the Normals."""
        normals = Normal(self.loc, self.scale, validate_args=False)
        return Independent(normals, 1, validate_args=False)


class PointPolicy(LocatedPolicy):
    r"""A point mass :math:`\pi_\psi(\xi) = \delta(\xi - \mu)` at a learned design.

    Precise where the information has a single mode; nothing explores. Without a
    density it needs a gradient other than the score. Since data of one design do not
    tell how they depend on it, surrogate and implicit gradients need estimators that
    have seen others, as `method="multi_start"` trains them.

    Args:
        low: Lower corner of the box, of shape `(dim_design,)`; `None` for designs
            without bounds.
        high: Upper corner of the box, likewise.
        loc: Initial design, of shape `(dim_design,)`. If `None`, the one of
            :class:`TruncatedNormalPolicy`; without a box it is needed.

    Raises:
        ValueError: If there is only one corner, neither a box nor `loc`, or `loc` lies
            outside of the box.

    Example:
        >>> import torch
        >>> policy = PointPolicy(low=torch.zeros(1), high=torch.ones(1))
        >>> policy.sample((3,)).squeeze(1)
        tensor([0.5000, 0.5000, 0.5000])
    """

    has_log_prob = False

    def __init__(
        self,
        low: Tensor | None = None,
        high: Tensor | None = None,
        *,
        loc: Tensor | None = None,
    ) -> None:
        has_no_place = low is None and high is None and loc is None
        if (low is None) != (high is None) or has_no_place:
            raise ValueError(
                f"low={low}, high={high}, loc={loc}: give both corners of a box, or "
                "loc alone for designs without bounds."
            )
        super().__init__(loc, None if low is None or high is None else (low, high))

    @property
    def mode(self) -> Tensor:
        """The design, detached."""
        return self.sample()

    def rsample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:
        """Return copies of the design that carry its gradient."""
        loc = self.loc
        if self.low is not None:
            # Rounding can leave the box; the value comes back and keeps its gradient.
            loc = loc + (loc.clamp(self.low, self.high) - loc).detach()
        return loc.expand(*sample_shape, -1).clone()

    def log_prob(self, design: Tensor) -> Tensor:
        """Raise an error, since a point mass has no density."""
        raise NotImplementedError(
            "A PointPolicy has no density, hence no gradient='score'. Use another "
            "gradient, or a policy with a density, such as TruncatedNormalPolicy."
        )


def _check_scales(scale: Scale | None, loc: Tensor) -> Tensor:
    """Return first and last scales, `(2, dim_design)`, or raise if they are none."""
    if isinstance(scale, ScaleSchedule):
        scale = scale.start, scale.end
    ends = scale if isinstance(scale, tuple) else (scale, scale)
    if len(ends) != 2 or isinstance(scale, list):
        raise ValueError(
            f"scale={scale} must be one number, or a tuple (start, end). For one scale "
            "per design value pass a tensor."
        )
    scales = torch.empty(2, len(loc)).to(loc)
    for row, end in zip(scales, ends, strict=True):
        if getattr(end, "ndim", 0) == 0:
            end = check_real("scale", end, above=0.0)
        end = as_finite("scale", torch.as_tensor(end, dtype=loc.dtype))
        if len(end) not in (1, len(loc)) or not (end > 0.0).all():
            raise ValueError(
                f"scale={end.tolist()} must be positive and one number, or one for "
                f"each of the {len(loc)} values of a design."
            )
        row.copy_(end)
    return scales


def _check_box(low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    """Return copies of the corners of a box, or raise if they do not span one."""
    low = as_finite("low", low)
    high = as_finite("high", high).to(low)
    if low.shape != high.shape or not (low < high).all():
        raise ValueError(
            f"low={low.tolist()} must have the same shape as high={high.tolist()}, and "
            "must be less than it in every dimension."
        )
    return low, high


def _place_in_box(
    loc: Tensor | None, low: Tensor, high: Tensor, default: Tensor
) -> Tensor:
    """Return locations of the shape of the default, or raise if outside of the box."""
    if loc is None:
        return low + default.to(low) * (high - low)
    placed = torch.atleast_1d(torch.as_tensor(loc)).detach().to(low)
    if placed.shape != default.shape or not ((placed >= low) & (placed <= high)).all():
        raise ValueError(
            f"loc={placed.tolist()} must have shape {tuple(default.shape)} and lie in "
            f"the box from low={low.tolist()} to high={high.tolist()}."
        )
    return placed
