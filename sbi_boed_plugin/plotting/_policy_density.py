"""Where a policy has been during training, from what a search records of it."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

__all__ = ["has_density", "policy_densities", "visited_designs"]


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
    edges: Tensor,
    low: Tensor | None,
    high: Tensor | None,
    index: int = 0,
) -> Tensor:
    """Return the mean density of one design value between neighbouring edges.

    It has shape `(num_edges - 1, num_steps)`. The Normals are truncated to the box
    from `low` to `high`, unless these are `None`.
    """
    ends = (None, None) if low is None or high is None else (low[index], high[index])
    probabilities = _interval_probabilities(history, edges, *ends, index)
    weighted = (probabilities * _weights(history)).sum(dim=-1)
    return weighted / edges.diff().unsqueeze(1)


def visited_designs(
    history: dict[str, list[Any]], designs: Tensor, low: Tensor, high: Tensor
) -> Tensor:
    """Return near which designs of a grid a search has probably simulated.

    A design counts as visited if the policies of all steps are expected to have
    proposed at least one design that is nearer to it, in each value, than to its
    neighbours on the grid.

    Args:
        history: History of a `DesignResult` of a joint search with a policy of Normals,
            of a mixture of them, or of a point.
        designs: Designs of a grid, of shape `(num_designs, dim_design)`.
        low: Smallest design, of shape `(dim_design,)`.
        high: Largest design, likewise.

    Returns:
        Boolean tensor of shape `(num_designs,)`.

    Example:
        >>> history = {"mode": [[2.0]], "scale": [[0.1]], "num_simulations": [256]}
        >>> grid = torch.arange(5.0).unsqueeze(1)
        >>> visited_designs(history, grid, torch.zeros(1), torch.full((1,), 4.0))
        tensor([False, False,  True, False, False])
    """
    joint: Tensor | float = 1.0
    for j in range(designs.shape[1]):
        values, cell = designs[:, j].cpu().unique(return_inverse=True)
        middles = 0.5 * (values[1:] + values[:-1])
        edges = torch.cat([low[j : j + 1].cpu(), middles, high[j : j + 1].cpu()])
        joint = (
            joint * _interval_probabilities(history, edges, low[j], high[j], j)[cell]
        )
    probabilities = (joint * _weights(history)).sum(dim=-1)
    num_simulations = torch.tensor(history["num_simulations"]).double()
    per_step = num_simulations.diff(prepend=num_simulations.new_zeros(1))
    return (probabilities * per_step).sum(dim=1) >= 1.0


def _weights(history: dict[str, list[Any]]) -> Tensor:
    """Return the weights of the components, of shape `(num_steps, num_components)`."""
    if "weights" in history:
        return torch.tensor(history["weights"]).double()
    return torch.ones(len(history["mode"]), 1, dtype=torch.float64)


def _interval_probabilities(
    history: dict[str, list[Any]],
    edges: Tensor,
    low: Tensor | None,
    high: Tensor | None,
    index: int,
) -> Tensor:
    """Return the probability of each component between neighbouring edges.

    It has shape `(num_edges - 1, num_steps, num_components)`.
    """
    scale = torch.tensor(history["scale"]).double()[:, index].unsqueeze(1)
    if "loc" in history:
        loc = torch.tensor(history["loc"]).double()[:, :, index]
    else:
        loc = torch.tensor(history["mode"]).double()[:, index].unsqueeze(1)

    def cdf(value: Tensor) -> Tensor:
        # A point is a Normal without width.
        return torch.special.ndtr((value - loc) / scale.clamp_min(1e-300))

    probabilities = cdf(edges.cpu().double()[:, None, None]).diff(dim=0)
    if low is None or high is None:
        return probabilities
    return probabilities / (cdf(high.cpu()) - cdf(low.cpu()))
