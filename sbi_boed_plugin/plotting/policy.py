"""Figures of a design policy over training, and where it has been."""

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from torch import Tensor

from sbi_boed_plugin.plotting._style import (
    BLUE,
    VERMILLION,
    despine,
    heat_map,
    label_steps,
    legend_above,
    new_axes,
    numbered_names,
)

__all__ = [
    "plot_policy",
    "plot_policy_candidates",
    "policy_densities",
    "visited_designs",
]

_NUM_POSITIONS = 200
_MAX_PANELS = 6
_MAX_CANDIDATE_LABELS = 20

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
    are rows of an image. For a policy that chooses among candidates see
    :func:`plot_policy_candidates`.

    `history` is that of a `DesignResult`, with what its policy describes: `"mode"`,
    mostly `"scale"` and, for mixtures, `"loc"` and `"weights"`. `low` and `high`, of
    shape `(dim_design,)`, are `None` if there are no bounds.
    """
    mode = np.asarray(history["mode"])
    scale = np.asarray(history.get("scale", np.zeros_like(mode)))
    names = numbered_names(names, "design", mode.shape[1])
    if low is not None and high is not None:
        box = low.cpu(), high.cpu()
        ends = box[0].numpy(), box[1].numpy()
    else:
        box = None
        # Most of the policy, over all of training.
        least, most = (mode - 3.0 * scale).min(axis=0), (mode + 3.0 * scale).max(axis=0)
        margin = 0.05 * np.maximum(most - least, 1e-6)
        ends = least - margin, most + margin
    if mode.shape[1] > _MAX_PANELS:
        return _policy_image(mode, scale, *ends)
    height = 4.0 if len(names) == 1 else 0.9 + 2.2 * len(names)
    figure = Figure(figsize=(6.4, height), layout="constrained")
    axes = figure.subplots(len(names), 1, sharex=True, squeeze=False)[:, 0]
    for j, (ax, name) in enumerate(zip(axes, names, strict=True)):
        least, most = float(ends[0][j]), float(ends[1][j])
        if (scale > 0.0).all():
            edges = torch.linspace(least, most, _NUM_POSITIONS + 1)
            density = policy_densities(history, edges, box, j).numpy()
            # Without the power, wide policies would be as pale as nothing.
            style = {"cmap": "Blues", "norm": PowerNorm(0.7, vmin=0.0)}
            image = heat_map(ax, density, least, most, **style)
            unit = re.search(r"\[(.*)\]$", name)
            label = "policy density" + (f" [1/({unit[1]})]" if unit else "")
            figure.colorbar(image, ax=ax, label=label)
        else:
            despine(ax)
        steps = np.arange(1, len(mode) + 1)
        ax.plot(steps, mode[:, j], color=VERMILLION, linewidth=1.5, label="mode")
        # A mode at the edge of the design space is not cut in half.
        margin = 0.02 * (most - least)
        ax.set_ylim(least - margin, most + margin)
        ax.set_xlim(0.5, len(mode) + 0.5)
        ax.set_ylabel(name)
    label_steps(axes[-1])
    legend_above(axes[0])
    return figure


def _policy_image(
    mode: np.ndarray, scale: np.ndarray, low: np.ndarray, high: np.ndarray
) -> Figure:
    """Draw each design value as a row, ordered by where it ended."""
    unit = (mode - low) / (high - low)
    order = np.argsort(unit[-1], kind="stable")
    figure = Figure(figsize=(7.2, 4.4), layout="constrained")
    history_ax, final_ax = figure.subplots(1, 2, sharey=True, width_ratios=(2, 1))
    style = {"cmap": "cividis", "vmin": 0.0, "vmax": 1.0}
    image = heat_map(history_ax, unit[:, order].T, 0.5, len(order) + 0.5, **style)
    bar = figure.colorbar(image, ax=history_ax, location="top", shrink=0.8)
    bar.set_label("mode in the design's range (0 lowest, 1 highest)")
    label_steps(history_ax)
    history_ax.set_ylabel("design value, ordered by its end")
    final_ax.errorbar(
        unit[-1, order],
        np.arange(1, len(order) + 1),
        xerr=(scale[-1] / (high - low))[order],
        color=BLUE,
        ecolor="#9CC9E3",
        marker="o",
        markersize=3,
        linestyle="none",
    )
    final_ax.set_xlim(-0.05, 1.05)
    final_ax.set_xlabel("end ± scale")
    despine(final_ax)
    return figure


def plot_policy_candidates(
    history: dict[str, list[Any]],
    candidates: Tensor,
    names: Sequence[str] | None = None,
) -> Figure:
    """Plot how the probabilities of candidate designs changed, as a heat map.

    The history is that of a search with a `CategoricalPolicy` over `candidates`, of
    shape `(num_candidates, dim_design)`, which are rows in ascending order.
    """
    designs = candidates.cpu().numpy()
    names = numbered_names(names, "design", designs.shape[1])
    # Lexicographic, by the first design value first.
    order = np.lexsort(designs.T[::-1])
    probabilities = np.asarray(history["probabilities"]).T[order]
    num_candidates, num_steps = probabilities.shape
    figure, ax = new_axes()
    ends = -0.5, num_candidates - 0.5
    image = heat_map(ax, probabilities, *ends, cmap="Blues", vmin=0.0)
    figure.colorbar(image, ax=ax, label="probability of the candidate")
    steps, best = np.arange(1, num_steps + 1), probabilities.argmax(axis=0)
    style = {"color": VERMILLION, "drawstyle": "steps-mid"}
    ax.plot(steps, best, label="most probable", **style)
    ticks = np.arange(0, num_candidates, -(-num_candidates // _MAX_CANDIDATE_LABELS))
    labels = [", ".join(f"{value:.4g}" for value in designs[order[t]]) for t in ticks]
    ax.set_yticks(ticks, labels)
    ax.set_ylabel(", ".join(names) if len(names) <= 3 else "candidate")
    ax.set_xlim(0.5, num_steps + 0.5)
    label_steps(ax)
    legend_above(ax)
    return figure


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
