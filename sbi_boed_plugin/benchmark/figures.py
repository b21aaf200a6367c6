"""Figures of a benchmark: metrics against the budget."""

import math

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import NullLocator

from sbi_boed_plugin.benchmark.metrics import CLASSIFIER_METRICS
from sbi_boed_plugin.benchmark.summary import Results
from sbi_boed_plugin.plotting._style import GREY, LINES, despine

__all__ = ["METRIC_LABELS", "metric_figure"]

METRIC_LABELS = {
    "c2st": "C2ST",
    "c2st_forest": "C2ST, random forest",
    "mmd": "MMD²",
    "ppc": "Median distance",
}
_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
_HOLLOW = {"markerfacecolor": "white", "linestyle": "", "zorder": 3}
_NUM_COLUMNS = 5


def metric_figure(results: Results, metric: str) -> Figure:
    """Plot a metric against the budget, one panel per task.

    Markers are hollow where means are no fair comparison with others, as posteriors
    lack or have cost more simulations.
    """
    tasks = results.tasks
    num_columns = min(_NUM_COLUMNS, len(tasks))
    num_rows = math.ceil(len(tasks) / num_columns)
    looks = {label: _look(index) for index, label in enumerate(results.labels)}
    done = results.cells[results.cells["num_done"] > 0]
    if not done["is_comparable"].all():
        looks["hollow: not comparable"] = _look(0) | _HOLLOW | {"color": GREY}
    # The legend takes a line for each entry, and about so many inches for its name.
    name_width = 0.7 + 0.07 * max(map(len, looks))
    height = max(2.5 * num_rows, 0.6 + 0.2 * len(looks))
    figure = Figure((2.5 * num_columns + name_width, height), layout="constrained")
    is_classifier = metric in CLASSIFIER_METRICS
    grid = figure.subplots(num_rows, num_columns, sharey=is_classifier, squeeze=False)
    axes = grid.ravel()
    for ax, task in zip(axes, tasks, strict=False):
        _draw_metric(ax, results, metric, task)
    for ax in axes[len(tasks) :]:
        ax.remove()
    figure.supxlabel("simulations", fontsize="medium")
    figure.supylabel(METRIC_LABELS.get(metric, metric), fontsize="medium")
    handles = [Line2D([], [], label=label, **look) for label, look in looks.items()]
    place = {"loc": "outside right upper", "frameon": False, "fontsize": "small"}
    figure.legend(handles=handles, **place)
    return figure


def _draw_metric(ax: Axes, results: Results, metric: str, task: str) -> None:
    cells = results.cells.loc[results.cells["task"] == task]
    for index, label in enumerate(results.labels):
        rows = cells.loc[cells["label"] == label].dropna(subset=[metric])
        # Side by side, as errors that overlap hide one another.
        at = rows["num_simulations"] * 1.05 ** (index - (len(results.labels) - 1) / 2)
        errors = rows[f"{metric}_se"].fillna(0.0)
        ax.errorbar(at, rows[metric], yerr=errors, elinewidth=1.0, **_look(index))
        unfair = ~rows["is_comparable"]
        ax.plot(at[unfair], rows[metric][unfair], **_look(index) | _HOLLOW)
    budgets = cells["num_simulations"].unique()
    ax.set_xscale("log")
    ax.set_xlim(budgets.min() / 1.6, budgets.max() * 1.6)
    names = [f"{budget:,}" for budget in budgets]
    ax.set_xticks(budgets, names, rotation=30 if len(names) > 2 else 0)
    ax.xaxis.set_minor_locator(NullLocator())
    if metric in CLASSIFIER_METRICS:
        ax.set_ylim(0.48, 1.02)
        ax.axhline(0.5, color=GREY, linewidth=0.6, zorder=0)
    ax.set_title(task, fontsize="medium")
    ax.tick_params(labelsize="small")
    despine(ax)


def _look(index: int) -> dict[str, object]:
    return {
        "color": LINES[index % len(LINES)],
        "marker": _MARKERS[index % len(_MARKERS)],
        # Colours come again after six, with another line.
        "linestyle": ("-", "--", "-.")[index // len(LINES) % 3],
        "linewidth": 1.2,
        "markersize": 4.5,
        "zorder": 2,
    }
