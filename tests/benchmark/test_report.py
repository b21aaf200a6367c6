"""Reports: right means, like with like, nothing hidden, and a page of its own."""

import csv
import math
import re
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from sbi_boed_plugin.benchmark import make_report
from sbi_boed_plugin.benchmark.figures import metric_figure
from sbi_boed_plugin.benchmark.jobs import Job
from sbi_boed_plugin.benchmark.report import difference_table, metric_table
from sbi_boed_plugin.benchmark.store import Store
from sbi_boed_plugin.benchmark.summary import mean_and_sem, read_results
from tests.benchmark.conftest import Reader, add, make_record

REPOSITORY = Path(__file__).parents[2]
ATTACK = "<script>alert('&')</script>"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A benchmark with a method that fails on one task, and elsewhere once."""
    folder = tmp_path_factory.mktemp("my-bench")
    failure = {"error": f"ValueError: {ATTACK}", "traceback": ATTACK}
    for task in ("slcp", "two_moons"):
        for budget in (1_000, 10_000):
            for observation, seed in ((1, 0), (1, 1), (2, 0), (2, 1)):
                job = Job(task, "npe", budget, seed, observation)
                value = 0.6 + 0.1 * observation + 0.02 * seed
                warned = {"warnings": ["<careful>"]} if budget == 1_000 else {}
                add(folder, job, {"c2st": value, "mmd": value / 100}, **warned)
                job = Job(task, "mine:<b>", budget, seed, observation)
                if task == "slcp" or (observation, seed) == (2, 1):
                    add(folder, job, **failure)
                else:
                    add(folder, job, {"c2st": 0.8, "mmd": None})
    (folder / "jobs" / "broken.json").write_text("{")
    return folder


@pytest.fixture(scope="module")
def report(folder, tmp_path_factory):
    output = tmp_path_factory.mktemp("report") / "below"
    with pytest.warns(UserWarning, match="broken.json"):
        written = make_report(folder, output)
    assert set(written) == set(output.iterdir())
    return output


@pytest.fixture
def single(tmp_path):
    """Write a job of `sir`, with a budget of 10 and one metric."""

    def write(method, value=0.7, number=1, seed=0, metric="c2st", **changed):
        names = ("num_rounds", "num_samples", "hyper", "tag")
        settings = {name: changed.pop(name) for name in names if name in changed}
        task = changed.pop("task", "sir")
        job = Job(task, method, 10, seed, number, **settings)
        add(tmp_path, job, None if "error" in changed else {metric: value}, **changed)

    return write


def page_of(folder):
    make_report(folder)
    return (folder / "index.html").read_text()


def table(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def best(results, metric="c2st", budget=10):
    """Return the numbers that are marked as the best of their rows."""
    found = metric_table(results, metric, budget)
    marked = found.texts[found.best.columns].where(found.best).stack().dropna()
    return [text.split(" ")[0] for text in marked]


def test_every_job_has_a_row(report):
    assert {path.name for path in report.iterdir()} == {
        *("results.csv", "summary.csv", "summary.md", "index.html"),
        *("c2st.png", "mmd.png", "runtimes.png"),
    }
    rows = table(report / "results.csv")
    assert len(rows) == 32
    failed = [row for row in rows if row["status"] == "failed"]
    assert len(failed) == 10
    assert all(ATTACK in row["error"] and row["c2st"] == "" for row in failed)
    assert {row["version_sbi"] for row in rows} == {"0.27"}


def test_means_are_over_observations_after_seeds(report):
    rows = {
        (row["task"], row["method"], row["num_simulations"]): row
        for row in table(report / "summary.csv")
    }
    row = rows["two_moons", "npe", "1000"]
    # Observations have 0.71 and 0.81: half of their difference is the error.
    assert float(row["c2st"]) == pytest.approx(0.76)
    assert float(row["c2st_se"]) == pytest.approx(0.05)
    counts = ("num_observations", "num_seeds", "num_done", "num_failed")
    assert [row[name] for name in counts] == ["2", "2", "4", "0"]
    row = rows["slcp", "mine:<b>", "1000"]
    assert row["c2st"] == "" and row["num_failed"] == "4"
    row = rows["two_moons", "mine:<b>", "10000"]
    # What is not finite is not averaged away.
    assert float(row["c2st"]) == pytest.approx(0.8) and row["mmd"] == ""


def test_a_mean_leaves_no_row_out():
    rows = [("a", 1.0), ("b", 5.0), ("a", 3.0), ("c", 1.0), ("c", None)]
    found = mean_and_sem(pd.DataFrame(rows, columns=["m", "eig"]), ["m"], ["eig"])
    assert found["m"].tolist() == ["a", "b", "c"]
    assert found["seeds"].tolist() == [2, 1, 2]
    assert found["eig"].fillna(-1.0).tolist() == [2.0, 5.0, -1.0]
    assert found["eig_se"].fillna(-1.0).tolist() == [1.0, -1.0, -1.0]


def test_the_page_needs_nothing_else_and_escapes_texts(report):
    html = (report / "index.html").read_text()
    reader = Reader(html)
    assert reader.open == []
    assert not {"script", "link", "iframe"} & set(reader.tags)
    assert all(a.startswith(("data:", "#")) for a in reader.addresses)
    targets = [a[1:] for a in reader.addresses if a.startswith("#")]
    assert targets and all(f'id="{target}"' in html for target in targets)
    # Only tables and figures in their own frames are wider than a phone's screen.
    assert html.count('<div class="scroll"') == html.count("<table>")
    assert ATTACK not in html and "<b>" not in html and "<careful>" not in html
    for text in (
        *(ATTACK, "mine:<b>", "failed jobs: 10", "Failures (10)", "1 failed"),
        "8 jobs: <careful>",
    ):
        assert text in reader.text
    assert reader.text.count("slcp, mine:<b>, 1,000 simulations, seed") == 4
    assert "several versions" not in reader.text


def test_the_same_results_give_the_same_page_wherever_they_were_made(bench, tmp_path):
    """Tracebacks have paths, which are nobody's business."""
    assert bench("failing", hyper={"mended": "never"}) == 1
    html = page_of(tmp_path / "out")
    assert page_of(tmp_path / "out") == html
    assert "tests/benchmark/tiny_methods.py" in html
    for path in (tmp_path, REPOSITORY, sys.prefix):
        assert str(path) not in html


