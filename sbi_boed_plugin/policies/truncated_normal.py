"""Independent Normals truncated to a box."""

import torch
from torch import Tensor

from sbi_boed_plugin.policies._box import (
    BoxPolicy,
    check_dim_design,
    spread_loc,
)
from sbi_boed_plugin.policies.policy import ScaleSchedule

__all__ = ["TruncatedNormalPolicy"]


class TruncatedNormalPolicy(BoxPolicy):
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
        super().__init__(
            low,
            high,
            loc=loc,
            default_unit_loc=spread_loc,
            scale=(0.3, 0.1) if scale is None else scale,
        )

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
        return self._normals(self.loc.expand(*sample_shape, -1)).rsample()

    def log_prob(self, design: Tensor) -> Tensor:
        """Return the log-density of designs.

        Args:
            design: Designs of shape `(*batch_shape, dim_design)`.

        Returns:
            Log-density of shape `batch_shape`, in nats; `-inf` outside the box.

        Raises:
            ValueError: If the last dimension is not `dim_design`.
        """
        check_dim_design(design, self.dim_design)
        log_prob = self._normals(self.loc).log_density(design).sum(dim=-1)
        return torch.where(self.support.check(design), log_prob, -torch.inf)

    def describe(self) -> dict[str, Tensor]:
        """Return locations (the mode) and scales."""
        return {"mode": self.mode.clone(), "scale": self.scale.clone()}
