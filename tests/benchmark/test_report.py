"""Reports: right means, nothing hidden, and a page that needs nothing else."""

import csv
import json
import math
import re
import sys
from pathlib import Path

import pytest

from sbi_boed_plugin.benchmark import make_report
from sbi_boed_plugin.benchmark._command import commands
from sbi_boed_plugin.benchmark._old_store import Store
from sbi_boed_plugin.benchmark.html import page
from sbi_boed_plugin.benchmark.jobs import Job
from sbi_boed_plugin.benchmark.published import URL
from sbi_boed_plugin.benchmark.summary import read_results
from sbi_boed_plugin.benchmark.tables import markdown, summary_table
from tests.benchmark.conftest import Reader, add, failed_record

BUDGETS = (1_000, 10_000)
ATTACK = "<script>alert('&')</script>"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A benchmark with a method that fails on one task, and elsewhere once."""
    folder = tmp_path_factory.mktemp("my-bench")
    for task in ("slcp", "two_moons"):
        for budget in BUDGETS:
            for observation in (1, 2):
                for seed in (0, 1):
                    job = Job(task, "npe", budget, seed, observation)
                    value = 0.6 + 0.1 * observation + 0.02 * seed
                    add(folder, job, {"c2st": value, "mmd": value / 100})
                    job = Job(task, "mine:<b>", budget, seed, observation)
                    if task == "slcp" or (observation, seed) == (2, 1):
                        record = failed_record(job, f"ValueError: {ATTACK}", ATTACK)
                        Store(folder).write(job, record | {"output": ATTACK})
                    else:
                        add(folder, job, {"c2st": 0.8, "mmd": None})
    (folder / "results" / "slcp" / "npe" / "broken.json").write_text("{")
    return folder


@pytest.fixture(scope="module")
def report(folder, tmp_path_factory):
    output = tmp_path_factory.mktemp("report") / "below"
    before = sorted(folder.rglob("*"))
    written = make_report(folder, output)
    assert sorted(folder.rglob("*")) == before, "the results have been touched"
    assert set(written) == set(output.iterdir())
    return output


def table(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_everything_is_written(report):
    assert {path.name for path in report.iterdir()} == {
        "results.csv",
        "summary.csv",
        "summary.md",
        "c2st.png",
        "mmd.png",
        "runtimes.png",
        "index.html",
    }


def test_every_job_has_a_row(report):
    rows = table(report / "results.csv")
    assert len(rows) == 32
    failed = [row for row in rows if row["status"] == "failed"]
    assert len(failed) == 10
    assert all(ATTACK in row["error"] and row["c2st"] == "" for row in failed)
    assert {row["version_torch"] for row in rows} != {""}


def test_means_are_over_observations_after_seeds(report):
    rows = table(report / "summary.csv")
    (row,) = (
        row
        for row in rows
        if (row["task"], row["method"], row["num_simulations"])
        == ("two_moons", "npe", "1000")
    )
    # Observations have 0.71 and 0.81: half of their difference is the error.
    assert float(row["c2st"]) == pytest.approx(0.76)
    assert float(row["c2st_se"]) == pytest.approx(0.05)
    counts = ("num_observations", "num_seeds", "num_done", "num_failed")
    assert [row[name] for name in counts] == ["2", "2", "4", "0"]
    (row,) = (
        row
        for row in rows
        if (row["task"], row["method"], row["num_simulations"])
        == ("slcp", "mine:<b>", "1000")
    )
    assert row["c2st"] == "" and row["num_failed"] == "4"
    means = {
        (row["task"], row["method"]): (row["c2st"], row["mmd"])
        for row in rows
        if row["num_simulations"] == "10000"
    }
    assert {key: [float(v or "nan") for v in pair] for key, pair in means.items()} == {
        ("two_moons", "npe"): pytest.approx([0.76, 0.0076]),
        ("two_moons", "mine:<b>"): pytest.approx([0.8, math.nan], nan_ok=True),
        ("slcp", "npe"): pytest.approx([0.76, 0.0076]),
        ("slcp", "mine:<b>"): pytest.approx([math.nan, math.nan], nan_ok=True),
    }


def test_the_markdown_names_failures_and_numbers(report):
    text = (report / "summary.md").read_text()
    assert "| two_moons | 1,000 | 0.760 ± 0.050 (2 × 2) | 0.800" in text
    assert "| slcp | 1,000 | 0.760 ± 0.050 (2 × 2) | failed |" in text
    assert "1 failed" in text
    assert text.count("- slcp, mine:<b>") == 8


@pytest.fixture(scope="module")
def html(report):
    return (report / "index.html").read_text()


def test_the_page_loads_nothing(html):
    reader = Reader(html)
    assert not reader.open
    assert not {"script", "link", "iframe"} & set(reader.tags)
    outside = [a for a in reader.addresses if not a.startswith(("#", "data:image/"))]
    assert outside == [URL]
    assert set(re.findall(r"https?://[^\"' <]+", html)) == {URL}
    assert "@import" not in html and "url(" not in html


def test_links_within_the_page_lead_somewhere(html):
    targets = [a[1:] for a in Reader(html).addresses if a.startswith("#")]
    assert targets and all(f'id="{target}"' in html for target in targets)


def test_texts_are_escaped(html):
    assert ATTACK not in html and "<b>" not in html
    reader = Reader(html)
    assert ATTACK in reader.text and "mine:<b>" in reader.text


def test_the_page_says_what_failed_and_what_was_left_out(html):
    text = Reader(html).text
    assert "10 jobs failed" in text and "Failures (10)" in text
    assert html.count("<details>") == 2, "one per error, and the figures of MMD"
    assert text.count("slcp, mine:<b>, 1,000 simulations, seed") == 4
    assert "results/slcp/npe/broken.json" in text
    assert "1 failed" in text
    assert "0.725" in text, "published beside ours"


def test_nothing_says_where_the_results_were_made(bench, tmp_path):
    """Tracebacks and damaged files have paths, which are nobody's business."""
    folder = tmp_path / "out"
    assert bench("failing", hyper={"mended": "never"}) == 1
    (folder / "results" / "broken.json").write_text("{")
    make_report(folder)
    html = (folder / "index.html").read_text()
    assert "results/broken.json" in html
    assert "tests/benchmark/tiny_methods.py" in html
    for path in (tmp_path, Path(__file__).parents[2], sys.prefix):
        assert str(path) not in html


