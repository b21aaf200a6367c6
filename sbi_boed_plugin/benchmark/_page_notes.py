"""Sections of the report's page about failures, warnings, versions and commands."""

import shlex
from collections import Counter
from html import escape

from sbi_boed_plugin.benchmark._command import commands
from sbi_boed_plugin.benchmark.summary import Failure, Results, describe_versions

__all__ = ["failure_section", "plural", "repeat_section", "warning_section"]

# More of them would be numbers that differ from job to job.
_NUM_WARNINGS = 100


def plural(number: int, name: str) -> str:
    """Return a number of things.

    Example:
        >>> plural(1, "job"), plural(2, "job")
        ('1 job', '2 jobs')
    """
    return f"{number} {name}{'' if number == 1 else 's'}"


def failure_section(results: Results) -> str:
    """Return what failed, jobs with the same error together."""
    parts = ['<section id="failures"><h2>Failures</h2>']
    if not results.failures:
        parts.append("<p>No job failed.</p>")
    alike: dict[str, list[Failure]] = {}
    for failure in results.failures:
        alike.setdefault(failure.error, []).append(failure)
    for error, failures in alike.items():
        text = failures[0].trace
        if failures[0].output.strip():
            text += f"\nPrinted before:\n{failures[0].output}"
        jobs = "".join(f"<li>{escape(str(each.job))}</li>" for each in failures)
        parts.append(
            f"<details><summary>{plural(len(failures), 'job')}: "
            f"<span>{escape(error)}</span></summary>"
            f"<ul>{jobs}</ul><pre>{escape(text)}</pre></details>"
        )
    parts += [f"<p>Left out: {escape(text)}</p>" for text in results.damaged]
    return "\n".join(parts) + "</section>"


def warning_section(results: Results) -> str:
    """Return the warnings of jobs and how many jobs had each, if there are any."""
    counts = Counter(
        message for record in results.records for message in record.get("warnings", [])
    )
    if not counts:
        return ""
    listed = "".join(
        f"<li>{plural(number, 'job')}: {escape(message)}</li>"
        for message, number in counts.most_common(_NUM_WARNINGS)
    )
    if len(counts) > _NUM_WARNINGS:
        listed += f"<li>and {len(counts) - _NUM_WARNINGS} more, in fewer jobs</li>"
    return (
        '<section id="warnings"><h2>Warnings</h2><details><summary>'
        f"{plural(len(counts), 'message')}</summary><ul>{listed}</ul></details>"
        "</section>"
    )


def repeat_section(results: Results, name: str) -> str:
    """Return versions, and the commands that make the results again."""
    versions: dict[str, set[str]] = {}
    for record in results.records:
        for package, version in record["versions"].items():
            versions.setdefault(package, set()).add(version or "unknown")
    listed = "".join(
        f"<dt>{escape(package)}</dt><dd>{escape(', '.join(sorted(found)))}</dd>"
        for package, found in versions.items()
    )
    mixed = Counter(describe_versions(r["versions"]) for r in results.records)
    warning = ""
    if len(mixed) > 1:
        numbers = "; ".join(
            f"{plural(n, 'job')} of {text}" for text, n in mixed.items()
        )
        warning = (
            '<p class="fault">Results of several versions are averaged and compared: '
            f"{escape(numbers)}.</p>"
        )
    lines = [*commands(results, name), f"sbi-boed report {shlex.quote(name)}"]
    text = "\n".join(line.replace(" --", " \\\n  --") for line in lines)
    return (
        '<section id="repeat"><h2>Versions, and how to do it again</h2>'
        f'{warning}<dl>{listed}</dl><pre class="command">{escape(text)}</pre></section>'
    )
