"""What all figures share."""

from matplotlib.axes import Axes
from matplotlib.figure import Figure

__all__ = [
    "BLUE",
    "GREEN",
    "GREY",
    "LINES",
    "VERMILLION",
    "despine",
    "figure_and_axes",
    "legend_above",
]

BLUE, ORANGE, GREEN, VERMILLION = "#0072B2", "#E69F00", "#009E73", "#D55E00"
PURPLE, SKY, GREY = "#CC79A7", "#56B4E9", "#7F7F7F"
LINES = (BLUE, VERMILLION, GREEN, PURPLE, ORANGE, SKY)


def figure_and_axes(ax: Axes | None) -> tuple[Figure, Axes]:
    """Return given axes with their figure, or new ones."""
    if ax is not None:
        figure = ax.get_figure(root=True)
        assert isinstance(figure, Figure)
        return figure, ax
    figure = Figure(figsize=(6.4, 4.0), layout="constrained")
    return figure, figure.subplots()


def despine(ax: Axes) -> None:
    """Remove the frame above and on the right."""
    ax.spines[["top", "right"]].set_visible(False)


def legend_above(ax: Axes, num_columns: int = 3) -> None:
    """Put the legend above the axes, where it hides no data."""
    ax.legend(
        loc="lower left",
        bbox_to_anchor=(0.0, 1.0),
        ncols=num_columns,
        frameon=False,
        borderaxespad=0.2,
    )
