"""Figures of the posterior beside the prior and the truth."""

from collections.abc import Sequence

import numpy as np
import torch
from matplotlib.figure import Figure
from sbi.analysis import pairplot
from sbi.analysis.plotting_classes import FigOptions
from torch import Tensor

from sbi_boed_plugin.plotting._style import (
    BLUE,
    GREY,
    VERMILLION,
    despine,
    figure_and_axes,
)

__all__ = ["plot_posterior"]


def plot_posterior(
    samples: Tensor,
    prior_samples: Tensor,
    true_parameters: Tensor | None = None,
    names: Sequence[str] | None = None,
) -> Figure:
    """Plot prior and posterior samples of all parameters and pairs, with the truth.

    Args:
        samples: Posterior samples of shape `(num_samples, dim_theta)`.
        prior_samples: Prior samples of shape `(num_prior_samples, dim_theta)`.
        true_parameters: Parameters behind the observation, of shape `(dim_theta,)` or
            `(1, dim_theta)`.
        names: Names of the parameters with units.

    Returns:
        The figure.

    Example:
        >>> import torch
        >>> figure = plot_posterior(0.1 * torch.randn(100, 2), torch.randn(100, 2))
        >>> len(figure.axes)
        4
    """
    dim_theta = samples.shape[-1]
    if names is None:
        names = [f"parameter {j + 1}" for j in range(dim_theta)]
    points = None if true_parameters is None else true_parameters.reshape(1, -1).cpu()
    groups = [prior_samples.cpu(), samples.cpu()]
    limits = _posterior_limits(groups, points)
    if dim_theta == 1:
        return _posterior_histogram(groups, limits[0], points, names[0])

    size = 2.8 * dim_theta
    figure = Figure(figsize=(size, size))
    axes = figure.subplots(dim_theta, dim_theta)
    diagonal = [
        {"mpl_kwargs": {"color": c, "density": True, "linewidth": 1.5}}
        for c in (GREY, BLUE)
    ]
    pairs = [
        {"mpl_kwargs": {"color": color, "s": 4, "alpha": 0.35, "edgecolor": "none"}}
        for color in (GREY, BLUE)
    ]
    pairplot(
        groups,
        points=None if points is None else [points],
        limits=limits,
        upper="scatter",
        diag="hist",
        labels=list(names),
        diag_kwargs=diagonal,
        upper_kwargs=pairs,
        fig_kwargs=FigOptions(
            legend=True,
            samples_labels=["prior", "posterior"],
            points_labels=["truth"],
            points_colors=[VERMILLION],
            points_offdiag={"marker": "D", "markersize": 8, "linestyle": "none"},
        ),
        fig=figure,
        axes=axes,
    )
    _label_rows(axes, names)
    _set_margins(figure, size)
    return figure


def _label_rows(axes: np.ndarray, names: Sequence[str]) -> None:
    """Give the pairs, above the diagonal, the vertical scale that sbi leaves out."""
    for row in range(len(names) - 1):
        ax = axes[row, -1]
        ax.set_ylabel(names[row])
        ax.yaxis.set_label_position("right")
        ax.yaxis.set_ticks_position("right")
        ax.tick_params(axis="y", labelright=True, labelleft=False)
        for column in range(row + 1, len(names)):
            axes[row, column].spines["right"].set_visible(True)
    # sbi's legend is in the empty corner, below a label of its own.
    axes[-1, 0].set_xlabel("")


def _set_margins(figure: Figure, size: float) -> None:
    """Leave the labels the same room in inches, whatever the size of the figure."""
    room, edge = 0.7 / size, 0.15 / size
    figure.subplots_adjust(
        left=edge, right=1 - room, bottom=room, top=1 - edge, wspace=0.1, hspace=0.35
    )


def _posterior_limits(groups: list[Tensor], points: Tensor | None) -> Tensor:
    """Return ranges of shape `(dim_theta, 2)`: most of the prior, all that matters."""
    prior, posterior = groups
    parts = [prior.quantile(torch.tensor([0.005, 0.98]), dim=0)]
    parts.append(posterior.quantile(torch.tensor([0.002, 0.998]), dim=0))
    if points is not None:
        parts.append(points)
    values = torch.cat(parts)
    low, high = values.amin(dim=0), values.amax(dim=0)
    margin = 0.05 * (high - low)
    # The margin stays inside the prior's support, where it has one.
    low = torch.maximum(low - margin, prior.amin(dim=0) - 0.01 * margin)
    return torch.stack([low, high + margin], dim=-1)


def _posterior_histogram(
    groups: list[Tensor], limits: Tensor, points: Tensor | None, name: str
) -> Figure:
    figure, ax = figure_and_axes(None)
    for group, color, label in zip(
        groups, (GREY, BLUE), ("prior", "posterior"), strict=True
    ):
        ax.hist(
            group[:, 0].numpy(),
            bins="fd",
            range=tuple(limits.tolist()),
            density=True,
            histtype="step",
            color=color,
            linewidth=1.5,
            label=label,
        )
    if points is not None:
        ax.axvline(points.item(), color=VERMILLION, label="truth")
    ax.set_xlabel(name)
    ax.set_ylabel("density")
    ax.legend(loc="best", frameon=False)
    despine(ax)
    return figure
