"""Densities of a policy over training, from what a search records of it."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from sbi_boed_plugin.policies.truncated_normal import TruncatedNormal

__all__ = ["has_density", "policy_densities"]


def has_density(history: dict[str, list[Any]]) -> bool:
    """Return whether the recorded policy had a density made of Normals.

    Example:
        >>> has_density({"mode": [[0.5]], "scale": [[0.1]]})
        True
        >>> has_density({"mode": [[0.5]], "scale": [[0.0]]})  # a point mass
        False
    """
    return "scale" in history and bool((np.asarray(history["scale"]) > 0.0).all())


def policy_densities(
    history: dict[str, list[Any]],
    positions: Tensor,
    low: Tensor | None,
    high: Tensor | None,
    index: int = 0,
) -> Tensor:
    """Return the marginal density of one design value at each step.

    Args:
        history: History of a `DesignResult`: `"mode"` and `"scale"` of Normals, or
            `"loc"`, `"weights"` and `"scale"` of a mixture of them.
        positions: Values of shape `(num_positions,)`.
        low: Smallest design, of shape `(dim_design,)`; `None` for Normals that are
            not truncated.
        high: Largest design, likewise.
        index: Which design value.

    Returns:
        Densities of shape `(num_positions, num_steps)`, per unit of the design.

    Example:
        >>> history = {"mode": [[0.5], [0.6]], "scale": [[0.3], [0.1]]}
        >>> positions = torch.linspace(0.0, 1.0, 101)
        >>> density = policy_densities(
        ...     history, positions, torch.zeros(1), torch.ones(1)
        ... )
        >>> torch.trapezoid(density, positions, dim=0)
        tensor([1.0000, 1.0000])
    """
    scale = torch.tensor(history["scale"])[:, index]
    if "loc" in history:
        loc = torch.tensor(history["loc"])[:, :, index]
        weights = torch.tensor(history["weights"])
    else:
        loc = torch.tensor(history["mode"])[:, index].unsqueeze(1)
        weights = torch.ones_like(loc)
    infinity = torch.tensor(torch.inf)
    normals = TruncatedNormal(
        loc.T,
        scale,
        -infinity if low is None else low[index].cpu(),
        infinity if high is None else high[index].cpu(),
    )
    # One position at a time: components and steps together can be many.
    return torch.stack(
        [
            (weights.T * normals.log_prob(position).exp()).sum(dim=0)
            for position in positions
        ]
    )
