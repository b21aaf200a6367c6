"""What policies on a box share: their arguments, parameters and truncated Normals."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.distributions import constraints
from torch.distributions.constraints import Constraint

from sbi_boed_plugin._numbers import check_real
from sbi_boed_plugin.policies._truncated import TruncatedNormals
from sbi_boed_plugin.policies.policy import DesignPolicy, ScaleSchedule

__all__ = [
    "BoxPolicy",
    "as_vector",
    "check_box",
    "check_dim_design",
    "check_loc",
    "draw_index",
    "spread_loc",
]


class BoxPolicy(DesignPolicy):
    """Policies made of Normals truncated to a box, with learned locations.

    Each location has the last dimension `dim_design`; in front of it there may be a
    dimension of components. All share the scale of each design value.
    """

    low: Tensor
    high: Tensor
    scale: Tensor

    def __init__(
        self,
        low: Tensor,
        high: Tensor,
        *,
        loc: Tensor | None,
        default_unit_loc: Callable[[int], Tensor],
        scale: float | tuple[float, float] | ScaleSchedule,
    ) -> None:
        """Initialize box, locations and schedule.

        Args:
            low: Lower corner of the box, of shape `(dim_design,)`.
            high: Upper corner of the box, of shape `(dim_design,)`.
            loc: Initial locations inside the box.
            default_unit_loc: Function from `dim_design` to the initial locations in
                the unit cube if `loc` is `None`; their shape is what `loc` must have.
            scale: Scale relative to the width of the box, or its schedule.
        """
        low, high = check_box(low, high)
        super().__init__(dim_design=low.numel())
        self.register_buffer("low", low)
        self.register_buffer("high", high)
        unit = default_unit_loc(low.numel()).to(low)
        if loc is None:
            loc = low + unit * (high - low)
        loc = check_loc(loc, low, high, shape=unit.shape)
        self._unit_loc = nn.Parameter((loc - low) / (high - low))
        self._schedule = _as_schedule(scale)
        self.register_buffer("scale", torch.empty_like(low))
        self.anneal(0.0)

    @property
    def loc(self) -> Tensor:
        """Locations of the Normals, of shape `(..., dim_design)`, with gradient."""
        return self.low + self._unit_loc * (self.high - self.low)

    @property
    def support(self) -> Constraint:
        """The box."""
        return constraints.independent(constraints.interval(self.low, self.high), 1)

    def anneal(self, progress: float) -> None:
        """Set the scales for a training progress between 0 and 1."""
        self.scale = self._schedule(progress) * (self.high - self.low)

    @torch.no_grad()
    def project(self) -> None:
        """Bring the locations back into the box."""
        self._unit_loc.clamp_(0.0, 1.0)

    def _normals(self, loc: Tensor) -> TruncatedNormals:
        """Return the Normals of each design value around locations."""
        return TruncatedNormals(loc, self.scale, self.low, self.high)


def spread_loc(dim_design: int) -> Tensor:
    """Return a location spread evenly over the middle half of the unit interval.

    Where measurements are interchangeable, equal locations would be a saddle point.

    Example:
        >>> spread_loc(3)
        tensor([0.3750, 0.5000, 0.6250])
    """
    return torch.linspace(0.25, 0.75, dim_design + 2)[1:-1]


def as_vector(name: str, value: Tensor) -> Tensor:
    """Return a copy of a vector of finite numbers, or raise if it is not one."""
    value = torch.as_tensor(value)
    if not value.is_floating_point():
        value = value.to(torch.get_default_dtype())
    if value.dim() != 1 or value.numel() == 0:
        raise ValueError(
            f"{name} has shape {tuple(value.shape)}, but must have shape (dim_design,)."
        )
    if not torch.isfinite(value).all():
        raise ValueError(f"{name}={value.tolist()} must be finite.")
    return value.detach().clone()


def check_box(low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    """Return copies of the corners of a box, or raise if they do not span one."""
    # Numbers stand for one design value.
    low, high = (torch.atleast_1d(torch.as_tensor(bound)) for bound in (low, high))
    if not low.is_floating_point():
        low = low.to(torch.get_default_dtype())
    high = high.to(low)
    if low.dim() != 1 or low.shape != high.shape or low.numel() == 0:
        raise ValueError(
            f"low has shape {tuple(low.shape)} and high {tuple(high.shape)}, but both "
            "must have the same shape (dim_design,)."
        )
    finite = torch.isfinite(low) & torch.isfinite(high)
    if not (finite & (low < high)).all():
        raise ValueError(
            f"low={low.tolist()} must be less than high={high.tolist()} in every "
            "dimension, and both finite."
        )
    return low.clone(), high.clone()


def check_loc(loc: Tensor, low: Tensor, high: Tensor, *, shape: torch.Size) -> Tensor:
    """Return locations in the type of the box, or raise if they do not fit it."""
    loc = torch.as_tensor(loc, dtype=low.dtype, device=low.device).detach()
    loc = loc.reshape(shape) if loc.dim() == 0 and shape == (1,) else loc
    if loc.shape != shape or not ((loc >= low) & (loc <= high)).all():
        raise ValueError(
            f"loc={loc.tolist()} must have shape {tuple(shape)} and lie in the "
            f"box from low={low.tolist()} to high={high.tolist()}."
        )
    return loc


def check_dim_design(design: Tensor, dim_design: int) -> None:
    """Raise if the last dimension of designs is not that of the policy."""
    if design.shape[-1:] != (dim_design,):
        raise ValueError(
            f"design has shape {tuple(design.shape)}, but the last dimension must "
            f"be dim_design={dim_design}."
        )


def _as_schedule(scale: float | tuple[float, float] | ScaleSchedule) -> ScaleSchedule:
    if isinstance(scale, ScaleSchedule):
        return scale
    if not isinstance(scale, (tuple, list)):
        scale = check_real("scale", scale, above=0.0)
        return ScaleSchedule(scale, scale)
    if len(scale) != 2:
        raise ValueError(f"scale={scale} must be one number, or (start, end).")
    return ScaleSchedule(*scale)


def draw_index(logits: Tensor, sample_shape: torch.Size) -> Tensor:
    """Draw indices with probabilities `softmax(logits)`, of shape `sample_shape`.

    Of exponential clocks with rates :math:`w_k` the k-th is the first to ring with
    probability :math:`w_k`; unlike `torch.multinomial` this takes any shape.
    """
    clocks = torch.empty(
        (*sample_shape, len(logits)), device=logits.device, dtype=logits.dtype
    ).exponential_()
    return (logits.detach() - clocks.log()).argmax(dim=-1)
