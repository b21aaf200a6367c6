"""Figures of a benchmark: metrics and times against the budget."""

import math
import statistics
from textwrap import fill

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import NullLocator

from sbi_boed_plugin.benchmark.metrics import CLASSIFIER_METRICS
from sbi_boed_plugin.benchmark.published import (
    BUDGETS,
    PUBLISHED_C2ST,
    PUBLISHED_METHODS,
    published_beside,
    published_c2st,
    published_label,
)
from sbi_boed_plugin.benchmark.summary import Results
from sbi_boed_plugin.plotting._style import GREY, LINES, despine, ordered_colors

__all__ = [
    "METRIC_LABELS",
    "legend_keys",
    "metric_figure",
    "metric_panel",
    "runtime_figure",
    "runtime_panel",
]

METRIC_LABELS = {
    "c2st": "C2ST",
    "c2st_forest": "C2ST, random forest",
    "mmd": "MMD²",
    "ppc": "median distance",
}
_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
_PUBLISHED_MARKERS = dict(zip(PUBLISHED_METHODS, ("o", "^", "v"), strict=True))
_PUBLISHED_LOOK = {
    "color": "#A0A0A0",
    "fillstyle": "none",
    "linewidth": 0.8,
    "markersize": 5.0,
}
_HOLLOW = {"markerfacecolor": "white", "linestyle": "", "zorder": 3}
_NUM_COLUMNS = 5
# Longer names of methods go on in the next line: they must leave room for the data.
_LABEL_WIDTH = 20
_TIMES = {"training_seconds": "training", "sampling_seconds": "sampling"}


def metric_figure(results: Results, metric: str) -> Figure:
    """Plot a metric against the budget, one panel per task.

    Args:
        results: Results of a benchmark.
        metric: Name of a metric. Published values are shown beside `"c2st"` only, as
            other classifiers give other numbers, and only beside jobs like theirs.

    Returns:
        The figure: markers are hollow where means are no fair comparison with others,
        as posteriors lack or have cost more simulations.
    """
    tasks = results.tasks
    num_columns = min(_NUM_COLUMNS, len(tasks))
    num_rows = math.ceil(len(tasks) / num_columns)
    handles = _handles(results, metric)
    width = max(4.6, 2.5 * num_columns + 0.5)
    # Inches that a line and the longest name take.
    name_width = 0.45 + 0.07 * max(len(str(handle.get_label())) for handle in handles)
    legend_columns = max(1, min(len(handles), int(width / name_width)))
    legend_height = 0.22 * math.ceil(len(handles) / legend_columns) + 0.15
    figure = Figure(
        figsize=(width, 2.3 * num_rows + legend_height), layout="constrained"
    )
    axes = figure.subplots(
        num_rows, num_columns, sharey=metric in CLASSIFIER_METRICS, squeeze=False
    ).ravel()
    for index, ax in enumerate(axes):
        if index >= len(tasks):
            ax.remove()
            continue
        _draw_metric(ax, results, metric, tasks[index])
        if index % num_columns == 0:
            ax.set_ylabel(METRIC_LABELS.get(metric, metric))
        if index >= len(tasks) - num_columns:
            ax.set_xlabel("simulations")
    figure.legend(
        handles=handles,
        loc="outside upper left",
        ncols=legend_columns,
        frameon=False,
        fontsize="small",
        handlelength=1.6,
    )
    return figure


def metric_panel(results: Results, metric: str, task: str) -> Figure:
    """Return the panel of one task as a figure, without a legend."""
    figure = Figure(figsize=(3.3, 2.5))
    # Dozens of them: a layout that is searched for takes most of a report's time.
    ax = figure.add_axes((0.19, 0.19, 0.78, 0.69))
    _draw_metric(ax, results, metric, task)
    ax.set_xlabel("simulations")
    ax.set_ylabel(METRIC_LABELS.get(metric, metric))
    return figure


def legend_keys(results: Results, metric: str) -> list[tuple[str, Figure]]:
    """Return the entries of the panels' legend: a name, and its line as a figure."""
    keys = []
    for handle in _handles(results, metric):
        figure = Figure(figsize=(0.4, 0.2))
        figure.patch.set_alpha(0.0)
        handle.set_data([0.1, 0.5, 0.9], [0.5, 0.5, 0.5])
        handle.set_markevery([1])
        figure.add_artist(handle)
        keys.append((str(handle.get_label()), figure))
    return keys


def runtime_figure(results: Results) -> Figure:
    """Plot the times of training and sampling per job, one row per method.

    Args:
        results: Results of a benchmark.

    Returns:
        The figure: a small dot per task, a large one for the median over tasks.
    """
    figure = Figure(
        figsize=(9.0, 1.3 + 0.45 * len(results.settings)), layout="constrained"
    )
    axes = figure.subplots(1, 2, sharey=True)
    for ax, name in zip(axes, _TIMES, strict=True):
        _draw_times(ax, results, name)
    _legend_of_budgets(axes[0], results)
    figure.supxlabel("dots: tasks, diamonds: their medians", fontsize="small")
    return figure


def runtime_panel(results: Results, name: str) -> Figure:
    """Return one of the two panels of the times as a figure."""
    figure = Figure(
        figsize=(4.1, 1.3 + 0.45 * len(results.settings)), layout="constrained"
    )
    ax = figure.subplots()
    _draw_times(ax, results, name)
    _legend_of_budgets(ax, results)
    return figure


