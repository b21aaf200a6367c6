"""What a design policy is: a module that builds a distribution over designs."""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import Distribution
from torch.distributions.constraints import Constraint, independent, interval, real
from torch.quasirandom import SobolEngine

from sbi_boed_plugin._numbers import check_fields, check_real

__all__ = ["DesignPolicy", "ScaleSchedule", "as_finite", "check_width"]

# Designs that tell the width of a space without bounds.
_NUM_FOR_WIDTH = 256


@dataclass(frozen=True)
class ScaleSchedule:
    """Geometric schedule from `start` at progress 0 to `end` at progress 1, positive.

    Example:
        >>> ScaleSchedule(30.0, 10.0)(1.0)
        10.0
    """

    start: float
    end: float

    def __post_init__(self) -> None:
        check_fields(self, check_real, ["start", "end"], above=0.0)

    def __call__(self, progress: float) -> float:
        """Return the value at a progress between 0 and 1."""
        if progress >= 1.0:
            return self.end
        return self.start * (self.end / self.start) ** max(progress, 0.0)


class DesignPolicy(nn.Module):
    r"""A learnable distribution :math:`\pi_\psi(\xi)` over designs.

    A module, so that it moves between devices, is saved and is optimised like any
    network. A subclass says which torch `Distribution` its parameters :math:`\psi`
    describe; everything else follows. It overrides `mode` where the distribution does
    not know its own, and `anneal` and `project` where it needs them. Instead of
    `distribution` it may give `rsample` (or `sample`), `log_prob`, `support`, `mode`.

    Args:
        dim_design: Number of values that make up one design.

    Attributes:
        has_rsample: Whether `rsample` carries the gradient of the parameters; needed
            by every policy gradient except the score.
        has_log_prob: Whether `log_prob` is a density (or probability) with gradient;
            needed by the score.

    Example:
        A policy of one's own: Beta distributions on the unit cube with learned modes
        :math:`m`, of parameters :math:`1 + c m` and :math:`1 + c (1 - m)`, with a
        concentration :math:`c` that grows during training.

        >>> import torch
        >>> from torch import nn
        >>> from torch.distributions import Beta, Independent
        >>> class BetaPolicy(DesignPolicy):
        ...     def __init__(self, dim_design):
        ...         super().__init__(dim_design)
        ...         self.logit = nn.Parameter(torch.linspace(-0.5, 0.5, dim_design))
        ...         self.anneal(0.0)
        ...
        ...     def anneal(self, progress):
        ...         self.concentration = ScaleSchedule(4.0, 100.0)(progress)
        ...
        ...     def distribution(self):
        ...         m, c = self.logit.sigmoid(), self.concentration
        ...         beta = Beta(1 + c * m, 1 + c * (1 - m), validate_args=False)
        ...         return Independent(beta, 1, validate_args=False)
        >>> policy = BetaPolicy(dim_design=3)
        >>> design = policy.sample((5,))
        >>> policy.log_prob(design).shape
        torch.Size([5])
        >>> policy.mode
        tensor([0.3775, 0.5000, 0.6225])
    """

    has_rsample: bool = True
    has_log_prob: bool = True

    def __init__(self, dim_design: int) -> None:
        super().__init__()
        self.dim_design = dim_design

    def distribution(self) -> Distribution:
        """Return the distribution of one design, with gradient of the parameters.

        Returns:
            Distribution without batch shape, of event shape `(dim_design,)`.
        """
        raise NotImplementedError(
            f"{type(self).__name__} must define distribution(), or rsample() (sample() "
            "if they carry no gradient), log_prob(), support and mode."
        )

    @property
    def support(self) -> Constraint:
        """Set of designs that the policy can propose, over the last dimension."""
        return self.distribution().support  # type: ignore[return-value]

    @property
    def mode(self) -> Tensor:
        """Most likely design, of shape `(dim_design,)`, detached."""
        return self.distribution().mode.detach()

    def rsample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:
        """Draw designs `(*sample_shape, dim_design)` with gradient of the parameters.

        Raises:
            NotImplementedError: If they carry none (`has_rsample = False`).
        """
        if self.has_rsample:
            return self.distribution().rsample(sample_shape)
        raise NotImplementedError(
            f"A {type(self).__name__} has no rsample: its designs carry no gradient. "
            "Use gradient='score', or sample() to draw without gradient."
        )

    @torch.no_grad()
    def sample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:
        """Draw designs without gradient, of shape `(*sample_shape, dim_design)`."""
        if self.has_rsample:
            return self.rsample(sample_shape)
        return self.distribution().sample(sample_shape)

    def log_prob(self, design: Tensor) -> Tensor:
        """Return the log-density of designs, normalized over the support.

        Args:
            design: Designs of shape `(*batch_shape, dim_design)`.

        Returns:
            Log-density (log-probability, if designs are discrete) of shape
            `batch_shape`, in nats; `-inf` outside the support.

        Raises:
            ValueError: If the last dimension is not `dim_design`.
            NotImplementedError: If there is no density (`has_log_prob = False`).
        """
        check_width(design, self.dim_design)
        log_prob = self.distribution().log_prob(design)
        return torch.where(self.support.check(design), log_prob, -torch.inf)

    @property
    def box(self) -> tuple[Tensor, Tensor] | None:
        """Lower and upper corner `(dim_design,)`, if the support is a box."""
        constraint = _constraint_of_values(self.support)
        if not isinstance(constraint, type(interval(0.0, 1.0))):
            return None
        mode = self.mode
        low, high = (
            torch.as_tensor(bound).to(mode).expand_as(mode)
            for bound in (constraint.lower_bound, constraint.upper_bound)
        )
        return low, high

    @property
    def num_designs(self) -> int | None:
        """Number of designs there are, `None` where they are not a list."""
        return None

    def spread(self, num_designs: int, *, at_random: bool = False) -> Tensor:
        """Return designs all over the space, of shape `(num_designs, dim_design)`.

        In a box those of a Sobol sequence, or uniform ones if `at_random`; without one,
        draws of the policy.
        """
        if self.box is None:
            return self.sample(torch.Size((num_designs,))).float()
        low, high = self.box
        if at_random:
            return low + torch.rand(num_designs, len(low)).to(low) * (high - low)
        seed = int(torch.randint(2**31, (1,)))
        engine = SobolEngine(self.dim_design, scramble=True, seed=seed)
        return low + engine.draw(num_designs).to(low) * (high - low)

    @property
    def width(self) -> Tensor:
        """Width of the space for each value of a design, of shape `(dim_design,)`."""
        if self.box is not None:
            low, high = self.box
            return high - low
        designs = self.spread(_NUM_FOR_WIDTH)
        width = designs.std(dim=0, correction=0) * math.sqrt(12.0)
        # Equal values have no width to go by: they are searched at their own scale.
        return torch.where(width > 0, width, designs[0].abs().clamp_min(1.0))

    @property
    def can_move(self) -> bool:
        """Whether small steps lead from one design to others."""
        is_real = isinstance(_constraint_of_values(self.support), type(real))
        return self.box is not None or (is_real and self.has_rsample)

    def moved(self, design: Tensor, to: Tensor) -> Tensor:
        """Return designs moved to others, or as near as the space allows.

        Both are of shape `(num_designs, dim_design)`; what cannot move stays.
        """
        if not self.can_move:
            return design
        return to if self.box is None else to.clamp(*self.box)

    @property
    def num_reals(self) -> int:
        """Number of real numbers that `from_reals` takes."""
        return self.dim_design

    def from_reals(self, reals: Tensor) -> Tensor:
        """Return the designs that real numbers stand for, a smooth map onto the space.

        From `(..., num_reals)` to `(..., dim_design)`, with zeros in the middle.

        Raises:
            NotImplementedError: If the policy has no such map.
        """
        if self.box is None:
            raise NotImplementedError(
                f"A {type(self).__name__} has no map from real numbers to its designs. "
                "Give it from_reals(reals), or use a policy in a box."
            )
        low, high = self.box
        inside = _rounded_up(low, reals), -_rounded_up(-high, reals)
        shares = reals.sigmoid()
        return (inside[0] + (inside[1] - inside[0]) * shares).clamp(*inside)

    def to_reals(self, design: Tensor) -> Tensor:
        """Return the real numbers of designs, infinite ones at the edge of the space.

        The inverse of `from_reals`, and like it with an error.
        """
        if self.box is None:
            self.from_reals(design)
            raise NotImplementedError(
                f"A {type(self).__name__} has from_reals(reals), but not the inverse: "
                "give it to_reals(design)."
            )
        low, high = (corner.to(design) for corner in self.box)
        return ((design - low) / (high - low)).logit()

    def anneal(self, progress: float) -> None:
        """Set what follows a schedule for a training progress between 0 and 1."""

    def project(self) -> None:
        """Bring the parameters back to where they are allowed, after each update."""

    def describe(self) -> dict[str, Tensor]:
        """Return the quantities to record while training, detached, by name."""
        return {"mode": self.mode.clone()}