def test_what_there_is_nothing_of_has_no_place(html):
    assert 'id="warnings"' not in html
    assert "several versions" not in html


def test_the_page_has_both_schemes_and_fits_a_phone(html):
    assert "prefers-color-scheme: dark" in html
    assert 'content="width=device-width, initial-scale=1"' in html
    # Only tables and texts in their own frames are wider than the screen.
    assert html.count('<div class="scroll"') == html.count("<table>")


def test_the_same_results_give_the_same_page(folder, html):
    assert page(read_results(folder), folder.name) == html


def test_the_commands_make_the_jobs_again(folder):
    (command,) = commands(read_results(folder), "out")
    assert command == (
        "sbi-boed bench --tasks two_moons,slcp --methods 'npe,mine:<b>' --budgets "
        "1000,10000 --seeds 0-1 --observations 1-2 --metrics c2st,mmd --output out"
    )


def test_variants_have_columns_and_commands_of_their_own(tmp_path):
    for changed in ({}, {"num_rounds": 2}, {"hyper": {"net": "nsf"}}):
        add(tmp_path, Job("sir", "npe", 10, 0, 1, **changed), {"c2st_forest": 0.7})
    results = read_results(tmp_path)
    settings = ["npe", "npe, net=nsf", "npe, 2 rounds"]
    assert list(map(results.labels.get, results.settings)) == settings
    assert all(group.num_done == 1 for group in results.groups)
    second, third = commands(results, "out")[1:]
    assert second.endswith("--set 'net='\"'\"'nsf'\"'\"''")
    assert third.endswith("--num-rounds 2")
    assert "published" not in Reader(page(results, "out")).text


def test_what_all_jobs_share_is_said_once(tmp_path):
    for method in ("npe", "nre"):
        job = Job("sir", method, 10, 0, 1, num_samples=500)
        add(tmp_path, job, {"c2st_forest": 0.7})
    results = read_results(tmp_path)
    assert list(results.labels.values()) == ["npe", "nre"]
    assert markdown(results).count("500 samples") == 1
    text = Reader(page(results, "out")).text
    assert "500 samples" not in text and "samples500" in text


