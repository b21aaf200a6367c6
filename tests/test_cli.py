"""The command: what it writes and prints, and what it refuses."""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import matplotlib.image
import matplotlib.pyplot
import pytest
import torch

from sbi_boed_plugin import DesignSearchConfig, __version__
from sbi_boed_plugin._results import ResultFolder
from sbi_boed_plugin.cli import design_run, main
from sbi_boed_plugin.cli.design import NUM_STEPS as DEFAULT_NUM_STEPS
from sbi_boed_plugin.tasks import available_tasks, get_task

# sbi passes torch tensors to numpy functions.
pytestmark = pytest.mark.filterwarnings(
    "ignore:__array__ implementation:DeprecationWarning"
)

# A fifth of the default: the posterior that scores designs is still a little loose.
NUM_STEPS = 200
ARGUMENTS = ["design", "gaussian_linear", "--density-estimator", "mdn"]
SEEDED = [*ARGUMENTS, "--num-steps", str(NUM_STEPS), "--seed", "3"]
FIGURES = {*design_run.FIGURES}
TABLES = {"trace.csv", "posterior_samples.csv", "eig_over_design.csv"}


def run(arguments, capsys):
    """Return exit code, standard output and standard error."""
    try:
        code = main(arguments)
    except SystemExit as exit_:
        code = exit_.code
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def read_table(path):
    with open(path, newline="", encoding="utf-8") as file:
        header, *rows = csv.reader(file)
    return header, torch.tensor([[float(value) for value in row] for row in rows])


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """The output folder of one complete run, alone in its working directory."""
    folder = tmp_path_factory.mktemp("cli")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert main(SEEDED) == 0
    return folder / "results" / "gaussian_linear"


@pytest.fixture(scope="module")
def summary(results):
    return json.loads((results / "summary.json").read_text(encoding="utf-8"))


def test_a_run_writes_its_results_and_nothing_else(results):
    assert {path.name for path in results.iterdir()} == {
        "summary.json",
        *TABLES,
        *FIGURES,
    }
    assert [path.name for path in results.parents[1].iterdir()] == ["results"]
    for name in FIGURES:
        image = matplotlib.image.imread(results / name)
        assert image.shape[1] >= 800
        assert image[..., :3].std() > 0.01, f"{name} is empty"
    assert matplotlib.pyplot.get_fignums() == []


def test_the_summary_agrees_with_the_task(summary):
    task = get_task("gaussian_linear")
    value, error = task.exact_eig(torch.tensor(summary["design"]))
    expected = {
        "task": "gaussian_linear",
        "seed": 3,
        "objective": "barber_agakov",
        "method": "joint",
        "gradient": "score",
        "policy": "truncated_normal",
        "candidates": [],
        "complete": True,
        "exact_eig": pytest.approx(value),
        "exact_eig_standard_error": error,
        "true_parameters": task.true_parameters[0].tolist(),
    }
    assert {name: summary[name] for name in expected} == expected
    assert task.design_space.support.check(torch.tensor(summary["design"]))
    assert summary["eig"]["bound"] in ("barber_agakov", "lace")  # the larger.
    assert summary["eig"] in summary["bounds"].values()
    assert isinstance(summary["doubts"], list)
    assert summary["reference_eig"]["value"] == pytest.approx(value, abs=1e-6)
    assert len(summary["x_o"]) == task.dim_x


def test_the_reported_information_is_a_lower_bound(summary):
    eig = summary["eig"]
    assert eig["bound"] in ("barber_agakov", "lace")
    assert eig["value"] > summary["exact_eig"] - 0.3
    # Five standard errors: the seed is fixed, but not for every version of torch.
    assert eig["value"] < summary["exact_eig"] + 5.0 * eig["standard_error"]


def test_the_trace_has_one_row_per_step_and_ends_at_the_design(results, summary):
    header, rows = read_table(results / "trace.csv")
    columns = "step eig eig_standard_error loss log_likelihood num_simulations seconds"
    assert header == [*columns.split(), "design_1", "scale_1"]
    header, samples = read_table(results / "posterior_samples.csv")
    assert header == summary["parameter_names"]
    mean = samples.mean(dim=0).tolist()
    assert mean == pytest.approx(summary["posterior_mean"], rel=1e-4, abs=1e-4)
    assert rows[:, 0].tolist() == list(range(1, NUM_STEPS + 1))
    assert rows[-1, 7].item() == pytest.approx(summary["design"][0])
    assert (rows[:, 6].diff() > 0).all()
    assert rows[-1, 5] + summary["eig"]["num_simulations"] == summary["num_simulations"]
    assert summary["seconds_training"] < summary["seconds"]


def test_the_comparison_holds_the_exact_values(results):
    header, rows = read_table(results / "eig_over_design.csv")
    task = get_task("gaussian_linear")
    assert header[:2] == ["design", "eig"]
    assert rows[0, 0] == task.design_low and rows[-1, 0] == task.design_high
    for row in rows:
        exact, _ = task.exact_eig(row[:1])
        assert row[3].item() == pytest.approx(exact, abs=1e-5)
        assert row[1] < exact + 5.0 * row[2]


@pytest.mark.slow
def test_the_same_seed_gives_the_same_results(results, tmp_path, capsys):
    before = torch.get_rng_state()
    code, out, err = run([*SEEDED, "--output", "again", "--quiet"], capsys)
    assert code == 0 and torch.equal(torch.get_rng_state(), before)
    for name in ("posterior_samples.csv", "eig_over_design.csv"):
        assert (tmp_path / "again" / name).read_bytes() == (results / name).read_bytes()
    assert "it/s" not in err, "--quiet still shows a progress bar"
    for text in ("position ξ", "± ", "nats", "lower bound", "exact EIG", "slope θ₁"):
        assert text in out


