"""Figures of a design policy over training."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from sbi_boed_plugin.plotting._policy_density import has_density, policy_densities
from sbi_boed_plugin.plotting._style import (
    BLUE,
    LINES,
    VERMILLION,
    despine,
    figure_and_axes,
    legend_above,
    numbered_names,
    with_inverse_unit,
)

__all__ = ["plot_policy", "plot_policy_candidates"]

_NUM_POSITIONS = 200
_MAX_CANDIDATE_LABELS = 20


def plot_policy(
    history: dict[str, list[Any]],
    low: Tensor | None = None,
    high: Tensor | None = None,
    names: Sequence[str] | None = None,
) -> Figure:
    """Plot how the design policy moved and narrowed.

    The density over one design value is a heat map, with the mode on top; that of a
    mixture over several design values is a heat map for each. Up to six values of
    other policies are lines, the location of the policy, in bands of plus and minus
    its scale. More than that are rows of an image. A policy without a density is the
    line of its design alone. For a policy that chooses among candidates see
    :func:`plot_policy_candidates`.

    Args:
        history: History of a `DesignResult`, with what its policy describes: `"mode"`,
            mostly `"scale"` and, for mixtures, `"loc"` and `"weights"`.
        low: Smallest design, of shape `(dim_design,)`; `None` if there are no bounds.
        high: Largest design, likewise.
        names: Names of the design values with units.

    Returns:
        The figure.

    Example:
        >>> history = {"mode": [[0.5], [0.6]], "scale": [[0.3], [0.1]]}
        >>> figure = plot_policy(history, torch.zeros(1), torch.ones(1), ["time [s]"])
        >>> figure.axes[0].get_ylabel()
        'time [s]'
    """
    mode = np.asarray(history["mode"])
    scale = np.asarray(history.get("scale", np.zeros_like(mode)))
    dim_design = mode.shape[1]
    names = numbered_names(names, "design", dim_design)
    if low is None or high is None:
        # Most of the policy, over all of training.
        ends = torch.from_numpy(np.stack([mode - 3.0 * scale, mode + 3.0 * scale]))
        ends = ends.flatten(0, 1)
        margin = 0.05 * (ends.amax(dim=0) - ends.amin(dim=0)).clamp_min(1e-6)
        box = ends.amin(dim=0) - margin, ends.amax(dim=0) + margin
    else:
        box = low.cpu(), high.cpu()
    is_mixture = "loc" in history and dim_design <= len(LINES)
    if has_density(history) and (dim_design == 1 or is_mixture):
        truncation = (None, None) if low is None or high is None else box
        return _policy_densities(history, box, truncation, names)
    low_values, high_values = (end.numpy() for end in box)
    if dim_design > len(LINES):
        return _policy_image(mode, scale, low_values, high_values)
    if np.ptp(low_values) == 0 and np.ptp(high_values) == 0:
        return _policy_lines(mode, scale, low_values[0], high_values[0], names)
    return _policy_panels(mode, scale, low_values, high_values, names)


def plot_policy_candidates(
    history: dict[str, list[Any]],
    candidates: Tensor,
    names: Sequence[str] | None = None,
) -> Figure:
    """Plot how the probabilities of candidate designs changed, as a heat map.

    Args:
        history: History of a `DesignResult` of a `CategoricalPolicy`, with
            `"probabilities"`.
        candidates: Designs to choose from, of shape `(num_candidates, dim_design)`.
        names: Names of the design values with units.

    Returns:
        The figure. Candidates are rows, in ascending order.

    Example:
        >>> history = {"probabilities": [[0.5, 0.5], [0.2, 0.8]]}
        >>> figure = plot_policy_candidates(history, torch.tensor([[1.0], [5.0]]))
        >>> [label.get_text() for label in figure.axes[0].get_yticklabels()]
        ['1', '5']
    """
    designs = candidates.cpu().numpy()
    names = numbered_names(names, "design", designs.shape[1])
    # Lexicographic, by the first design value first.
    order = np.lexsort(designs.T[::-1])
    probabilities = np.asarray(history["probabilities"]).T[order]
    num_candidates, num_steps = probabilities.shape
    figure, ax = figure_and_axes(None)
    image = ax.imshow(
        probabilities,
        origin="lower",
        aspect="auto",
        interpolation="nearest",
        extent=(0.5, num_steps + 0.5, -0.5, num_candidates - 0.5),
        cmap="Blues",
        vmin=0.0,
    )
    figure.colorbar(image, ax=ax, label="probability of the candidate")
    steps = np.arange(1, num_steps + 1)
    ax.plot(
        steps,
        probabilities.argmax(axis=0),
        color=VERMILLION,
        drawstyle="steps-mid",
        label="most probable",
    )
    stride = -(-num_candidates // _MAX_CANDIDATE_LABELS)
    ticks = np.arange(0, num_candidates, stride)
    ax.set_yticks(
        ticks,
        [", ".join(f"{value:.4g}" for value in designs[order[tick]]) for tick in ticks],
    )
    ax.set_ylabel(", ".join(names) if len(names) <= 3 else "candidate")
    ax.set_xlim(0.5, num_steps + 0.5)
    _label_steps(ax)
    legend_above(ax)
    return figure


def _policy_densities(
    history: dict[str, list[Any]],
    box: tuple[Tensor, Tensor],
    truncation: tuple[Tensor, Tensor] | tuple[None, None],
    names: Sequence[str],
) -> Figure:
    """Draw a heat map of the density of each design value, with the mode on top."""
    mode = np.asarray(history["mode"])
    num_steps, dim_design = mode.shape
    height = 4.0 if dim_design == 1 else 0.9 + 2.2 * dim_design
    figure = Figure(figsize=(6.4, height), layout="constrained")
    axes = figure.subplots(dim_design, 1, sharex=True, squeeze=False)[:, 0]
    for j, ax in enumerate(axes):
        low, high = (float(end[j]) for end in box)
        edges = torch.linspace(low, high, _NUM_POSITIONS + 1)
        image = ax.imshow(
            policy_densities(history, edges, *truncation, index=j).numpy(),
            origin="lower",
            aspect="auto",
            interpolation="nearest",
            extent=(0.5, num_steps + 0.5, low, high),
            cmap="Blues",
            # Wide policies of the beginning would be as pale as nothing.
            norm=PowerNorm(0.7, vmin=0.0),
        )
        label = with_inverse_unit("policy density", names[j])
        figure.colorbar(image, ax=ax, label=label)
        steps = np.arange(1, num_steps + 1)
        ax.plot(steps, mode[:, j], color=VERMILLION, linewidth=1.5, label="mode")
        # A mode at the edge of the design space is not cut in half.
        margin = 0.02 * (high - low)
        ax.set_ylim(low - margin, high + margin)
        ax.set_xlim(0.5, num_steps + 0.5)
        ax.set_ylabel(names[j])
    _label_steps(axes[-1])
    legend_above(axes[0])
    return figure


def _policy_lines(
    mode: np.ndarray, scale: np.ndarray, low: float, high: float, names: Sequence[str]
) -> Figure:
    """Draw all design values into one panel: they share their range."""
    figure, ax = figure_and_axes(None)
    has_scale = bool(scale.any())
    for j, name in enumerate(names):
        label = "design of the policy" if len(names) == 1 else name
        _draw_policy(ax, mode[:, j], scale[:, j], low, high, LINES[j], label)
    _label_steps(ax)
    several = "design, location ± scale" if has_scale else "design"
    ax.set_ylabel(names[0] if len(names) == 1 else several)
    legend_above(ax)
    return figure


def _policy_panels(
    mode: np.ndarray,
    scale: np.ndarray,
    low: np.ndarray,
    high: np.ndarray,
    names: Sequence[str],
) -> Figure:
    """Draw a panel for each design value, in its own units."""
    figure = Figure(figsize=(6.4, 0.9 + 1.7 * len(names)), layout="constrained")
    axes = figure.subplots(len(names), 1, sharex=True, squeeze=False)[:, 0]
    for j, (ax, name) in enumerate(zip(axes, names, strict=True)):
        _draw_policy(ax, mode[:, j], scale[:, j], low[j], high[j], BLUE, name)
        ax.set_title(name, loc="left", fontsize="medium")
    bands = " (line: location, band: ± scale of the policy)" if scale.any() else ""
    _label_steps(axes[-1], "step" + bands)
    return figure


def _draw_policy(
    ax: Axes,
    mode: np.ndarray,
    scale: np.ndarray,
    low: float,
    high: float,
    color: str,
    label: str,
) -> None:
    """Draw one design value and its scale over the steps."""
    steps = np.arange(1, len(mode) + 1)
    ax.plot(steps, mode, color=color, label=label)
    if scale.any():
        ax.fill_between(
            steps,
            np.clip(mode - scale, low, high),
            np.clip(mode + scale, low, high),
            color=color,
            alpha=0.15,
            linewidth=0,
        )
    margin = 0.03 * (high - low)
    ax.set_ylim(low - margin, high + margin)
    ax.set_xlim(0, len(mode) + 0.5)
    despine(ax)


def _label_steps(ax: Axes, label: str = "step") -> None:
    """Let the horizontal axis count steps."""
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.set_xlabel(label)


def _policy_image(
    mode: np.ndarray, scale: np.ndarray, low: np.ndarray, high: np.ndarray
) -> Figure:
    """Draw each design value as a row, ordered by where it ended."""
    unit = (mode - low) / (high - low)
    order = np.argsort(unit[-1], kind="stable")
    num_steps, dim_design = unit.shape
    figure = Figure(figsize=(7.2, 4.4), layout="constrained")
    history_ax, final_ax = figure.subplots(1, 2, sharey=True, width_ratios=(2, 1))
    image = history_ax.imshow(
        unit[:, order].T,
        origin="lower",
        aspect="auto",
        interpolation="nearest",
        extent=(0.5, num_steps + 0.5, 0.5, dim_design + 0.5),
        cmap="cividis",
        vmin=0.0,
        vmax=1.0,
    )
    bar = figure.colorbar(image, ax=history_ax, location="top", shrink=0.8)
    bar.set_label("location in the design's range (0 lowest, 1 highest)")
    _label_steps(history_ax)
    history_ax.set_ylabel("design value, ordered by its end")
    ranks = np.arange(1, dim_design + 1)
    final_ax.errorbar(
        unit[-1, order],
        ranks,
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
