"""Mixtures of truncated Normals on a box, for information with several modes."""

import torch
from torch import Tensor, nn
from torch.quasirandom import SobolEngine

from sbi_boed_plugin._numbers import check_integer
from sbi_boed_plugin.policies._box import (
    BoxPolicy,
    check_dim_design,
    draw_index,
    spread_loc,
)
from sbi_boed_plugin.policies._truncated import TruncatedNormals
from sbi_boed_plugin.policies.policy import ScaleSchedule

__all__ = ["TruncatedNormalMixturePolicy"]

_NUM_MODE_STEPS = 20


class TruncatedNormalMixturePolicy(BoxPolicy):
    r"""Mixture of truncated Normals, with learned locations and weights.

    .. math:: \pi_\psi(\xi) = \sum_k w_k \prod_j f_{kj}(\xi_j), \quad
        f_{kj}(\xi_j) = \frac{N(\xi_j; \mu_{kj}, \sigma_j^2)}
        {\Phi\big(\frac{h_j - \mu_{kj}}{\sigma_j}\big)
        - \Phi\big(\frac{l_j - \mu_{kj}}{\sigma_j}\big)},
        \quad l_j \leq \xi_j \leq h_j.

    A component is a whole design :math:`\mu_k`, so that a search keeps several distant
    designs in sight where the information has several modes, and moves weight to the
    best. All components share the scales :math:`\sigma`, which follow a schedule.

    **Gradients.** `rsample` draws a component and a design of it, and carries the
    gradient of locations and weights by implicit reparameterisation: the design
    values, one after the other, stay at the same quantile of the mixture,

    .. math:: F_j(\xi_j \mid \xi_{<j}) = \sum_k r_k(\xi_{<j}) F_{kj}(\xi_j), \quad
        r_k(\xi_{<j}) \propto w_k \prod_{i<j} f_{ki}(\xi_i), \quad
        \frac{d \xi_j}{d \psi} = -\frac{d_\psi F_j}{\partial F_j / \partial \xi_j},

    where :math:`d_\psi` includes the change of :math:`\xi_{<j}`. It is unbiased, for
    first derivatives. To move weight between components, however, it moves designs
    through the gap between them, where few are drawn: the further components are
    apart, the rarer and larger are the terms that carry the gradient of the weights.
    For two components and 256 designs its standard error is a sixth of the gradient at
    a distance of six scales and exceeds it at ten; beyond that, weights hardly learn.
    The score, `gradient="score"`, has no such gaps and is the one to prefer.

    Example:
        >>> import torch
        >>> policy = TruncatedNormalMixturePolicy(
        ...     low=torch.zeros(1), high=torch.ones(1), num_components=2
        ... )
        >>> policy.loc.tolist(), policy.weights.tolist()
        ([[0.25], [0.75]], [0.5, 0.5])
        >>> design = policy.sample((5,))
        >>> policy.log_prob(design).shape
        torch.Size([5])
    """

    def __init__(
        self,
        low: Tensor,
        high: Tensor,
        *,
        num_components: int = 4,
        loc: Tensor | None = None,
        scale: float | tuple[float, float] | ScaleSchedule | None = None,
    ) -> None:
        """Initialize the policy on a box, with equal weights.

        Args:
            low: Lower corner of the box, of shape `(dim_design,)`.
            high: Upper corner of the box, of shape `(dim_design,)`.
            num_components: Number of components.
            loc: Initial locations, of shape `(num_components, dim_design)`, inside the
                box. If `None`, points of a Sobol sequence, which cover the box evenly
                and are the same each time, slightly shifted between design values:
                where measurements are interchangeable, equal locations would be a
                saddle point.
            scale: Scale of the Normals relative to the width of the box: a number, or
                its schedule as `(start, end)`. If `None`, from 0.15 to 0.05, half that
                of a single truncated Normal, since the components explore together.

        Raises:
            ValueError: If `num_components` is not a positive integer, the box is empty
                or not finite, shapes do not match, `loc` lies outside the box or a
                scale is not positive.
        """
        num_components = check_integer("num_components", num_components, 1)
        super().__init__(
            low,
            high,
            loc=loc,
            default_unit_loc=lambda dim: _cover_unit_cube(num_components, dim),
            scale=(0.15, 0.05) if scale is None else scale,
        )
        self.logits = nn.Parameter(self.low.new_zeros(num_components))

    @property
    def weights(self) -> Tensor:
        """Weights of the components, of shape `(num_components,)`, with gradient."""
        return self.logits.softmax(dim=-1)

    @property
    @torch.no_grad()
    def mode(self) -> Tensor:
        """Most likely design, of shape `(dim_design,)`, detached.

        Each location ascends the density of the mixture by a fixed number of
        mean-shift steps, each of which raises it and stays among the locations; the
        densest of them is returned. It is at least as dense as every location.
        """
        locations = self.loc.clamp(self.low, self.high)
        candidates = locations
        for _ in range(_NUM_MODE_STEPS):
            responsibilities = self._log_joint(candidates).softmax(dim=-1)
            candidates = (responsibilities @ locations).clamp(self.low, self.high)
        # Rounding must not leave less than there was to begin with.
        candidates = torch.cat([locations, candidates])
        best = self.log_prob(candidates).argmax(dim=0, keepdim=True)
        return candidates.index_select(0, best).squeeze(0)

    def rsample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:
        """Draw designs, differentiable in locations and weights.

        Args:
            sample_shape: Shape of the draw.

        Returns:
            Designs of shape `(*sample_shape, dim_design)`, with first derivatives.
        """
        with torch.no_grad():
            component = draw_index(self.logits, sample_shape)
            loc = self.loc.index_select(0, component.flatten())
            design = self._normals(loc).rsample()
            design = design.reshape(*sample_shape, self.dim_design)
        return self._reparameterise(design) if torch.is_grad_enabled() else design

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
        log_prob = self._log_joint(design).logsumexp(dim=-1)
        return torch.where(self.support.check(design), log_prob, -torch.inf)

    def describe(self) -> dict[str, Tensor]:
        """Return mode and scales, and locations and weights of the components."""
        return {
            "mode": self.mode.clone(),
            "scale": self.scale.clone(),
            "loc": self.loc.detach().clone(),
            "weights": self.weights.detach().clone(),
        }

    def _log_joint(self, design: Tensor) -> Tensor:
        """Return the log-weight plus log-density of each component, in nats."""
        log_density = self._normals(self.loc).log_density(design.unsqueeze(-2))
        return self.logits.log_softmax(dim=-1) + log_density.sum(dim=-1)

    def _reparameterise(self, design: Tensor) -> Tensor:
        """Return designs with the gradient that keeps their quantiles."""
        loc = self.loc
        log_joint = self.logits.log_softmax(dim=-1)
        values: list[Tensor] = []
        for j in range(self.dim_design):
            normals = TruncatedNormals(
                loc[:, j], self.scale[j], self.low[j], self.high[j]
            )
            drawn = design[..., j : j + 1]
            responsibilities = log_joint.softmax(dim=-1)
            below = (responsibilities * normals.cdf(drawn)).sum(dim=-1)
            density = (responsibilities * normals.log_density(drawn).exp()).sum(dim=-1)
            floor = torch.finfo(density.dtype).tiny
            # Zero in value: what is drawn stays what it is.
            change = (below - below.detach()) / density.detach().clamp_min(floor)
            values.append(design[..., j] - change)
            # The weights of the next values depend on this one, which moves as well.
            moved = values[-1].unsqueeze(-1)
            log_joint = log_joint + normals.log_density(moved)
        return torch.stack(values, dim=-1)


def _cover_unit_cube(num_points: int, dim: int) -> Tensor:
    """Return Sobol points around the centre, shifted between dimensions."""
    points = SobolEngine(dim).draw(num_points, dtype=torch.float64)
    points = points - points.mean(dim=0) + 0.5
    shift = (spread_loc(dim).double() - 0.5) / num_points
    return (points + shift).clamp(0.0, 1.0)
