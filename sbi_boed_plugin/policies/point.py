"""A single design, learned without a distribution around it."""

import torch
from torch import Tensor

from sbi_boed_plugin.policies.located import LocatedPolicy

__all__ = ["PointPolicy"]


class PointPolicy(LocatedPolicy):
    r"""A point mass :math:`\pi_\psi(\xi) = \delta(\xi - \mu)` at a learned design.

    Every simulation is spent on one design, which is precise where the information
    has a single mode; nothing explores. A point mass has no density, so that only
    gradients through `rsample` work; and since data of one design do not tell how they
    depend on it, the surrogate and implicit ones need estimators that have seen others,
    as `method="multi_start"` trains them.

    Args:
        low: Lower corner of the box, of shape `(dim_design,)`; `None` for designs
            without bounds.
        high: Upper corner of the box, likewise.
        loc: Initial design, of shape `(dim_design,)`. If `None`, the one of
            :class:`TruncatedNormalPolicy`; without a box it is needed.

    Raises:
        ValueError: If only one corner is given, or neither corners nor `loc`; if the
            box is empty, shapes do not match, or `loc` is outside or not finite.

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
        if (low is None) != (high is None):
            missing, given = ("low", "high") if low is None else ("high", "low")
            raise ValueError(
                f"{missing}=None goes with {given}=None only: give both corners of "
                "the box, or neither for designs without bounds."
            )
        if low is None and loc is None:
            raise ValueError(
                "loc=None leaves the design without a place to start when there is no "
                "box either. Give loc, or low and high."
            )
        super().__init__(loc, None if low is None or high is None else (low, high))

    @property
    def mode(self) -> Tensor:
        """The design, detached."""
        return self.rsample().detach()

    def rsample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:
        """Return copies of the design that carry its gradient."""
        loc = self.loc
        if self.low is not None:
            # Rounding can leave the box; the clamped value keeps its gradient.
            loc = loc + (loc.clamp(self.low, self.high) - loc).detach()
        return loc.expand(*sample_shape, -1).clone()

    def log_prob(self, design: Tensor) -> Tensor:
        """Raise an error, since a point mass has no density."""
        raise NotImplementedError(
            "A PointPolicy has no density, hence no gradient='score'. Use "
            "gradient='partial', 'surrogate', 'implicit' or 'pathwise', whichever "
            "suits the simulator, or a policy with a density, such as "
            "TruncatedNormalPolicy."
        )
