"""Running studies: rows are kept, failures do not spread, files are not mixed."""

import csv
import os
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure

from benchmarks.papers import registry
from benchmarks.papers.__main__ import main
from benchmarks.papers._table import (
    ForeignTableError,
    append_row,
    format_table,
    read_rows,
    summarize,
)
from benchmarks.papers.runner import run_study
from benchmarks.papers.study import Study
from sbi_boed_plugin import __version__

ADDED = ["seconds", "load", "version"]


def jobs(num_seeds, quick):
    sizes = (1,) if quick else (1, 2)
    return [{"size": n, "seed": s} for n in sizes for s in range(num_seeds)]


def run(job, quick):
    with open("calls", "a") as file:
        file.write(f"{job['size']} {job['seed']} {quick}\n")
    if Path(f"fail_{job['size']}_{job['seed']}").exists():
        raise RuntimeError("no convergence, today")
    warnings.warn("not to be seen", stacklevel=1)
    return {
        "value": job["size"] + 0.1 * job["seed"],
        "text": "a, b",
        "draw": torch.rand(()).item() + np.random.rand(),
        "threads": torch.get_num_threads(),
    }


def figure(rows):
    made = Figure()
    made.subplots().plot([row["value"] for row in rows])
    return made


def summary(rows):
    return summarize(rows, by=["size"], values=["value"])


STUDY = Study("toy", "Toys by size", jobs, run, figure, summary, num_seeds=2)


def calls():
    return Path("calls").read_text().splitlines() if Path("calls").exists() else []


