"""Figures of data that a posterior predicts, beside the data observed."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from sbi_boed_plugin.plotting._style import (
    BLUE,
    GREY,
    VERMILLION,
    despine,
    numbered_names,
)

__all__ = ["plot_predictive"]

_MAX_COLUMNS = 4
_MAX_MEASUREMENTS = 8


def plot_predictive(
    x_o: Sequence[Tensor] | Tensor,
    posterior_predictive: Sequence[Tensor] | Tensor,
    prior_predictive: Sequence[Tensor] | Tensor | None = None,
    *,
    names: Sequence[str] | None = None,
    titles: Sequence[str] | None = None,
) -> Figure:
    """Plot data that the posterior predicts at each design, with what was observed.

    If the model and its posterior are right, what was observed is nothing unusual
    among the predictions; the title of a panel tells which part of them lies below
    it. Each measurement has a panel, each experiment with several a row. Of more than
    eight measurements, at most eight are drawn.

    Of each experiment there are an observation, `(dim_x,)` or `(1, dim_x)`, simulations
    at its design with parameters from the posterior, `(num_samples, dim_x)`, and
    perhaps such with parameters from the prior, and a title. `names` are those of the
    measurements with units.
    """
    num = len(x_o)
    given = {
        "posterior_predictive": posterior_predictive,
        "prior_predictive": prior_predictive,
        "titles": titles,
    }
    for argument, value in given.items():
        if value is not None and len(value) != num:
            raise ValueError(
                f"{argument} has {len(value)} entries, but x_o has {num}: give one for "
                "each experiment."
            )
    titles = titles or numbered_names(None, "experiment" if num > 1 else "", num)
    observed = [x.reshape(-1).cpu().numpy() for x in x_o]
    predicted = [x.cpu().numpy() for x in posterior_predictive]
    prior = [None] * num
    if prior_predictive is not None:
        prior = [x.cpu().numpy() for x in prior_predictive]
    dim_x = len(observed[0])
    names = numbered_names(names, "measurement", dim_x)
    measured = range(0, dim_x, -(-dim_x // _MAX_MEASUREMENTS))
    panels = [(k, j) for k in range(num) for j in measured]
    # One row for each experiment, unless a row would have a single panel.
    is_table = num > 1 and dim_x > 1
    num_columns = len(measured) if is_table else min(len(panels), _MAX_COLUMNS)
    num_rows = -(-len(panels) // num_columns)
    size = max(6.0, 3.0 * num_columns), 0.8 + 2.6 * num_rows
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots(num_rows, num_columns, squeeze=False).ravel()
    for ax in axes[len(panels) :]:
        ax.remove()
    for ax, (k, j) in zip(axes, panels, strict=False):
        before = prior[k]
        before = None if before is None else before[:, j]
        part = _draw_histograms(ax, observed[k][j], predicted[k][:, j], before)
        title = f"{titles[k]}\n{part:.0%} of draws below".lstrip()
        ax.set_title(title, fontsize="medium")
        ax.set_xlabel(names[j])
    for ax in axes[::num_columns]:
        ax.set_ylabel("density")
    handles, labels = axes[0].get_legend_handles_labels()
    place = "outside upper center"
    figure.legend(handles, labels, loc=place, ncols=len(labels), frameon=False)
    return figure


def _draw_histograms(
    ax: Axes, observed: float, predicted: np.ndarray, prior: np.ndarray | None
) -> float:
    """Draw densities of one measurement; return which part of the draws is below."""
    ends = [*np.quantile(predicted, [0.005, 0.995]), observed]
    if prior is not None:
        ends += np.quantile(prior, [0.02, 0.98]).tolist()
    low, high = min(ends), max(ends)
    if low == high:
        low, high = low - 0.5, high + 0.5
    margin = 0.03 * (high - low)
    low, high = low - margin, high + margin
    if prior is not None:
        weights = np.full(len(prior), 40 / (len(prior) * (high - low)))
        style = {"color": GREY, "alpha": 0.35, "label": "prior predictive"}
        ax.hist(prior, bins=40, range=(low, high), weights=weights, **style)
    # Narrow predictions need narrower bins than those of the prior, but not so narrow
    # that a point mass dwarfs everything else.
    first, last = np.quantile(predicted, [0.005, 0.995])
    width = max((last - first) / 25, (high - low) / 80)
    num_bins = max(1, round((last - first) / width))
    first = 0.5 * (first + last - num_bins * width)
    bins = first + width * np.arange(num_bins + 1)
    weights = np.full(len(predicted), 1.0 / (len(predicted) * width))
    style = {"histtype": "step", "linewidth": 1.5, "label": "posterior predictive"}
    ax.hist(predicted, bins=bins, weights=weights, color=BLUE, **style)
    ax.axvline(observed, color=VERMILLION, linewidth=1.5, label="observed")
    ax.set_xlim(low, high)
    despine(ax, left=False)
    # Data with point masses tie; half of the ties count.
    return 0.5 + 0.5 * np.sign(observed - predicted).mean()
