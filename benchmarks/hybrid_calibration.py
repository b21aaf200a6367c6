"""Calibration of posteriors of one likelihood, by the hybrid and by Markov chains.

    make reproduce NAME=hybrid-calibration

`sir`: the likelihood and the posterior network of a search, at the time found.
`two_moons`: those that `NLE_INCE.train` learns from 10,000 simulations. sbi's
simulation-based calibration of fresh simulations, and the local classifier two-sample
test at one observation, of the same likelihood sampled in both ways.

`ks_p` is the smallest p-value of ranks over parameters, `c2st_dap` of one draw for each
data set against the prior is 0.5 where calibrated, `lc2st` 0 (0.25 at most) with the
p-value of its permutation test.
Seconds are processor time of all posterior draws.
"""

import contextlib
import io
import time
from collections.abc import Sequence
from typing import Any

import torch
from sbi.diagnostics import check_sbc, run_sbc
from sbi.diagnostics.lc2st import LC2ST
from sbi.inference.posteriors.posterior_parameters import MCMCPosteriorParameters
from torch import Tensor

from benchmarks.study import Job, Row, Study, averages
from sbi_boed_plugin import NLE_INCE, sbibm, tasks
from sbi_boed_plugin.experiment import NoOpTracker, find_design, make_trainer, measure

TASKS, SAMPLERS = ("sir", "two_moons"), ("hybrid", "mcmc")
NUM_TRAINING, NUM_RANKS = 10_000, 100
_MEASURES = ["ks_p", "c2st_dap", "lc2st", "lc2st_p", "cpu_seconds"]


def jobs(num_seeds: int, quick: bool) -> list[Job]:
    """Return one job for each seed, task and sampler."""
    return [
        {"task": task, "sampler": sampler, "seed": seed}
        for seed in range(num_seeds)
        for task in TASKS
        for sampler in SAMPLERS
    ]


def posterior_settings(sampler: str) -> dict[str, Any]:
    """Return the arguments of `build_posterior` for a sampler."""
    if sampler == "hybrid":
        return {"sample_with": "hybrid"}
    chains = MCMCPosteriorParameters(
        method="slice_np_vectorized", num_chains=4, warmup_steps=50, thin=2
    )
    return {"sample_with": "mcmc", "posterior_parameters": chains}


def sir(sampler: str, num: int, quick: bool) -> tuple[Any, Tensor, Tensor, Tensor]:
    """Return the posterior of a search, simulations of the joint, and an observation.

    Parameters and data are logarithms, in which the classifier sees them.
    """
    task = tasks.get_task("sir")
    trainer = make_trainer(task, show_progress_bars=False)
    result = find_design(trainer, task, num_steps=50 if quick else None)
    posterior = trainer.build_posterior(
        design=result.design, **posterior_settings(sampler)
    )
    theta = task.prior.sample((num,))
    x = task.simulator(theta, result.design.expand(num, 1))
    return posterior, theta, x, measure(task, result.design)


def two_moons(
    sampler: str, num: int, quick: bool
) -> tuple[Any, Tensor, Tensor, Tensor]:
    """Return the same of a likelihood without designs."""
    task = sbibm.get_task("two_moons")
    prior, simulator = task.get_prior_dist(), task.get_simulator()
    theta = prior.sample((1_000 if quick else NUM_TRAINING,))
    trainer = NLE_INCE(prior, "nsf", tracker=NoOpTracker(), show_progress_bars=False)
    with contextlib.redirect_stdout(io.StringIO()):
        trainer.append_simulations(theta, simulator(theta)).train(schedule="averaged")
        posterior = trainer.build_posterior(**posterior_settings(sampler))
    theta = prior.sample((num,))
    return posterior, theta, simulator(theta), task.get_observation(1)


def run(job: Job, quick: bool) -> Row:
    """Train, draw given each of many data sets, and test the draws."""
    torch.manual_seed(job["seed"])
    num_pairs, num_null = (50, 10) if quick else (300, 100)
    make = {"sir": sir, "two_moons": two_moons}[job["task"]]
    posterior, theta, x, x_o = make(job["sampler"], num_pairs, quick)
    seen = (lambda v: v.log1p()) if job["task"] == "sir" else (lambda v: v)
    started = time.process_time()
    ranks, dap = run_sbc(
        theta,
        x,
        posterior,
        num_posterior_samples=NUM_RANKS,
        use_batched_sampling=True,
        show_progress_bar=False,
    )
    settings = {"show_progress_bars": False}
    samples = posterior.sample((1_000,), x=x_o, **settings)
    seconds = time.process_time() - started
    sbc = check_sbc(ranks, theta, dap, num_posterior_samples=NUM_RANKS)
    torch.manual_seed(job["seed"])
    # The data-averaged posterior is one draw for each data set.
    test = LC2ST(
        seen(theta), seen(x), seen(dap), seed=job["seed"], num_trials_null=num_null
    )
    _ = test.train_under_null_hypothesis(verbosity=0)
    _ = test.train_on_observed_data(verbosity=0)
    local = {"theta_o": seen(samples), "x_o": seen(x_o)}
    return {
        "ks_p": round(float(sbc["ks_pvals"].min()), 3),
        "c2st_dap": round(float(sbc["c2st_dap"].max()), 3),
        "lc2st": round(float(test.get_statistic_on_observed_data(**local)), 5),
        "lc2st_p": round(float(test.p_value(**local)), 3),
        "cpu_seconds": round(seconds, 1),
    }


def summary(rows: Sequence[Row]) -> Sequence[Row]:
    """Return means over seeds."""
    return averages(rows, by=["task", "sampler"], values=_MEASURES)


STUDY = Study(
    name="hybrid-calibration",
    title="Calibration of one likelihood's posteriors, by the hybrid and by chains",
    jobs=jobs,
    run=run,
    summary=summary,
    num_seeds=3,
)
