"""Everything that is written about the results of a benchmark."""

import base64
import io
import re
from collections import Counter
from pathlib import Path
from typing import Any

import jinja2
import matplotlib
from markupsafe import Markup, escape
from matplotlib.figure import Figure

from sbi_boed_plugin._atomic import write_bytes
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
from sbi_boed_plugin.benchmark.tables import difference_table, metric_table, time_table

__all__ = ["write_report"]

# More of them would be numbers that differ from job to job.
_NUM_WARNINGS = 100


def write_report(folder: Path, output: Path | str | None) -> list[Path]:
    """Write what `make_report` promises, and return the paths."""
    results = read_results(folder)
    written = ResultFolder(folder if output is None else Path(output))
    counts = ["num_observations", "num_seeds", "num_done", "num_failed"]
    names = [*results.metrics, *SECONDS]
    columns = [part for name in names for part in (name, f"{name}_se")]
    summary = results.cells[[*CELL, *counts, *columns]]
    texts = {
        "results.csv": results.jobs.drop(columns="label").to_csv(index=False),
        "summary.csv": summary.to_csv(index=False),
    }
    if len(results.differences):
        rows = results.differences.drop(columns=["label", "reference_label"])
        texts["differences.csv"] = rows.to_csv(index=False)
    figures = {name: metric_figure(results, name) for name in results.metrics}
    figures["runtimes"] = runtime_figure(results)
    content = _content(results) | {
        "name": folder.resolve().name,
        "figures": {key: _image(figure) for key, figure in figures.items()},
    }
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=jinja2.select_autoescape(["html"]),
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["breakable"] = _breakable
    for name, template in (("summary.md", "report.md"), ("index.html", "report.html")):
        texts[name] = environment.get_template(template).render(content)
    for name, text in texts.items():
        write_bytes(written.path / name, text.encode())
    for name, figure in figures.items():
        written.save_figure(f"{name}.png", figure)
    return [written.path / name for name in [*texts, *written.written]]


def _content(results: Results) -> dict[str, Any]:
    """Return what both templates show."""
    failed = [
        {**record, "job": str(Job(**record["job"]))}
        for record in results.records
        if record["error"]
    ]
    warned = Counter(text for record in results.records for text in record["warnings"])
    tables = {
        name: {
            budget: metric_table(results, name, budget) for budget in results.budgets
        }
        for name in [*results.metrics, *SECONDS[:2]]
    }
    columns = [
        name for table in tables.get("c2st", {}).values() for name in table.texts
    ]
    return {
        "results": results,
        "num_failed": sum(results.jobs["status"] == "failed"),
        "labels": METRIC_LABELS,
        "classifiers": CLASSIFIER_METRICS,
        "counts": _counts_text(results),
        "tables": tables,
        "has_published": any(name.endswith(", published") for name in columns),
        "differences": {
            name: table
            for name in results.metrics
            if (table := difference_table(results, name)) is not None
        },
        "times": time_table(results),
        "load": results.jobs["load"].dropna().mean(),
        "failed": failed,
        "num_warnings": len(warned),
        "warnings": warned.most_common(_NUM_WARNINGS),
        "versions": Counter(describe_versions(r["versions"]) for r in results.records),
    }


def _counts_text(results: Results) -> str:
    """Say what a mean of the tables is over."""
    cells = results.cells.loc[results.cells["num_done"] > 0]
    counts = cells.loc[:, ["num_observations", "num_seeds"]]
    most = dict(zip(("observation", "seed"), counts.max().fillna(0), strict=True))
    of = " and ".join(
        f"{number} {name}{'' if number == 1 else 's'}" for name, number in most.items()
    )
    if len(counts.drop_duplicates()) > 1:
        of = f"up to {of}; summary.csv has the numbers of each cell"
    return (
        f"Mean ± standard error over observations, each the mean over its seeds; {of}. "
        "Observations share seeds, and mostly trainings: the error leaves out how much "
        "trainings differ. Means over fewer posteriors than others have are not ranked."
    )


def _image(figure: Figure) -> str:
    """Return a figure as the address of an image, sharp at any size."""
    content = io.BytesIO()
    # The same results give the same page, to the last byte.
    with matplotlib.rc_context({"svg.hashsalt": "benchmark"}):
        figure.savefig(content, format="svg", metadata={"Date": None})
    return f"data:image/svg+xml;base64,{base64.b64encode(content.getvalue()).decode()}"


def _breakable(name: str) -> Markup:
    """Escape a name, and let it go on in the next line where its words end."""
    return Markup(re.sub(r"([_.:=])", r"\1<wbr>", str(escape(name))))
