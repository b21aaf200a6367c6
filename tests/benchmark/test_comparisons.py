"""What a report compares: like with like, and it says where that cannot be."""

import csv
import math
import re

import pytest

from sbi_boed_plugin.benchmark import make_report
from sbi_boed_plugin.benchmark._old_store import Store
from sbi_boed_plugin.benchmark._page_tables import complete_means, runtime_table
from sbi_boed_plugin.benchmark.differences import paired_differences
from sbi_boed_plugin.benchmark.figures import legend_keys, metric_figure, runtime_panel
from sbi_boed_plugin.benchmark.html import page
from sbi_boed_plugin.benchmark.jobs import Job
from sbi_boed_plugin.benchmark.summary import read_results
from sbi_boed_plugin.benchmark.tables import markdown
from tests.benchmark.conftest import Reader, add, failed_record


def test_means_over_other_observations_are_not_ranked(tmp_path):
    """Who fails where it is hard has the lower mean, and has not won."""
    for task in ("slcp", "sir"):
        for observation, (value, other) in enumerate(
            [(0.6, 0.55), (0.7, 0.65), (0.9, None)], start=1
        ):
            add(tmp_path, Job(task, "npe", 10, 0, observation), {"c2st": value})
            job = Job(task, "nre", 10, 0, observation)
            if other is None:
                Store(tmp_path).write(job, failed_record(job, "an error", ""))
            else:
                add(tmp_path, job, {"c2st": other})
            if observation < 3:
                add(tmp_path, Job(task, "nle", 10, 0, observation), {"c2st": 0.51})
    results = read_results(tmp_path)
    complete = {group.job.method for group in results.groups if group.is_comparable}
    assert complete == {"npe"}
    means = complete_means(results, "c2st", 10)
    assert {key for key, mean in means.items() if math.isfinite(mean)} == {
        Job("sir", "npe", 10, 0, 1).setting_key
    }
    html = page(results, "out")
    best = re.findall(r'<td class="best"[^>]*>([^<]*)<', html)
    assert best == ["0.733"] * 3
    text = Reader(html).text
    assert text.count("2 of 3") == 4 and text.count("1 failed") == 2
    assert "Lowest mean" not in text
    assert markdown(results).count("2 of 3") == 3 * 4
    labels = [name for name, _ in legend_keys(results, "c2st")]
    assert labels[-1].startswith("hollow")


@pytest.mark.parametrize(
    ("samples", "used", "caveat"),
    [(10_000, 11, "uses 11 simulations"), (500, 10, "500 samples")],
)
def test_who_pays_less_or_is_judged_by_less_is_not_ranked(
    tmp_path, samples, used, caveat
):
    add(tmp_path, Job("sir", "npe", 10, 0, 1), {"c2st": 0.7})
    job = Job("sir", "nre", 10, 0, 1, num_samples=samples)
    add(tmp_path, job, {"c2st": 0.6}, num_simulations_used=used)
    results = read_results(tmp_path)
    html = page(results, "out")
    assert re.findall(r'<td class="best"[^>]*>([^<]*)<', html) == ["0.700"]
    assert f"0.600<small>{caveat}</small>" in html
    assert f"0.600 (1 × 1), {caveat}" in markdown(results)
    assert "hollow: not comparable" in dict(legend_keys(results, "c2st"))


def test_medians_of_times_say_over_how_many_tasks_they_are(tmp_path):
    for task, method in (("sir", "npe"), ("slcp", "npe"), ("sir", "nre")):
        add(tmp_path, Job(task, method, 10, 0, 1), {"c2st": 0.7})
    text = runtime_table(read_results(tmp_path))
    assert text.count("<small>1 of 2 tasks</small>") == 2
    npe, nre = re.findall(r'scope="row">(.*?)</tr>', text)
    assert "small" not in npe and nre.count("small>1 of 2 tasks<") == 2


@pytest.fixture
def pairs(tmp_path):
    """A variant and its reference, on observations that only one has, too."""
    values = {
        "nre": {(1, 0): 0.5, (1, 1): 0.6, (2, 0): 0.7, (3, 0): 0.1},
        "nre_gkl": {(1, 0): 0.6, (1, 1): 0.5, (2, 0): 0.8, (4, 0): 0.9},
    }
    for method, found in values.items():
        for (observation, seed), value in found.items():
            add(tmp_path, Job("sir", method, 10, seed, observation), {"c2st": value})
    return tmp_path


