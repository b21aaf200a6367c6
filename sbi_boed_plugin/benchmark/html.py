"""The report as one page: no network, no scripts, on a phone and on paper."""

import base64
import io
import math
from collections.abc import Sequence
from html import escape

import matplotlib
from matplotlib.figure import Figure

from sbi_boed_plugin.benchmark._command import ranges
from sbi_boed_plugin.benchmark._page_notes import (
    failure_section,
    plural,
    repeat_section,
    warning_section,
)
from sbi_boed_plugin.benchmark._page_style import STYLE
from sbi_boed_plugin.benchmark._page_tables import (
    complete_means,
    difference_table,
    metric_table,
    runtime_table,
)
from sbi_boed_plugin.benchmark.figures import (
    METRIC_LABELS,
    legend_keys,
    metric_panel,
    runtime_panel,
)
from sbi_boed_plugin.benchmark.jobs import Job
from sbi_boed_plugin.benchmark.metrics import CLASSIFIER_METRICS
from sbi_boed_plugin.benchmark.published import CITATION, URL, published_beside
from sbi_boed_plugin.benchmark.summary import Results

__all__ = ["page"]

_EXPLAINED = {
    "c2st": "Accuracy of a classifier, a multilayer perceptron, that tells samples "
    "from those of the reference posterior: 0.5 is a posterior that it cannot tell "
    "apart, 1 one that it always can.",
    "c2st_forest": "Accuracy of a random forest on 1,000 samples of each posterior: "
    "0.5 is best, 1 worst. Not comparable with that of the multilayer perceptron.",
    "mmd": "Squared maximum mean discrepancy between samples and the reference "
    "posterior, Gaussian kernel: smaller is better.",
    "ppc": "Median Euclidean distance between the observation and data simulated from "
    "the posterior: smaller is better, down to what the simulator's noise allows.",
}


def page(results: Results, name: str) -> str:
    """Return the page of a benchmark.

    Args:
        results: Its results.
        name: What it is called, such as the name of its folder.

    Returns:
        HTML with everything in it: figures, style, and no script.
    """
    sections = [_head(results, name)]
    sections += [_metric_section(results, metric) for metric in results.metrics]
    if any(group.num_done for group in results.groups):
        sections.append(_runtime_section(results))
    sections.append(failure_section(results))
    sections.append(warning_section(results))
    sections.append(repeat_section(results, name))
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(name)}: benchmark</title>\n<style>{STYLE}</style>\n</head>\n"
        "<body>\n<main>\n" + "\n".join(sections) + "\n</main>\n</body>\n</html>\n"
    )


def _head(results: Results, name: str) -> str:
    jobs = [Job(**record["job"]) for record in results.records]
    num_failed = len(results.failed)
    facts = {
        "tasks": ", ".join(results.tasks),
        "methods": "; ".join(results.labels[s] for s in results.settings),
        "simulations": ", ".join(f"{budget:,}" for budget in results.budgets),
        "seeds": ranges({job.seed for job in jobs}),
        "observations": ranges({job.num_observation for job in jobs}),
        "samples": ", ".join(f"{n:,}" for n in sorted({j.num_samples for j in jobs})),
        "jobs": f"{len(jobs):,}, of which {num_failed:,} failed",
    }
    # Their number is there already.
    shared = [text for text in results.shared if not text.endswith(" samples")]
    if shared:
        facts["all with"] = ", ".join(shared)
    listed = "".join(
        f"<dt>{key}</dt><dd>{escape(text)}</dd>" for key, text in facts.items()
    )
    links = [(metric, METRIC_LABELS.get(metric, metric)) for metric in results.metrics]
    links += [("runtimes", "Runtimes")] if len(results.failed) < len(jobs) else []
    links += [
        ("failures", f"Failures ({len(results.failures)})"),
        ("repeat", "Versions"),
    ]
    menu = "".join(
        f'<a href="#{escape(target)}">{escape(text)}</a>' for target, text in links
    )
    return (
        f"<h1>{escape(name)}</h1>\n<p>{escape(_headline(results))}</p>\n"
        f"<nav>{menu}</nav>\n<dl>{listed}</dl>"
    )


def _headline(results: Results) -> str:
    num_failed = len(results.failed)
    text = (
        f"{plural(len(results.settings), 'method')} on "
        f"{plural(len(results.tasks), 'task')} of sbibm: "
        f"{len(results.records) - num_failed:,} posteriors"
    )
    text += f", {num_failed:,} jobs failed." if num_failed else "."
    metric = next((m for m in results.metrics if m in CLASSIFIER_METRICS), None)
    if metric is None:
        return text
    leaders = []
    for budget in results.budgets:
        means = complete_means(results, metric, budget)
        # Who lacks a posterior cannot be compared with those that have it.
        ranked = {name: mean for name, mean in means.items() if math.isfinite(mean)}
        if len(ranked) > 1:
            best = min(ranked, key=lambda setting: ranked[setting])
            name = results.labels[best]
            leaders.append(f"{name} with {budget:,} simulations ({ranked[best]:.3f})")
    if leaders:
        text += (
            f" Lowest mean {METRIC_LABELS[metric]} over tasks, among methods that have "
            f"all posteriors: {', '.join(leaders)}."
        )
    return text


