"""Figures of the posterior beside the prior and the truth."""

from collections.abc import Sequence

import numpy as np
import torch
from matplotlib.figure import Figure
from sbi.analysis import pairplot
from sbi.analysis.plotting_classes import FigOptions
from torch import Tensor

from sbi_boed_plugin.plotting._style import (
    GREY,
    VERMILLION,
    despine,
    figure_and_axes,
    numbered_names,
    ordered_colors,
)

__all__ = ["plot_posterior", "plot_posterior_sequence"]


def plot_posterior(
    samples: Tensor,
    prior_samples: Tensor,
    true_parameters: Tensor | None = None,
    names: Sequence[str] | None = None,
    *,
    log: Sequence[bool] | None = None,
) -> Figure:
    """Plot prior and posterior samples of all parameters and pairs, with the truth.

    Args:
        samples: Posterior samples of shape `(num_samples, dim_theta)`.
        prior_samples: Prior samples of shape `(num_prior_samples, dim_theta)`.
        true_parameters: Parameters behind the observation, of shape `(dim_theta,)` or
            `(1, dim_theta)`.
        names: Names of the parameters with units.
        log: For each parameter, whether it spans decades and is drawn as a logarithm.

    Returns:
        The figure.

    Example:
        >>> import torch
        >>> figure = plot_posterior(0.1 * torch.randn(100, 2), torch.randn(100, 2))
        >>> len(figure.axes)
        4
    """
    return plot_posterior_sequence(
        [samples], prior_samples, true_parameters, names, labels=["posterior"], log=log
    )


def plot_posterior_sequence(
    samples: Sequence[Tensor],
    prior_samples: Tensor,
    true_parameters: Tensor | None = None,
    names: Sequence[str] | None = None,
    *,
    labels: Sequence[str] | None = None,
    log: Sequence[bool] | None = None,
) -> Figure:
    """Plot how experiments, one after another, narrow down the parameters.

    Args:
        samples: Posterior samples after each experiment, each of shape
            `(num_samples, dim_theta)`.
        prior_samples: Samples from before the first experiment, of shape
            `(num_prior_samples, dim_theta)`.
        true_parameters: Parameters behind the observations, of shape `(dim_theta,)`
            or `(1, dim_theta)`.
        names: Names of the parameters with units.
        labels: What each set of samples is; "after experiment 1" and so on if `None`.
        log: For each parameter, whether it spans decades and is drawn as a logarithm.

    Returns:
        The figure. Later experiments are darker and lie on top.

    Raises:
        ValueError: If there are no samples, or not as many labels as sets of samples.

    Example:
        >>> import torch
        >>> prior = torch.randn(100, 2)
        >>> figure = plot_posterior_sequence([0.5 * prior, 0.1 * prior], prior)
        >>> [text.get_text() for text in figure.axes[2].get_legend().get_texts()]
        ['prior', 'after experiment 1', 'after experiment 2']
    """
    if len(samples) == 0:
        raise ValueError("samples is empty: give the samples of an experiment.")
    if labels is None:
        labels = [f"after experiment {k + 1}" for k in range(len(samples))]
    if len(labels) != len(samples):
        raise ValueError(
            f"labels={list(labels)} must hold one label for each of the "
            f"{len(samples)} sets of samples."
        )
    dim_theta = prior_samples.shape[-1]
    names = numbered_names(names, "parameter", dim_theta)
    points = None if true_parameters is None else true_parameters.reshape(1, -1).cpu()
    groups = [prior_samples.cpu(), *(group.cpu() for group in samples)]
    if log is not None and any(log):
        groups = [_with_logarithms(group, log) for group in groups]
        points = None if points is None else _with_logarithms(points, log)
        names = [
            f"log₁₀ of {name}" if is_log else name
            for name, is_log in zip(names, log, strict=True)
        ]
    labels = ["prior", *labels]
    colors = [GREY, *ordered_colors(len(samples))]
    limits = _posterior_limits(groups, points)
    if dim_theta == 1:
        return _posterior_histogram(groups, limits[0], points, names[0], labels, colors)

    size = max(2.8 * dim_theta, 1.4 * dim_theta + 3.5)
    figure = Figure(figsize=(size, size))
    axes = figure.subplots(dim_theta, dim_theta)
    diagonal = [
        {"mpl_kwargs": {"color": c, "density": True, "linewidth": 1.5}} for c in colors
    ]
    pairs = [
        {"mpl_kwargs": {"color": color, "s": 4, "alpha": 0.35, "edgecolor": "none"}}
        for color in colors
    ]
    # Only the upper half: in the lower one pairplot draws points with the two axes
    # exchanged.
    pairplot(
        groups,
        points=None if points is None else [points],
        limits=limits,
        upper="scatter",
        diag="hist",
        labels=names,
        diag_kwargs=diagonal,
        upper_kwargs=pairs,
        fig_kwargs=FigOptions(
            legend=True,
            samples_labels=labels,
            points_labels=["truth"],
            points_colors=[VERMILLION],
            points_diag={"linewidth": 1.5},
            points_offdiag={
                "marker": "D",
                "markersize": 8,
                "linestyle": "none",
                "markeredgecolor": "white",
            },
        ),
        fig=figure,
        axes=axes,
    )
    _label_rows(axes, names)
    _set_margins(figure, size)
    return figure


def _with_logarithms(values: Tensor, log: Sequence[bool]) -> Tensor:
    return torch.where(torch.tensor(list(log)), values.log10(), values)


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
    prior, *posteriors = groups
    parts = [prior.quantile(torch.tensor([0.005, 0.98]), dim=0)]
    for posterior in posteriors:
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
    groups: list[Tensor],
    limits: Tensor,
    points: Tensor | None,
    name: str,
    labels: Sequence[str],
    colors: Sequence[str],
) -> Figure:
    figure, ax = figure_and_axes(None)
    for group, color, label in zip(groups, colors, labels, strict=True):
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
