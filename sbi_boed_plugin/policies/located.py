"""What policies around a learned location share, in a box and without one."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.distributions import constraints
from torch.distributions.constraints import Constraint

from sbi_boed_plugin._numbers import check_real
from sbi_boed_plugin.policies.policy import DesignPolicy, ScaleSchedule, as_finite

__all__ = ["LocatedPolicy", "Scale", "spread_loc"]

Scale = float | tuple[float, float] | ScaleSchedule


def spread_loc(dim_design: int) -> Tensor:
    """Return a location spread evenly over the middle half of the unit interval.

    Where measurements are interchangeable, equal locations would be a saddle point.
    """
    return torch.linspace(0.25, 0.75, dim_design + 2)[1:-1]


class LocatedPolicy(DesignPolicy):
    """Policies with learned locations, and scales that follow a schedule.

    Locations, of shape `(..., dim_design)`, are stored as distances from an origin in
    units of their own (in a box, from its lower corner in units of its width), so that
    one learning rate serves designs of any magnitude. Scales are in the same units. In
    a box, `start` gives the locations to start from, in these units, if `loc` does not.
    """

    low: Tensor | None
    high: Tensor | None
    scale: Tensor
    _origin: Tensor
    _unit: Tensor

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
            loc = origin = as_finite("loc", loc, "(dim_design,)", 1)
            unit = torch.ones_like(origin)
        else:
            low, high = _check_box(*box)
            loc = _place_in_box(loc, low, high, start(len(low)))
            origin, unit = low.clone(), high - low
        super().__init__(dim_design=len(origin))
        self.register_buffer("low", low)
        self.register_buffer("high", high)
        self.register_buffer("_origin", origin)
        self.register_buffer("_unit", unit)
        self._unit_loc = nn.Parameter((loc - origin) / unit)
        self._schedule = None if scale is None else _as_schedule(scale)
        self.register_buffer("scale", torch.zeros_like(origin))
        if scale is not None:
            self.anneal(0.0)

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
        if self._schedule is not None:
            self.scale = self._schedule(progress) * self._unit

    @torch.no_grad()
    def project(self) -> None:
        """Bring the locations back into the box, if there is one."""
        if self.low is not None:
            self._unit_loc.clamp_(0.0, 1.0)

    def describe(self) -> dict[str, Tensor]:
        """Return the mode and the scales."""
        return {**super().describe(), "scale": self.scale.clone()}


def _as_schedule(scale: Scale) -> ScaleSchedule:
    """Return the schedule that a number, a pair or a schedule stands for."""
    if isinstance(scale, ScaleSchedule):
        return scale
    if not isinstance(scale, (tuple, list)):
        scale = check_real("scale", scale, above=0.0)
        return ScaleSchedule(scale, scale)
    if len(scale) != 2:
        raise ValueError(f"scale={scale} must be one number, or (start, end).")
    return ScaleSchedule(*scale)


def _check_box(low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    """Return copies of the corners of a box, or raise if they do not span one."""
    # A number stands for a vector of one value.
    low, high = (torch.atleast_1d(torch.as_tensor(corner)) for corner in (low, high))
    low = as_finite("low", low, "(dim_design,)", 1)
    high = as_finite("high", high, "(dim_design,)", 1).to(low)
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
        loc = low + default.to(low) * (high - low)
    loc = torch.as_tensor(loc, dtype=low.dtype, device=low.device).detach()
    loc = loc.reshape(1) if loc.dim() == 0 and default.shape == (1,) else loc
    if loc.shape != default.shape or not ((loc >= low) & (loc <= high)).all():
        raise ValueError(
            f"loc={loc.tolist()} must have shape {tuple(default.shape)} and lie in the "
            f"box from low={low.tolist()} to high={high.tolist()}."
        )
    return loc