def _metric_section(results: Results, metric: str) -> str:
    label = METRIC_LABELS.get(metric, metric)
    relative = metric not in CLASSIFIER_METRICS
    scale = ("best of its row", "worst of its row") if relative else ("0.5", "1")
    title = escape(label[:1].upper() + label[1:])
    parts = [
        f'<section id="{escape(metric)}"><h2>{title}</h2>',
        f"<p>{escape(_EXPLAINED.get(metric, ''))}</p>",
        f'<p class="note">{_counts(results)}</p>',
    ]
    if metric == "c2st" and published_beside(results.jobs()):
        parts.append(
            '<p class="note">Published values, for orientation: '
            f'<a href="{URL}">{escape(CITATION)}</a>; means over all ten '
            "observations of a task, whichever are here, 10,000 samples, one run per "
            "observation, with networks and training of that time; gaussian_mixture as "
            "they ran it again after sbibm had mended it.</p>"
        )
    parts.append(
        f'<div class="key">{scale[0]}<i></i>{scale[1]}<span>bold: lowest of its '
        "row, among methods with all posteriors, within the budget</span></div>"
    )
    for budget in results.budgets:
        parts.append(f"<h3>{budget:,} simulations</h3>")
        parts.append(metric_table(results, metric, budget))
    if differences := difference_table(results, metric):
        parts += [
            "<h3>Ours minus sbi's</h3>",
            '<p class="note">Mean ± standard error of the differences over the '
            "observations that both have: below 0, ours is better. With a single round "
            "both have the same simulations. Observations share seeds, so the error "
            "leaves out how much trainings differ.</p>",
            differences,
        ]
    keys = "".join(
        f"<span>{_image(figure, '')}{escape(name)}</span>"
        for name, figure in legend_keys(results, metric)
    )
    figures = [
        _frame(metric_panel(results, metric, task), f"{label} over simulations: {task}")
        for task in results.tasks
    ]
    # The first metric is what most readers came for; on a phone, the figures of the
    # others would be many screens to scroll past.
    state = " open" if metric == results.metrics[0] else ""
    parts.append(
        f"<details{state}><summary>Figures: {escape(label)} over the number of "
        f'simulations</summary><div class="legend">{keys}</div>{_grid(figures)}'
        "</details></section>"
    )
    return "\n".join(parts)


def _counts(results: Results) -> str:
    """Say what a cell is a mean of."""
    counts = {(g.num_observations, g.num_seeds) for g in results.groups if g.num_done}
    if len(counts) == 1:
        ((observations, seeds),) = counts
        of = f"{plural(observations, 'observation')} and {plural(seeds, 'seed')}"
    else:
        most = [max(column) for column in zip(*counts, strict=True)] or [0, 0]
        of = (
            f"up to {plural(most[0], 'observation')} and {plural(most[1], 'seed')}; "
            "summary.csv has the numbers of each cell"
        )
    return (
        f"Mean ± standard error over observations; {of}. Observations share seeds, and "
        "mostly trainings: the error leaves out how much trainings differ."
    )


def _runtime_section(results: Results) -> str:
    loads = [r["load"] for r in results.records if r["load"] is not None]
    load = f" Mean load of the machine: {sum(loads) / len(loads):.1f}." if loads else ""
    figures = [
        _frame(runtime_panel(results, name), f"{label} time by method")
        for name, label in (
            ("training_seconds", "Training"),
            ("sampling_seconds", "Sampling"),
        )
    ]
    return (
        '<section id="runtimes"><h2>Runtimes</h2><p>Per posterior, in one thread: '
        "training with its simulations, which the observations of a task share, and "
        "the drawing of samples. Medians over tasks, which compare only where methods "
        "have the same ones; in the figures, a dot per task "
        "and a diamond for their median. Where a method does not tell them apart, all "
        f"of it is sampling.{load}</p>"
        f"{runtime_table(results)}{_grid(figures, wide=True)}</section>"
    )


def _grid(images: Sequence[str], wide: bool = False) -> str:
    return f'<div class="figures{" wide" if wide else ""}">{"".join(images)}</div>'


def _image(figure: Figure, text: str) -> str:
    """Return a figure as an image within the page, sharp at any size."""
    content = io.BytesIO()
    # The same results give the same page, to the last byte.
    with matplotlib.rc_context({"svg.hashsalt": "benchmark"}):
        figure.savefig(content, format="svg", metadata={"Date": None})
    data = base64.b64encode(content.getvalue()).decode()
    width, height = (round(96 * inches) for inches in figure.get_size_inches())
    return (
        f'<img src="data:image/svg+xml;base64,{data}" alt="{escape(text)}" '
        f'width="{width}" height="{height}">'
    )


def _frame(figure: Figure, text: str) -> str:
    return f"<figure>{_image(figure, text)}</figure>"
