"""Figures of a benchmark: metrics against the budget, and times by method."""

import math

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, NullLocator

from sbi_boed_plugin.benchmark.metrics import CLASSIFIER_METRICS
from sbi_boed_plugin.benchmark.summary import SECONDS, Results
from sbi_boed_plugin.plotting._style import GREY, LINES, despine, ordered_colors

__all__ = ["METRIC_LABELS", "metric_figure", "runtime_figure"]

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


def runtime_figure(results: Results) -> Figure:
    """Plot times by method: a dot for each task, and a diamond for their median."""
    labels, colors = results.labels, ordered_colors(len(results.budgets))
    figure = Figure((9.0, 1.3 + 0.45 * len(labels)), layout="constrained")
    axes = figure.subplots(1, 2, sharey=True)
    axes[0].set_yticks(range(len(labels)), labels)
    axes[0].set_ylim(len(labels) - 0.5, -0.5)
    for ax, name in zip(axes, SECONDS[:2], strict=True):
        # Nothing to train takes no time, which a logarithm cannot show.
        times = results.cells[results.cells[name] > 0.0]
        for place, (budget, color) in enumerate(
            zip(results.budgets, colors, strict=True)
        ):
            shift = 0.6 * ((place + 0.5) / len(colors) - 0.5)
            for row, label in enumerate(labels):
                chosen = (times["label"] == label) & (
                    times["num_simulations"] == budget
                )
                dots, y = times.loc[chosen, name], row + shift
                ax.plot(dots, [y] * len(dots), "o", color=color, ms=3.0, alpha=0.45)
                ax.plot(dots.median(), y, "D", color=color, ms=5.5)
        ax.set_xscale("log")
        # Between few powers of ten there are ticks at 2 and 5 as well.
        is_narrow = times[name].max() < 30.0 * times[name].min()
        subs = (1.0, 2.0, 5.0) if is_narrow else (1.0,)
        ax.xaxis.set_major_locator(LogLocator(subs=subs, numticks=9))
        ax.xaxis.set_major_formatter(FuncFormatter(lambda seconds, _: f"{seconds:g}"))
        ax.xaxis.set_minor_formatter(NullFormatter())
        ax.set_xlabel(f"{name.removesuffix('_seconds')} [s]")
        despine(ax)
    handles = [
        Line2D([], [], marker="D", linestyle="", color=color, label=f"{budget:,}")
        for budget, color in zip(results.budgets, colors, strict=True)
    ]
    look = {"loc": "outside upper left", "ncols": 5, "frameon": False}
    figure.legend(handles=handles, title="simulations", fontsize="small", **look)
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
