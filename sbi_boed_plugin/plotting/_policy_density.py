"""Where a policy has been during training, from what a search records of it."""

from typing import Any

import torch
from torch import Tensor

__all__ = ["policy_densities", "visited_designs"]

_Box = tuple[Tensor, Tensor] | None


def policy_densities(
    history: dict[str, list[Any]], edges: Tensor, box: _Box, index: int
) -> Tensor:
    """Return the mean density of one design value between neighbouring edges.

    It has shape `(num_edges - 1, num_steps)`. The Normals are truncated to the box
    from its lower to its upper end, unless this is `None`.
    """
    probabilities = _interval_probabilities(history, edges, box, index)
    weighted = (probabilities * _weights(history)).sum(dim=-1)
    return weighted / edges.diff().unsqueeze(1)


def visited_designs(
    history: dict[str, list[Any]], designs: Tensor, low: Tensor, high: Tensor
) -> Tensor:
    """Return near which designs `(num_designs, dim_design)` a search has simulated.

    A design counts as visited if the policies of all steps are expected to have
    proposed at least one design that is nearer to it, in each value, than to its
    neighbours on the grid. The history is that of a joint search with a policy of
    Normals, of a mixture of them, or of a point, between `low` and `high`.
    """
    joint: Tensor | float = 1.0
    box = low.cpu(), high.cpu()
    for j in range(designs.shape[1]):
        values, cell = designs[:, j].cpu().unique(return_inverse=True)
        middles = 0.5 * (values[1:] + values[:-1])
        edges = torch.cat([box[0][j : j + 1], middles, box[1][j : j + 1]])
        joint = joint * _interval_probabilities(history, edges, box, j)[cell]
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
    history: dict[str, list[Any]], edges: Tensor, box: _Box, index: int
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
    if box is None:
        return probabilities
    return probabilities / (cdf(box[1][index]) - cdf(box[0][index]))
