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
    legend_of_panels,
    numbered_names,
)

__all__ = ["plot_predictive"]

_MAX_COLUMNS = 4
# More measurements of an experiment than this are intervals in one panel.
_MAX_HISTOGRAMS = 8


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
    it. Each measurement has a panel, each experiment with several a row. An experiment
    with more than eight measurements has one panel, with intervals.

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
    if titles is None:
        titles = [""] if num == 1 else [f"experiment {k + 1}" for k in range(num)]
    observed = [x.reshape(-1).cpu().numpy() for x in x_o]
    predicted = [x.cpu().numpy() for x in posterior_predictive]
    prior = [None] * num
    if prior_predictive is not None:
        prior = [x.cpu().numpy() for x in prior_predictive]
    dim_x = len(observed[0])
    names = numbered_names(names, "measurement", dim_x)
    if dim_x > _MAX_HISTOGRAMS:
        return _interval_panels(observed, predicted, prior, titles)
    return _histogram_panels(observed, predicted, prior, names, titles)


def _histogram_panels(
    observed: list[np.ndarray],
    predicted: list[np.ndarray],
    prior: Sequence[np.ndarray | None],
    names: Sequence[str],
    titles: Sequence[str],
) -> Figure:
    """Draw a panel for each measurement of each experiment."""
    num, dim_x = len(observed), len(names)
    # One row for each experiment, unless a row would have a single panel.
    num_columns = dim_x if num > 1 and dim_x > 1 else min(num * dim_x, _MAX_COLUMNS)
    num_rows = -(-num * dim_x // num_columns)
    size = max(6.0, 3.0 * num_columns), 0.8 + 2.6 * num_rows
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots(num_rows, num_columns, squeeze=False).ravel()
    for ax in axes[num * dim_x :]:
        ax.remove()
    for panel, ax in enumerate(axes[: num * dim_x]):
        k, j = divmod(panel, dim_x)
        value, draws, before = observed[k][j], predicted[k][:, j], prior[k]
        _draw_histograms(ax, value, draws, None if before is None else before[:, j])
        # Data with point masses tie; half of the ties count.
        below = 0.5 + 0.5 * np.sign(value - draws).mean()
        title = f"{titles[k]}\n{below:.0%} of draws below".lstrip()
        ax.set_title(title, fontsize="medium")
        ax.set_xlabel(names[j])
        if panel % num_columns == 0:
            ax.set_ylabel("density")
    legend_of_panels(figure, axes[0])
    return figure


def _draw_histograms(
    ax: Axes, observed: float, predicted: np.ndarray, prior: np.ndarray | None
) -> None:
    """Draw what was predicted of one measurement, beside what was observed.

    The histograms are densities over all values, those outside of the axes included.
    """
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
    # Narrow predictions need narrower bins than those of the prior.
    first, last = np.quantile(predicted, [0.005, 0.995])
    # But not so narrow that a point mass dwarfs everything else.
    width = max((last - first) / 25, (high - low) / 80)
    num_bins = max(1, round((last - first) / width))
    first = 0.5 * (first + last - num_bins * width)
    bins = first + width * np.arange(num_bins + 1)
    weights = np.full(len(predicted), 1.0 / (len(predicted) * width))
    style = {"histtype": "step", "linewidth": 1.5, "label": "posterior predictive"}
    ax.hist(predicted, bins=bins, weights=weights, color=BLUE, **style)
    ax.axvline(observed, color=VERMILLION, linewidth=1.5, label="observed")
    ax.set_xlim(low, high)
    ax.set_yticks([])
    despine(ax)
    ax.spines["left"].set_visible(False)


def _interval_panels(
    observed: list[np.ndarray],
    predicted: list[np.ndarray],
    prior: Sequence[np.ndarray | None],
    titles: Sequence[str],
) -> Figure:
    """Draw a panel for each experiment, with intervals of its measurements."""
    num = len(observed)
    figure = Figure(figsize=(7.2, 0.8 + 3.0 * num), layout="constrained")
    axes = figure.subplots(num, 1, sharex=True, squeeze=False)[:, 0]
    for k, ax in enumerate(axes):
        # By what was predicted: neighbours are alike, and bands readable.
        order = np.argsort(np.median(predicted[k], axis=0), kind="stable")
        ranks = np.arange(1, len(order) + 1)
        for values, color, alpha, label in (
            (prior[k], GREY, 0.25, "prior predictive, 5 % to 95 %"),
            (predicted[k], BLUE, 0.35, "posterior predictive, 5 % to 95 %"),
        ):
            if values is not None:
                low, high = np.quantile(values[:, order], [0.05, 0.95], axis=0)
                ax.fill_between(
                    ranks, low, high, color=color, alpha=alpha, linewidth=0, label=label
                )
        style = {"color": VERMILLION, "markersize": 4, "label": "observed"}
        ax.plot(ranks, observed[k][order], "o", **style)
        low, high = np.quantile(predicted[k], [0.05, 0.95], axis=0)
        inside = ((observed[k] >= low) & (observed[k] <= high)).mean()
        text = f"{inside:.0%} of the measurements within the posterior's intervals"
        ax.set_title(f"{titles[k]}\n{text}".lstrip(), fontsize="medium")
        ax.set_ylabel("measured value")
        despine(ax)
    axes[-1].set_xlabel("measurement, ordered by its predicted median")
    legend_of_panels(figure, axes[0])
    return figure