def test_a_metric_that_some_jobs_lack_has_no_mean(tmp_path):
    add(tmp_path, Job("sir", "npe", 10, 0, 1), {"c2st": 0.7, "mmd": 0.1})
    add(tmp_path, Job("sir", "npe", 10, 0, 2), {"c2st": 0.8})
    results = read_results(tmp_path)
    (group,) = results.groups
    assert set(group.values) >= {"c2st"} and "mmd" not in group.values
    header, (row,) = summary_table(results)
    assert row[header.index("mmd")] is None
    assert "–" in markdown(results)


def test_a_metric_that_is_not_finite_is_not_averaged_away(tmp_path):
    add(tmp_path, Job("sir", "npe", 10, 0, 1), {"ppc": 0.7})
    add(tmp_path, Job("sir", "npe", 10, 0, 2), {"ppc": None})
    (group,) = read_results(tmp_path).groups
    assert math.isnan(group.values["ppc"][0])


def test_failures_alone_make_a_report(tmp_path):
    job = Job("sir", "npe", 10, 0, 1)
    Store(tmp_path).write(job, failed_record(job, "an error", "its trace"))
    names = {path.name for path in make_report(tmp_path)}
    assert names == {"results.csv", "summary.csv", "summary.md", "index.html"}
    assert "its trace" in (tmp_path / "index.html").read_text()


def test_a_folder_without_results_is_refused(tmp_path):
    for folder in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(ValueError, match=r"holds no results.*sbi-boed bench"):
            make_report(folder)
    assert list(tmp_path.iterdir()) == []


def test_temporary_and_damaged_files_are_no_results(tmp_path):
    job = Job("sir", "npe", 10, 0, 1)
    add(tmp_path, job, {"c2st": 0.7})
    path = Store(tmp_path).results / job.path("json")
    for name in (f".{path.name}.0.tmp", f"{path.name}.damaged"):
        path.with_name(name).write_text("{")
    results = read_results(tmp_path)
    assert len(results.records) == 1 and results.damaged == []
    assert json.loads(path.read_text())["status"] == "done"


def test_a_copy_is_no_other_posterior(tmp_path):
    job = Job("sir", "npe", 10, 0, 1)
    add(tmp_path, job, {"c2st": 0.7})
    path = Store(tmp_path).results / job.path("json")
    copy = path.with_name("copy.json")
    copy.write_bytes(path.read_bytes())
    results = read_results(tmp_path)
    (group,) = results.groups
    assert group.num_done == len(results.records) == 1
    (damaged,) = results.damaged
    assert "copy.json" in damaged and "not where" in damaged


def test_a_metric_that_failed_is_listed_and_its_job_counts_as_done(tmp_path):
    job = Job("sir", "npe", 10, 0, 1)
    failure = {"error": f"E: {ATTACK}", "traceback": "its trace", "output": "said"}
    add(tmp_path, job, {"c2st": 0.7}, metric_errors={"ppc": failure})
    make_report(tmp_path)
    reader = Reader((tmp_path / "index.html").read_text())
    for text in (f"ppc: E: {ATTACK}", "its trace", "said", "Failures (1)", "0 failed"):
        assert text in reader.text
    assert f"`ppc: E: {ATTACK}`" in (tmp_path / "summary.md").read_text()
    (row,) = table(tmp_path / "results.csv")
    assert row["status"] == "done" and row["error"] == f"ppc: E: {ATTACK}"


def test_a_training_that_observations_share_counts_once(tmp_path):
    for seed, seconds in ((0, 3.0), (1, 5.0)):
        for number in (1, 2, 3):
            job = Job("sir", "npe", 10, seed, number)
            add(tmp_path, job, {"c2st": 0.7}, training_seconds=seconds)
    job = Job("sir", "nle", 10, 0, 1)
    add(tmp_path, job, {"c2st": 0.7}, training_seconds=3.0)
    many, one = sorted(read_results(tmp_path).groups, key=lambda g: -g.num_done)
    assert many.value("training_seconds") == (4.0, 1.0)
    mean, error = one.value("training_seconds")
    assert mean == 3.0 and math.isnan(error)
