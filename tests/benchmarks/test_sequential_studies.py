"""Studies of sequences of experiments: what they need, and quick runs of them."""

import math

import pytest
import torch

from benchmarks.papers import location, pharmacokinetic, table_bmp, table_sir
from benchmarks.papers._campaigns import resampled_posterior, summarize
from benchmarks.papers._methods import Observer, _given_designs
from sbi_boed_plugin.tasks import get_task

MODULES = (location, pharmacokinetic, table_bmp, table_sir)
STUDIES = [module.STUDY for module in MODULES]
IDS = [study.name for study in STUDIES]


@pytest.mark.parametrize("study", STUDIES, ids=IDS)
@pytest.mark.parametrize("quick", [False, True])
def test_jobs_are_flat_and_different(study, quick):
    jobs = study.jobs(3, quick)
    # The settings of BMP were chosen with seed 0.
    first = 1 if study.name == "table-bmp" else 0
    assert {job["seed"] for job in jobs} == {first, first + 1, first + 2}
    assert all(isinstance(v, (int, float, str)) for job in jobs for v in job.values())
    assert len({tuple(job.items()) for job in jobs}) == len(jobs)


@pytest.mark.parametrize("study", STUDIES, ids=IDS)
def test_fewer_seeds_are_the_first_ones(study):
    assert study.jobs(3, False)[: len(study.jobs(2, False))] == study.jobs(2, False)


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
@pytest.mark.parametrize("study", STUDIES, ids=IDS)
def test_a_quick_run_makes_rows_a_summary_and_a_figure(study, tmp_path):
    rows = [{**job, **study.run(job, True)} for job in study.jobs(1, True)]
    values = [v for row in rows for v in row.values() if not isinstance(v, str)]
    assert all(math.isfinite(value) for value in values)
    assert len({tuple(row) for row in rows}) == 1, "rows of one table"
    assert len(study.summary(rows)) == len(rows)
    study.figure(rows).savefig(tmp_path / "figure.png")


@pytest.mark.slow
def test_rows_follow_from_the_seed():
    job = table_sir.jobs(1, True)[0]
    first, second = ({**table_sir.run(job, True), "cpu_seconds": 0} for _ in range(2))
    assert first == second
