"""Families of design policies."""

import math

import torch
from torch import Tensor, nn
from torch.distributions import constraints
from torch.distributions.constraints import Constraint

from sbi_boed_plugin.design.policy import DesignPolicy, ScaleSchedule

__all__ = ["TruncatedNormalPolicy"]

_LOG_SQRT_2PI = 0.5 * math.log(2.0 * math.pi)


class TruncatedNormalPolicy(DesignPolicy):
    r"""Independent Normals truncated to a box, with learned locations.

    .. math:: \pi_\psi(\xi) = \prod_j \frac{N(\xi_j; \mu_j, \sigma_j^2)}
        {\Phi\big(\frac{h_j - \mu_j}{\sigma_j}\big)
        - \Phi\big(\frac{l_j - \mu_j}{\sigma_j}\big)},
        \quad l_j \leq \xi_j \leq h_j.

    The locations :math:`\mu` are learned and stay inside the box, where the normalizer
    is at least that of half a Normal and the mode of the policy is :math:`\mu` itself.
    The scales :math:`\sigma` follow a schedule from wide, which explores, to narrow,
    which lets the estimator concentrate on designs like the best one.

    The locations are stored in units of the box, so that one learning rate serves
    designs of any magnitude.

    Example:
        >>> import torch
        >>> policy = TruncatedNormalPolicy(low=torch.zeros(1), high=torch.ones(1))
        >>> design = policy.sample((5,))
        >>> policy.log_prob(design).shape
        torch.Size([5])
    """

    low: Tensor
    high: Tensor
    scale: Tensor

    def __init__(
        self,
        low: Tensor,
        high: Tensor,
        *,
        loc: Tensor | None = None,
        scale: float | tuple[float, float] | ScaleSchedule | None = None,
    ) -> None:
        """Initialize the policy on a box.

        Args:
            low: Lower corner of the box, of shape `(dim_design,)`.
            high: Upper corner of the box, of shape `(dim_design,)`.
            loc: Initial locations, of shape `(dim_design,)`, inside the box. If
                `None`, the centre of the box for one design value and, for several,
                spread evenly over the middle half of the box: where measurements
                are interchangeable, equal locations would be a saddle point.
            scale: Scale of the Normals relative to the width of the box: a number, or
                its schedule as `(start, end)`. If `None`, from 0.3 to 0.1, the
                schedule that SBI-BOED uses for the SIR model.

        Raises:
            ValueError: If the box is empty or not finite, shapes do not match, `loc`
                lies outside the box or a scale is not positive.
        """
        low, high = _check_box(low, high)
        super().__init__(dim_design=low.numel())
        self.register_buffer("low", low)
        self.register_buffer("high", high)
        if loc is None:
            unit = torch.linspace(0.25, 0.75, low.numel() + 2)[1:-1].to(low)
            loc = low + unit * (high - low)
        loc = torch.as_tensor(loc).to(low)
        if loc.shape != low.shape or not ((loc >= low) & (loc <= high)).all():
            raise ValueError(
                f"loc={loc.tolist()} must have shape {tuple(low.shape)} and lie in the "
                f"box from low={low.tolist()} to high={high.tolist()}."
            )
        self._unit_loc = nn.Parameter((loc - low) / (high - low))
        self._schedule = _as_schedule(scale)
        self.register_buffer("scale", torch.empty_like(low))
        self.anneal(0.0)

    @property
    def loc(self) -> Tensor:
        """Locations of the Normals, of shape `(dim_design,)`, with gradient."""
        return self.low + self._unit_loc * (self.high - self.low)

    @property
    def support(self) -> Constraint:
        """The box."""
        return constraints.independent(constraints.interval(self.low, self.high), 1)

    @property
    def mode(self) -> Tensor:
        """Most likely design, of shape `(dim_design,)`, detached."""
        return self.loc.detach().clamp(self.low, self.high)

    def rsample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:
        """Draw designs by inversion, differentiable in the locations.

        Args:
            sample_shape: Shape of the draw.

        Returns:
            Designs of shape `(*sample_shape, dim_design)`.
        """
        uniform = torch.rand(
            (*sample_shape, self.dim_design),
            device=self.low.device,
            dtype=self.low.dtype,
        )
        lower, upper = self._standardized_box(self.loc)
        below, above = torch.special.ndtr(lower), torch.special.ndtr(upper)
        standard = torch.special.ndtri(below + uniform * (above - below))
        design = self.loc + self.scale * standard
        # A uniform number within rounding of the ends maps to infinity.
        return design.clamp(self.low, self.high)

    def log_prob(self, design: Tensor) -> Tensor:
        """Return the log-density of designs.

        Args:
            design: Designs of shape `(*batch_shape, dim_design)`.

        Returns:
            Log-density of shape `batch_shape`, in nats; `-inf` outside the box.

        Raises:
            ValueError: If the last dimension is not `dim_design`.
        """
        if design.shape[-1:] != self.low.shape:
            raise ValueError(
                f"design has shape {tuple(design.shape)}, but the last dimension must "
                f"be dim_design={self.dim_design}."
            )
        loc = self.loc
        lower, upper = self._standardized_box(loc)
        normalizer = torch.log(torch.special.ndtr(upper) - torch.special.ndtr(lower))
        standard = (design - loc) / self.scale
        log_prob = (
            -0.5 * standard.square() - _LOG_SQRT_2PI - self.scale.log() - normalizer
        )
        return torch.where(self.support.check(design), log_prob.sum(dim=-1), -torch.inf)

    def anneal(self, progress: float) -> None:
        """Set the scales for a training progress between 0 and 1."""
        self.scale = self._schedule(progress) * (self.high - self.low)

    @torch.no_grad()
    def project(self) -> None:
        """Bring the locations back into the box."""
        self._unit_loc.clamp_(0.0, 1.0)

    def describe(self) -> dict[str, Tensor]:
        """Return locations (the mode) and scales."""
        return {"mode": self.mode.clone(), "scale": self.scale.clone()}

    def _standardized_box(self, loc: Tensor) -> tuple[Tensor, Tensor]:
        return (self.low - loc) / self.scale, (self.high - loc) / self.scale


def _check_box(low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    low, high = torch.as_tensor(low), torch.as_tensor(high)
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


def _as_schedule(
    scale: float | tuple[float, float] | ScaleSchedule | None,
) -> ScaleSchedule:
    if scale is None:
        return ScaleSchedule(0.3, 0.1)
    if isinstance(scale, ScaleSchedule):
        return scale
    if isinstance(scale, (int, float)):
        return ScaleSchedule(float(scale), float(scale))
    start, end = scale
    return ScaleSchedule(float(start), float(end))
