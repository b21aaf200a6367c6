"""Figures of the posterior beside the prior and the truth."""

from collections.abc import Sequence

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from sbi_boed_plugin.plotting._style import (
    GREY,
    VERMILLION,
    despine,
    new_axes,
    numbered_names,
    ordered_colors,
)

__all__ = ["plot_posterior", "plot_posterior_sequence"]

_MAX_BINS = 200


def plot_posterior(
    samples: Tensor,
    prior_samples: Tensor,
    true_parameters: Tensor | None = None,
    names: Sequence[str] | None = None,
    *,
    log: Sequence[bool] | None = None,
) -> Figure:
    """Plot prior and posterior samples of all parameters and pairs, with the truth.

    The figure has a histogram of each parameter and, below it in the same column, with
    the same horizontal axis, its pairs with the parameters that follow.

    Args:
        samples: Posterior samples of shape `(num_samples, dim_theta)`.
        prior_samples: Prior samples of shape `(num_prior_samples, dim_theta)`.
        true_parameters: Parameters behind the observation, of shape `(dim_theta,)` or
            `(1, dim_theta)`.
        names: Names of the parameters with units.
        log: For each parameter, whether it spans decades and is drawn as a logarithm.
    """
    groups = {"prior": prior_samples, "posterior": samples}
    return _draw_groups(groups, true_parameters, names, log)


def plot_posterior_sequence(
    samples: Sequence[Tensor],
    prior_samples: Tensor,
    true_parameters: Tensor | None = None,
    names: Sequence[str] | None = None,
) -> Figure:
    """Plot how experiments, one after another, narrow down the parameters.

    `samples` are those after each experiment. Later experiments are darker and lie on
    top; otherwise the figure is that of `plot_posterior`.
    """
    if len(samples) == 0:
        raise ValueError("samples is empty: give the samples of an experiment.")
    groups = {"prior": prior_samples}
    groups |= {f"after experiment {k}": group for k, group in enumerate(samples, 1)}
    return _draw_groups(groups, true_parameters, names, None)


def _draw_groups(
    labelled: dict[str, Tensor],
    true_parameters: Tensor | None,
    names: Sequence[str] | None,
    log: Sequence[bool] | None,
) -> Figure:
    """Draw labelled samples, of which the first are those of the prior."""
    groups = [group.cpu() for group in labelled.values()]
    dim_theta = groups[0].shape[-1]
    names = numbered_names(names, "parameter", dim_theta)
    truth = None if true_parameters is None else true_parameters.reshape(1, -1).cpu()
    if log is not None and any(log):
        groups = [_with_logarithms(group, log) for group in groups]
        truth = None if truth is None else _with_logarithms(truth, log)
        names = [
            f"log₁₀ of {name}" if is_log else name
            for name, is_log in zip(names, log, strict=True)
        ]
    limits = _limits(groups, truth)
    colors = [GREY, *ordered_colors(len(groups) - 1)]
    styles = dict(zip(labelled, colors, strict=True))
    if dim_theta > 1:
        return _corner(groups, limits, truth, names, styles)
    figure, ax = new_axes()
    _draw_histograms(ax, groups, limits, truth, styles)
    ax.set_xlabel(names[0])
    ax.set_ylabel("density")
    ax.legend(loc="best", frameon=False)
    return figure


def _with_logarithms(values: Tensor, log: Sequence[bool]) -> Tensor:
    """Return values with logarithms in the columns that span decades."""
    return torch.where(torch.tensor(list(log)), values.log10(), values)


def _limits(groups: list[Tensor], truth: Tensor | None) -> Tensor:
    """Return ranges of shape `(dim_theta, 2)`: most of the prior, all that matters."""
    prior, *posteriors = groups
    parts = [prior.quantile(torch.tensor([0.005, 0.98]), dim=0)]
    for posterior in posteriors:
        parts.append(posterior.quantile(torch.tensor([0.002, 0.998]), dim=0))
    if truth is not None:
        parts.append(truth)
    values = torch.cat(parts)
    low, high = values.amin(dim=0), values.amax(dim=0)
    margin = 0.05 * (high - low)
    # The margin stays inside the prior's support, where it has one.
    low = torch.maximum(low - margin, prior.amin(dim=0) - 0.01 * margin)
    return torch.stack([low, high + margin], dim=-1)


def _corner(
    groups: list[Tensor],
    limits: Tensor,
    truth: Tensor | None,
    names: Sequence[str],
    styles: dict[str, str],
) -> Figure:
    """Draw histograms on the diagonal and, below them, pairs with the same axes."""
    dim_theta = len(names)
    size = max(5.4, 1.9 * dim_theta + 1.0)
    figure = Figure(figsize=(size, size), layout="constrained")
    axes = figure.subplots(dim_theta, dim_theta, sharex="col")
    for row in range(dim_theta):
        for column, ax in enumerate(axes[row]):
            if column > row:
                ax.set_axis_off()
            elif column == row:
                columns = [group[:, [row]] for group in groups]
                mark = None if truth is None else truth[:, [row]]
                _draw_histograms(ax, columns, limits[[row]], mark, styles)
                ax.set_yticks([])
                ax.spines["left"].set_visible(False)
            else:
                _draw_pair(ax, groups, limits, truth, styles, row, column)
                ax.tick_params(labelleft=column == 0)
        if row > 0:
            axes[row, 0].set_ylabel(names[row])
        axes[-1, row].set_xlabel(names[row])
    handles, labels = axes[0, 0].get_legend_handles_labels()
    axes[0, -1].legend(handles, labels, loc="upper right", frameon=False)
    figure.align_labels()
    return figure


def _draw_histograms(
    ax: Axes,
    groups: list[Tensor],
    limits: Tensor,
    truth: Tensor | None,
    styles: dict[str, str],
) -> None:
    """Draw the outline of a histogram of each set of samples of one parameter."""
    low, high = limits[0].tolist()
    for group, (label, color) in zip(groups, styles.items(), strict=True):
        values = group[:, 0].numpy()
        ax.hist(
            values,
            bins=_num_bins(values, high - low),
            range=(low, high),
            density=True,
            histtype="step",
            color=color,
            linewidth=1.5,
            label=label,
        )
    if truth is not None:
        ax.axvline(truth.item(), color=VERMILLION, label="truth")
    ax.set_xlim(low, high)
    despine(ax)


def _num_bins(values: np.ndarray, width: float) -> int:
    """Return a number of bins over a width by the rule of Freedman and Diaconis."""
    first, third = np.quantile(values, [0.25, 0.75])
    bin_width = 2.0 * (third - first) / len(values) ** (1.0 / 3.0)
    return int(min(_MAX_BINS, max(1.0, width / max(bin_width, width / _MAX_BINS))))


def _draw_pair(
    ax: Axes,
    groups: list[Tensor],
    limits: Tensor,
    truth: Tensor | None,
    styles: dict[str, str],
    row: int,
    column: int,
) -> None:
    """Draw the samples of two parameters, that of the column along the x axis."""
    for group, color in zip(groups, styles.values(), strict=True):
        x, y = group[:, column].numpy(), group[:, row].numpy()
        ax.scatter(x, y, s=4, color=color, alpha=0.35, edgecolor="none")
    if truth is not None:
        style = {"color": VERMILLION, "markersize": 8, "markeredgecolor": "white"}
        ax.plot(truth[0, column], truth[0, row], "D", **style)
    ax.set_ylim(*limits[row].tolist())
    despine(ax)
