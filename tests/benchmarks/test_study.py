"""Running studies: jobs are kept, failures do not spread, tables follow from jobs."""

import csv
import os
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.figure import Figure

from benchmarks import __main__ as command
from benchmarks.study import Study, averages, run_study


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
    }


def figure(rows):
    made = Figure()
    made.subplots().plot([row["value"] for row in rows])
    return made


def summary(rows):
    return averages(rows, by=["size"], values=["value"])


STUDY = Study("toy", "Toys by size", jobs, run, summary, figure, num_seeds=2)


def calls():
    return Path("calls").read_text().splitlines() if Path("calls").exists() else []


def rows_of(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def test_a_run_writes_rows_figure_and_summary(capsys):
    assert run_study(STUDY, Path("out")) == 0
    assert sorted(os.listdir("out")) == ["toy", "toy.csv", "toy.png", "toy_summary.csv"]
    rows = rows_of("out/toy.csv")
    assert [(row["size"], row["seed"]) for row in rows] == [
        (size, seed) for size in "12" for seed in "01"
    ]
    assert {row["text"] for row in rows} == {"a, b"}
    averaged = pd.read_csv("out/toy_summary.csv")
    assert averaged["value"].tolist() == pytest.approx([1.05, 2.05])
    assert averaged["value_se"].tolist() == pytest.approx([0.05, 0.05])
    out, err = capsys.readouterr()
    assert "Toys by size" in out and "value_se" in out
    assert "not to be seen" not in err


def test_what_is_there_is_not_run_again_and_what_failed_is(capsys):
    Path("fail_1_1").touch()
    assert run_study(STUDY, Path("out")) == 1
    assert "no convergence, today" in capsys.readouterr().err
    assert len(rows_of("out/toy.csv")) == 3
    Path("fail_1_1").unlink()
    Path("calls").unlink()
    assert run_study(STUDY, Path("out")) == 0
    assert calls() == ["1 1 False"]
    # A table keeps jobs of more seeds.
    run_study(STUDY, Path("out"), num_seeds=1)
    assert len(rows_of("out/toy.csv")) == 4


def test_a_quick_run_has_one_seed_and_files_of_its_own():
    run_study(STUDY, Path("out"), quick=True)
    assert calls() == ["1 0 True"]
    names = ["toy_quick", "toy_quick.csv", "toy_quick.png", "toy_quick_summary.csv"]
    assert sorted(os.listdir("out")) == names


def test_rows_depend_on_their_seed_alone():
    torch.manual_seed(1)
    run_study(STUDY, Path("a"))
    torch.manual_seed(2)
    run_study(STUDY, Path("b"), num_seeds=1, num_workers=2)
    draws = {row["draw"] for row in rows_of("a/toy.csv") if row["seed"] == "0"}
    assert {row["draw"] for row in rows_of("b/toy.csv")} == draws
    assert len(draws) == 1


def test_a_row_that_repeats_a_column_is_a_failure(capsys):
    study = Study("toy", "", jobs, lambda *_: {"size": 3})
    assert run_study(study, Path("out")) == 2
    assert "repeats the columns ['size']" in capsys.readouterr().err
    assert not Path("out/toy.csv").exists()


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--list"], 0, "toy  Toys by size\n"),
        (["toy", "--output", "out"], 1, "no convergence, today"),
        ([], 2, "NAME"),
        (["nothing"], 2, "unknown"),
        (["toy", "--output", "file"], 2, "cannot write"),
    ],
)
def test_the_command_lists_studies_and_tells_faults(
    monkeypatch, capsys, arguments, code, message
):
    monkeypatch.setattr(command, "MODULES", {"toy": "toy"})
    monkeypatch.setattr(command, "load_study", lambda name: STUDY)
    Path("file").touch()
    Path("fail_1_1").touch()
    assert command.main(arguments) == code
    out, err = capsys.readouterr()
    assert message in out + err
    if code == 2:
        assert err.count("\n") == 1


def test_options_of_the_command_reach_the_run(monkeypatch):
    monkeypatch.setattr(command, "load_study", lambda name: STUDY)
    arguments = ["two-moons", "--output", "out", "--seeds", "3", "--quick"]
    assert command.main(arguments) == 0
    assert len(calls()) == 3
    assert Path("out/toy_quick.csv").exists()
