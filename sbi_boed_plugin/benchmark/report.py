"""Everything that is written about the results of a benchmark."""

import base64
import io
import re
from collections import Counter
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup, escape

from sbi_boed_plugin._results import ResultFolder
from sbi_boed_plugin.benchmark.figures import METRIC_LABELS, metric_figure
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
    for name in results.metrics:
        image = io.BytesIO()
        metric_figure(results, name).savefig(image, format="png", dpi=150)
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
        "counts": _counts_text(results),
        "tables": {
            name: {n: metric_table(results, name, n) for n in results.budgets}
            for name in [*results.metrics, *SECONDS[:2]]
        },
        "differences": {name: table for name, table in differences.items() if table},
        "times": time_table(results),
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


def _breakable(name: str) -> Markup:
    """Escape a name, and let it go on in the next line where its words end."""
    return Markup(re.sub(r"([_.:=])", r"\1<wbr>", str(escape(name))))