def test_differences_are_paired(pairs):
    (found,) = paired_differences(read_results(pairs), "c2st")
    # Of the first observation 0.1 and -0.1, of the second 0.1; others are no pairs.
    assert (found.mean, found.error) == pytest.approx((0.05, 0.05))
    assert (found.num_observations, found.num_seeds) == (2, 2)
    assert (found.job.method, found.reference.method) == ("nre_gkl", "nre")


def test_differences_are_shown_everywhere(pairs):
    names = {path.name for path in make_report(pairs)}
    assert "differences.csv" in names
    with (pairs / "differences.csv").open(newline="") as file:
        (row,) = csv.DictReader(file)
    assert float(row["difference"]) == pytest.approx(0.05)
    assert (row["method"], row["reference"], row["metric"]) == (
        "nre_gkl",
        "nre",
        "c2st",
    )
    assert "nre_gkl − nre | +0.050 ± 0.050 (2 × 2) |" in markdown(read_results(pairs))
    html = (pairs / "index.html").read_text()
    assert "+0.050<small>± 0.050</small>" in html


def test_variants_are_compared_with_like_settings(tmp_path):
    nsf = {"neural_net": "nsf"}
    for method, changed, value in (
        ("npe", {}, 0.5),
        ("npe", {"hyper": nsf}, 0.6),
        ("npe", {"num_rounds": 2}, 0.7),
        ("npe_gkl", {"hyper": nsf}, 0.8),
        # The other method has no such thing.
        ("npe_gkl", {"hyper": {"training": "joint"}}, 0.8),
        ("npe_gkl", {"num_rounds": 2}, 0.8),
        # There is nothing to compare these with.
        ("npe_gkl", {"hyper": {"hidden_features": 9}}, 0.8),
        ("npe_gkl", {"num_samples": 500}, 0.8),
        ("nle_ince", {}, 0.8),
    ):
        add(tmp_path, Job("sir", method, 10, 0, 1, **changed), {"c2st": value})
    results = read_results(tmp_path)
    found = paired_differences(results, "c2st")
    made = {(d.job.num_rounds, *d.job.hyper): d.mean for d in found}
    expected = {(1, "neural_net"): 0.2, (1, "training"): 0.3, (2,): 0.1}
    assert made == pytest.approx(expected)
    assert all(math.isnan(d.error) for d in found)
    text = markdown(results)
    assert "npe_gkl, neural_net=nsf − npe, neural_net=nsf |" in text
    assert "npe_gkl, training=joint − npe |" in text


def test_who_uses_more_simulations_is_not_compared(tmp_path):
    add(tmp_path, Job("sir", "nre", 10, 0, 1), {"c2st": 0.7})
    job = Job("sir", "nre_gkl", 10, 0, 1)
    add(tmp_path, job, {"c2st": 0.6}, num_simulations_used=1_000)
    assert paired_differences(read_results(tmp_path), "c2st") == []


def test_failures_alone_keep_nobody_from_being_ranked(tmp_path):
    """Neither by their number of samples, nor by their task."""
    for method, value in (("npe", 0.6), ("nre", 0.7)):
        add(tmp_path, Job("sir", method, 10, 0, 1, num_samples=500), {"c2st": value})
    for task in ("sir", "slcp"):
        job = Job(task, "nle", 10, 0, 1)
        Store(tmp_path).write(job, failed_record(job, "an error", ""))
    results = read_results(tmp_path)
    assert [g.is_comparable for g in results.groups if g.num_done] == [True, True]
    assert "tasks</small>" not in runtime_table(results)


def test_without_variants_there_are_no_differences(tmp_path):
    add(tmp_path, Job("sir", "npe", 10, 0, 1), {"c2st": 0.7})
    assert "differences.csv" not in {path.name for path in make_report(tmp_path)}
    assert "minus" not in (tmp_path / "index.html").read_text()


def test_methods_with_everything_are_ranked(tmp_path):
    for task in ("slcp", "sir"):
        for method, value in (("npe", 0.7), ("nre", 0.8)):
            add(tmp_path, Job(task, method, 10, 0, 1), {"c2st": value})
    results = read_results(tmp_path)
    html = page(results, "out")
    assert re.findall(r'<td class="best"[^>]*>([^<]*)<', html) == ["0.700"] * 3
    assert "npe with 10 simulations (0.700)" in Reader(html).text
    assert " of 1" not in markdown(results)
    assert not any("hollow" in name for name, _ in legend_keys(results, "c2st"))


