"""The commands `bench` and `report`: what they take, print and refuse."""

import os
from pathlib import Path

import pytest

from sbi_boed_plugin.benchmark.store import FolderInUseError
from sbi_boed_plugin.cli import bench, main
from sbi_boed_plugin.sbibm import METHODS, TASKS


def run(arguments, capsys):
    """Return exit code, standard output and standard error."""
    try:
        code = main(arguments)
    except SystemExit as exit_:
        code = exit_.code
    captured = capsys.readouterr()
    return code, captured.out, captured.err


@pytest.fixture
def given(monkeypatch):
    """What the command hands to the library, which does nothing."""
    calls = []

    def run_benchmark(tasks, methods, **settings):
        calls.append({"tasks": tasks, "methods": methods, **settings})
        return 0

    monkeypatch.setattr(bench, "run_benchmark", run_benchmark)
    return calls


def test_lists_and_ranges_are_read(given, capsys):
    arguments = "bench --tasks two_moons,slcp sir --methods npe,npe_gkl --seeds 0-2 "
    arguments += "--budgets 1000,10000 --observations 1-3,7 --metrics c2st,mmd ppc "
    arguments += "--num-rounds 2 --num-samples 500 --jobs 2 --output there "
    arguments += "--retry-failed --time-limit 60 --quiet --tag v2 "
    arguments += (
        "--set hidden_features=50 net=nsf sizes=[1,2] rate=1e-3 --set flag=True "
        "npe.num_atoms=5 a.b:c.d=1 npe.automatic_transforms_enabled=false"
    )
    assert run(arguments.split(), capsys) == (0, "", "")
    assert given == [
        {
            "tasks": ["two_moons", "slcp", "sir"],
            "methods": ["npe", "npe_gkl"],
            "num_simulations": [1_000, 10_000],
            "seeds": [0, 1, 2],
            "observations": [1, 2, 3, 7],
            "metrics": ["c2st", "mmd", "ppc"],
            "output": Path("there"),
            "num_rounds": 2,
            "num_samples": 500,
            "hyper": {
                "hidden_features": 50,
                "net": "nsf",
                "sizes": [1, 2],
                "rate": 1e-3,
                "flag": True,
                "npe.num_atoms": 5,
                "npe.automatic_transforms_enabled": False,
                "a.b:c.d": 1,
            },
            "tag": "v2",
            "num_workers": 2,
            "retry_failed": True,
            "time_limit": 60.0,
            "show_progress": False,
        }
    ]


def test_all_tasks_and_what_is_usual(given, capsys):
    assert run(["bench", "--tasks", "all", "--methods", "npe"], capsys)[0] == 0
    (call,) = given
    assert call["tasks"] == list(TASKS)
    assert call["observations"] == list(range(1, 11))
    assert (call["num_simulations"], call["seeds"]) == ([1_000], [0])
    assert (call["metrics"], call["num_samples"]) == (["c2st"], 10_000)
    code, out, _ = run(["bench", "--help"], capsys)
    assert code == 0 and "run code" in out and "whom you trust" in out
    for name in (*TASKS, *METHODS, "c2st_forest"):
        assert name in out.replace("\n", "")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--methods", "nep"], "npe_gkl"),
        (["--budgets", "1e3"], "'1e3'"),
        (["--budgets", "0"], "=0"),
        (["--budgets", ","], "num_simulations"),
        (["--seeds", "-1"], "--seeds"),
        (["--seeds", "3-1"], "'3-1'"),
        (["--jobs", "0"], "at least 1"),
        (["--set", "rate"], "KEY=VALUE"),
        (["--set", "npe.=1"], "METHOD.KEY"),
        (["--set", "hide=1"], "hidden_features"),
        (["--set", "a=f(1)"], "notation"),
        (["--output", "file"], "cannot write"),
    ],
)
def test_wrong_input_is_refused_in_one_line(arguments, message, capsys):
    Path("file").write_text("")
    usual = ["bench", "--tasks", "sir", "--methods", "npe"]
    code, out, err = run([*usual, *arguments], capsys)
    assert code == 2
    assert out == ""
    assert message in err
    assert err.count("\n") == 1 and err.endswith("\n")
    assert os.listdir() == ["file"]
    for left_out in ("--tasks", "--methods"):
        code, _, err = run(["bench", left_out, "sir"], capsys)
        assert code == 2 and "required" in err


METHOD = """
from pathlib import Path
def run(task, num_samples, num_simulations, num_observation):
    if num_observation == 1 and not Path("mended").exists():
        raise ZeroDivisionError
    return task.get_prior()(num_samples), num_simulations, None
"""


@pytest.mark.slow
def test_a_method_in_the_current_folder_is_found_retried_and_reported_on(capsys):
    Path("my_method.py").write_text(METHOD)
    arguments = "bench --tasks two_moons --methods my_method:run --observations 1-2 "
    arguments += "--num-samples 50 --metrics mmd --output out"
    code, out, err = run(arguments.split(), capsys)
    assert (code, out) == (1, "")
    assert "2/2" in err and "1 failed" in err
    assert "--retry-failed" in err and "sbi-boed report out" in err
    assert "ZeroDivisionError" in err and "Traceback" not in err
    Path("mended").touch()
    assert run([*arguments.split(), "--quiet"], capsys)[0] == 1
    again = [*arguments.split(), "--quiet", "--retry-failed"]
    assert run(again, capsys) == (0, "", "")
    code, out, err = run(["report", "out", "--output", "there"], capsys)
    assert (code, err) == (0, "")
    assert out.startswith("Wrote to there: results.csv")
    assert Path("there", "index.html").exists()


@pytest.mark.parametrize(
    ("command", "error", "code", "message"),
    [
        ("bench", ImportError("Run `pip install it`."), 2, "pip install it"),
        ("bench", FolderInUseError("another run writes to out."), 2, "another run"),
        ("bench", OSError(28, "No space left"), 2, "No space left"),
        ("bench", KeyboardInterrupt(), 130, "the same command goes on"),
        ("report", PermissionError(13, "Permission denied"), 2, "Permission denied"),
        ("report", ImportError("Run `pip install it`."), 2, "pip install it"),
    ],
)
def test_what_stops_a_command_is_said(
    monkeypatch, capsys, command, error, code, message
):
    def fail(*args, **kwargs):
        raise error

    monkeypatch.setattr(bench, "run_benchmark", fail)
    monkeypatch.setattr(bench, "make_report", fail)
    more = ["--tasks", "sir", "--methods", "npe"] if command == "bench" else ["there"]
    found, _, err = run([command, *more], capsys)
    assert found == code and message in err and "Traceback" not in err


def test_a_folder_without_results_is_refused(capsys):
    code, out, err = run(["report", "nowhere"], capsys)
    assert (code, out) == (2, "")
    assert "nowhere" in err and err.count("\n") == 1
    assert os.listdir() == []
