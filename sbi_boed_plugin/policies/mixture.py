"""Mixtures of truncated Normals on a box, for information with several modes."""

from functools import partial

import torch
from torch import Tensor, nn
from torch.distributions import Categorical, Independent, MixtureSameFamily
from torch.quasirandom import SobolEngine

from sbi_boed_plugin._numbers import check_integer
from sbi_boed_plugin.policies.located import (
    LocatedPolicy,
    Scale,
    TruncatedNormal,
    spread_loc,
)

__all__ = ["TruncatedNormalMixturePolicy"]

_NUM_MODE_STEPS = 20


class TruncatedNormalMixturePolicy(LocatedPolicy):
    r"""Mixture of truncated Normals, with learned locations and weights.

    .. math:: \pi_\psi(\xi) = \sum_k w_k \prod_j f_{kj}(\xi_j)

    with the densities :math:`f_{kj}` of Normals around :math:`\mu_{kj}`, truncated to
    the box. A component is a whole design :math:`\mu_k`, so that a search keeps several
    distant designs in sight where the information has several modes, and moves weight
    to the best. All components share the scales, which follow a schedule.

    Designs carry no gradient, which would have to move them through the gaps between
    components to move weight; `gradient="score"` does not.

    Args:
        low: Lower corner of the box, of shape `(dim_design,)`.
        high: Upper corner of the box, likewise.
        num_components: Number of components; their weights begin equal.
        loc: Initial locations, of shape `(num_components, dim_design)`, inside the box.
            If `None`, the points of a Sobol sequence, which cover the box evenly,
            slightly shifted between design values.
        scale: Scale of the Normals relative to the width of the box: a number, or its
            schedule as `(start, end)`. If `None`, from 0.15 to 0.05.

    Raises:
        ValueError: If the box is empty or `loc` lies outside of it.

    Example:
        >>> import torch
        >>> policy = TruncatedNormalMixturePolicy(
        ...     low=torch.zeros(1), high=torch.ones(1), num_components=2
        ... )
        >>> policy.loc.tolist(), policy.weights.tolist()
        ([[0.25], [0.75]], [0.5, 0.5])
    """

    has_rsample = False

    low: Tensor
    high: Tensor

    def __init__(
        self,
        low: Tensor,
        high: Tensor,
        *,
        num_components: int = 4,
        loc: Tensor | None = None,
        scale: Scale | None = None,
    ) -> None:
        num_components = check_integer("num_components", num_components, 1)
        super().__init__(
            loc,
            (low, high),
            start=partial(_cover_unit_cube, num_components),
            scale=(0.15, 0.05) if scale is None else scale,
        )
        self.logits = nn.Parameter(self.scale.new_zeros(num_components))

    @property
    def weights(self) -> Tensor:
        """Weights of the components, of shape `(num_components,)`, with gradient."""
        return self.logits.softmax(dim=-1)

    def distribution(self) -> MixtureSameFamily:
        """Return the mixture, which does not know its mode."""
        normals = TruncatedNormal(self.loc, self.scale, self.low, self.high)
        return MixtureSameFamily(
            Categorical(logits=self.logits, validate_args=False),
            Independent(normals, 1, validate_args=False),
            validate_args=False,
        )

    @property
    @torch.no_grad()
    def mode(self) -> Tensor:
        """Most likely design, found by mean-shift steps from every location."""
        mixture = self.distribution()
        candidates = locations = self.loc.clamp(self.low, self.high)
        for _ in range(_NUM_MODE_STEPS):
            joint = mixture.component_distribution.log_prob(candidates.unsqueeze(1))
            shares = (mixture.mixture_distribution.logits + joint).softmax(dim=-1)
            candidates = (shares @ locations).clamp(self.low, self.high)
        # After rounding the result must be at least as dense as every location.
        candidates = torch.cat([locations, candidates])
        return candidates[mixture.log_prob(candidates).argmax(dim=0, keepdim=True)][0]

    def describe(self) -> dict[str, Tensor]:
        """Return mode and scales, and locations and weights of the components."""
        return {
            **super().describe(),
            "loc": self.loc.detach().clone(),
            "weights": self.weights.detach().clone(),
        }


def _cover_unit_cube(num_points: int, dim: int) -> Tensor:
    """Return Sobol points around the centre, shifted between dimensions."""
    points = SobolEngine(dim).draw(num_points, dtype=torch.float64)
    points = points - points.mean(dim=0) + 0.5
    shift = (spread_loc(dim).double() - 0.5) / num_points
    return (points + shift).clamp(0.0, 1.0)