def rows_of(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def test_a_run_writes_rows_figure_and_summary(capsys):
    assert run_study(STUDY, Path("out")) == 0
    assert sorted(os.listdir("out")) == ["toy.csv", "toy.png", "toy_summary.csv"]
    rows = rows_of("out/toy.csv")
    header = ["size", "seed", "value", "text", "draw", "threads", *ADDED]
    assert list(rows[0]) == header
    assert [(row["size"], row["seed"]) for row in rows] == [
        (size, seed) for size in "12" for seed in "01"
    ]
    assert {row["version"] for row in rows} == {__version__}
    assert {row["text"] for row in rows} == {"a, b"}
    assert all(float(row["seconds"]) >= 0 and float(row["load"]) >= 0 for row in rows)
    averages = rows_of("out/toy_summary.csv")
    assert [float(row["value"]) for row in averages] == pytest.approx([1.05, 2.05])
    assert [float(row["value_se"]) for row in averages] == pytest.approx([0.05, 0.05])
    out = capsys.readouterr().out
    assert "Toys by size" in out and "value_se" in out and "toy.png" in out


def test_jobs_whose_rows_exist_are_not_run_again():
    run_study(STUDY, Path("out"), num_seeds=1)
    before = rows_of("out/toy.csv")
    Path("calls").unlink()
    run_study(STUDY, Path("out"))
    assert calls() == ["1 1 False", "2 1 False"]
    assert rows_of("out/toy.csv")[:2] == before
    run_study(STUDY, Path("out"))
    assert len(calls()) == 2


def test_rows_are_on_the_disk_before_the_next_job_starts():
    def stop(job, quick):
        if job["size"] == 2:
            assert len(rows_of("out/toy.csv")) == 2
            raise KeyboardInterrupt
        return run(job, quick)

    stopped = Study("toy", "", jobs, stop, figure, summary, num_seeds=2)
    with pytest.raises(KeyboardInterrupt):
        run_study(stopped, Path("out"))
    assert len(rows_of("out/toy.csv")) == 2
    Path("calls").unlink()
    run_study(STUDY, Path("out"))
    assert calls() == ["2 0 False", "2 1 False"]


def test_half_a_row_of_a_killed_process_is_made_again():
    run_study(STUDY, Path("out"))
    path = Path("out/toy.csv")
    whole = path.read_bytes()
    path.write_bytes(whole[:-9])
    Path("calls").unlink()
    run_study(STUDY, Path("out"))
    assert calls() == ["2 1 False"]
    assert len(rows_of(path)) == 4


def test_half_a_header_is_written_again():
    Path("out").mkdir()
    Path("out/toy.csv").write_text("")
    run_study(STUDY, Path("out"))
    assert len(rows_of("out/toy.csv")) == 4


def test_a_job_that_fails_does_not_stop_the_others_and_is_tried_again(capsys):
    Path("fail_1_1").touch()
    assert run_study(STUDY, Path("out")) == 1
    assert len(rows_of("out/toy.csv")) == 3
    err = capsys.readouterr().err
    assert "{'size': 1, 'seed': 1}" in err and "no convergence, today" in err
    assert "1 of 4 jobs failed" in err
    Path("fail_1_1").unlink()
    Path("calls").unlink()
    assert run_study(STUDY, Path("out")) == 0
    assert calls() == ["1 1 False"]


def test_failures_are_reported_even_if_the_figure_fails(capsys):
    Path("fail_1_1").touch()
    broken = Study("toy", "", jobs, run, lambda rows: 1 / 0, summary, num_seeds=2)
    with pytest.raises(ZeroDivisionError):
        run_study(broken, Path("out"))
    assert "no convergence, today" in capsys.readouterr().err
    assert len(rows_of("out/toy.csv")) == 3


@pytest.mark.parametrize(
    "content",
    [
        "task,value\nsir,1.0\n",
        "size,seed,value\n1,0,1.0\n",
        "size,seed,value,seconds,load,version\n1,0,1.0\n",
        "no table at all",
    ],
)
def test_a_file_of_other_columns_is_refused_and_kept(content):
    Path("out").mkdir()
    Path("out/toy.csv").write_text(content)
    with pytest.raises(ForeignTableError, match="not overwritten"):
        run_study(STUDY, Path("out"))
    assert Path("out/toy.csv").read_text() == content
    assert not calls()


def test_a_file_of_other_results_is_refused_and_kept():
    # Only once a row is made is it known which columns it has.
    Path("out").mkdir()
    content = "size,seed,other,seconds,load,version\n1,0,1.0,1,1,0\n"
    Path("out/toy.csv").write_text(content)
    with pytest.raises(ForeignTableError, match="not overwritten"):
        run_study(STUDY, Path("out"))
    assert Path("out/toy.csv").read_text() == content


def test_a_quick_run_has_one_seed_and_files_of_its_own():
    run_study(STUDY, Path("out"), quick=True)
    assert calls() == ["1 0 True"]
    names = ["toy_quick.csv", "toy_quick.png", "toy_quick_summary.csv"]
    assert sorted(os.listdir("out")) == names


def test_rows_do_not_depend_on_order_or_on_the_random_state():
    torch.manual_seed(1)
    state = torch.get_rng_state()
    run_study(STUDY, Path("a"))
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    run_study(STUDY, Path("b"), num_seeds=1)
    draws = {row["draw"] for row in rows_of("a/toy.csv") if row["seed"] == "0"}
    assert {row["draw"] for row in rows_of("b/toy.csv")} == draws
    assert len(draws) == 1


@pytest.mark.slow
def test_workers_have_one_thread_each_and_make_the_same_rows(capfd):
    Path("fail_1_1").touch()
    assert run_study(STUDY, Path("serial")) == 1
    assert run_study(STUDY, Path("parallel"), num_workers=2) == 1
    key = lambda row: (row["size"], row["seed"])
    serial, parallel = (
        sorted(rows_of(f"{name}/toy.csv"), key=key) for name in ("serial", "parallel")
    )
    for rows in (serial, parallel):
        for row in rows:
            assert row["threads"] == "1"
            for name in ADDED:
                del row[name]
    assert serial == parallel
    assert "not to be seen" not in capfd.readouterr().err


@pytest.mark.parametrize(
    ("made", "message"),
    [
        ([], "no jobs"),
        ([{"size": 1}], "seed"),
        ([{"size": 1, "seed": 0}, {"seed": 0}], "columns of the first"),
        ([{"seed": 0}, {"seed": 0}], "more than once"),
    ],
)
def test_jobs_that_are_not_told_apart_are_refused(made, message):
    study = Study("toy", "", lambda *_: made, run, figure, summary, num_seeds=2)
    with pytest.raises(ValueError, match=message):
        run_study(study, Path("out"))
    assert not os.listdir(".")


def test_a_row_that_repeats_a_column_is_a_failure(capsys):
    study = Study("toy", "", jobs, lambda *_: {"size": 3}, figure, summary, 1)
    assert run_study(study, Path("out")) == 2
    assert "repeats the columns ['size']" in capsys.readouterr().err
    assert not Path("out/toy.csv").exists()


def test_numbers_survive_the_file():
    path = Path("rows.csv")
    row = {"seed": 0, "x": 0.1 + 0.2, "text": "1_000", "no": "", "bad": float("nan")}
    append_row(path, {**row, "end": 1e-30})
    (read,) = read_rows(path, ["seed"], ["end"])
    assert str(read) == str({**row, "end": 1e-30})


def test_tables_are_aligned():
    table = format_table([{"name": "a", "x": 1.23456}, {"name": "bcdef", "x": 10}])
    assert table.splitlines() == [" name      x", "    a  1.235", "bcdef     10"]
    assert format_table([]) == "no rows"


class TestCommand:
    """`make reproduce`."""

    @pytest.fixture(autouse=True)
    def _toy(self, monkeypatch):
        module = "benchmarks.papers._toy"
        monkeypatch.setattr(registry, "_MODULES", {"toy": "_toy"})
        monkeypatch.setattr(registry, "find_spec", lambda name: name == module)
        monkeypatch.setattr(
            registry, "import_module", lambda name: type("M", (), {"STUDY": STUDY})
        )

    def test_options_reach_the_run(self, capsys):
        arguments = ["toy", "--output", "out", "--seeds", "3", "--quick"]
        assert main(arguments) == 0
        assert len(calls()) == 3
        assert Path("out/toy_quick.csv").exists()

    def test_studies_are_listed(self, capsys):
        assert main(["--list"]) == 0
        assert capsys.readouterr().out == "toy  Toys by size\n"

    def test_failed_jobs_give_exit_code_one(self):
        Path("fail_1_1").touch()
        assert main(["toy", "--output", "out"]) == 1

    def test_wrong_input_is_refused_in_one_line(self, capsys):
        Path("file").touch()
        Path("foreign").mkdir()
        Path("foreign/toy.csv").write_text("a,b\n")
        for arguments, message in (
            ([], "NAME"),
            (["nothing"], "unknown"),
            (["toy", "--output", "file"], "cannot write"),
            (["toy", "--output", "foreign"], "not overwritten"),
        ):
            assert main(arguments) == 2
            err = capsys.readouterr().err
            assert message in err and err.count("\n") == 1
