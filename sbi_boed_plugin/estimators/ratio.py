"""Likelihood-to-evidence ratios: at fixed designs, and at many pairs at once."""

from typing import Any

import torch
from sbi.inference.potentials.ratio_based_potential import RatioBasedPotential
from sbi.neural_nets.ratio_estimators import RatioEstimator
from torch import Tensor

from sbi_boed_plugin.estimators.design_conditioned import check_fixed_design, join

__all__ = [
    "DesignConditionedRatio",
    "DesignRatioPotential",
    "RatioPairs",
    "embed_parameters",
]

# Pairs that are evaluated at once. Larger batches are slower by half on a CPU, whose
# caches they leave.
_MAX_PAIRS = 4_096


class DesignConditionedRatio(RatioEstimator):
    r"""A ratio :math:`p(x \mid \theta, \xi) / p(x \mid \xi)` at given designs."""

    design: Tensor

    def __init__(
        self,
        estimator: RatioEstimator,
        design: Tensor,
        x_shape: torch.Size | None = None,
    ) -> None:
        """Initialize the ratio of parameters and `(x, design)` at these designs.

        Data come in the shape `x_shape`, by default in rows.
        """
        (dim_data,) = estimator.x_shape
        design = check_fixed_design(design, dim_data, "x")
        super().__init__(
            net=estimator,
            theta_shape=estimator.theta_shape,
            x_shape=x_shape or torch.Size((dim_data - design.shape[-1],)),
        )
        reference = next(estimator.parameters())
        self.register_buffer("design", design.detach().to(reference))

    def unnormalized_log_ratio(self, theta: Tensor, x: Tensor) -> Tensor:
        """Return log-ratios `(batch_dim,)` in nats, with the rows of `x` by design."""
        rows = self.design.repeat_interleave(len(x) // len(self.design), dim=0)
        return self.net(theta, join(x.flatten(1), rows))


class DesignRatioPotential(RatioBasedPotential):
    """The potential of a ratio at fixed designs."""

    def set_x(self, x_o: Tensor | None, x_is_iid: bool | None = True) -> None:
        """Set the observation, of which each of several designs needs one row."""
        # The base class calls this before it stores the ratio.
        design = getattr(getattr(self, "ratio_estimator", None), "design", [None])
        num_rows = 0 if x_o is None else len(torch.atleast_2d(x_o))
        if len(design) > 1 and num_rows not in (0, len(design)):
            raise ValueError(
                f"The observation has {num_rows} rows, but the posterior was built "
                f"with {len(design)} designs: pass one row per design."
            )
        super().set_x(x_o, x_is_iid=x_is_iid)


def embed_parameters(ratio: Any, theta: Tensor) -> Tensor:
    """Return parameters as `RatioPairs` evaluates them: embedded, if sbi's class does.

    A class derived from sbi's may combine parameters and data in another way.
    """
    return ratio.embedding_net_theta(theta) if type(ratio) is RatioEstimator else theta


class RatioPairs:
    """Data of a batch, and parameters to pair them with, embedded once each."""

    def __init__(self, ratio: Any, theta: Tensor, x: Tensor) -> None:
        """Embed parameters and data."""
        self._embeds = type(ratio) is RatioEstimator
        self._ratio = ratio
        self.theta = embed_parameters(ratio, theta)
        self._x = ratio.embedding_net_x(x) if self._embeds else x

    def evaluate(self, theta: Tensor) -> Tensor:
        """Return log-ratios of embedded parameters `(num_atoms, batch_dim, ...)`."""
        pairs = theta.flatten(0, 1)
        # Data may be large: only a part of them is copied at a time.
        rows = torch.arange(len(self._x), device=pairs.device).repeat(len(theta))
        parts = zip(pairs.split(_MAX_PAIRS), rows.split(_MAX_PAIRS), strict=True)
        found = []
        for part, row in parts:
            x = self._x[row]
            if self._embeds:
                both = torch.cat([part, x], dim=-1).flatten(1)
                found.append(self._ratio.net(both).squeeze(-1))
            else:
                found.append(self._ratio(part, x))
        return torch.cat(found).reshape(theta.shape[:2])
