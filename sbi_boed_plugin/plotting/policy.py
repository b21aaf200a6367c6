"""Figures of a design policy over training, and where it has been."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from torch import Tensor

from sbi_boed_plugin.plotting._style import (
    VERMILLION,
    despine,
    label_steps,
    legend_above,
    numbered_names,
)

__all__ = ["plot_policy", "policy_densities", "visited_designs"]

_NUM_POSITIONS = 200
_MAX_PANELS = 6

_Box = tuple[Tensor, Tensor] | None


def plot_policy(
    history: dict[str, list[Any]],
    low: Tensor | None = None,
    high: Tensor | None = None,
    names: Sequence[str] | None = None,
) -> Figure:
    """Plot how the design policy moved and narrowed.

    Each design value has a panel: the density as a heat map, with the mode on top. A
    policy without a density is the line of its mode alone. More than six design values
    are lines of one panel, as parts of their range.

    `history` is that of a `DesignResult`, with what its policy describes: `"mode"`,
    mostly `"scale"` and, for mixtures, `"loc"` and `"weights"`. `low` and `high`, of
    shape `(dim_design,)`, are `None` if there are no bounds.
    """
    mode = np.asarray(history["mode"])
    scale = np.asarray(history.get("scale", np.zeros_like(mode)))
    names = numbered_names(names, "design", mode.shape[1])
    if low is not None and high is not None:
        box = low.cpu(), high.cpu()
        lows, highs = box[0].numpy(), box[1].numpy()
    else:
        box = None
        # Most of the policy, over all of training.
        lows, highs = (mode - 3.0 * scale).min(axis=0), (mode + 3.0 * scale).max(axis=0)
        margin = 0.05 * np.maximum(highs - lows, 1e-6)
        lows, highs = lows - margin, highs + margin
    num_panels = len(names) if len(names) <= _MAX_PANELS else 1
    height = 4.0 if num_panels == 1 else 0.9 + 2.2 * num_panels
    figure = Figure(figsize=(6.4, height), layout="constrained")
    axes = figure.subplots(num_panels, 1, sharex=True, squeeze=False)[:, 0]
    steps = np.arange(1, len(mode) + 1)
    label_steps(axes[-1])
    if num_panels < len(names):
        axes[0].plot(steps, (mode - lows) / (highs - lows), linewidth=1)
        axes[0].set_ylabel("mode in the design's range (0 lowest, 1 highest)")
        despine(axes[0])
        return figure
    for j, (ax, name) in enumerate(zip(axes, names, strict=True)):
        least, most = float(lows[j]), float(highs[j])
        if (scale > 0.0).all():
            edges = torch.linspace(least, most, _NUM_POSITIONS + 1)
            image = ax.imshow(
                policy_densities(history, edges, box, j).numpy(),
                origin="lower",
                aspect="auto",
                interpolation="nearest",
                extent=(0.5, len(mode) + 0.5, least, most),
                cmap="Blues",
                # Without the power, wide policies would be as pale as nothing.
                norm=PowerNorm(0.7, vmin=0.0),
            )
            figure.colorbar(image, ax=ax, label="policy density")
        else:
            despine(ax)
        ax.plot(steps, mode[:, j], color=VERMILLION, linewidth=1.5, label="mode")
        # A mode at the edge of the design space is not cut in half.
        margin = 0.02 * (most - least)
        ax.set_ylim(least - margin, most + margin)
        ax.set_xlim(0.5, len(mode) + 0.5)
        ax.set_ylabel(name)
    legend_above(axes[0])
    return figure


def policy_densities(
    history: dict[str, list[Any]], edges: Tensor, box: _Box, index: int
) -> Tensor:
    """Return the mean density of one design value between neighbouring edges.

    It has shape `(num_edges - 1, num_steps)`. The Normals are truncated to the box
    from its lower to its upper end, unless this is `None`.
    """
    probabilities = _interval_probabilities(history, edges, box, index)
    return probabilities / edges.diff().unsqueeze(1)


def visited_designs(
    history: dict[str, list[Any]], designs: Tensor, low: Tensor, high: Tensor
) -> Tensor:
    """Return near which sorted designs `(num_designs, 1)` a search has simulated.

    A design counts as visited if the policies of all steps are expected to have
    proposed at least one design that is nearer to it than to its neighbours. The
    history is that of a joint search with a policy of Normals, of a mixture of them, or
    of a point, between `low` and `high`, of shape `(1,)`.
    """
    box = low.cpu(), high.cpu()
    values = designs[:, 0].cpu()
    edges = torch.cat([box[0], 0.5 * (values[1:] + values[:-1]), box[1]])
    probabilities = _interval_probabilities(history, edges, box, 0)
    num_simulations = torch.tensor(history["num_simulations"]).double()
    per_step = num_simulations.diff(prepend=num_simulations.new_zeros(1))
    return (probabilities * per_step).sum(dim=1) >= 1.0


def _interval_probabilities(
    history: dict[str, list[Any]], edges: Tensor, box: _Box, index: int
) -> Tensor:
    """Return probabilities `(num_edges - 1, num_steps)` between neighbouring edges."""
    scale = torch.tensor(history["scale"]).double()[:, index].unsqueeze(1)
    loc = torch.tensor(history.get("loc", history["mode"])).double()[..., index]
    loc = loc.reshape(len(scale), -1)
    weights = torch.tensor(history.get("weights", [[1.0]])).double()

    def cdf(value: Tensor) -> Tensor:
        # A point is a Normal without width.
        return torch.special.ndtr((value - loc) / scale.clamp_min(1e-300))

    probabilities = cdf(edges.cpu().double()[:, None, None]).diff(dim=0)
    if box is not None:
        probabilities = probabilities / (cdf(box[1][index]) - cdf(box[0][index]))
    return (probabilities * weights).sum(dim=-1)
