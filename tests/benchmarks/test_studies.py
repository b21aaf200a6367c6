"""Each study: its jobs are told apart, and its quick version runs through."""

import csv
import math
from pathlib import Path

import pytest
import torch

from benchmarks.__main__ import MODULES, load_study, main
from benchmarks.papers import (
    gkl_acceptance,
    gkl_dimension,
    gkl_variance,
    linear_scaling,
    sir_ablation,
    two_moons,
)
from benchmarks.papers._hybrids import log_densities, uncorrected
from benchmarks.papers._linear_gaussian import LinearGaussian
from sbi_boed_plugin.benchmark.store import job_key

HYBRID_STUDIES = [gkl_variance.STUDY, gkl_acceptance.STUDY, gkl_dimension.STUDY]
STUDIES = [linear_scaling.STUDY, sir_ablation.STUDY, two_moons.STUDY, *HYBRID_STUDIES]


@pytest.mark.parametrize("name", MODULES)
def test_studies_have_the_name_that_they_are_asked_for(name):
    assert load_study(name).name == name


@pytest.mark.parametrize("study", STUDIES, ids=lambda study: study.name)
@pytest.mark.parametrize("quick", [False, True])
def test_jobs_are_told_apart(study, quick):
    jobs = study.jobs(3, quick)
    keys = {job_key(job) for job in jobs}
    assert len(keys) == len(jobs)
    assert len({tuple(job) for job in jobs}) == 1
    assert {job["seed"] for job in jobs} == {0, 1, 2}
    # More seeds add jobs: rows that exist stay of use.
    assert {job_key(job) for job in study.jobs(4, quick)} > keys


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


def test_exact_samples_of_two_moons_have_its_posterior():
    torch.manual_seed(0)
    x_o = torch.tensor([0.1, 0.2])
    axis = torch.linspace(-1.0, 1.0, 1_001)
    theta = torch.cartesian_prod(axis, axis)
    weight = two_moons.log_likelihood(x_o, theta).softmax(dim=0)
    samples = gkl_variance.exact_samples(x_o, 2_000)
    # Of 2,000 samples, a tenth of the box each: within four standard errors.
    for low in torch.linspace(-1.0, 0.9, 20).tolist():
        chosen = (theta[:, 0] >= low) & (theta[:, 0] < low + 0.1)
        exact = weight[chosen].sum().item()
        drawn = ((samples[:, 0] >= low) & (samples[:, 0] < low + 0.1)).float().mean()
        error = max(exact * (1.0 - exact) / 2_000, 1e-6) ** 0.5
        assert drawn.item() == pytest.approx(exact, abs=4.0 * error + 0.005)


def test_the_posterior_of_the_linear_model_is_prior_times_likelihood():
    torch.manual_seed(0)
    model = LinearGaussian(4)
    theta, x = torch.randn(50, 4), torch.randn(4)
    noise = torch.distributions.Independent(
        torch.distributions.Normal(theta @ model.matrix.T, 1.0), 1
    )
    joint = model.prior.log_prob(theta) + noise.log_prob(x)
    evidence = joint - model.posterior(x.expand(50, -1)).log_prob(theta)
    torch.testing.assert_close(evidence, evidence.mean().expand(50))


def test_a_diagonal_normal_is_made_of_its_noise():
    torch.manual_seed(0)
    theta, x = torch.randn(10, 3), torch.randn(10, 2)
    base = gkl_dimension.DiagonalNormal(theta, x)
    torch.nn.init.normal_(base.log_scale)
    noise = base.to_noise(theta, x)
    standard = torch.distributions.Normal(0.0, 1.0).log_prob(noise).sum(dim=1)
    expected = standard - base.log_scale.sum()
    torch.testing.assert_close(base.log_prob(theta.unsqueeze(0), x)[0], expected)
    torch.testing.assert_close(base.loss(theta, x), -expected)


def test_the_densities_of_an_uncorrected_base_are_its_own_on_the_support():
    torch.manual_seed(0)
    prior = two_moons.prior()
    theta = prior.sample((200,))
    x = two_moons.simulate(theta)
    base = gkl_dimension.DiagonalNormal(theta, x)
    hybrid = uncorrected(base, prior, theta, x).posterior_estimator
    of_base, of_hybrid = log_densities(hybrid, theta, x, 2_000)
    assert torch.equal(of_base, of_hybrid)
    mean, scale = base.net(x), base.log_scale.exp()
    normal = torch.distributions.Normal(mean, scale)
    share = normal.cdf(torch.tensor(1.0)) - normal.cdf(torch.tensor(-1.0))
    expected = base.log_prob(theta.unsqueeze(0), x)[0] - share.log().sum(dim=1)
    # A share of about a half from 2,000 draws has a relative error of 2 %.
    torch.testing.assert_close(of_base, expected, atol=0.12, rtol=0)


@pytest.mark.parametrize("name", gkl_acceptance.TARGETS)
def test_targets_simulate_what_their_prior_draws(name):
    target = gkl_acceptance.make_target(name)
    theta = target.prior.sample((7,))
    x = target.simulate(theta)
    assert len(x) == 7 and x.isfinite().all()


@pytest.mark.slow
@pytest.mark.parametrize("study", STUDIES, ids=lambda study: study.name)
def test_the_quick_version_runs_through(study, capsys):
    assert main([study.name, "--quick", "--output", "out"]) == 0
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
    if study in HYBRID_STUDIES:
        for row in rows:
            assert 0.0 < float(row["acceptance_rate"]) <= 1.0
            assert 0.0 < float(row["effective_share"]) <= 1.0
            assert 0.0 <= float(row["truncated_mass"]) < 0.1
