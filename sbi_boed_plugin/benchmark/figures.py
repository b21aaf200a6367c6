"""Figures of a benchmark: metrics and times against the budget."""

import math
from textwrap import fill
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, NullLocator

from sbi_boed_plugin.benchmark.metrics import CLASSIFIER_METRICS
from sbi_boed_plugin.benchmark.summary import SECONDS, Results
from sbi_boed_plugin.benchmark.tables import published_beside
from sbi_boed_plugin.plotting._style import GREY, LINES, despine, ordered_colors

__all__ = ["METRIC_LABELS", "metric_figure", "runtime_figure"]

METRIC_LABELS = {
    "c2st": "C2ST",
    "c2st_forest": "C2ST, random forest",
    "mmd": "MMD²",
    "ppc": "Median distance",
}
_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
_PUBLISHED_MARKERS = {"NLE": "o", "NPE": "^", "NRE": "v"}
_HOLLOW = {"markerfacecolor": "white", "linestyle": "", "zorder": 3}
_NUM_COLUMNS = 5
# Powers of ten between two tick labels, so that they do not overlap.
_TICK_GAP = 0.45


def metric_figure(results: Results, metric: str) -> Figure:
    """Plot a metric against the budget, one panel per task.

    Markers are hollow where means are no fair comparison with others, as posteriors
    lack or have cost more simulations. Published values are shown beside `"c2st"` only,
    as other classifiers give other numbers, and only beside jobs like theirs.
    """
    tasks = results.tasks
    num_columns = min(_NUM_COLUMNS, len(tasks))
    num_rows = math.ceil(len(tasks) / num_columns)
    handles = _handles(results, metric)
    width = max(4.6, 2.5 * num_columns + 0.5)
    # Inches that a line and the longest name take.
    name_width = 0.45 + 0.07 * max(len(str(handle.get_label())) for handle in handles)
    legend_columns = max(1, min(len(handles), int(width / name_width)))
    height = 2.3 * num_rows + 0.22 * math.ceil(len(handles) / legend_columns) + 0.15
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots(
        num_rows, num_columns, sharey=metric in CLASSIFIER_METRICS, squeeze=False
    ).ravel()
    for index, task in enumerate(tasks):
        _draw_metric(axes[index], results, metric, task)
        if index % num_columns == 0:
            axes[index].set_ylabel(METRIC_LABELS.get(metric, metric))
        if index >= len(tasks) - num_columns:
            axes[index].set_xlabel("simulations")
    for ax in axes[len(tasks) :]:
        ax.remove()
    figure.legend(
        handles=handles,
        loc="outside upper left",
        ncols=legend_columns,
        frameon=False,
        fontsize="small",
        handlelength=1.6,
    )
    return figure


def runtime_figure(results: Results) -> Figure:
    """Plot times by method: a dot per task, and a diamond for the median over tasks."""
    labels, budgets = results.labels, results.budgets
    colors = ordered_colors(len(budgets))
    figure = Figure(figsize=(9.0, 1.3 + 0.45 * len(labels)), layout="constrained")
    axes = figure.subplots(1, 2, sharey=True)
    for ax, name in zip(axes, SECONDS[:2], strict=True):
        _draw_times(ax, results, name, colors)
    # Longer names go on in the next line: they must leave room for the data.
    axes[0].set_yticks(range(len(labels)), [fill(text, 20) for text in labels])
    axes[0].set_ylim(len(labels) - 0.5, -0.5)
    handles = [
        Line2D([], [], marker="D", linestyle="", color=color, label=f"{budget:,}")
        for budget, color in zip(budgets, colors, strict=True)
    ]
    look = {"loc": "outside upper left", "ncols": 5, "frameon": False}
    figure.legend(handles=handles, title="simulations", fontsize="small", **look)
    figure.supxlabel("dots: tasks, diamonds: their medians", fontsize="small")
    return figure