@pytest.fixture
def interrupt(monkeypatch):
    def refuse(*args, **kwargs):
        raise KeyboardInterrupt

    return lambda stage: monkeypatch.setattr(design_run, stage, refuse)


@pytest.mark.slow
def test_an_interruption_keeps_the_design(tmp_path, capsys, interrupt):
    interrupt("infer_parameters")
    (tmp_path / "posterior_samples.csv").write_text("of an earlier run")
    arguments = [*ARGUMENTS, "--num-steps", "5", "--output", str(tmp_path), "--quiet"]
    code, _, err = run([*arguments, "--dim-design", "2"], capsys)
    assert code == 130
    assert "interrupted" in err and "summary.json" in err
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"summary.json", "trace.csv", "trace.png", "policy.png"}
    kept = json.loads((tmp_path / "summary.json").read_text())
    assert len(kept["design"]) == 2
    assert not kept["complete"] and "posterior_mean" not in kept


def test_an_interrupted_search_leaves_earlier_results(tmp_path, capsys, interrupt):
    interrupt("find_design")
    earlier = tmp_path / "summary.json"
    earlier.write_text("of an earlier run")
    code, _, err = run([*ARGUMENTS, "--output", str(tmp_path)], capsys)
    assert code == 130
    assert "Nothing was written" in err
    assert earlier.read_text() == "of an earlier run"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("design noisy_linaer", "'noisy_linear'"),
        ("design sir --dim-design 0", "at least 1"),
        ("design sir --max-seconds 0", "positive"),
        ("design sir --density-estimator nfs", "nsf"),
        ("design sir --policy point", "gradient='score'"),
        ("design sir --gradient pathwise", "not differentiable"),
        ("design sir --method multi_start --num-refinement-steps 7", "Leave it out"),
        ("design no_such_module:task", "cannot load no_such_module:task"),
        ("design math:pi", "must be a sbi_boed_plugin.Problem or tasks.Task"),
        ("design sbi_boed_plugin.tasks:Task", "without name, prior, design_low"),
        ("design tests.test_cli_search:Speed --dim-design 2", "takes no"),
        ("design tests.test_cli_search:SPEED --dim-design 2", "takes no"),
        ("design location_finding --dim-design 2", "dim_space"),
        ("design sir --output file", "is a file"),
        ("design", "TASK"),
        ("desing sir", "design"),
        ("", "COMMAND"),
    ],
)
def test_wrong_input_is_refused_in_one_line(arguments, message, capsys):
    Path("file").write_text("")
    code, out, err = run(arguments.split(), capsys)
    assert (code, out) == (2, "")
    assert message in err
    assert err.count("\n") == 1 and err.endswith("\n")
    assert os.listdir() == ["file"]


def test_help_names_the_tasks_units_and_default_steps(capsys):
    code, out, _ = run(["design", "--help"], capsys)
    assert code == 0
    assert all(name in out for name in available_tasks())
    assert "nats" in out
    assert f"(default: {DEFAULT_NUM_STEPS})" in " ".join(out.split())
    documented = " ".join((DesignSearchConfig.__doc__ or "").split())
    assert f"Number of training steps. If `None`, {DEFAULT_NUM_STEPS:,}" in documented
    code, out, _ = run(["--help"], capsys)
    assert code == 0 and "design" in out and "tasks" in out
    code, out, _ = run(["tasks"], capsys)
    assert code == 0
    assert [line.split()[0] for line in out.splitlines()] == available_tasks()


def test_the_package_runs_as_a_module_and_imports_what_a_command_needs():
    program = "import sys; from sbi_boed_plugin.cli import main; main(['tasks']); "
    program += "print([n for n in sys.modules if n.startswith('sbi_boed_plugin')])"
    run_python = lambda *a: subprocess.check_output([sys.executable, *a], text=True)
    assert run_python("-m", "sbi_boed_plugin", "--version").strip() == __version__
    loaded = run_python("-c", program).splitlines()[-1]
    assert "sbi_boed_plugin.cli.command" in loaded
    for other in ("benchmark", "plotting", "cli.design", "cli.bench"):
        assert f"sbi_boed_plugin.{other}'" not in loaded


@pytest.mark.parametrize("argument", ["--help", "--version", "no-command"])
def test_help_waits_for_no_import(argument):
    program = "import atexit, sys, sbi_boed_command; sys.argv[0] = 'sbi-boed'; "
    program += "atexit.register(lambda: print(sorted(sys.modules))); "
    program += "sbi_boed_command.main()"
    done = subprocess.run(
        [sys.executable, "-c", program, argument], capture_output=True, text=True
    )
    assert done.returncode == (2 if argument == "no-command" else 0)
    loaded = done.stdout.splitlines()[-1]
    assert "'argparse'" in loaded and "'torch'" not in loaded
    assert "'sbi_boed_plugin'" not in loaded


def test_a_failed_write_keeps_the_earlier_file(tmp_path, monkeypatch):
    folder = ResultFolder(tmp_path)
    folder.save_json("summary.json", {"eig": {"value": float("nan")}, "x": [1e999]})

    def fail(*args):
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        folder.save_json("summary.json", {"design": 2})
    # What JSON cannot express is null.
    kept = json.loads((tmp_path / "summary.json").read_text())
    assert kept == {"eig": {"value": None}, "x": [None]}
    assert os.listdir(tmp_path) == ["summary.json"]
