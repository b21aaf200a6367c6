"""What all figures share."""

from collections.abc import Sequence

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.ticker import MaxNLocator

__all__ = [
    "BLUE",
    "GREEN",
    "GREY",
    "LINES",
    "PURPLE",
    "VERMILLION",
    "despine",
    "label_steps",
    "legend_above",
    "numbered_names",
    "ordered_colors",
]

BLUE, ORANGE, GREEN, VERMILLION = "#0072B2", "#E69F00", "#009E73", "#D55E00"
PURPLE, SKY, GREY = "#CC79A7", "#56B4E9", "#7F7F7F"
LINES = (BLUE, VERMILLION, GREEN, PURPLE, ORANGE, SKY)


def despine(ax: Axes, left: bool = True) -> None:
    """Remove the frame above and on the right, and perhaps the axis on the left."""
    ax.spines[["top", "right"]].set_visible(False)
    if not left:
        ax.set_yticks([])
        ax.spines["left"].set_visible(False)


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
