"""Tables of a report, which the page and `summary.md` both show."""

import math
from typing import Any, NamedTuple

import pandas as pd

from sbi_boed_plugin.benchmark.metrics import CLASSIFIER_METRICS
from sbi_boed_plugin.benchmark.summary import Results

__all__ = [
    "Table",
    "difference_table",
    "format_number",
    "metric_table",
    "time_table",
]


class Table(NamedTuple):
    """Texts of cells, each a number with a space before what is to be said of it.

    `best` tells whether a cell is the best of its row, `accuracies` are numbers that
    the page shows as colours.
    """

    texts: pd.DataFrame
    best: pd.DataFrame = pd.DataFrame()
    accuracies: pd.DataFrame = pd.DataFrame()


def metric_table(results: Results, name: str, budget: int) -> Table:
    """Return a metric or time of tasks and methods at one budget.

    The lowest mean of a row is the best one, among those that are comparable.
    """
    rows = results.cells.loc[results.cells["num_simulations"] == budget].copy()
    rows["text"] = [_cell_text(row, name) for row in rows.to_dict("records")]
    rows["ranked"] = rows[name].where(rows["is_comparable"])
    tasks = rows["task"].unique()
    labels = [label for label in results.labels if label in set(rows["label"])]
    texts, values, ranked = (
        rows.pivot(index="task", columns="label", values=column).reindex(
            index=tasks, columns=labels
        )
        for column in ("text", name, "ranked")
    )
    if name in CLASSIFIER_METRICS and len(texts) > 1:
        # Missing for who lacks a posterior that others have.
        means = ranked.mean(skipna=False)
        texts.loc["mean"] = means.map(format_number)
        ranked.loc["mean"] = values.loc["mean"] = means
    best = ranked.eq(ranked.min(axis=1), axis=0)
    accuracies = values.dropna(how="all") if name in CLASSIFIER_METRICS else values[:0]
    return Table(texts.fillna(""), best, accuracies)


def difference_table(results: Results, metric: str) -> Table | None:
    """Return the paired differences of a metric, or `None` if there are none."""
    rows = results.differences
    rows = rows.loc[rows["metric"] == metric].copy()
    if rows.empty:
        return None
    pairs = zip(rows["difference"], rows["difference_se"], strict=True)
    rows["text"] = [_with_error(*pair, signed=True) for pair in pairs]
    rows["pair"] = rows["label"] + " − " + rows["reference_label"] + ", "
    rows["pair"] += rows["num_simulations"].map("{:,}".format)
    rows["place"] = rows["label"].map(results.labels.index)
    columns = rows.sort_values(["place", "num_simulations"])["pair"].unique()
    texts = rows.pivot(index="task", columns="pair", values="text")
    return Table(texts.reindex(index=rows["task"].unique(), columns=columns).fillna(""))


def time_table(results: Results) -> Table:
    """Return medians of times over tasks, which say if they are of some tasks only."""
    done = results.cells.loc[results.cells["num_done"] > 0]
    texts = pd.DataFrame("–", index=results.labels, columns=[])
    for name in ("training", "sampling"):
        for budget in results.budgets:
            rows = done.loc[done["num_simulations"] == budget]
            most = rows["task"].nunique()
            times = rows.groupby("label")[f"{name}_seconds"].agg(["median", "count"])
            shown = times["median"].map(format_number)
            some = times["count"].between(1, most - 1)
            shown[some] += " " + times["count"].astype(str) + f" of {most} tasks"
            column = shown.astype(object).reindex(results.labels)
            texts[f"{name} [s], {budget:,}"] = column.fillna(format_number(math.nan))
    return Table(texts)


def format_number(value: float, like: float | None = None, signed: bool = False) -> str:
    """Return a number with what of it means something: a dash for NaN.

    `like` is a number whose digits to follow, such as the mean of a standard error.

    Example:
        >>> [format_number(v) for v in (0.61234, 12.345, 1234.5, float("nan"))]
        ['0.612', '12.3', '1,234', '–']
        >>> format_number(0.00041, like=0.61234)
        '0.000'
    """
    if math.isnan(value):
        return "–"
    size = abs(value if like is None else like)
    sign = "+" if signed else ""
    if value and size < 0.0005:
        return f"{value:{sign}.1e}"
    digits = 4 if size < 0.01 else 3 if size < 10 else 1 if size < 100 else 0
    return f"{value:{sign},.{digits}f}"


def _with_error(mean: float, error: float, signed: bool = False) -> str:
    text = format_number(mean, signed=signed)
    return text if math.isnan(error) else f"{text} ± {format_number(error, like=mean)}"


def _cell_text(cell: dict[str, Any], name: str) -> str:
    if not cell["num_done"]:
        return "failed"
    notes = []
    if cell["num_done"] < cell["num_expected"]:
        notes.append(f"{cell['num_done']} of {cell['num_expected']}")
    if cell["caveats"]:
        notes.append(cell["caveats"])
    if cell["num_failed"]:
        notes.append(f"{cell['num_failed']} failed")
    text = _with_error(cell[name], cell[f"{name}_se"])
    return f"{text} ({', '.join(notes)})" if notes else text
