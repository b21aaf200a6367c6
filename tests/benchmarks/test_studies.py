"""Each study: its jobs are told apart, and its quick version runs through."""

import csv
import math
from pathlib import Path

import pytest
import torch

from benchmarks import growth
from benchmarks.__main__ import MODULES, load_study, main
from benchmarks.papers import (
    gkl_acceptance,
    gkl_dimension,
    gkl_variance,
    linear_scaling,
    location,
    pharmacokinetic,
    sir_ablation,
    table_bmp,
    table_sir,
    two_moons,
)
from benchmarks.papers._campaigns import resampled_posterior, summarize
from benchmarks.papers._hybrids import log_densities, uncorrected
from benchmarks.papers._linear_gaussian import LinearGaussian
from benchmarks.papers._methods import Observer, _given_designs
from sbi_boed_plugin.benchmark.store import job_key
from sbi_boed_plugin.tasks import get_task

HYBRIDS = [gkl_variance.STUDY, gkl_acceptance.STUDY, gkl_dimension.STUDY]
SEQUENCES = [location.STUDY, pharmacokinetic.STUDY, table_bmp.STUDY, table_sir.STUDY]
OTHERS = [growth.STUDY, linear_scaling.STUDY, sir_ablation.STUDY, two_moons.STUDY]


def named(study):
    return study.name


@pytest.mark.parametrize("name", MODULES)
def test_studies_have_the_name_that_they_are_asked_for(name):
    assert load_study(name).name == name


@pytest.mark.parametrize("study", [*OTHERS, *HYBRIDS, *SEQUENCES], ids=named)
@pytest.mark.parametrize("quick", [False, True])
def test_jobs_are_told_apart(study, quick):
    jobs = study.jobs(3, quick)
    keys = {job_key(job) for job in jobs}
    assert len(keys) == len(jobs)
    assert len({tuple(job) for job in jobs}) == 1
    assert all(isinstance(v, (int, float, str)) for job in jobs for v in job.values())
    # The settings of BMP were chosen with seed 0.
    first = 1 if study.name == "table-bmp" else 0
    assert {job["seed"] for job in jobs} == {first, first + 1, first + 2}
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


def test_tables_have_the_order_of_the_methods_whichever_finished_first():
    rows = [
        {**job, "spce_each": "1.0 2.0", "snmc_each": "1.0 2.0"}
        for job in location.STUDY.jobs(2, False)
    ]
    table = location.STUDY.summary(rows[::-1])
    assert tuple(line["method"] for line in table) == location.METHODS
    assert [line["experiments"] for line in table] == [4, 2, 4, 4]
    assert table[0]["beyond_random"] == "0.00 ± 0.00"


def test_summaries_leave_out_what_is_not_finite():
    rows = [{"a": 1, "x": v} for v in (1.0, 3.0, math.nan, "")]
    assert summarize(rows, ["a"], {"x": 1}) == [
        {"a": 1, "rows": 4, "x": "2.0 ± 1.0 (1 not finite)"}
    ]


def test_resampling_draws_from_the_posterior_of_each_data_set():
    torch.manual_seed(0)
    theta, x = torch.randn(20_000, 1), torch.tensor([[-2.0], [2.0]]).repeat(2_000, 1)
    draws, effective = resampled_posterior(
        lambda x, theta: -0.5 * (x - theta.T).square(), theta, x
    )
    draws = draws.reshape(-1, 2)
    assert draws.mean(dim=0).tolist() == pytest.approx([-1.0, 1.0], abs=0.06)
    assert draws.std(dim=0).tolist() == pytest.approx([0.71, 0.71], abs=0.04)
    assert (effective > 1_000).all()


def test_data_that_nothing_explains_take_any_draw():
    impossible = lambda x, theta: torch.full((len(x), len(theta)), -torch.inf)
    draws, _ = resampled_posterior(impossible, torch.randn(50, 2), torch.randn(3, 1))
    assert draws.isfinite().all()


def test_experiments_have_noise_of_their_own_that_follows_from_the_seed():
    task = get_task("noisy_linear")
    design = 0.5 * (task.design_low + task.design_high)
    one, same, other = Observer(task, 1), Observer(task, 1), Observer(task, 2)
    first, second = one(design), one(design)
    torch.rand(1)  # Whatever else is drawn in between.
    assert torch.equal(first, same(design))
    assert not torch.equal(first, second)
    assert not torch.equal(first, other(design))


@pytest.mark.parametrize("kind", ["random", "sobol"])
def test_given_designs_lie_in_the_box_and_follow_from_the_seed(kind):
    task = get_task("sir")
    designs = _given_designs(task, kind, 5, seed=0)
    assert designs.shape == (5, 1)
    assert ((designs >= task.design_low) & (designs <= task.design_high)).all()
    assert torch.equal(designs, _given_designs(task, kind, 5, seed=0))
    assert not torch.equal(designs, _given_designs(task, kind, 5, seed=1))


def test_features_of_sources_depend_on_distances_alone():
    torch.manual_seed(0)
    features = location._SourceDistances(num_sources=2, dim_space=2)
    rows = torch.randn(5, 6)
    exchanged = rows[:, [2, 3, 0, 1, 4, 5]]
    shifted = rows + torch.tensor([1.0, -2.0]).repeat(3)
    for other in (exchanged, shifted, -rows):
        torch.testing.assert_close(features(rows), features(other))


def test_logarithms_of_concentrations_are_the_same_experiment():
    in_logs, natural = table_bmp._LogBMP(noise=0.0), table_bmp.BMP(noise=0.0)
    theta, design = torch.rand(6, 2), torch.logspace(-6, 3, 6).unsqueeze(1)
    torch.testing.assert_close(
        in_logs.simulator(theta, design.log()), natural.simulator(theta, design)
    )


@pytest.mark.slow
@pytest.mark.parametrize("study", SEQUENCES, ids=named)
def test_a_quick_run_makes_rows_a_summary_and_a_figure(study, tmp_path):
    rows = [{**job, **study.run(job, True)} for job in study.jobs(1, True)]
    values = [v for row in rows for v in row.values() if not isinstance(v, str)]
    assert all(math.isfinite(value) for value in values)
    assert len({tuple(row) for row in rows}) == 1, "rows of one table"
    assert len(study.summary(rows)) == len(rows)
    study.figure(rows).savefig(tmp_path / "figure.png")
    if study is table_sir.STUDY:
        first, second = (
            {**study.run(study.jobs(1, True)[0], True), "cpu_seconds": 0}
            for _ in range(2)
        )
        assert first == second


@pytest.mark.slow
@pytest.mark.parametrize("study", [*OTHERS, *HYBRIDS], ids=named)
def test_the_quick_version_runs_through(study, capsys):
    assert main([study.name, "--quick", "--output", "out"]) == 0
    with open(f"out/{study.name}_quick.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(study.jobs(1, True))
    assert all(float(row["seconds"]) > 0 for row in rows)
    assert Path(f"out/{study.name}_quick.png").stat().st_size > 10_000
    assert study.summary is None or study.title in capsys.readouterr().out
    if study is linear_scaling.STUDY:
        assert all(0.5 < float(row["share"]) <= 1.0 for row in rows)
    if study is sir_ablation.STUDY:
        assert all(float(row["shortfall"]) >= 0.0 for row in rows)
    if study in HYBRIDS:
        for row in rows:
            assert 0.0 < float(row["acceptance_rate"]) <= 1.0
            assert 0.0 < float(row["effective_share"]) <= 1.0
            assert 0.0 <= float(row["truncated_mass"]) < 0.1
