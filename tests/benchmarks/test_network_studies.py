"""Studies of networks: what they measure is right, and their quick versions run."""

import math

import pytest
import torch

from benchmarks import generative_models, lambda_map, pretraining, unnormalized
from benchmarks.papers import two_moons
from sbi_boed_plugin.benchmark.store import job_key
from sbi_boed_plugin.tasks import get_task

STUDIES = [
    each.STUDY for each in (generative_models, lambda_map, pretraining, unnormalized)
]


@pytest.mark.parametrize("study", STUDIES, ids=lambda study: study.name)
def test_jobs_are_told_apart(study):
    jobs = study.jobs(2, False)
    assert len({job_key(job) for job in jobs}) == len(jobs)
    assert {job["seed"] for job in jobs} == {0, 1}


@pytest.mark.slow
@pytest.mark.parametrize("study", STUDIES, ids=lambda study: study.name)
@pytest.mark.filterwarnings("ignore")
def test_quick_versions_run(study):
    rows = []
    for job in study.jobs(1, True)[::4]:
        row = study.run(job, True)
        assert all(math.isfinite(v) for v in row.values() if isinstance(v, float))
        rows.append({**job, **row})
    assert len(study.summary(rows)) == len(rows)


def test_exact_draws_of_two_moons_follow_the_likelihood():
    torch.manual_seed(0)
    x = torch.tensor([-0.2, 0.1])
    draws = pretraining.exact_posterior(x, 4_000)
    assert (draws.abs() <= 1.0).all()
    assert two_moons.log_likelihood(x, draws).isfinite().all()
    grid = torch.linspace(-1.0, 1.0, 801)
    theta = torch.cartesian_prod(grid, grid)
    weights = torch.softmax(two_moons.log_likelihood(x, theta), dim=0)
    mean = (weights.unsqueeze(1) * theta).sum(dim=0)
    spread = (weights.unsqueeze(1) * (theta - mean).square()).sum(dim=0).sqrt()
    assert torch.allclose(draws.mean(dim=0), mean, atol=0.03)
    assert torch.allclose(draws.std(dim=0), spread, atol=0.02)
    positive = (draws.sum(dim=1) > 0.0).float().mean()
    assert float(positive) == pytest.approx(0.5, abs=0.03)
    assert pretraining.c2st(draws[:500], draws[500:1_000]) < 0.57


class ExactLine:
    """The true density of `noisy_linear` in the place of a network, times a factor."""

    def __init__(self, factor):
        self.task, self.shift = get_task("noisy_linear", dim_design=1), math.log(factor)

    def log_prob(self, x, condition):
        dim = self.task.dim_theta
        theta, design = condition[..., :dim], condition[..., dim:]
        return self.task.log_likelihood(x, theta, design) + self.shift


@pytest.mark.parametrize("factor", [1.0, 3.0])
def test_normalizers_and_distances_are_those_of_the_density(factor):
    torch.manual_seed(0)
    net = ExactLine(factor)
    found = unnormalized.predictions(net, net.task)
    assert found["log_normalizer"] == pytest.approx(math.log(factor), abs=0.02)
    assert found["drift"] < 0.02
    assert found["distance"] < 0.02
    if factor != 1.0:
        assert found["distance_as_is"] > 0.05


def test_a_fall_of_the_information_is_measured():
    rising = [float(i) for i in range(40)]
    assert lambda_map.largest_drop(rising) == 0.0
    assert lambda_map.largest_drop([*rising, *[10.0] * 40]) == pytest.approx(27.5)
