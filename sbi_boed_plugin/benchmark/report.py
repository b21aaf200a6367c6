"""Everything that is written about the results of a benchmark.

The page and `summary.md` show the same tables.
"""

import base64
import io
import math
import re
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import jinja2
import pandas as pd
from markupsafe import Markup, escape

from sbi_boed_plugin._results import ResultFolder
from sbi_boed_plugin.benchmark.figures import (
    METRIC_LABELS,
    metric_figure,
    runtime_figure,
)
from sbi_boed_plugin.benchmark.jobs import Job
from sbi_boed_plugin.benchmark.metrics import CLASSIFIER_METRICS
from sbi_boed_plugin.benchmark.runner import describe_versions
from sbi_boed_plugin.benchmark.summary import CELL, SECONDS, Results, read_results

__all__ = ["Table", "difference_table", "format_number", "metric_table", "write_report"]

# More of them would be numbers that differ from job to job.
_NUM_WARNINGS = 100


def write_report(folder: Path, output: Path | str | None) -> list[Path]:
    """Write what `make_report` promises, and return the paths."""
    results = read_results(folder)
    written = ResultFolder(folder if output is None else Path(output))
    counts = ["num_observations", "num_seeds", "num_done", "num_failed"]
    names = [*results.metrics, *SECONDS]
    columns = [part for name in names for part in (name, f"{name}_se")]
    tables = {
        "results.csv": results.jobs.drop(columns="label"),
        "summary.csv": results.cells[[*CELL, *counts, *columns]],
    }
    if len(results.differences):
        labels = ["label", "reference_label"]
        tables["differences.csv"] = results.differences.drop(columns=labels)
    for name, table in tables.items():
        written.save(name, table.to_csv(index=False).encode())
    content = {"name": folder.resolve().name, "figures": {}, **_content(results)}
    figures = {name: metric_figure(results, name) for name in results.metrics}
    for name, figure in [*figures.items(), ("runtimes", runtime_figure(results))]:
        image = io.BytesIO()
        figure.savefig(image, format="png", dpi=150)
        written.save(f"{name}.png", image.getvalue())
        content["figures"][name] = base64.b64encode(image.getvalue()).decode()
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=jinja2.select_autoescape(["html"]),
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["breakable"] = _breakable
    for name, template in (("summary.md", "report.md"), ("index.html", "report.html")):
        text = environment.get_template(template).render(content)
        written.save(name, text.encode())
    return [written.path / name for name in written.written]


def _content(results: Results) -> dict[str, Any]:
    """Return what both templates show."""
    records = results.records
    warned = Counter(text for record in records for text in record["warnings"])
    differences = {name: difference_table(results, name) for name in results.metrics}
    return {
        "results": results,
        "num_failed": sum(results.jobs["status"] == "failed"),
        "labels": METRIC_LABELS,
        "classifiers": CLASSIFIER_METRICS,
        "tables": {
            name: {n: metric_table(results, name, n) for n in results.budgets}
            for name in [*results.metrics, *SECONDS[:2]]
        },
        "differences": {name: table for name, table in differences.items() if table},
        "times": SECONDS[:2],
        "load": results.jobs["load"].dropna().mean(),
        "failed": [
            {**record, "job": str(Job(**record["job"]))}
            for record in records
            if record["error"]
        ],
        "num_warnings": len(warned),
        "warnings": warned.most_common(_NUM_WARNINGS),
        "versions": Counter(describe_versions(r["versions"]) for r in records),
    }


def _breakable(name: str) -> Markup:
    """Escape a name, and let it go on in the next line where its words end."""
    return Markup(re.sub(r"([_.:=])", r"\1<wbr>", str(escape(name))))


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