def _draw_times(ax: Axes, results: Results, name: str, colors: list[str]) -> None:
    # Nothing to train takes no time, which a logarithm cannot show.
    times = results.cells[["label", "num_simulations", name]].dropna()
    times = times.loc[times[name] > 0.0]
    groups: Any = times.groupby(["label", "num_simulations"])[name]
    for (label, budget), dots in groups:
        place = results.budgets.index(budget)
        y = results.labels.index(label) + 0.6 * ((place + 0.5) / len(colors) - 0.5)
        ax.plot(dots, [y] * len(dots), "o", color=colors[place], ms=3.0, alpha=0.45)
        ax.plot([dots.median()], [y], "D", color=colors[place], ms=5.5)
    ax.set_xscale("log")
    # Between few powers of ten there are ticks at 2 and 5 as well.
    is_narrow = len(times) > 0 and times[name].max() < 30.0 * times[name].min()
    subs = (1.0, 2.0, 5.0) if is_narrow else (1.0,)
    ax.xaxis.set_major_locator(LogLocator(subs=subs, numticks=9))
    ax.xaxis.set_major_formatter(FuncFormatter(lambda seconds, _: f"{seconds:g}"))
    ax.xaxis.set_minor_formatter(NullFormatter())
    ax.grid(axis="x", color="#E4E4E4", linewidth=0.6)
    ax.set_xlabel(f"{name.removesuffix('_seconds')} [s]")
    despine(ax)


def _draw_metric(ax: Axes, results: Results, metric: str, task: str) -> None:
    cells = results.cells.loc[results.cells["task"] == task]
    ends = set(cells["num_simulations"])
    for method, rows in _published(cells, metric):
        ends |= set(rows["num_simulations"])
        look = _published_look(method)
        ax.plot(rows["num_simulations"], rows["c2st"], zorder=1, **look)
    for index, label in enumerate(results.labels):
        rows = cells.loc[cells["label"] == label].dropna(subset=[metric])
        # Side by side, as errors that overlap hide one another.
        at = rows["num_simulations"] * 1.05 ** (index - (len(results.labels) - 1) / 2)
        look = _line_look(index)
        errors = rows[f"{metric}_se"].fillna(0.0)
        ax.errorbar(at, rows[metric], yerr=errors, elinewidth=1.0, **look)
        unfair = ~rows["is_comparable"]
        ax.plot(at[unfair], rows[metric][unfair], **look | _HOLLOW)
    ax.set_xscale("log")
    ax.set_xlim(min(ends) / 1.6, max(ends) * 1.6)
    ticks: list[int] = []
    for end in sorted(ends):
        if not ticks or math.log10(end / ticks[-1]) > _TICK_GAP:
            ticks.append(end)
    ax.set_xticks(ticks, [f"{tick:,}" for tick in ticks])
    ax.xaxis.set_minor_locator(NullLocator())
    if metric in CLASSIFIER_METRICS:
        ax.set_ylim(0.48, 1.02)
        ax.axhline(0.5, color=GREY, linewidth=0.6, zorder=0)
    ax.set_title(task, fontsize="medium")
    ax.tick_params(labelsize="small")
    despine(ax)


def _published(cells: pd.DataFrame, metric: str) -> Any:
    """Return published methods with their values; other classifiers have others."""
    return published_beside(cells).groupby("method") if metric == "c2st" else ()


def _published_look(method: str) -> dict[str, object]:
    return {
        "color": "#A0A0A0",
        "fillstyle": "none",
        "linewidth": 0.8,
        "markersize": 5.0,
        "marker": _PUBLISHED_MARKERS[method.removeprefix("S")],
        "linestyle": "--" if method.startswith("S") else ":",
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
    looks = {label: _line_look(index) for index, label in enumerate(results.labels)}
    for method, _ in _published(results.cells, metric):
        rounds = ", ten rounds" if method.startswith("S") else ""
        name = f"{method}{rounds}, published (ten observations)"
        looks[name] = _published_look(method)
    done = results.cells[results.cells["num_done"] > 0]
    if not done["is_comparable"].all():
        looks["hollow: not comparable"] = _line_look(0) | _HOLLOW | {"color": GREY}
    return [Line2D([], [], label=label, **look) for label, look in looks.items()]
