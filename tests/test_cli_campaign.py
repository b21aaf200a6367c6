"""`sbi-boed campaign`, and `sbi-boed design` for a problem of the user."""

import json

import numpy as np
import pandas as pd
import pytest
import torch

from sbi_boed_plugin import Problem, TruncatedNormalPolicy
from sbi_boed_plugin.cli import main
from sbi_boed_plugin.problem import read_simulations
from tests.trainers.cases import message

MODULE = """
import torch
from torch.distributions import MultivariateNormal
from sbi_boed_plugin import Problem, TruncatedNormalPolicy

def simulator(theta, design):
    return theta[:, :1] * design + 0.5 * torch.randn(len(theta), 1)

def cost(design):
    return 1.0 + design[:, 0]

problem = Problem(
    simulator,
    MultivariateNormal(torch.zeros(2), torch.eye(2)),
    TruncatedNormalPolicy(torch.zeros(1), torch.ones(1)),
    name="dose", design_names=["dose"], target=[0], cost=cost,
)
number = 3
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    (tmp_path / "own_dose.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def called(capsys, *arguments):
    code = main([str(one) for one in arguments])
    return code, *capsys.readouterr()


FEW = ["--max-num-simulations", "150"]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_a_campaign_step_by_step(folder, capsys):
    new = ["campaign", "new", "doses", "own_dose:problem", *FEW, "--max-cost", "4"]
    code, out, _ = called(capsys, *new)
    assert code == 0 and "0 experiments" in out
    code, _, err = called(capsys, *new)
    assert code == 2 and "has a campaign already" in err
    code, out, _ = called(capsys, "campaign", "propose", "doses", "--quiet")
    assert code == 0 and out.startswith("dose: ")
    design = float(out.split()[1])
    code, _, err = called(capsys, "campaign", "record", "doses", "5000")
    assert code == 2 and "--accept-surprise" in err and err.count("\n") == 1
    code, out, _ = called(capsys, "campaign", "record", "doses", "-2e-1")
    assert code == 0 and "1 experiments" in out
    code, out, _ = called(capsys, "campaign", "undo", "doses")
    assert "0 experiments" in out and "waits for data" in out
    other = ["-0.2", "--design", "0.5", "--accept-surprise"]
    code, out, _ = called(capsys, "campaign", "record", "doses", *other)
    assert code == 0 and "design [0.5]: x [-0.2]" in out
    code, out, _ = called(capsys, "campaign", "status", "doses")
    assert f"cost {1 + 0.5:.4g}" in out and design <= 1.0
    code, _, err = called(capsys, "campaign", "status", "nowhere")
    assert code == 2 and "has no campaign" in err
    code, _, err = called(capsys, "campaign", "new", "bad", "own_dose:number")
    assert code == 2 and "must be a sbi_boed_plugin.Problem" in err
    assert not (folder / "bad").exists()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_a_design_of_ones_own_problem(folder, capsys):
    design = ["design", "own_dose:problem", "--quiet"]
    code, out, _ = called(capsys, *design, *FEW)
    assert code == 0 and "Best design of dose" in out and "about the target" in out
    results = folder / "results" / "dose"
    summary = json.loads((results / "summary.json").read_text())
    assert summary["num_simulations"] == 150 and summary["about_target"]
    assert summary["cost"] == pytest.approx(1.0 + summary["design"][0])
    table = pd.read_csv(results / "simulations.csv")
    assert [*table] == ["theta_1", "theta_2", "design_1", "x_1"]
    candidates = pd.read_csv(results / "candidates.csv")
    assert candidates["design_1"][0] == pytest.approx(summary["design"][0])
    assert (results / "eig_over_design.png").stat().st_size > 10_000
    # From the rows alone.
    stored = ["--simulations", results / "simulations.csv", "--output", "stored"]
    code, out, _ = called(capsys, *design, *stored)
    assert code == 0 and "by stored simulations" in out
    code, _, err = called(capsys, "design", "bmp", "--simulations", "x.csv")
    assert code == 2 and "is for a Problem of your own" in err
    code, _, err = called(capsys, *design, "--policy", "point")
    assert code == 2 and "a Problem has its own design_policy" in err


def test_files_of_simulations(tmp_path):
    theta, design, x = torch.rand(7, 2), torch.rand(7, 1), torch.rand(7, 3)
    np.savez(tmp_path / "a.npz", theta=theta, design=design[:, 0], x=x)
    names = {"theta": theta, "design": design, "x": x}
    columns = {
        f"{name}_{i + 1}": column.numpy()
        for name, part in names.items()
        for i, column in enumerate(part.unbind(dim=1))
    }
    # In any order.
    pd.DataFrame(columns).iloc[:, ::-1].to_csv(tmp_path / "a.csv", index=False)
    for path in (tmp_path / "a.npz", tmp_path / "a.csv"):
        found = read_simulations(path, 2, 1)
        for one, other in zip(found, (theta, design, x), strict=True):
            torch.testing.assert_close(one, other)
        with pytest.raises(ValueError, match="2 columns of theta, but there are 3"):
            read_simulations(path, 3, 1)
    np.savez(tmp_path / "b.npz", theta=theta, x=x)
    pd.DataFrame({"theta_1": [1.0], "x_1": [1.0]}).to_csv(tmp_path / "b.csv")
    for name, said in {
        "b.npz": "no array design",
        "b.csv": "must have columns design_1",
        "a.txt": "ends in .csv",
    }.items():
        with pytest.raises(ValueError, match=message(said)):
            read_simulations(tmp_path / name, 2, 1)


def test_problems_are_checked():
    prior = torch.distributions.MultivariateNormal(torch.zeros(2), torch.eye(2))
    policy = TruncatedNormalPolicy(torch.zeros(1), torch.ones(1))
    named = Problem(lambda theta, design: theta, prior, policy)
    assert named.parameter_names == ("parameter 1", "parameter 2")
    assert named.design_names == ("design 1",)
    by_name = {"parameter_names": ["rate", "scale"], "target": "scale"}
    named = Problem(lambda theta, design: theta, prior, policy, **by_name)
    assert named.settings["target"] == [1]
    by_name["target"] = ["scale", "rat"]
    with pytest.raises(ValueError, match="'rat' is none of the parameters"):
        Problem(lambda theta, design: theta, prior, policy, **by_name)
    with pytest.raises(ValueError, match="design_names=.* must have 1 names"):
        Problem(lambda theta, design: theta, prior, policy, design_names=["a", "b"])
    with pytest.raises(TypeError, match="simulator must be a function"):
        Problem(None, prior, policy)
    with pytest.raises(TypeError, match="design_policy must be a DesignPolicy"):
        Problem(lambda theta, design: theta, prior, None)
