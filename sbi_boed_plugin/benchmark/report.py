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
from sbi_boed_plugin.benchmark.published import CITATION, URL
from sbi_boed_plugin.benchmark.runner import describe_versions
from sbi_boed_plugin.benchmark.summary import CELL, SECONDS, Results, read_results
from sbi_boed_plugin.benchmark.tables import (
    difference_table,
    metric_table,
    time_table,
    to_markdown,
)

__all__ = ["page", "write_report"]

# More of them would be numbers that differ from job to job.
_NUM_WARNINGS = 100


def write_report(folder: Path, output: Path | str | None) -> list[Path]:
    """Write what `make_report` promises, and return the paths."""
    results = read_results(folder)
    written = ResultFolder(folder if output is None else Path(output))
    texts = {
        "results.csv": results.jobs.drop(columns="label").to_csv(index=False),
        "summary.csv": results.cells[_summary_columns(results)].to_csv(index=False),
    }
    if len(results.differences):
        rows = results.differences.drop(columns=["label", "reference_label"])
        texts["differences.csv"] = rows.to_csv(index=False)
    figures = {name: metric_figure(results, name) for name in results.metrics}
    if results.cells["num_done"].any():
        figures["runtimes"] = runtime_figure(results)
    texts["summary.md"] = _markdown(results)
    texts["index.html"] = page(results, folder.resolve().name, figures)
    for name, text in texts.items():
        write_bytes(written.path / name, text.encode())
    for name, figure in figures.items():
        written.save_figure(f"{name}.png", figure)
    return [written.path / name for name in [*texts, *written.written]]


def _summary_columns(results: Results) -> list[str]:
    counts = ["num_observations", "num_seeds", "num_done", "num_failed"]
    names = [*results.metrics, *SECONDS]
    return [*CELL, *counts, *(part for name in names for part in (name, f"{name}_se"))]


def _markdown(results: Results) -> str:
    """Return all tables in Markdown."""
    num_failed = sum(results.jobs["status"] == "failed")
    lines = [f"# {len(results.records)} jobs, {num_failed} failed", ""]
    if results.shared:
        lines += [f"All with {', '.join(results.shared)}.", ""]
    lines += [counts_text(results), ""]
    for name in [*results.metrics, *SECONDS[:2]]:
        for budget in results.budgets:
            lines += [f"## {name}, {budget:,} simulations", ""]
            lines += [*to_markdown(metric_table(results, name, budget)), ""]
        if name in results.metrics and (table := difference_table(results, name)):
            lines += [f"## {name}: ours minus sbi's", ""]
            lines += ["Paired by observation and seed; below 0, ours is better.", ""]
            lines += [*to_markdown(table), ""]
    failed = [record for record in results.records if record["error"]]
    if failed:
        lines += ["## Failures", ""]
        for record in failed:
            error = record["error"].replace("`", "'")
            lines.append(f"- {Job(**record['job'])}: `{error}`")
        lines.append("")
    return "\n".join(lines)


def counts_text(results: Results) -> str:
    """Say what a mean of the tables is over."""
    cells = results.cells.loc[results.cells["num_done"] > 0]
    counts = cells.loc[:, ["num_observations", "num_seeds"]]
    of = " and ".join(
        f"{number} {name}{'' if number == 1 else 's'}"
        for number, name in zip(
            counts.max().fillna(0), ("observation", "seed"), strict=True
        )
    )
    if len(counts.drop_duplicates()) > 1:
        of = f"up to {of}; summary.csv has the numbers of each cell"
    return (
        f"Mean ± standard error over observations, each the mean over its seeds; {of}. "
        "Observations share seeds, and mostly trainings: the error leaves out how much "
        "trainings differ. Means over fewer posteriors than others have are not ranked."
    )


def page(results: Results, name: str, figures: dict[str, Figure]) -> str:
    """Return the page of a benchmark: figures and style in it, no script, no network.

    Args:
        results: Its results.
        name: What it is called, such as the name of its folder.
        figures: A figure per metric, and `runtimes`.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["breakable"] = _breakable
    failures: dict[str, list[dict[str, Any]]] = {}
    for record in results.records:
        if record["error"]:
            failure = {**record, "job": str(Job(**record["job"]))}
            failures.setdefault(record["error"], []).append(failure)
    warned = Counter(text for record in results.records for text in record["warnings"])
    versions = Counter(describe_versions(r["versions"]) for r in results.records)
    loads = results.jobs["load"].dropna()
    return environment.get_template("report.html").render(
        name=name,
        headline=_headline(results),
        facts=_facts(results),
        metrics=[_metric(results, metric) for metric in results.metrics],
        counts=counts_text(results),
        times=time_table(results),
        load=f"{loads.mean():.1f}" if len(loads) else "",
        figures={key: _image(figure) for key, figure in figures.items()},
        failures=failures,
        set_aside=results.set_aside,
        num_warnings=len(warned),
        warnings=warned.most_common(_NUM_WARNINGS),
        versions=versions,
        citation=CITATION,
        url=URL,
    )


def _headline(results: Results) -> str:
    num_failed = sum(results.jobs["status"] == "failed")
    text = (
        f"{len(results.labels)} methods on {len(results.tasks)} tasks of sbibm: "
        f"{len(results.records) - num_failed:,} posteriors, failed jobs: {num_failed}."
    )
    metric = next((m for m in results.metrics if m in CLASSIFIER_METRICS), None)
    leaders = []
    for budget in results.budgets if metric is not None else []:
        # Who lacks a posterior cannot be compared with those that have it.
        ranked = metric_table(results, metric, budget).means.dropna()
        if len(ranked) > 1:
            name, mean = ranked.idxmin(), ranked.min()
            leaders.append(f"{name} with {budget:,} simulations ({mean:.3f})")
    if leaders:
        text += (
            f" Lowest mean {METRIC_LABELS[metric]} over tasks, among methods that have "
            f"all posteriors: {', '.join(leaders)}."
        )
    return text


def _facts(results: Results) -> dict[str, str]:
    def listed(name: str) -> str:
        return ", ".join(
            f"{number:,}" for number in sorted(results.jobs[name].unique())
        )

    facts = {
        "tasks": ", ".join(results.tasks),
        "methods": "; ".join(results.labels),
        "simulations": listed("num_simulations"),
        "seeds": listed("seed"),
        "observations": listed("num_observation"),
        "samples": listed("num_samples"),
        "jobs": f"{len(results.records):,}",
    }
    # Their number is there already.
    shared = [text for text in results.shared if not text.endswith(" samples")]
    return facts | ({"all with": ", ".join(shared)} if shared else {})


def _metric(results: Results, metric: str) -> dict[str, Any]:
    tables = {
        budget: metric_table(results, metric, budget) for budget in results.budgets
    }
    columns = [name for table in tables.values() for name in table.texts]
    return {
        "name": metric,
        "label": METRIC_LABELS.get(metric, metric),
        "has_colors": metric in CLASSIFIER_METRICS,
        "tables": tables,
        "has_published": any(name.endswith(", published") for name in columns),
        "differences": difference_table(results, metric),
    }


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
