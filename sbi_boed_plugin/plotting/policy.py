"""Figures of a design policy over training."""

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from torch import Tensor

from sbi_boed_plugin.plotting._policy_density import policy_densities
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

__all__ = ["plot_policy", "plot_policy_candidates"]

_NUM_POSITIONS = 200
_MAX_PANELS = 6
_MAX_CANDIDATE_LABELS = 20


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

    Args:
        history: History of a `DesignResult`, with what its policy describes: `"mode"`,
            mostly `"scale"` and, for mixtures, `"loc"` and `"weights"`.
        low: Smallest design, of shape `(dim_design,)`; `None` if there are no bounds.
        high: Largest design, likewise.
        names: Names of the design values with units.
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
