"""A single design, learned without a distribution around it."""

import torch
from torch import Tensor, nn
from torch.distributions import constraints
from torch.distributions.constraints import Constraint

from sbi_boed_plugin.policies._box import (
    as_vector,
    check_box,
    check_loc,
    spread_loc,
)
from sbi_boed_plugin.policies.policy import DesignPolicy

__all__ = ["PointPolicy"]


class PointPolicy(DesignPolicy):
    r"""A point mass :math:`\pi_\psi(\xi) = \delta(\xi - \mu)` at a learned design.

    Every simulation is spent on one design, which is precise where the information
    has a single mode and a gradient in the design is to be had; nothing explores. A
    point mass has no density, so that only gradients through `rsample` work; and since
    data of one design do not tell how they depend on it, the surrogate and implicit
    ones need estimators that have seen others, as `method="multi_start"` trains them.

    In a box the location is stored in units of the box, so that one learning rate
    serves designs of any magnitude; without one, it is stored in units of the design.

    Example:
        >>> import torch
        >>> policy = PointPolicy(low=torch.zeros(1), high=torch.ones(1))
        >>> policy.sample((3,)).squeeze(1)
        tensor([0.5000, 0.5000, 0.5000])
        >>> PointPolicy(loc=torch.tensor([30.0])).mode
        tensor([30.])
    """

    has_log_prob = False

    low: Tensor | None
    high: Tensor | None

    def __init__(
        self,
        low: Tensor | None = None,
        high: Tensor | None = None,
        *,
        loc: Tensor | None = None,
    ) -> None:
        """Initialize the policy, in a box or without bounds.

        Args:
            low: Lower corner of the box, of shape `(dim_design,)`; `None` for designs
                without bounds.
            high: Upper corner of the box, likewise.
            loc: Initial design, of shape `(dim_design,)`. If `None`, the one of
                :class:`TruncatedNormalPolicy`; without a box it is needed.

        Raises:
            ValueError: If only one corner is given, or neither corners nor `loc`; if
                the box is empty or not finite, shapes do not match, or `loc` lies
                outside the box or is not finite.
        """
        if (low is None) != (high is None):
            missing, given = ("low", "high") if low is None else ("high", "low")
            raise ValueError(
                f"{missing}=None goes with {given}=None only: give both corners of "
                "the box, or neither for designs without bounds."
            )
        if low is None or high is None:
            if loc is None:
                raise ValueError(
                    "loc=None leaves the design without a place to start when there "
                    "is no box either. Give loc, or low and high."
                )
            loc = parameter = as_vector("loc", loc)
        else:
            low, high = check_box(low, high)
            if loc is None:
                loc = low + spread_loc(low.numel()).to(low) * (high - low)
            loc = check_loc(loc, low, high, shape=low.shape)
            parameter = (loc - low) / (high - low)
        super().__init__(dim_design=loc.numel())
        self.register_buffer("low", low)
        self.register_buffer("high", high)
        self._unit_loc = nn.Parameter(parameter)

    @property
    def loc(self) -> Tensor:
        """The design, of shape `(dim_design,)`, with gradient."""
        if self.low is None or self.high is None:
            return self._unit_loc
        loc = self.low + self._unit_loc * (self.high - self.low)
        # What rounding leaves outside comes back without losing its gradient.
        return loc + (loc.clamp(self.low, self.high) - loc).detach()

    @property
    def support(self) -> Constraint:
        """The box, or all vectors of numbers if there is none."""
        if self.low is None or self.high is None:
            return constraints.real_vector
        return constraints.independent(constraints.interval(self.low, self.high), 1)

    @property
    def mode(self) -> Tensor:
        """The design, of shape `(dim_design,)`, detached."""
        return self.loc.detach().clone()

    def rsample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:
        """Return copies of the design that carry the gradient of its location.

        Args:
            sample_shape: Shape of the draw.

        Returns:
            Designs of shape `(*sample_shape, dim_design)`, all equal.
        """
        return self.loc.expand(*sample_shape, -1).clone()

    def log_prob(self, design: Tensor) -> Tensor:
        """Raise, since a point mass has no density.

        Args:
            design: Designs of shape `(*batch_shape, dim_design)`; not used.

        Raises:
            NotImplementedError: Always.
        """
        raise NotImplementedError(
            "A PointPolicy has no density, hence no gradient='score'. Use "
            "gradient='partial', 'surrogate', 'implicit' or 'pathwise', whichever "
            "suits the simulator, or a policy with a density, such as "
            "TruncatedNormalPolicy."
        )

    @torch.no_grad()
    def project(self) -> None:
        """Bring the design back into the box, if there is one."""
        if self.low is not None:
            self._unit_loc.clamp_(0.0, 1.0)

    def describe(self) -> dict[str, Tensor]:
        """Return the design (the mode) and its scale, which is zero."""
        # With a scale the history has what figures of a policy ask for.
        return {"mode": self.mode, "scale": torch.zeros_like(self.mode)}
