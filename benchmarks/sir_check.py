"""Check the SIR experiment against brute force and calibrate its posterior.

    make reproduce NAME=sir-check

For each seed: find the measurement time, compare its reported information with an
independent brute-force estimate (histograms of many trajectories, no learned
likelihood) at this time and on a grid of times, and test the posterior at this time
with sbi's simulation-based calibration and, at the observation of the true parameters,
with the local classifier two-sample test.
"""

import time
from typing import Any

import torch
from sbi.diagnostics import check_sbc, run_sbc
from sbi.diagnostics.lc2st import LC2ST

from benchmarks.study import Job, Row, Study
from sbi_boed_plugin import tasks
from sbi_boed_plugin.experiment import find_design, make_trainer, measure
from sbi_boed_plugin.tasks.sir import brute_force_eig

GRID = torch.tensor([5.0, 10, 15, 20, 25, 30, 35, 40, 45, 50, 55, 60, 70, 80, 90, 100])


def check(
    seed: int,
    num_steps: int | None = None,
    num_sbc: int = 300,
    num_lc2st: int = 1_000,
) -> dict[str, Any]:
    """Run one seed and return its figures."""
    torch.manual_seed(seed)
    task = tasks.get_task("sir")
    trainer = make_trainer(task, show_progress_bars=False)
    started = time.perf_counter()
    result = find_design(trainer, task, num_steps=num_steps)
    seconds = time.perf_counter() - started
    found = result.design.item()

    times = torch.cat([GRID, result.design])
    reference = brute_force_eig(
        times, num_parameters=1_024, num_trajectories=2_048, seed=1_000 + seed
    )
    eig = reference.eig
    best = int(eig[:-1].argmax())

    posterior = trainer.build_posterior(design=result.design, sample_with="importance")
    theta = task.prior.sample((max(num_sbc, num_lc2st),))
    x = task.simulator(theta, result.design.expand(len(theta), 1))
    ranks, dap = run_sbc(
        theta[:num_sbc],
        x[:num_sbc],
        posterior,
        num_posterior_samples=500,
        use_batched_sampling=False,
        show_progress_bar=False,
    )
    sbc = check_sbc(ranks, theta[:num_sbc], dap, num_posterior_samples=500)

    draws = torch.cat(
        [posterior.sample((1,), x=row, show_progress_bars=False) for row in x]
    )
    torch.manual_seed(seed)
    lc2st = LC2ST(theta.log(), x.log1p(), draws.log(), seed=seed, num_trials_null=100)
    _ = lc2st.train_under_null_hypothesis(verbosity=0)
    _ = lc2st.train_on_observed_data(verbosity=0)
    x_o = measure(task, result.design)
    samples = posterior.sample((1_000,), x=x_o, show_progress_bars=False)
    local = {"theta_o": samples.log(), "x_o": x_o.log1p()}
    statistic = lc2st.get_statistic_on_observed_data(**local)
    return {
        "design": round(found, 2),
        "reported_eig": round(result.eig.value, 3),
        "reported_standard_error": round(result.eig.standard_error, 3),
        "brute_force_eig": round(eig[-1].item(), 3),
        "brute_force_standard_error": round(reference.standard_error[-1].item(), 3),
        "best_on_grid": GRID[best].item(),
        "best_eig_on_grid": round(eig[best].item(), 3),
        "sbc_ks_p_beta": round(sbc["ks_pvals"][0].item(), 3),
        "sbc_ks_p_gamma": round(sbc["ks_pvals"][1].item(), 3),
        "sbc_c2st_ranks": round(sbc["c2st_ranks"].max().item(), 3),
        "sbc_c2st_dap": round(sbc["c2st_dap"].max().item(), 3),
        "lc2st_statistic": round(float(statistic), 5),
        "lc2st_p": round(float(lc2st.p_value(**local)), 3),
        "num_simulations": result.num_simulations,
        "search_seconds": round(seconds, 1),
    }


def jobs(num_seeds: int, quick: bool) -> list[Job]:
    """Return one job for each seed."""
    return [{"seed": seed} for seed in range(num_seeds)]


def run(job: Job, quick: bool) -> Row:
    """Check one search."""
    return check(job["seed"], *((50, 100, 200) if quick else ()))


STUDY = Study(
    name="sir-check",
    title="SIR, one count: a search against brute force, and its calibration",
    jobs=jobs,
    run=run,
    num_seeds=3,
)
