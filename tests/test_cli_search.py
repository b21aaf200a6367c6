"""The options of the command that say how to search, and what it then draws."""

import json
from types import SimpleNamespace

import pytest
import torch
from sbi.utils import BoxUniform

from sbi_boed_plugin import experiment
from sbi_boed_plugin.cli import comparison, design, design_run, main
from sbi_boed_plugin.search.config import DesignSearchConfig, MultiStartConfig
from sbi_boed_plugin.tasks import Task, available_tasks, get_task
from tests.test_cli import FIGURES, TABLES, read_table, run

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


def test_a_map_is_drawn_of_two_coordinates(tmp_path, capsys, quick, monkeypatch):
    coarse = lambda task: comparison.design_grid(task, 5)
    monkeypatch.setattr(design_run, "design_grid", coarse)
    folder = tmp_path / "map"
    arguments = ["design", "location_finding", "--num-steps", "20", "--quiet"]
    code, out, _ = run([*arguments, "--output", str(folder)], capsys)
    assert code == 0
    names = {path.name for path in folder.iterdir()}
    assert names == {"summary.json", *TABLES, *FIGURES}
    header, rows = read_table(folder / "eig_over_design.csv")
    columns = "design_1 design_2 eig standard_error reference_eig"
    assert header == [*columns.split(), "reference_standard_error"]
    assert len(rows) == 5**2
    assert rows[:, :2].aminmax(dim=0).min.tolist() == [-4.0, -4.0]
    # The information depends on the distance from the origin alone.
    best = rows[rows[:, 4].argmax(), :2]
    assert best.abs().max() < 0.01
    assert "25 designs of a grid" in out


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
    assert "candidate 1 " in out


@pytest.mark.parametrize("policy", ["mixture", "point"])
def test_the_options_of_the_search_reach_it(policy, tmp_path, capsys, quick):
    arguments = ["design", "gaussian_linear", "--dim-design", "2", "--quiet"]
    arguments += ["--policy", policy, "--objective", "info_nce", "--num-steps", "3"]
    arguments += ["--gradient", "implicit", "--density-estimator", "mdn"]
    code, out, _ = run([*arguments, "--output", str(tmp_path)], capsys)
    assert code == 0
    kept = json.loads((tmp_path / "summary.json").read_text())
    assert kept["policy"] == policy
    assert (kept["objective"], kept["gradient"]) == ("info_nce", "implicit")
    assert kept["eig"]["bound"] == "pce"
    header, _ = read_table(tmp_path / "trace.csv")
    assert header[7:11] == ["design_1", "design_2", "scale_1", "scale_2"]
    if policy == "mixture":
        assert header[11:14] == ["loc_1_1", "loc_1_2", "loc_2_1"]
        assert header[-4:] == [f"weights_{k}" for k in (1, 2, 3, 4)]
    assert not (tmp_path / "eig_over_design.png").exists()


@pytest.mark.parametrize("given", ["Speed", "SPEED"])
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


@pytest.mark.parametrize(
    ("bound", "network", "others"),
    [
        ("pce", "likelihood", {}),
        ("lace", "likelihood", {"posterior_estimator": "posterior"}),
        ("barber_agakov", "posterior", {}),
    ],
)
def test_other_designs_are_scored_as_the_one_found(bound, network, others, monkeypatch):
    asked = []
    monkeypatch.setattr(
        comparison, "estimate_eig", lambda *args, **kwargs: asked.append((args, kwargs))
    )
    result = SimpleNamespace(
        eig=SimpleNamespace(bound=bound),
        likelihood_estimator="likelihood",
        posterior_estimator="posterior",
    )
    comparison.eig_over_designs(result, SPEED, torch.zeros(1, 1))
    ((args, kwargs),) = asked
    assert args[0] == network and kwargs["bound"] == bound
    assert others.items() <= kwargs.items()


def test_all_settings_reach_the_search(monkeypatch):
    asked = {}

    def find_design(trainer, task, **settings):
        asked.update(settings, policy=type(trainer.design_policy).__name__)
        raise KeyboardInterrupt

    monkeypatch.setattr(design_run, "find_design", find_design)
    options = "--policy point --objective gkl --gradient surrogate --num-workers 3 "
    options += "--num-refinement-steps 7 --max-seconds 2.5 --num-steps 9"
    assert main(["design", "sir", *options.split()]) == 130
    assert asked == {
        "policy": "PointPolicy",
        "objective": "gkl",
        "gradient": "surrogate",
        "method": "joint",
        "num_workers": 3,
        "num_steps": 9,
        "num_refinement_steps": 7,
        "max_seconds": 2.5,
    }
    assert main(["design", "sir"]) == 130
    defaults = DesignSearchConfig()
    assert asked.pop("policy") == "TruncatedNormalPolicy"
    assert asked == {name: getattr(defaults, name) for name in asked}


@pytest.mark.parametrize("options", ["--policy point", "--gradient pathwise"])
def test_a_multi_start_search_needs_no_gradient_of_the_policy(options, monkeypatch):
    monkeypatch.setattr(design_run, "find_design", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        main(["design", "sir", "--method", "multi_start", *options.split()])


@pytest.mark.parametrize("name", sorted({*available_tasks()} - {"ces"}))
def test_a_grid_covers_the_design_space_in_the_coordinates_of_the_task(name):
    task = get_task(name)
    designs = comparison.design_grid(task, 5)
    assert designs.shape == (5**task.dim_design, task.dim_design)
    assert torch.equal(designs.amin(dim=0), task.design_low)
    torch.testing.assert_close(designs.amax(dim=0), task.design_high)
    assert task.design_space.support.check(designs).all()
    along = task.design_transform(designs[:, -1].unique())
    steps = along.diff()
    torch.testing.assert_close(steps, steps.mean().expand(4), rtol=1e-3, atol=1e-4)


def test_the_reference_is_what_the_task_knows():
    task = get_task("location_finding")
    designs = torch.tensor([[0.0, 0.0], [1.0, -2.0]])
    known = comparison.reference_eig(task, designs)
    for pair, place in zip(known, designs, strict=True):
        assert pair == pytest.approx(task.exact_eig(place), rel=1e-6)


def test_an_unknown_policy_is_refused():
    with pytest.raises(ValueError, match="policy='normal' is unknown"):
        experiment.make_trainer(get_task("sir"), policy="normal")