@pytest.mark.parametrize(
    ("changed", "shown"),
    [
        ({}, ["NLE", "NPE", "NRE"]),
        ({"num_samples": 1_000}, []),
        ({"num_rounds": 2}, []),
        ({"num_rounds": 10}, [f"S{n}E, ten rounds" for n in ("NL", "NP", "NR")]),
    ],
)
def test_published_values_are_shown_beside_like_runs(tmp_path, changed, shown):
    add(tmp_path, Job("sir", "npe", 1_000, 0, 1, **changed), {"c2st": 0.7})
    results = read_results(tmp_path)
    html = page(results, "out")
    heads = re.findall(r'<th [^>]*class="published[^>]*>([^<]*)<br>published', html)
    assert heads == shown
    assert ("AISTATS" in html) == bool(shown)
    names = [name for name, _ in legend_keys(results, "c2st")]
    assert names[1:] == [f"{name}, published (ten observations)" for name in shown]


def test_numbers_and_texts_as_hyperparameters_are_two_methods(tmp_path):
    for value, c2st in ((1, 0.6), ("1", 0.8)):
        add(tmp_path, Job("sir", "npe", 10, 0, 1, hyper={"a": value}), {"c2st": c2st})
    results = read_results(tmp_path)
    assert [group.value("c2st")[0] for group in results.groups] == [0.8, 0.6]
    assert list(results.labels.values()) == ["npe, a='1'", "npe, a=1"]


def test_warnings_are_counted(tmp_path):
    for observation, messages in enumerate([["<a>", "b"], ["<a>"], []], start=1):
        job = Job("sir", "npe", 10, 0, observation)
        add(tmp_path, job, {"c2st": 0.7}, warnings=messages)
    html = page(read_results(tmp_path), "out")
    assert "<li>2 jobs: &lt;a&gt;</li><li>1 job: b</li>" in html
    assert "2 messages" in Reader(html).text


def test_mixed_versions_are_told(tmp_path):
    for observation, version in enumerate(["0.26", "0.27", "0.27"], start=1):
        versions = {"sbi_boed_plugin": "0.1", "sbi": version, "sbibm": "1.1"}
        job = Job("sir", "npe", 10, 0, observation)
        add(tmp_path, job, {"c2st": 0.7}, versions=versions)
    text = Reader(page(read_results(tmp_path), "out")).text
    assert "1 job of sbi_boed_plugin 0.1, sbi 0.26, sbibm 1.1" in text
    assert "2 jobs of sbi_boed_plugin 0.1, sbi 0.27, sbibm 1.1" in text


def test_table_and_figure_have_the_same_median_of_times(tmp_path):
    """The middle of two: neither the geometric mean nor one of them."""
    for task, seconds in (("sir", 1.0), ("slcp", 9.0)):
        job = Job(task, "npe", 10, 0, 1)
        add(tmp_path, job, {"c2st": 0.7}, training_seconds=seconds)
    results = read_results(tmp_path)
    (ax,) = runtime_panel(results, "training_seconds").axes
    (diamond,) = (line for line in ax.lines if line.get_marker() == "D")
    assert list(diamond.get_xdata()) == [5.0]
    assert "<td>5.000</td>" in runtime_table(results)


def test_no_time_is_no_dot_and_no_warning(tmp_path, recwarn):
    """A logarithm has no place for zero, which still counts for the median."""
    for task in ("sir", "slcp", "two_moons"):
        job = Job(task, "npe", 10, 0, 1)
        add(tmp_path, job, {"c2st": 0.7}, training_seconds=0.0)
    results = read_results(tmp_path)
    runtime_panel(results, "training_seconds")
    assert not recwarn.list
    assert "<td>0.000" in runtime_table(results)


def test_long_names_fit_above_few_panels(tmp_path):
    for rounds in (1, 10):
        for task in ("sir", "slcp"):
            job = Job(task, "npe", 10, 0, rounds, num_rounds=rounds)
            add(tmp_path, job, {"c2st": 0.7})
    figure = metric_figure(read_results(tmp_path), "c2st")
    figure.savefig(tmp_path / "figure.png")
    (legend,) = figure.legends
    box = legend.get_window_extent()
    assert box.x0 >= 0.0 and box.x1 <= figure.bbox.x1
    assert {text.get_text()[:6] for text in legend.get_texts()} >= {"hollow"}
