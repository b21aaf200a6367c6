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

    Samples have shape `(num, dim_theta)`, and the true parameters `(dim_theta,)` or
    `(1, dim_theta)`. `log` says of each parameter whether it spans decades and is drawn
    as a logarithm.
    """
    groups = {"prior": prior_samples, "posterior": samples}
    return _corner(groups, true_parameters, names, log)


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
    return _corner(groups, true_parameters, names, None)


def _corner(
    labelled: dict[str, Tensor],
    true_parameters: Tensor | None,
    names: Sequence[str] | None,
    log: Sequence[bool] | None,
) -> Figure:
    """Draw histograms on the diagonal and, below them, pairs; the prior comes first."""
    groups = [group.cpu() for group in labelled.values()]
    dim_theta = groups[0].shape[-1]
    names = numbered_names(names, "parameter", dim_theta)
    truth = None if true_parameters is None else true_parameters.reshape(1, -1).cpu()
    if log is not None and any(log):
        in_decades = torch.tensor(list(log))
        groups = [torch.where(in_decades, group.log10(), group) for group in groups]
        truth = None if truth is None else torch.where(in_decades, truth.log10(), truth)
        names = [
            f"log₁₀ of {name}" if is_log else name
            for name, is_log in zip(names, log, strict=True)
        ]
    limits = _limits(groups, truth)
    colors = [GREY, *ordered_colors(len(groups) - 1)]
    styles = dict(zip(labelled, colors, strict=True))

    size = max(5.4, 1.9 * dim_theta + 1.0)
    figure = Figure(figsize=(size, size), layout="constrained")
    axes = figure.subplots(dim_theta, dim_theta, sharex="col", squeeze=False)
    for row in range(dim_theta):
        _draw_histograms(axes[row, row], groups, limits[row], styles, row)
        if truth is not None:
            axes[row, row].axvline(truth[0, row], color=VERMILLION, label="truth")
        for column in range(row):
            ax = axes[row, column]
            for group, color in zip(groups, colors, strict=True):
                x, y = group[:, column].numpy(), group[:, row].numpy()
                ax.scatter(x, y, s=4, color=color, alpha=0.35, edgecolor="none")
            if truth is not None:
                style = {"color": VERMILLION, "markeredgecolor": "white"}
                ax.plot(truth[0, column], truth[0, row], "D", markersize=8, **style)
            ax.set_ylim(*limits[row].tolist())
            ax.tick_params(labelleft=column == 0)
            despine(ax)
        for column in range(row + 1, dim_theta):
            axes[row, column].set_axis_off()
        if row > 0:
            axes[row, 0].set_ylabel(names[row])
        axes[-1, row].set_xlabel(names[row])
    handles, labels = axes[0, 0].get_legend_handles_labels()
    place = "upper right" if dim_theta > 1 else "best"
    axes[0, -1].legend(handles, labels, loc=place, frameon=False)
    figure.align_labels()
    return figure


def _limits(groups: list[Tensor], truth: Tensor | None) -> Tensor:
    """Return ranges of shape `(dim_theta, 2)`: most of the prior, all that matters."""
    prior, *posteriors = groups
    parts = [prior.quantile(torch.tensor([0.005, 0.98]), dim=0)]
    parts += [p.quantile(torch.tensor([0.002, 0.998]), dim=0) for p in posteriors]
    parts += [] if truth is None else [truth]
    values = torch.cat(parts)
    low, high = values.amin(dim=0), values.amax(dim=0)
    margin = 0.05 * (high - low)
    # The margin stays inside the prior's support, where it has one.
    low = torch.maximum(low - margin, prior.amin(dim=0) - 0.01 * margin)
    return torch.stack([low, high + margin], dim=-1)


def _draw_histograms(
    ax: Axes, groups: list[Tensor], limits: Tensor, styles: dict[str, str], column: int
) -> None:
    """Draw the outline of a histogram of each set of samples of one parameter."""
    low, high = limits.tolist()
    for group, (label, color) in zip(groups, styles.items(), strict=True):
        values = group[:, column].numpy()
        # The rule of Freedman and Diaconis.
        first, third = np.quantile(values, [0.25, 0.75])
        width = 2.0 * (third - first) / len(values) ** (1.0 / 3.0)
        width = max(width, (high - low) / _MAX_BINS)
        ax.hist(
            values,
            bins=max(1, int((high - low) / width)),
            range=(low, high),
            density=True,
            histtype="step",
            color=color,
            linewidth=1.5,
            label=label,
        )
    ax.set_xlim(low, high)
    despine(ax, left=False)
