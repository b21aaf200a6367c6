"""Policies over ordered values and over mixtures, which have no other designs."""

from typing import Any

import torch
from torch import Tensor
from torch.distributions import TransformedDistribution, constraints
from torch.distributions.constraints import Constraint
from torch.distributions.transforms import StickBreakingTransform, Transform

from sbi_boed_plugin._numbers import check_integer, check_real
from sbi_boed_plugin.policies.located import NormalPolicy, Scale
from sbi_boed_plugin.policies.policy import DesignPolicy

__all__ = ["OrderedPolicy", "SimplexPolicy"]

_SHARES: Any = StickBreakingTransform()


class _Ordered(Constraint):
    """Constrains vectors to increasing values in an interval, bounds included."""

    event_dim = 1

    def __init__(self, low: float, high: float) -> None:
        self.low, self.high = low, high
        super().__init__()

    def __repr__(self) -> str:
        return f"Ordered({self.low}, {self.high})"

    def check(self, value: Tensor) -> Tensor:
        inside = ((value >= self.low) & (value <= self.high)).all(dim=-1)
        return inside & (value.diff(dim=-1) >= 0.0).all(dim=-1)


class _ToOrdered(Transform):
    """From all vectors to increasing values, whose gaps are shares of an interval."""

    domain = constraints.real_vector
    bijective = True

    def __init__(self, low: float, high: float) -> None:
        super().__init__()
        self.low, self.high = low, high

    @property
    def codomain(self) -> Constraint:
        return _Ordered(self.low, self.high)

    def _call(self, x: Tensor) -> Tensor:
        ends = _SHARES(x)[..., :-1].cumsum(dim=-1)
        return (self.low + (self.high - self.low) * ends).clamp(self.low, self.high)

    def _inverse(self, y: Tensor) -> Tensor:
        ends = (y - self.low) / (self.high - self.low)
        first, last = torch.zeros_like(ends[..., :1]), torch.ones_like(ends[..., :1])
        return _SHARES.inv(torch.cat([first, ends, last], dim=-1).diff(dim=-1))

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        width = torch.tensor(self.high - self.low).log()
        return _SHARES.log_abs_det_jacobian(x, _SHARES(x)) + x.shape[-1] * width


class _TransformedPolicy(DesignPolicy):
    """Normals with learned locations, mapped to designs of a kind."""

    def __init__(
        self, dim_design: int, dim_normal: int, transform: Transform, scale: Scale
    ) -> None:
        super().__init__(dim_design)
        self.normals = NormalPolicy(torch.zeros(dim_normal), scale)
        self.transform = transform

    def distribution(self) -> TransformedDistribution:
        """Return the distribution of the mapped Normals."""
        normals = self.normals.distribution()
        return TransformedDistribution(normals, [self.transform], validate_args=False)

    @property
    def mode(self) -> Tensor:
        """The design of the locations."""
        return self.from_reals(self.normals.mode)

    @property
    def num_reals(self) -> int:
        """Number of values of the Normals."""
        return self.normals.dim_design

    def from_reals(self, reals: Tensor) -> Tensor:
        """Return designs by the map of the Normals."""
        transform: Any = self.transform
        return transform(reals)

    def to_reals(self, design: Tensor) -> Tensor:
        """Return values of the Normals by the inverse of the map."""
        inverse: Any = self.transform.inv
        return inverse(design)

    def log_prob(self, design: Tensor) -> Tensor:
        """Return log-densities, `-inf` at the edge of the space and outside."""
        return super().log_prob(design).nan_to_num(nan=-torch.inf)

    @property
    def can_move(self) -> bool:
        """Any step leads to a design."""
        return True

    def moved(self, design: Tensor, to: Tensor) -> Tensor:
        """Return other vectors as designs: ordered, or the nearest shares."""
        return self._as_designs(to)

    def anneal(self, progress: float) -> None:
        """Set the scales of the Normals."""
        self.normals.anneal(progress)

    def describe(self) -> dict[str, Tensor]:
        """Return the mode, and the scales of the Normals."""
        return {**super().describe(), "scale": self.normals.scale.clone()}

    def _as_designs(self, values: Tensor) -> Tensor:
        raise NotImplementedError