def _constraint_of_values(support: Any) -> Any:
    """Return the constraint of each value of a design."""
    return support.base_constraint if isinstance(support, independent) else support


def _rounded_up(values: Tensor, like: Tensor) -> Tensor:
    """Return numbers as those of another tensor are, each rounded up."""
    rounded = values.to(like)
    higher = torch.nextafter(rounded, torch.full_like(rounded, torch.inf))
    is_less = (rounded.to(values) < values).to(like.device)
    return torch.where(is_less, higher, rounded)


def check_width(design: Tensor, dim_design: int) -> None:
    """Raise if the last dimension of designs is not that of a policy."""
    if design.shape[-1:] != (dim_design,):
        raise ValueError(
            f"design has shape {tuple(design.shape)}, but the last dimension must be "
            f"dim_design={dim_design}."
        )


def as_finite(
    name: str, value: Tensor, shape: str = "(dim_design,)", num_dims: int = 1
) -> Tensor:
    """Return a copy of an array of finite numbers, or raise.

    A number stands for a vector of one value.
    """
    value = torch.atleast_1d(torch.as_tensor(value).detach().clone())
    if not value.is_floating_point():
        value = value.to(torch.get_default_dtype())
    if value.dim() != num_dims or value.numel() == 0:
        raise ValueError(
            f"{name} has shape {tuple(value.shape)}, but must have shape {shape}."
        )
    if not torch.isfinite(value).all():
        raise ValueError(f"{name}={value.tolist()} must be finite.")
    return value