def _draw_metric(ax: Axes, results: Results, metric: str, task: str) -> None:
    settings, budgets = results.settings, results.budgets
    published = published_beside(results.jobs(task)) if metric == "c2st" else []
    for method in published if task in PUBLISHED_C2ST else ():
        values = [published_c2st(task, method, budget) for budget in BUDGETS]
        ax.plot(BUDGETS, values, zorder=1, **_published_look(method))
    for index, setting in enumerate(settings):
        points = []
        for budget in budgets:
            group = results.group(task, setting, budget)
            if group is not None and math.isfinite(group.value(metric)[0]):
                # Side by side, as errors that overlap hide one another.
                shift = 1.05 ** (index - (len(settings) - 1) / 2)
                points.append(
                    (budget * shift, *group.value(metric), not group.is_comparable)
                )
        if points:
            at, means, errors, _ = zip(*points, strict=True)
            ax.errorbar(
                at,
                means,
                yerr=[0.0 if math.isnan(error) else error for error in errors],
                elinewidth=1.0,
                **_line_look(index),
            )
            hollow = [point[:2] for point in points if point[-1]]
            if hollow:
                ax.plot(*zip(*hollow, strict=True), **_line_look(index) | _HOLLOW)
    ax.set_xscale("log")
    ends = [*budgets, *(BUDGETS if published else ())]
    ax.set_xlim(min(ends) / 1.6, max(ends) * 1.6)
    # Powers of ten label themselves, and more than three numbers would overlap.
    if len(budgets) <= 3 and any(math.log10(budget) % 1.0 for budget in budgets):
        far = [end for end in ends if min(_decades(end, b) for b in budgets) > 0.45]
        ticks = sorted({*budgets, *far})
        ax.set_xticks(ticks, [f"{tick:,}" for tick in ticks])
        ax.xaxis.set_minor_locator(NullLocator())
    if metric in CLASSIFIER_METRICS:
        ax.set_ylim(0.48, 1.02)
        ax.axhline(0.5, color=GREY, linewidth=0.6, zorder=0)
    ax.set_title(task, fontsize="medium")
    ax.tick_params(labelsize="small")
    despine(ax)


def _decades(one: float, other: float) -> float:
    return abs(math.log10(one / other))


def _published_look(method: str) -> dict[str, object]:
    is_sequential = method not in _PUBLISHED_MARKERS
    return {
        **_PUBLISHED_LOOK,
        "marker": _PUBLISHED_MARKERS[method.removeprefix("S")],
        "linestyle": "--" if is_sequential else ":",
    }


def _line_look(index: int) -> dict[str, object]:
    return {
        "color": LINES[index % len(LINES)],
        "marker": _MARKERS[index % len(_MARKERS)],
        # Colours come again after six, with another line.
        "linestyle": ("-", "--", "-.")[index // len(LINES) % 3],
        "linewidth": 1.2,
        "markersize": 4.5,
        "zorder": 2,
    }


def _handles(results: Results, metric: str) -> list[Line2D]:
    handles = []
    for index, setting in enumerate(results.settings):
        label = results.labels[setting]
        handles.append(Line2D([], [], label=label, **_line_look(index)))
    if metric == "c2st":
        handles += [
            Line2D(
                [],
                [],
                label=f"{published_label(name)}, published (ten observations)",
                **_published_look(name),
            )
            for name in published_beside(results.jobs())
        ]
    if any(group.num_done and not group.is_comparable for group in results.groups):
        look = (
            _line_look(0) | _HOLLOW | {"color": GREY, "label": "hollow: not comparable"}
        )
        handles.append(Line2D([], [], **look))
    return handles


def _draw_times(ax: Axes, results: Results, name: str) -> None:
    settings, budgets = results.settings, results.budgets
    colors = ordered_colors(len(budgets))
    for row, setting in enumerate(settings):
        for place, budget in enumerate(budgets):
            seconds = results.seconds(name, setting, budget)
            if not seconds:
                continue
            y = row + 0.6 * ((place + 0.5) / len(budgets) - 0.5)
            ax.plot(
                [_positive(value) for value in seconds],
                [y] * len(seconds),
                "o",
                color=colors[place],
                markersize=3.0,
                alpha=0.45,
                markeredgewidth=0.0,
            )
            median = _positive(statistics.median(seconds))
            ax.plot([median], [y], "D", color=colors[place], markersize=5.5)
    ax.set_xscale("log")
    ax.set_yticks(
        range(len(settings)), [fill(results.labels[s], _LABEL_WIDTH) for s in settings]
    )
    ax.set_ylim(len(settings) - 0.5, -0.5)
    ax.grid(axis="x", color="#E4E4E4", linewidth=0.6)
    ax.set_axisbelow(True)
    ax.set_xlabel(f"{_TIMES[name]} [s]")
    despine(ax)


def _positive(seconds: float) -> float:
    # Nothing to train takes no time, which a logarithm cannot show.
    return seconds if seconds > 0.0 else math.nan


def _legend_of_budgets(ax: Axes, results: Results) -> None:
    colors = ordered_colors(len(results.budgets))
    handles = [
        Line2D([], [], marker="D", linestyle="", color=color, label=f"{budget:,}")
        for budget, color in zip(results.budgets, colors, strict=True)
    ]
    ax.legend(
        handles=handles,
        title="simulations",
        title_fontsize="small",
        fontsize="small",
        loc="lower left",
        bbox_to_anchor=(0.0, 1.0),
        ncols=4,
        frameon=False,
        borderaxespad=0.2,
        alignment="left",
    )