class OrderedPolicy(_TransformedPolicy):
    r"""Increasing values in an interval, such as the times of several samples.

    The gaps between them are shares of the interval, by stick breaking from Normals
    with learned locations, and begin equal.

    Args:
        low: Lower end of the interval.
        high: Upper end.
        dim_design: Number of values.
        scale: Scale of the Normals, on the scale of logits: a number, or its schedule
            as `(start, end)`.

    Raises:
        ValueError: If the interval is empty or `dim_design` no positive integer.

    Example:
        >>> policy = OrderedPolicy(0.0, 12.0, dim_design=3)
        >>> policy.mode
        tensor([3., 6., 9.])
    """

    def __init__(
        self, low: float, high: float, dim_design: int, *, scale: Scale = (1.0, 0.1)
    ) -> None:
        dim_design = check_integer("dim_design", dim_design, 1)
        low = check_real("low", low)
        high = check_real("high", high, above=low)
        self._ends = low, high
        super().__init__(dim_design, dim_design, _ToOrdered(low, high), scale)

    @property
    def support(self) -> Constraint:
        """Increasing values in the interval."""
        return self.transform.codomain  # type: ignore[return-value]

    def spread(self, num_designs: int, *, at_random: bool = False) -> Tensor:
        """Return uniform draws, ordered."""
        low, high = self._ends
        draws = torch.rand(num_designs, self.dim_design).to(self.mode)
        return self._as_designs(low + (high - low) * draws)

    @property
    def width(self) -> Tensor:
        """The width of the interval for each value."""
        low, high = self._ends
        return torch.full_like(self.mode, high - low)

    def _as_designs(self, values: Tensor) -> Tensor:
        return values.clamp(*self._ends).sort(dim=-1).values


class SimplexPolicy(_TransformedPolicy):
    r"""Shares that sum to one, such as those of a mixture.

    By stick breaking from Normals with learned locations; the shares begin equal.
    Densities are those of all shares but the last.

    Args:
        dim_design: Number of shares, at least two.
        scale: Scale of the Normals, on the scale of logits: a number, or its schedule
            as `(start, end)`.

    Raises:
        ValueError: If `dim_design` is no integer above one.

    Example:
        >>> SimplexPolicy(dim_design=4).mode
        tensor([0.2500, 0.2500, 0.2500, 0.2500])
    """

    def __init__(self, dim_design: int, *, scale: Scale = (1.0, 0.1)) -> None:
        dim_design = check_integer("dim_design", dim_design, 2)
        super().__init__(dim_design, dim_design - 1, StickBreakingTransform(), scale)

    @property
    def support(self) -> Constraint:
        """Shares that sum to one."""
        return constraints.simplex

    def spread(self, num_designs: int, *, at_random: bool = False) -> Tensor:
        """Return uniform draws."""
        gaps = torch.rand(num_designs, self.dim_design).to(self.mode)
        gaps = -gaps.clamp_min(torch.finfo(gaps.dtype).tiny).log()
        return gaps / gaps.sum(dim=-1, keepdim=True)

    @property
    def width(self) -> Tensor:
        """One for each share."""
        return torch.ones_like(self.mode)

    def _as_designs(self, values: Tensor) -> Tensor:
        # Duchi et al., Efficient Projections onto the l1-Ball, 2008.
        ordered = values.sort(dim=-1, descending=True).values
        rank = torch.arange(1, self.dim_design + 1).to(values)
        excess = (ordered.cumsum(dim=-1) - 1.0) / rank
        num_positive = (ordered > excess).sum(dim=-1, keepdim=True)
        shares = (values - excess.gather(-1, num_positive - 1)).clamp_min(0.0)
        return shares / shares.sum(dim=-1, keepdim=True)
