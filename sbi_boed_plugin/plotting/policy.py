"""Figures of a design policy over training."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from sbi_boed_plugin.plotting._style import (
    BLUE,
    LINES,
    despine,
    figure_and_axes,
    legend_above,
)

__all__ = ["plot_policy"]


def plot_policy(
    history: dict[str, list[Any]],
    low: Tensor,
    high: Tensor,
    names: Sequence[str] | None = None,
) -> Figure:
    """Plot how the design policy moved and narrowed.

    Up to six design values are lines, the location of the policy, in bands of plus and
    minus its scale. More than that are rows of an image.

    Args:
        history: History of a `DesignResult`, with `"mode"` and `"scale"`.
        low: Smallest design, of shape `(dim_design,)`.
        high: Largest design, of shape `(dim_design,)`.
        names: Names of the design values with units.

    Returns:
        The figure.

    Example:
        >>> import torch
        >>> history = {"mode": [[0.5], [0.6]], "scale": [[0.3], [0.1]]}
        >>> figure = plot_policy(history, torch.zeros(1), torch.ones(1), ["time [s]"])
        >>> figure.axes[0].get_ylabel()
        'time [s]'
    """
    mode, scale = np.asarray(history["mode"]), np.asarray(history["scale"])
    low_values, high_values = low.cpu().numpy(), high.cpu().numpy()
    if names is None:
        names = [f"design {j + 1}" for j in range(len(low))]
    if len(low) > len(LINES):
        return _policy_image(mode, scale, low_values, high_values)
    if np.ptp(low_values) == 0 and np.ptp(high_values) == 0:
        return _policy_lines(mode, scale, low_values[0], high_values[0], names)
    return _policy_panels(mode, scale, low_values, high_values, names)


def _policy_lines(
    mode: np.ndarray, scale: np.ndarray, low: float, high: float, names: Sequence[str]
) -> Figure:
    """Draw all design values into one panel: they share their range."""
    figure, ax = figure_and_axes(None)
    for j, name in enumerate(names):
        label = "location ± scale of the policy" if len(names) == 1 else name
        _draw_policy(ax, mode[:, j], scale[:, j], low, high, LINES[j], label)
    ax.set_xlabel("step")
    ax.set_ylabel(names[0] if len(names) == 1 else "design, location ± scale")
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
    axes[-1].set_xlabel("step (line: location, band: ± scale of the policy)")
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
    steps = np.arange(1, len(mode) + 1)
    ax.plot(steps, mode, color=color, label=label)
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
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    despine(ax)


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
    history_ax.set_xlabel("step")
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