def test_a_report_of_what_is_kept_has_the_numbers_that_are_kept(tmp_path):
    kept = REPOSITORY / "docs" / "results" / "sbibm"
    make_report(kept, tmp_path)
    for name in ("summary.csv", "differences.csv", "results.csv", "summary.md"):
        assert (tmp_path / name).read_text() == (kept / name).read_text()


def test_means_over_other_observations_are_not_ranked(single, tmp_path):
    """Who fails where it is hard has the lower mean, and has not won."""
    for task in ("slcp", "sir"):
        for number, value in enumerate((0.6, 0.7, 0.9), start=1):
            single("npe", value, number, task=task)
            if number < 3:
                single("nre", value - 0.05, number, task=task)
                single("nle", 0.51, number, task=task)
        single("nre", number=3, task=task, error="an error")
    results = read_results(tmp_path)
    cells = results.cells
    assert set(cells.loc[cells["is_comparable"], "method"]) == {"npe"}
    found = metric_table(results, "c2st", 10)
    assert found.texts.loc["mean"].to_dict() == {"nle": "–", "npe": "0.733", "nre": "–"}
    assert best(results) == ["0.733"] * 3
    text = found.texts.to_string()
    assert text.count("2 of 3") == 4 and text.count("1 failed") == 2
    (legend,) = metric_figure(results, "c2st").legends
    assert legend.get_texts()[-1].get_text().startswith("hollow")


def test_who_pays_less_or_is_judged_by_less_is_not_ranked(single, tmp_path):
    single("npe", 0.7)
    single("nre", 0.6, result={"num_simulations_used": 11})
    single("nle", 0.5, num_samples=500)
    results = read_results(tmp_path)
    assert best(results) == ["0.700"]
    text = metric_table(results, "c2st", 10).texts.to_string()
    for caveat in ("0.600 (uses 11 simulations)", "0.500 (500 samples)"):
        assert caveat in text


def test_methods_with_everything_are_ranked(single, tmp_path):
    for task in ("slcp", "sir"):
        single("npe", 0.7, task=task)
        single("nre", 0.8, task=task)
        # Failures of others keep nobody from being ranked.
        single("nle", task=task, num_samples=500, error="an error")
    results = read_results(tmp_path)
    assert best(results) == ["0.700"] * 3
    # The legend fits, also with long names beside few panels.
    figure = metric_figure(results, "c2st")
    figure.savefig(tmp_path / "figure.png")
    box = figure.legends[0].get_window_extent()
    assert box.x0 >= 0.0 and box.x1 <= figure.bbox.x1
    html = page_of(tmp_path)
    assert re.findall(r'<td class="best"[^>]*>([^<]*)<', html)[:3] == ["0.700"] * 3
    assert "hollow" not in str(figure.legends[0].get_texts())


def test_a_training_that_observations_share_counts_once(single, tmp_path):
    for seed, seconds in ((0, 3.0), (1, 5.0)):
        for number in (1, 2, 3):
            single("npe", 0.7, number, seed, result={"training_seconds": seconds})
    single("nle", result={"training_seconds": 3.0})
    one, many = read_results(tmp_path).cells.to_dict("records")
    assert (many["training_seconds"], many["training_seconds_se"]) == (4.0, 1.0)
    assert one["training_seconds"] == 3.0 and math.isnan(one["training_seconds_se"])


