"""Each study: its jobs are told apart, and its quick version runs through."""

import csv
import math
from pathlib import Path

import pytest
import torch

from sbi_boed_plugin.cli import main
from sbi_boed_plugin.reproduce import linear_scaling, sir_ablation, two_moons
from sbi_boed_plugin.reproduce._table import identity
from sbi_boed_plugin.reproduce.registry import available_studies, get_study

STUDIES = [linear_scaling.STUDY, sir_ablation.STUDY, two_moons.STUDY]


@pytest.mark.parametrize("name", available_studies())
def test_studies_have_the_name_that_they_are_asked_for(name):
    assert get_study(name).name == name


def test_an_unknown_study_is_refused():
    with pytest.raises(ValueError, match="'nothing' is unknown"):
        get_study("nothing")


@pytest.mark.parametrize("study", STUDIES, ids=lambda study: study.name)
@pytest.mark.parametrize("quick", [False, True])
def test_jobs_are_told_apart(study, quick):
    jobs = study.jobs(3, quick)
    columns = list(jobs[0])
    assert all(list(job) == columns for job in jobs)
    assert len({identity(job, columns) for job in jobs}) == len(jobs)
    assert {job["seed"] for job in jobs} == {0, 1, 2}
    # More seeds add jobs: rows that exist stay of use.
    more = {identity(job, columns) for job in study.jobs(4, quick)}
    assert more > {identity(job, columns) for job in jobs}


def test_the_weight_that_both_panels_share_is_run_once():
    jobs = two_moons.jobs(1, False)
    assert len(jobs) == len(two_moons.NUM_CONTRASTIVE) + len(two_moons.STRENGTHS) - 1


def test_two_moons_agree_with_their_likelihood():
    theta = torch.tensor([[0.3, -0.8]])
    grid = torch.linspace(-1.5, 1.5, 1_501)
    x = torch.cartesian_prod(grid, grid)
    probability = two_moons.log_likelihood(x, theta).exp() * (grid[1] - grid[0]) ** 2
    assert probability.sum().item() == pytest.approx(1.0, abs=0.01)
    draws = two_moons.simulate(theta.expand(20_000, -1))
    mean = (probability.unsqueeze(1) * x).sum(dim=0)
    assert draws.mean(dim=0).tolist() == pytest.approx(mean.tolist(), abs=0.003)
    # Minus the entropy of an angle and a radius, with the radius of the area element.
    entropy = math.log(math.pi * 0.1 * 0.01) + 0.5 * math.log(2 * math.pi * math.e)
    value = two_moons.log_likelihood(draws, theta).mean().item()
    assert value == pytest.approx(-entropy, abs=0.03)


def test_two_moons_are_symmetric():
    theta = torch.tensor([[0.3, -0.8]])
    mirrored = -theta.flip(-1)
    x = two_moons.simulate(theta.expand(100, -1))
    expected = two_moons.log_likelihood(x, theta)
    torch.testing.assert_close(two_moons.log_likelihood(x, mirrored), expected)


def test_the_optimum_has_half_of_the_measurements_at_each_end():
    task = linear_scaling.get_task("noisy_linear", dim_design=10)
    design = linear_scaling.optimum(task)
    assert sorted(design.tolist()) == [-10.0] * 5 + [10.0] * 5


@pytest.mark.slow
@pytest.mark.parametrize("study", STUDIES, ids=lambda study: study.name)
def test_the_quick_version_runs_through(study, capsys):
    assert main(["reproduce", study.name, "--quick", "--output", "out"]) == 0
    with open(f"out/{study.name}_quick.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(study.jobs(1, True))
    assert all(float(row["seconds"]) > 0 for row in rows)
    assert Path(f"out/{study.name}_quick.png").stat().st_size > 10_000
    assert study.title in capsys.readouterr().out
    if study is linear_scaling.STUDY:
        assert all(0.5 < float(row["share"]) <= 1.0 for row in rows)
    if study is sir_ablation.STUDY:
        assert all(float(row["shortfall"]) >= 0.0 for row in rows)
