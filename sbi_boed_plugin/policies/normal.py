"""Independent Normals, for designs without bounds."""

import torch
from torch import Tensor, nn
from torch.distributions import constraints
from torch.distributions.constraints import Constraint

from sbi_boed_plugin.policies._box import as_vector, check_dim_design
from sbi_boed_plugin.policies._truncated import LOG_SQRT_2PI
from sbi_boed_plugin.policies.policy import DesignPolicy

__all__ = ["NormalPolicy"]


class NormalPolicy(DesignPolicy):
    r"""Independent Normals on all of :math:`R^D`, with learned locations.

    .. math:: \pi_\psi(\xi) = \prod_j N(\xi_j; \mu_j, \sigma_j^2).

    The locations :math:`\mu` are learned; the scales :math:`\sigma` follow a schedule
    from wide to narrow. For designs that have no natural bounds: nothing but the
    information keeps the locations from wandering off. With bounds,
    :class:`TruncatedNormalPolicy` is the safer choice.

    The locations are stored as their distance from where they began, in units of the
    first scales, so that one learning rate serves designs of any magnitude.

    Example:
        >>> import torch
        >>> policy = NormalPolicy(torch.zeros(2), scale=(10.0, 1.0))
        >>> policy.anneal(1.0)
        >>> policy.scale
        tensor([1., 1.])
        >>> policy.log_prob(policy.sample((5,))).shape
        torch.Size([5])
    """

    scale: Tensor
    _origin: Tensor
    _start: Tensor
    _end: Tensor

    def __init__(
        self,
        loc: Tensor,
        scale: float | Tensor | tuple[float | Tensor, float | Tensor],
    ) -> None:
        """Initialize the policy.

        Args:
            loc: Initial locations, of shape `(dim_design,)`. Where measurements are
                interchangeable, give them different values: equal locations would be
                a saddle point.
            scale: Scales in units of the design, a number or of shape
                `(dim_design,)`, or their geometric schedule as a tuple `(start, end)`
                of such scales.

        Raises:
            ValueError: If shapes do not match, `loc` is not finite or a scale is not
                positive and finite.
        """
        loc = as_vector("loc", loc)
        super().__init__(dim_design=loc.numel())
        if isinstance(scale, tuple) and len(scale) != 2:
            raise ValueError(
                f"scale={scale} has {len(scale)} values, but a schedule is a tuple "
                "(start, end). For one scale per design value pass a tensor."
            )
        start, end = scale if isinstance(scale, tuple) else (scale, scale)
        self.register_buffer("_origin", loc)
        self.register_buffer("_start", _check_scale(start, loc))
        self.register_buffer("_end", _check_scale(end, loc))
        self._unit_shift = nn.Parameter(torch.zeros_like(loc))
        self.register_buffer("scale", torch.empty_like(loc))
        self.anneal(0.0)

    @property
    def loc(self) -> Tensor:
        """Locations of the Normals, of shape `(dim_design,)`, with gradient."""
        return self._origin + self._unit_shift * self._start

    @property
    def support(self) -> Constraint:
        """All vectors of numbers."""
        return constraints.real_vector

    @property
    def mode(self) -> Tensor:
        """Most likely design, of shape `(dim_design,)`, detached."""
        return self.loc.detach()

    def rsample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:
        """Draw designs, differentiable in the locations.

        Args:
            sample_shape: Shape of the draw.

        Returns:
            Designs of shape `(*sample_shape, dim_design)`.
        """
        loc = self.loc.expand(*sample_shape, -1)
        return loc + self.scale * torch.randn_like(loc)

    def log_prob(self, design: Tensor) -> Tensor:
        """Return the log-density of designs.

        Args:
            design: Designs of shape `(*batch_shape, dim_design)`.

        Returns:
            Log-density of shape `batch_shape`, in nats.

        Raises:
            ValueError: If the last dimension is not `dim_design`.
        """
        check_dim_design(design, self.dim_design)
        standard = (design - self.loc) / self.scale
        log_prob = -0.5 * standard.square() - LOG_SQRT_2PI - self.scale.log()
        return log_prob.sum(dim=-1)

    def anneal(self, progress: float) -> None:
        """Set the scales for a training progress between 0 and 1."""
        ratio = self._end / self._start
        self.scale = self._start * ratio ** min(max(progress, 0.0), 1.0)

    def describe(self) -> dict[str, Tensor]:
        """Return locations (the mode) and scales."""
        return {"mode": self.mode.clone(), "scale": self.scale.clone()}


def _check_scale(scale: float | Tensor, loc: Tensor) -> Tensor:
    tensor = torch.as_tensor(scale, dtype=loc.dtype, device=loc.device).detach()
    if tensor.shape not in (torch.Size(), loc.shape):
        raise ValueError(
            f"scale has shape {tuple(tensor.shape)}, but must be a number or have the "
            f"shape {tuple(loc.shape)} of loc."
        )
    if not ((tensor > 0.0) & torch.isfinite(tensor)).all():
        raise ValueError(f"scale={tensor.tolist()} must be positive and finite.")
    return tensor.expand_as(loc).clone()
