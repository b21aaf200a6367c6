"""Bounds of the total information of many experiments: a table and a figure."""

from collections.abc import Callable, Sequence
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from benchmarks.papers._campaigns import in_order, summarize, with_error
from benchmarks.study import Job, Row, Study
from sbi_boed_plugin.plotting._style import GREY, LINES, despine, legend_above

__all__ = ["pooled_study"]


def pooled_study(
    name: str,
    title: str,
    methods: Sequence[str],
    run: Callable[[Job, bool], Row],
    *,
    published: float,
    published_label: str,
    num_seeds: int,
    jobs: Callable[[int, bool], Sequence[Job]] | None = None,
) -> Study:
    """Return a study whose jobs are groups of experiments, one per method and seed.

    The published value, in nats, is a line of its figure.
    """

    def one_per_method(num_seeds: int, quick: bool) -> list[Job]:
        return [{"method": m, "seed": s} for s in range(num_seeds) for m in methods]

    def figure(rows: Sequence[Row]) -> Figure:
        return _plot(in_order(rows, methods), published, published_label)

    return Study(
        name=name,
        title=title,
        jobs=jobs or one_per_method,
        run=run,
        summary=lambda rows: _bounds(in_order(rows, methods)),
        figure=figure,
        num_seeds=num_seeds,
    )


def _bounds(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Return bounds of each method with standard errors over single experiments.

    Truths differ in how much there is to learn about them, so that means vary; the
    difference from random designs for the same truths, `"beyond_random"`, varies less.
    """
    columns = {"kl_prior": 4, "kl_chosen": 4, "training_seconds": 0, "cpu_seconds": 0}
    table = summarize(rows, ["method"], columns)
    for line in table:
        group = [row for row in rows if row["method"] == line["method"]]
        line["experiments"] = len(_each(group, "spce"))
        for name in ("spce", "snmc"):
            line[name] = with_error(_each(group, name), 2)
        line["beyond_random"] = with_error(_beyond_random(rows, group), 2)
    return table


def _plot(rows: Sequence[Row], published: float, label: str) -> Figure:
    """Draw the bounds of each method, with every experiment as a dot."""
    figure = Figure(figsize=(7.0, 3.8), layout="constrained")
    ax = figure.subplots()
    names = list(dict.fromkeys(str(row["method"]) for row in rows))
    bounds = {"spce": "lower bound (sPCE)", "snmc": "upper bound (sNMC)"}
    for place, name in enumerate(names):
        group = [row for row in rows if row["method"] == name]
        for index, (column, text) in enumerate(bounds.items()):
            values, at = _each(group, column), place + 0.24 * (index - 0.5)
            style = {"color": LINES[index], "ls": "none"}
            ax.plot(values, [at] * len(values), marker="o", ms=3, alpha=0.25, **style)
            mean, error = pd.Series(values).mean(), pd.Series(values).sem()
            label_once = None if place else text
            ax.errorbar(mean, at, xerr=error, marker="|", ms=12, mew=2, **style)
            ax.plot([], [], marker="o", label=label_once, **style)
    ax.axvline(published, color=GREY, ls="--", lw=1, label=label)
    ax.set_yticks(range(len(names)), names)
    ax.set_ylim(len(names) - 0.5, -0.5)
    ax.set_xlabel("total information [nats]")
    despine(ax)
    legend_above(ax, num_columns=2)
    return figure


def _beyond_random(rows: Sequence[Row], group: Sequence[Row]) -> list[float]:
    """Return differences in sPCE from random designs for the same truths."""
    random = {r["seed"]: r for r in rows if r["method"] == "random, uniform"}
    differences = []
    for row in group:
        if row["seed"] in random and row["method"] != "random, uniform":
            pair = zip(
                _each([row], "spce"), _each([random[row["seed"]]], "spce"), strict=True
            )
            differences += [value - other for value, other in pair]
    return differences


def _each(rows: Sequence[Row], name: str) -> list[float]:
    """Return the values of single experiments."""
    return [float(v) for row in rows for v in str(row[f"{name}_each"]).split()]
