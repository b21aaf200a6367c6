"""Results as tables of values and of text."""

import json
import math
from typing import Any

from sbi_boed_plugin.benchmark._old_store import Record, describe_failure
from sbi_boed_plugin.benchmark.differences import paired_differences
from sbi_boed_plugin.benchmark.summary import SECONDS, Group, Results

__all__ = [
    "difference_table",
    "format_number",
    "job_table",
    "markdown",
    "summary_table",
]

_MEASURED = (*SECONDS, "num_simulations_used", "log_prob_true_parameters")
_SETTINGS = ("task", "method", "num_simulations", "num_rounds", "num_samples", "hyper")


def job_table(results: Results) -> tuple[list[str], list[list[Any]]]:
    """Return header and rows of a table with one row per job."""
    fields = [*_SETTINGS, "seed", "num_observation"]
    diagnostics = sorted({key for r in results.records for key in _said(r)})
    versions = sorted({key for r in results.records for key in r["versions"]})
    header = [*fields, "status", *results.metrics, *_MEASURED, "from_cache", "load"]
    header += [f"diagnostic_{name}" for name in diagnostics]
    header += [f"version_{name}" for name in versions] + ["error"]
    rows = []
    for record in results.records:
        row = [_plain(record["job"][name]) for name in fields] + [record["status"]]
        row += [record["metrics"].get(name) for name in results.metrics]
        row += [record.get(name) for name in (*_MEASURED, "from_cache", "load")]
        row += [_said(record).get(name) for name in diagnostics]
        row += [record["versions"].get(name) for name in versions]
        rows.append([*row, describe_failure(record)])
    return header, rows


def _said(record: Record) -> dict[str, float]:
    return record.get("diagnostics", {})


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return json.dumps(value, sort_keys=True) if value else ""
    return value


def summary_table(results: Results) -> tuple[list[str], list[list[Any]]]:
    """Return header and rows of a table with one row per task, method and budget."""
    names = [*results.metrics, *SECONDS]
    header = [*_SETTINGS, "num_observations", "num_seeds", "num_done", "num_failed"]
    header += [part for name in names for part in (name, f"{name}_se")]
    rows = []
    for group in results.groups:
        job = group.job.to_plain()
        row = [_plain(job[name]) for name in _SETTINGS]
        row += [group.num_observations, group.num_seeds]
        row += [group.num_done, group.num_failed]
        for name in names:
            pair = group.value(name)
            row += [None if math.isnan(value) else value for value in pair]
        rows.append(row)
    return header, rows


def difference_table(results: Results) -> tuple[list[str], list[list[Any]]]:
    """Return header and rows of a table of paired differences of all metrics."""
    header = [*_SETTINGS, "reference", "reference_hyper", "metric", "difference"]
    header += ["difference_se", "num_observations", "num_seeds"]
    rows = []
    for metric in results.metrics:
        for found in paired_differences(results, metric):
            job = found.job.to_plain()
            error = None if math.isnan(found.error) else found.error
            rows.append(
                [
                    *(_plain(job[name]) for name in _SETTINGS),
                    *(found.reference.method, _plain(dict(found.reference.hyper))),
                    *(metric, found.mean, error),
                    *(found.num_observations, found.num_seeds),
                ]
            )
    return header, rows


def markdown(results: Results) -> str:
    """Return tables of all metrics, tasks and budgets down, methods across."""
    labels = [results.labels[setting] for setting in results.settings]
    lines = [f"# {len(results.records)} jobs, {len(results.failed)} failed", ""]
    if results.shared:
        lines += [f"All with {', '.join(results.shared)}.", ""]
    lines += [
        "Mean ± standard error over observations, each the mean over its seeds, and of "
        "training_seconds over trainings; observations share seeds, so the errors of "
        "metrics leave out how much trainings differ. In parentheses: number of "
        "observations × seeds; means over fewer posteriors than others have are not "
        "comparable with theirs.",
        "",
    ]
    for name in [*results.metrics, "training_seconds", "sampling_seconds"]:
        lines += [f"## {name}", ""]
        lines.append("| task | simulations | " + " | ".join(labels) + " |")
        lines.append("|---" * (2 + len(results.settings)) + "|")
        for task in results.tasks:
            for budget in results.budgets:
                groups = [results.group(task, s, budget) for s in results.settings]
                if any(groups):
                    cells = [_cell(group, name) for group in groups]
                    row = [task, f"{budget:,}", *cells]
                    lines.append("| " + " | ".join(row) + " |")
        lines.append("")
    for metric in results.metrics:
        lines += _difference_lines(results, metric)
    if results.failures:
        lines += ["## Failures", ""]
        lines += [
            f"- {failure.job}: `{failure.error.replace('`', chr(39))}`"
            for failure in results.failures
        ]
        lines.append("")
    return "\n".join(lines)


def _difference_lines(results: Results, metric: str) -> list[str]:
    differences = paired_differences(results, metric)
    if not differences:
        return []
    lines = [
        f"## {metric}: ours minus sbi's",
        "",
        "Paired by observation and seed; below 0, ours is better.",
        "",
        "| task | simulations | methods | difference |",
        "|---|---|---|---|",
    ]
    for found in differences:
        text = format_number(found.mean, signed=True)
        if not math.isnan(found.error):
            text += f" ± {format_number(found.error, like=found.mean)}"
        ours, theirs = (
            results.labels[job.setting_key] for job in (found.job, found.reference)
        )
        lines.append(
            f"| {found.job.task} | {found.job.num_simulations:,} | {ours} − {theirs} "
            f"| {text} ({found.num_observations} × "
            f"{found.num_seeds}) |"
        )
    return [*lines, ""]


def _cell(group: Group | None, name: str) -> str:
    if group is None:
        return ""
    if not group.num_done:
        return "failed"
    mean, error = group.value(name)
    text = format_number(mean)
    if not math.isnan(error):
        text += f" ± {format_number(error, like=mean)}"
    text += f" ({group.num_observations} × {group.num_seeds})"
    if group.num_done < group.num_expected:
        text += f", {group.num_done} of {group.num_expected}"
    text += "".join(f", {caveat}" for caveat in group.caveats)
    return text + (f", {group.num_failed} failed" if group.num_failed else "")


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
