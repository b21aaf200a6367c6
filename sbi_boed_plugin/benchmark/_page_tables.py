"""Tables of the report's page: numbers on colours."""

import math
import re
import statistics
from collections.abc import Callable, Sequence
from html import escape

from sbi_boed_plugin.benchmark.differences import paired_differences
from sbi_boed_plugin.benchmark.metrics import CLASSIFIER_METRICS
from sbi_boed_plugin.benchmark.published import (
    BUDGETS,
    published_beside,
    published_c2st,
    published_label,
)
from sbi_boed_plugin.benchmark.summary import Group, Results
from sbi_boed_plugin.benchmark.tables import format_number

__all__ = ["complete_means", "difference_table", "metric_table", "runtime_table"]

_BLUE, _VERMILLION = "0 114 178", "213 94 0"


def metric_table(results: Results, metric: str, budget: int) -> str:
    """Return a table of tasks and methods at one budget, as HTML.

    Args:
        results: Results of a benchmark.
        metric: Name of a metric.
        budget: Number of simulations.
    """
    published = ()
    if metric == "c2st" and budget in BUDGETS:
        published = published_beside(results.jobs(budget=budget))
    head = "".join(
        f'<th scope="col" class="setting">{_breakable(results.labels[setting])}</th>'
        for setting in results.settings
    )
    head += "".join(
        f'<th scope="col" class="published{_first(index)}">'
        f"{published_label(method)}<br>published</th>"
        for index, method in enumerate(published)
    )
    rows = []
    for task in results.tasks:
        groups = [results.group(task, s, budget) for s in results.settings]
        if not any(groups):
            continue
        means = [_comparable_mean(group, metric) for group in groups]
        best = min(filter(math.isfinite, means), default=math.nan)
        place = _scale(metric, groups)
        beside = published_beside(results.jobs(task, budget))
        cells = [
            _cell(group, metric, place, mean == best)
            for group, mean in zip(groups, means, strict=True)
        ]
        for index, method in enumerate(published):
            value = published_c2st(task, method, budget)
            text = f"{value:.3f}" if value is not None and method in beside else ""
            cells.append(f'<td class="published{_first(index)}">{text}</td>')
        rows.append(f'<tr><th scope="row">{_breakable(task)}</th>{"".join(cells)}</tr>')
    if metric in CLASSIFIER_METRICS and len(rows) > 1:
        rows.append(_mean_row(results, metric, budget, published))
    return _table("task", head, rows)


def complete_means(results: Results, metric: str, budget: int) -> dict[str, float]:
    """Return the mean over tasks of each method, NaN where any posterior lacks."""
    tasks = _tasks_at(results, budget)
    return {
        setting: sum(
            _comparable_mean(results.group(task, setting, budget), metric)
            for task in tasks
        )
        / max(len(tasks), 1)
        for setting in results.settings
    }


def difference_table(results: Results, metric: str) -> str:
    """Return a table of paired differences, as HTML, empty if there are none."""
    differences = paired_differences(results, metric)
    places = sorted(
        {
            (d.job.setting_key, d.reference.setting_key, d.job.num_simulations)
            for d in differences
        },
        key=lambda place: (results.settings.index(place[0]), place[2]),
    )
    if not places:
        return ""
    head = "".join(
        f'<th scope="col" class="setting">{_breakable(results.labels[setting])} − '
        f"{_breakable(results.labels[reference])}<br>{budget:,}</th>"
        for setting, reference, budget in places
    )
    found = {
        (d.job.task, d.job.setting_key, d.job.num_simulations): d for d in differences
    }
    rows = []
    for task in dict.fromkeys(d.job.task for d in differences):
        cells = []
        for setting, _, budget in places:
            difference = found.get((task, setting, budget))
            if difference is None:
                cells.append("<td></td>")
                continue
            mean, error = difference.mean, difference.error
            text = format_number(mean, signed=True)
            if not math.isnan(error):
                text += f"<small>± {format_number(error, like=mean)}</small>"
            cells.append(f"<td>{text}</td>")
        rows.append(f'<tr><th scope="row">{_breakable(task)}</th>{"".join(cells)}</tr>')
    return _table("task", head, rows)


