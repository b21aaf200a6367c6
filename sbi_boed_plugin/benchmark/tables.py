"""Tables of a report, which the page and `summary.md` both show."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import pandas as pd

from sbi_boed_plugin.benchmark.metrics import CLASSIFIER_METRICS
from sbi_boed_plugin.benchmark.published import published_beside
from sbi_boed_plugin.benchmark.summary import Results

__all__ = [
    "Table",
    "difference_table",
    "format_number",
    "metric_table",
    "time_table",
    "to_markdown",
]

_BLUE, _VERMILLION = "0 114 178", "213 94 0"


class Table(NamedTuple):
    """Texts of cells, and how the page shows them.

    Attributes:
        texts: Each a number, with a space before what is to be said of it.
        best: Whether a cell is the best of its row.
        colors: Backgrounds, as CSS has them.
        means: Means over tasks, missing for who lacks a posterior.
    """

    texts: pd.DataFrame
    best: pd.DataFrame = pd.DataFrame()
    colors: pd.DataFrame = pd.DataFrame()
    means: pd.Series = pd.Series(dtype=float)


def metric_table(results: Results, name: str, budget: int) -> Table:
    """Return a metric or time of tasks and methods at one budget.

    The lowest mean of a row is the best one, among those that are comparable.
    """
    rows = results.cells.loc[results.cells["num_simulations"] == budget].copy()
    rows["text"] = [_cell_text(row, name) for row in rows.to_dict("records")]
    rows["ranked"] = rows[name].where(rows["is_comparable"])
    labels = [label for label in results.labels if label in set(rows["label"])]
    texts, values, ranked = (
        rows.pivot(index="task", columns="label", values=column).reindex(
            index=rows["task"].unique(), columns=labels
        )
        for column in ("text", name, "ranked")
    )
    means = ranked.mean(skipna=False)
    if name in CLASSIFIER_METRICS and len(texts) > 1:
        texts.loc["mean"] = means.map(format_number)
        ranked.loc["mean"] = values.loc["mean"] = means
    best = ranked.eq(ranked.min(axis=1), axis=0)
    # From one half, where a classifier tells nothing, to one.
    colors = (2.0 * values - 1.0).map(_color)
    if name not in CLASSIFIER_METRICS:
        colors.loc[:] = ""
    if name == "c2st":
        beside = published_beside(rows)
        beside = beside.loc[beside["num_simulations"] == budget]
        for method, values in beside.groupby("method"):
            found = values.set_index("task")["c2st"].reindex(rows["task"].unique())
            found["mean"] = found.mean(skipna=False)
            shown = found.map("{:.3f}".format).where(found.notna())
            texts[f"{method}, published"] = shown.reindex(texts.index)
    return Table(texts.fillna(""), best, colors, means)


def difference_table(results: Results, metric: str) -> Table | None:
    """Return the paired differences of a metric, or `None` if there are none."""
    rows = results.differences
    rows = rows.loc[rows["metric"] == metric].copy()
    if rows.empty:
        return None
    rows["text"] = [
        _with_error(mean, error, signed=True)
        for mean, error in zip(rows["difference"], rows["difference_se"], strict=True)
    ]
    rows["pair"] = rows["label"] + " − " + rows["reference_label"] + ", "
    rows["pair"] += rows["num_simulations"].map("{:,}".format)
    rows["place"] = rows["label"].map(results.labels.index)
    columns = rows.sort_values(["place", "num_simulations"])["pair"].unique()
    texts = rows.pivot(index="task", columns="pair", values="text")
    return Table(texts.reindex(index=rows["task"].unique(), columns=columns).fillna(""))


def time_table(results: Results) -> Table:
    """Return medians of times over tasks, which say if they are of some tasks only."""
    done = results.cells.loc[results.cells["num_done"] > 0]
    most = done.groupby("num_simulations")["task"].nunique()
    texts = pd.DataFrame("–", index=results.labels, columns=[])
    for name in ("training", "sampling"):
        for budget in results.budgets:
            rows = done.loc[done["num_simulations"] == budget]
            times = rows.groupby("label")[f"{name}_seconds"].agg(["median", "count"])
            texts[f"{name} [s], {budget:,}"] = [
                format_number(times["median"].get(label, math.nan))
                + (
                    f" {count} of {most[budget]} tasks"
                    if 0 < (count := times["count"].get(label, 0)) < most[budget]
                    else ""
                )
                for label in results.labels
            ]
    return Table(texts)


def to_markdown(table: Table, corner: str = "task") -> list[str]:
    """Return the lines of a table in Markdown, the best of each row in bold."""
    columns = list(table.texts)
    lines = ["| " + " | ".join([corner, *columns]) + " |"]
    lines.append("|---" * (1 + len(columns)) + "|")
    for name, row in table.texts.iterrows():
        texts = []
        for column, text in row.items():
            number, _, rest = text.partition(" ")
            if column in table.best and table.best.loc[name, column]:
                number = f"**{number}**"
            texts.append(f"{number} {rest}".strip())
        lines.append("| " + " | ".join([str(name), *texts]) + " |")
    return lines


def format_number(value: float, like: float | None = None, signed: bool = False) -> str:
    """Return a number with what of it means something.

    Args:
        value: The number.
        like: A number whose digits to follow, such as the mean of a standard error.
        signed: Whether to show the sign of positive numbers, as for differences.

    Returns:
        Text of a few characters, a dash for NaN.

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
    notes: Sequence[str] = [cell["caveats"]] if cell["caveats"] else []
    if cell["num_done"] < cell["num_expected"]:
        notes = [f"{cell['num_done']} of {cell['num_expected']}", *notes]
    if cell["num_failed"]:
        notes = [*notes, f"{cell['num_failed']} failed"]
    text = _with_error(cell[name], cell[f"{name}_se"])
    return f"{text} ({', '.join(notes)})" if notes else text


def _color(place: float) -> str:
    """Return a colour for a place between 0, good, and 1, bad."""
    strength = min(abs(place - 0.5), 0.5) if math.isfinite(place) else 0.0
    color = _BLUE if place < 0.5 else _VERMILLION
    return f"rgb({color} / {strength:.2f})" if strength >= 0.005 else ""