def test_differences_are_paired_and_shown_everywhere(single, tmp_path):
    """On observations that both a variant and its reference have."""
    values = {
        "nre": {(1, 0): 0.5, (1, 1): 0.6, (2, 0): 0.7, (3, 0): 0.1},
        "nre_gkl": {(1, 0): 0.6, (1, 1): 0.5, (2, 0): 0.8, (4, 0): 0.9},
    }
    for method, found in values.items():
        for place, value in found.items():
            single(method, value, *place)
    html = page_of(tmp_path)
    (row,) = table(tmp_path / "differences.csv")
    # Of the first observation 0.1 and -0.1, of the second 0.1; others are no pairs.
    assert float(row["difference"]) == pytest.approx(0.05)
    assert float(row["difference_se"]) == pytest.approx(0.05)
    assert (row["num_observations"], row["num_seeds"]) == ("2", "2")
    names = ("method", "reference", "metric")
    assert [row[name] for name in names] == ["nre_gkl", "nre", "c2st"]
    assert "+0.050<small>± 0.050</small>" in html
    assert "| sir | +0.050 ± 0.050 |" in (tmp_path / "summary.md").read_text()


def test_variants_are_compared_with_like_settings(single, tmp_path):
    nsf = {"neural_net": "nsf"}
    single("npe", 0.5)
    single("npe", 0.6, hyper=nsf)
    single("npe", 0.7, num_rounds=2)
    # The other method has no setting `training`.
    for changed in (
        {"hyper": nsf},
        {"hyper": {"training": "joint"}},
        {"num_rounds": 2},
    ):
        single("npe_gkl", 0.8, **changed)
    # There is nothing to compare these with.
    for changed in (
        {"hyper": {"hidden_features": 9}},
        {"num_samples": 5},
        {"tag": "a"},
    ):
        single("npe_gkl", 0.8, **changed)
    single("nle_ince", 0.8)
    # Who uses more simulations is not compared.
    single("nre", 0.7)
    single("nre_gkl", 0.6, result={"num_simulations_used": 1_000})
    results = read_results(tmp_path)
    rows = results.differences
    names = rows["label"] + " − " + rows["reference_label"]
    assert dict(zip(names, rows["difference"], strict=True)) == pytest.approx(
        {
            "npe_gkl, neural_net='nsf' − npe, neural_net='nsf'": 0.2,
            "npe_gkl, training='joint' − npe": 0.3,
            "npe_gkl, 2 rounds − npe, 2 rounds": 0.1,
        }
    )
    assert rows["difference_se"].isna().all()
    assert set(difference_table(results, "c2st").texts) == {f"{n}, 10" for n in names}


def test_what_is_unusual_is_in_the_names_and_other_jobs_are_none(single, tmp_path):
    settings = ({}, {"num_rounds": 2}, {"hyper": {"a": 1}}, {"tag": "new"})
    for changed in (*settings, {"hyper": {"a": "1"}, "num_samples": 500}):
        single("npe", metric="c2st_forest", **changed)
    Store(tmp_path).write(make_record({"method": "nmc", "seed": 0}))
    results = read_results(tmp_path)
    names = ["npe", "npe, tag new", "npe, a=1", "npe, 2 rounds"]
    assert results.labels == ["npe, 500 samples, a='1'", *names]
    text = Reader(page_of(tmp_path)).text
    assert "minus" not in text and not (tmp_path / "differences.csv").exists()


def test_a_metric_that_some_jobs_lack_has_no_mean(tmp_path):
    add(tmp_path, Job("sir", "npe", 10, 0, 1), {"c2st": 0.7, "mmd": 0.1})
    failure = {"error": ATTACK, "traceback": "its trace", "status": "done"}
    add(tmp_path, Job("sir", "npe", 10, 0, 2), {"c2st": 0.8}, **failure)
    versions = {"versions": {"sbi_boed_plugin": "0.1", "sbi": "0.26"}}
    add(tmp_path, Job("sir", "npe", 10, 0, 3), {"c2st": 0.75}, **versions)
    text = Reader(page_of(tmp_path)).text
    (row,) = table(tmp_path / "summary.csv")
    assert row["mmd"] == "" and float(row["c2st"]) == pytest.approx(0.75)
    assert "–" in (tmp_path / "summary.md").read_text()
    assert "1 job of sbi_boed_plugin 0.1, sbi 0.26" in text
    assert "several versions" in text
    # The job counts as done, and the failure is told.
    for part in (ATTACK, "its trace", "Failures (1)", "failed jobs: 0"):
        assert part in text


def test_a_folder_without_results_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"holds no results.*sbi-boed bench"):
        make_report(tmp_path / "nowhere")
    assert list(tmp_path.iterdir()) == []


def test_optional_packages_are_imported_by_a_report_only():
    code = "import sys, sbi_boed_plugin.benchmark, sbi_boed_plugin.cli\n"
    code += "print([m for m in ('jinja2', 'sbi_boed_plugin.benchmark.summary') "
    code += "if m in sys.modules])"
    command = [sys.executable, "-c", code]
    found = subprocess.run(command, capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