def runtime_table(results: Results) -> str:
    """Return a table of median times over tasks, as HTML."""
    names = {"training_seconds": "training", "sampling_seconds": "sampling"}
    head = "".join(
        f'<th scope="col">{label} [s]<br>{budget:,}</th>'
        for label in names.values()
        for budget in results.budgets
    )
    rows = []
    for setting in results.settings:
        cells = []
        for name in names:
            for budget in results.budgets:
                seconds = results.seconds(name, setting, budget)
                text = format_number(statistics.median(seconds)) if seconds else "–"
                if 0 < len(seconds) < (most := results.num_tasks(budget)):
                    text += f"<small>{len(seconds)} of {most} tasks</small>"
                cells.append(f"<td>{text}</td>")
        name = _breakable(results.labels[setting])
        rows.append(f'<tr><th scope="row">{name}</th>{"".join(cells)}</tr>')
    return _table("method", head, rows)


def _mean_row(
    results: Results, metric: str, budget: int, published: Sequence[str]
) -> str:
    means = complete_means(results, metric, budget)
    best = min(filter(math.isfinite, means.values()), default=math.nan)
    cells = [
        f"<td{_attributes('best' if mean == best else '', _place_c2st(mean))}>"
        f"{format_number(mean)}</td>"
        for mean in means.values()
    ]
    tasks = _tasks_at(results, budget)
    for index, method in enumerate(published):
        known = [
            value
            for task in tasks
            if (value := published_c2st(task, method, budget)) is not None
            and method in published_beside(results.jobs(task, budget))
        ]
        text = f"{sum(known) / len(known):.3f}" if len(known) == len(tasks) else ""
        cells.append(f'<td class="published{_first(index)}">{text}</td>')
    return f'<tr class="mean"><th scope="row">mean</th>{"".join(cells)}</tr>'


def _tasks_at(results: Results, budget: int) -> list[str]:
    groups = results.groups
    return list(
        dict.fromkeys(g.job.task for g in groups if g.job.num_simulations == budget)
    )


def _table(corner: str, head: str, rows: Sequence[str]) -> str:
    return (
        '<div class="scroll" tabindex="0"><table><thead><tr>'
        f'<th scope="col">{corner}</th>{head}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )


def _cell(
    group: Group | None, metric: str, place: Callable[[float], float], is_best: bool
) -> str:
    if group is None:
        return "<td></td>"
    if not group.num_done:
        return '<td class="failed">failed</td>'
    mean, error = group.value(metric)
    small = (
        ""
        if math.isnan(error)
        else f"<small>± {format_number(error, like=mean)}</small>"
    )
    if group.num_done < group.num_expected:
        small += f"<small>{group.num_done} of {group.num_expected}</small>"
    small += "".join(f"<small>{escape(text)}</small>" for text in group.caveats)
    if group.num_failed:
        small += f'<small class="fault">{group.num_failed} failed</small>'
    attributes = _attributes("best" if is_best else "", place(mean))
    return f"<td{attributes}>{format_number(mean)}{small}</td>"


def _comparable_mean(group: Group | None, metric: str) -> float:
    if group is None or not group.is_comparable:
        return math.nan
    return group.value(metric)[0]


def _scale(metric: str, groups: Sequence[Group | None]) -> Callable[[float], float]:
    """Return what places a value between 0, good, and 1, bad."""
    if metric in CLASSIFIER_METRICS:
        return _place_c2st
    pairs = [g.value(metric) for g in groups if g is not None and g.is_comparable]
    means = [mean for mean, _ in pairs if math.isfinite(mean)]
    errors = [error for _, error in pairs if math.isfinite(error)]
    low, high = min(means, default=0.0), max(means, default=0.0)
    # Differences within the errors must not look like any.
    width = max(high - low, 4.0 * max(errors, default=0.0))
    if width == 0.0:
        return lambda value: 0.5
    # Others, of fewer posteriors, may be beyond them.
    return lambda value: _within(0.5 + (value - (low + high) / 2.0) / width)


def _place_c2st(value: float) -> float:
    return _within(2.0 * value - 1.0)


def _within(place: float) -> float:
    return min(max(place, 0.0), 1.0) if math.isfinite(place) else 0.5


def _attributes(name: str, place: float) -> str:
    color = _BLUE if place < 0.5 else _VERMILLION
    strength = abs(place - 0.5) if math.isfinite(place) else 0.0
    style = f' style="background:rgb({color} / {strength:.2f})"' if strength else ""
    return (f' class="{name}"' if name else "") + style


def _breakable(name: str) -> str:
    """Escape a name, and let it go on in the next line where its words end."""
    return re.sub(r"([_.:=])", r"\1<wbr>", escape(name, quote=False))


def _first(index: int) -> str:
    return " first" if index == 0 else ""
