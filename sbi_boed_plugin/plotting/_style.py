"""What all figures share."""

from collections.abc import Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.ticker import MaxNLocator

from sbi_boed_plugin.objectives.eig import EIGEstimate

__all__ = [
    "BLUE",
    "GREEN",
    "GREY",
    "LINES",
    "PURPLE",
    "VERMILLION",
    "despine",
    "draw_estimates",
    "heat_map",
    "label_steps",
    "legend_above",
    "legend_of_panels",
    "new_axes",
    "numbered_names",
    "ordered_colors",
]

BLUE, ORANGE, GREEN, VERMILLION = "#0072B2", "#E69F00", "#009E73", "#D55E00"
PURPLE, SKY, GREY = "#CC79A7", "#56B4E9", "#7F7F7F"
LINES = (BLUE, VERMILLION, GREEN, PURPLE, ORANGE, SKY)


def new_axes() -> tuple[Figure, Axes]:
    """Return a figure with one pair of axes."""
    figure = Figure(figsize=(6.4, 4.0), layout="constrained")
    return figure, figure.subplots()


def despine(ax: Axes) -> None:
    """Remove the frame above and on the right."""
    ax.spines[["top", "right"]].set_visible(False)


def draw_estimates(
    ax: Axes,
    positions: np.ndarray,
    estimates: Sequence[EIGEstimate],
    color: str,
    marker: str,
    label: str,
    size: float = 4,
) -> None:
    """Draw values with their standard errors."""
    ax.errorbar(
        positions,
        [estimate.value for estimate in estimates],
        yerr=[estimate.standard_error for estimate in estimates],
        color=color,
        marker=marker,
        markersize=size,
        capsize=2,
        linestyle="none",
        label=label,
        zorder=2 if color == BLUE else 3,
    )


def heat_map(
    ax: Axes, values: np.ndarray, low: float, high: float, **style: Any
) -> AxesImage:
    """Draw values, a column per step, between two ends of the vertical axis."""
    return ax.imshow(
        values,
        origin="lower",
        aspect="auto",
        interpolation="nearest",
        extent=(0.5, values.shape[1] + 0.5, low, high),
        **style,
    )


def label_steps(ax: Axes) -> None:
    """Let the horizontal axis count steps."""
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.set_xlabel("step")


def legend_above(ax: Axes, num_columns: int = 2) -> None:
    """Put the legend above the axes, where it hides no data."""
    ax.legend(
        loc="lower left",
        bbox_to_anchor=(0.0, 1.0),
        ncols=num_columns,
        frameon=False,
        borderaxespad=0.2,
    )


def legend_of_panels(figure: Figure, ax: Axes) -> None:
    """Put the legend of one panel above all."""
    handles, labels = ax.get_legend_handles_labels()
    figure.legend(
        handles, labels, loc="outside upper center", ncols=len(labels), frameon=False
    )


def numbered_names(names: Sequence[str] | None, what: str, num: int) -> list[str]:
    """Return given names, or `what` with a number for each if there are several."""
    if names is None:
        return [what] if num == 1 else [f"{what} {j + 1}" for j in range(num)]
    if len(names) != num:
        raise ValueError(f"names={list(names)} must hold {num} names of each {what}.")
    return list(names)


def ordered_colors(num: int) -> list[str]:
    """Return colours of what has an order, from light to dark."""
    if num == 1:
        return [BLUE]
    # Neither the yellow that white paper swallows, nor black.
    parts = np.linspace(0.85, 0.1, num)
    return [to_hex(color) for color in matplotlib.colormaps["viridis"](parts)]
