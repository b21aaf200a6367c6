"""The options of the command that say how to search, and what it then draws."""

import json
from unittest.mock import Mock

import pytest
import torch
from sbi.utils import BoxUniform

from sbi_boed_plugin import experiment
from sbi_boed_plugin.cli import design, design_run, main
from sbi_boed_plugin.search.config import DesignSearchConfig, MultiStartConfig
from sbi_boed_plugin.tasks import Task, available_tasks, get_task
from tests.test_cli import read_table, run

# sbi passes torch tensors to numpy functions.
pytestmark = pytest.mark.filterwarnings(
    "ignore:__array__ implementation:DeprecationWarning"
)


class Speed(Task):
    """A user's experiment: when to look at what moves at an unknown speed."""

    name = "speed"
    parameter_names, design_names, x_names = ("speed",), ("time",), ("place",)
    design_low, design_high = torch.zeros(1), torch.ones(1)
    true_parameters = torch.tensor([[0.5]])
    dim_x = 1

    def __init__(self):
        self.prior = BoxUniform(torch.zeros(1), torch.ones(1))

    def _simulate(self, theta, design):
        return theta * design + 0.1 * torch.randn_like(theta)


SPEED = Speed()


@pytest.fixture
def quick(monkeypatch):
    """Leave out Markov chains, climb from a few designs and score with little data."""
    small = MultiStartConfig(num_starts=16, num_climb_steps=6, num_candidate_samples=64)

    def find_design(trainer, task, **settings):
        settings |= {"num_eig_samples": 100, "num_eig_contrastive": 31}
        if settings.get("method") == "multi_start":
            settings["multi_start"] = small
        return experiment.find_design(trainer, task, **settings)

    def infer_parameters(trainer, place, x_o, **settings):
        return trainer._prior.sample((50,))

    monkeypatch.setattr(design_run, "find_design", find_design)
    monkeypatch.setattr(design_run, "infer_parameters", infer_parameters)


@pytest.mark.slow
def test_a_multi_start_search_reports_what_it_compared(tmp_path, capsys, quick):
    arguments = ["design", "pharmacokinetic", "--method", "multi_start", "--quiet"]
    arguments += ["--num-steps", "20", "--output", str(tmp_path)]
    code, out, _ = run(arguments, capsys)
    assert code == 0
    kept = json.loads((tmp_path / "summary.json").read_text())
    assert kept["method"] == "multi_start"
    assert kept["candidates"][0]["design"] == kept["design"]
    values = [candidate["eig"]["value"] for candidate in kept["candidates"]]
    assert values == sorted(values, reverse=True)


@pytest.mark.parametrize(
    ("policy", "gradient"), [("mixture", "score"), ("point", "implicit")]
)
def test_the_options_of_the_search_reach_it(policy, gradient, tmp_path, capsys, quick):
    arguments = ["design", "gaussian_linear", "--dim-design", "2", "--quiet"]
    arguments += ["--policy", policy, "--objective", "info_nce", "--num-steps", "3"]
    arguments += ["--gradient", gradient, "--density-estimator", "mdn"]
    code, out, _ = run([*arguments, "--output", str(tmp_path)], capsys)
    assert code == 0
    kept = json.loads((tmp_path / "summary.json").read_text())
    assert kept["policy"] == policy
    assert (kept["objective"], kept["gradient"]) == ("info_nce", gradient)
    assert kept["eig"]["bound"] == "pce"
    header, _ = read_table(tmp_path / "trace.csv")
    assert header[7:11] == ["design_1", "design_2", "scale_1", "scale_2"]
    if policy == "mixture":
        assert header[11:14] == ["loc_1_1", "loc_1_2", "loc_2_1"]
        assert header[-4:] == [f"weights_{k}" for k in (1, 2, 3, 4)]
    assert not (tmp_path / "eig_over_design.png").exists()


@pytest.mark.parametrize("stage", ["_save_posterior", "_compare_designs"])
def test_results_are_complete_once_all_is_written(stage, tmp_path, monkeypatch, quick):
    monkeypatch.setattr(design_run, stage, Mock(side_effect=KeyboardInterrupt))
    arguments = ["gaussian_linear", "--density-estimator", "mdn", "--num-steps", "3"]
    assert main(["design", *arguments, "--output", str(tmp_path)]) == 130
    kept = json.loads((tmp_path / "summary.json").read_text())
    assert not kept["complete"]
    has_samples = (tmp_path / "posterior_samples.csv").exists()
    assert ("posterior_mean" in kept) == has_samples == (stage == "_compare_designs")


@pytest.mark.parametrize(
    "given", ["Speed", pytest.param("SPEED", marks=pytest.mark.slow)]
)
def test_a_users_task_is_given_by_its_module(given, tmp_path, capsys, quick):
    name = f"{__name__}:{given}"
    code, out, _ = run(["design", name, "--num-steps", "3", "--quiet"], capsys)
    assert code == 0 and "Best design of speed" in out
    kept = json.loads((tmp_path / "results" / "speed" / "summary.json").read_text())
    assert kept["task"] == "speed" and kept["exact_eig"] is None
    header, _ = read_table(tmp_path / "results" / "speed" / "eig_over_design.csv")
    assert header == ["design", "eig", "standard_error"]


def test_a_module_in_the_current_folder_is_found(tmp_path, monkeypatch):
    (tmp_path / "here_only.py").write_text(
        f"from {__name__} import SPEED\ndef task(dim_design=1):\n    return SPEED\n"
    )
    given = []
    monkeypatch.setattr(design, "run_design", lambda task, *_, **__: given.append(task))
    assert main(["design", "here_only:task", "--dim-design", "1"]) == 0
    assert given == [SPEED]


def test_all_settings_reach_the_search(monkeypatch):
    asked = {}

    def find_design(trainer, task, **settings):
        asked.update(settings, policy=type(trainer.design_policy).__name__)
        raise KeyboardInterrupt

    monkeypatch.setattr(design_run, "find_design", find_design)
    options = "--policy point --objective gkl --gradient surrogate --num-workers 3 "
    options += "--num-refinement-steps 7 --max-seconds 2.5 --num-steps 9"
    options += " --max-num-simulations 8000"
    assert main(["design", "sir", *options.split()]) == 130
    assert asked == {
        "policy": "PointPolicy",
        "objective": "gkl",
        "gradient": "surrogate",
        "method": "auto",
        "num_workers": 3,
        "num_steps": 9,
        "num_refinement_steps": 7,
        "max_num_simulations": 8_000,
        "max_seconds": 2.5,
    }
    assert main(["design", "sir"]) == 130
    defaults = DesignSearchConfig()
    assert asked.pop("policy") == "TruncatedNormalPolicy"
    assert asked == {name: getattr(defaults, name) for name in asked}


@pytest.mark.parametrize(
    "name",
    sorted(
        {*available_tasks()} - {"ces", "hyperbolic_discounting", "location_finding"}
    ),
)
def test_a_grid_covers_the_design_space_in_the_coordinates_of_the_task(name):
    task = get_task(name)
    designs = design_run.design_grid(task)
    assert designs.shape == (21, 1)
    assert designs[0] == task.design_low
    torch.testing.assert_close(designs[-1], task.design_high)
    assert task.design_space.support.check(designs).all()
    steps = task.design_transform(designs[:, 0]).diff()
    torch.testing.assert_close(steps, steps.mean().expand(20), rtol=1e-3, atol=1e-4)
