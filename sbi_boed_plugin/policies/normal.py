"""Independent Normals, for designs without bounds."""

import torch
from torch import Tensor
from torch.distributions import Independent, Normal

from sbi_boed_plugin.policies.located import LocatedPolicy

__all__ = ["NormalPolicy"]


class NormalPolicy(LocatedPolicy):
    r"""Independent Normals on all of :math:`R^D`, with learned locations.

    .. math:: \pi_\psi(\xi) = \prod_j N(\xi_j; \mu_j, \sigma_j^2).

    The locations :math:`\mu` are learned; the scales :math:`\sigma` follow a schedule
    from wide to narrow. Nothing but the information keeps the locations from wandering
    off: with bounds, :class:`TruncatedNormalPolicy` is the safer choice.

    Args:
        loc: Initial locations, of shape `(dim_design,)`. Where measurements are
            interchangeable, give them different values: equal locations would be a
            saddle point.
        scale: Scales in units of the design, a number or of shape `(dim_design,)`, or
            their geometric schedule as a tuple `(start, end)` of such scales.

    Raises:
        ValueError: If shapes do not match, `loc` is not finite or a scale is not
            positive and finite.

    Example:
        >>> import torch
        >>> policy = NormalPolicy(torch.zeros(2), scale=(10.0, 1.0))
        >>> policy.anneal(1.0)
        >>> policy.scale
        tensor([1., 1.])
    """

    _end: Tensor

    def __init__(
        self,
        loc: Tensor,
        scale: float | Tensor | tuple[float | Tensor, float | Tensor],
    ) -> None:
        if isinstance(scale, tuple) and len(scale) != 2:
            raise ValueError(
                f"scale={scale} has {len(scale)} values, but a schedule is a tuple "
                "(start, end). For one scale per design value pass a tensor."
            )
        start, end = scale if isinstance(scale, tuple) else (scale, scale)
        super().__init__(loc)
        self._unit = _check_scale(start, self._origin)
        self.register_buffer("_end", _check_scale(end, self._origin))
        self.anneal(0.0)

    def distribution(self) -> Independent:
        """Return the Normals."""
        normals = Normal(self.loc, self.scale, validate_args=False)
        return Independent(normals, 1, validate_args=False)

    def anneal(self, progress: float) -> None:
        """Set the scales for a training progress between 0 and 1."""
        ratio = self._end / self._unit
        self.scale = self._unit * ratio ** min(max(progress, 0.0), 1.0)


def _check_scale(scale: float | Tensor, loc: Tensor) -> Tensor:
    """Return scales of the shape of `loc`, or raise if they are none."""
    tensor = torch.as_tensor(scale, dtype=loc.dtype, device=loc.device).detach()
    if tensor.shape not in (torch.Size(), loc.shape):
        raise ValueError(
            f"scale has shape {tuple(tensor.shape)}, but must be a number or have the "
            f"shape {tuple(loc.shape)} of loc."
        )
    if not ((tensor > 0.0) & torch.isfinite(tensor)).all():
        raise ValueError(f"scale={tensor.tolist()} must be positive and finite.")
    return tensor.expand_as(loc).clone()
