"""C2ST of posteriors whose networks sbi's loop or the averaged schedule trained.

    make reproduce NAME=training-c2st

sbibm's classifier on 2,000 samples, mean over the first three observations of each of
its tasks, with mafs. `npe` and `nle` see the same simulations with both loops;
`npe_gkl` is `npe` of the averaged schedule with an energy on top, and `nle_hybrid` is
`nle` of it, sampled without chains. Seconds are processor time for one observation.
Of `npe`, `npe_gkl` and `nle_hybrid` of the averaged schedule, `best` is the one whose
density is largest on simulations that its base and energy, or its likelihood, did not
learn from.
"""

import contextlib
import io
import math
import time
from collections.abc import Sequence
from typing import Any

import pandas as pd
import torch
from sbi.inference import NLE, NPE
from sbi.inference.posteriors import DirectPosterior
from sbi.inference.posteriors.posterior_parameters import MCMCPosteriorParameters
from sbi.neural_nets import likelihood_nn, posterior_nn
from sbi.utils.sbiutils import within_support
from sbibm.metrics.c2st import c2st
from torch import Tensor

from benchmarks.study import Job, Row, Study
from sbi_boed_plugin import NLE_INCE, NPE_GKL, sbibm
from sbi_boed_plugin.benchmark.summary import mean_and_sem
from sbi_boed_plugin.estimators import HybridEstimator
from sbi_boed_plugin.experiment import NoOpTracker

METHODS = ("npe", "npe_gkl", "nle", "nle_hybrid")
OURS = ("npe", "npe_gkl", "nle_hybrid")
# Simulations left out by which ours are compared, and draws for each of them.
NUM_LEFT_OUT, NUM_DRAWS = 200, 1_000
NUM_SAMPLES, OBSERVATIONS = 2_000, (1, 2, 3)
CHAINS = MCMCPosteriorParameters(
    method="slice_np_vectorized",
    num_chains=200,
    thin=2,
    warmup_steps=60,
    init_strategy="resample",
    init_strategy_parameters={"num_candidate_samples": 500},
)


def jobs(num_seeds: int, quick: bool) -> list[Job]:
    """Return one job for each method, task, number of simulations and seed."""
    return [
        {
            "task": task,
            "num_simulations": num_simulations,
            "method": method,
            "loop": loop,
            "seed": seed,
        }
        for seed in range(num_seeds)
        for method in ("npe", "nle")
        for num_simulations in ((300,) if quick else (1_000, 10_000))
        for task in (sbibm.TASKS[:1] if quick else sbibm.TASKS)
        for loop in ("sbi", "averaged")
    ]


def posteriors(
    job: Job, task: Any, theta: Tensor, x: Tensor
) -> tuple[dict[str, Any], Tensor]:
    """Train, and return posteriors by name, and the rows left out."""
    prior = task.get_prior_dist()
    settings = {"tracker": NoOpTracker(), "show_progress_bars": False}
    name, is_ours = job["method"], job["loop"] == "averaged"
    # sbi prints how each training ends.
    with contextlib.redirect_stdout(io.StringIO()):
        if name == "nle":
            if is_ours:
                trainer: Any = NLE_INCE(prior, "maf", **settings)
            else:
                trainer = NLE(prior, likelihood_nn("maf"), **settings)
            trainer.append_simulations(theta, x)
            # Rows for validation are drawn first: all methods have the same.
            torch.manual_seed(job["seed"])
            if not is_ours:
                trainer.train()
                chains = trainer.build_posterior(posterior_parameters=CHAINS)
                return {"nle": chains}, trainer.val_indices
            trainer.train(schedule="averaged", num_contrastive=0)
            left_out = trainer.val_indices
            chains = trainer.build_posterior(posterior_parameters=CHAINS)
            hybrid = trainer.build_posterior(sample_with="hybrid")
            return {"nle": chains, "nle_hybrid": hybrid}, left_out
        build = posterior_nn("maf")
        trainer = (NPE_GKL if is_ours else NPE)(prior, build, **settings)
        trainer.append_simulations(theta, x)
        torch.manual_seed(job["seed"])
        if not is_ours:
            trainer.train()
            return {"npe": trainer.build_posterior()}, trainer.val_indices
        hybrid = trainer.train(schedule="averaged")
    base = DirectPosterior(hybrid.base, prior)
    return {"npe": base, "npe_gkl": trainer.build_posterior()}, trainer.val_indices


@torch.no_grad()
def log_density(posterior: Any, theta: Tensor, x: Tensor) -> float:
    """Return the mean log-density of parameters given their data.

    A hybrid is normalized by draws of its base and the parameters themselves, which
    makes it a density whatever the base covers.
    """
    estimator = posterior.posterior_estimator
    if not isinstance(estimator, HybridEstimator):
        # What draws outside of the prior, which are rejected, take from it.
        draws = estimator.sample(torch.Size((NUM_DRAWS,)), x)
        inside = within_support(posterior.prior, draws.flatten(0, 1))
        share = inside.reshape(NUM_DRAWS, -1).double().mean(dim=0)
        log_base = estimator.log_prob(theta.unsqueeze(0), x)[0]
        return float((log_base - share.clamp_min(1 / NUM_DRAWS).log()).mean())
    _, log_weights = estimator.draw_weighted(NUM_DRAWS, x)
    own = estimator.log_ratio(theta.unsqueeze(0), x)
    log_base = estimator.base.log_prob(theta.unsqueeze(0), x)
    log_mean = torch.logsumexp(torch.cat([own, log_weights]), dim=0)
    log_mean = log_mean - math.log(NUM_DRAWS + 1)
    return float((log_base + own - log_mean).mean())


def run(job: Job, quick: bool) -> Row:
    """Train, draw given each observation, and compare with the references."""
    torch.manual_seed(job["seed"])
    task = sbibm.get_task(job["task"])
    theta = task.get_prior_dist().sample((job["num_simulations"],))
    x = task.get_simulator()(theta)
    started = time.process_time()
    found, left_out = posteriors(job, task, theta, x)
    row = {"training_cpu_s": round(time.process_time() - started, 1)}
    left_out = left_out[:NUM_LEFT_OUT]
    for name in METHODS:
        distances, seconds = [], 0.0
        for number in OBSERVATIONS[: 1 if quick else None] if name in found else ():
            reference = task.get_reference_posterior_samples(number)[:NUM_SAMPLES]
            started = time.process_time()
            samples = found[name].sample(
                (NUM_SAMPLES,), x=task.get_observation(number), show_progress_bars=False
            )
            seconds += time.process_time() - started
            distances.append(float(c2st(reference, samples)))
        mean = sum(distances) / len(distances) if distances else None
        row[f"c2st_{name}"] = None if mean is None else round(mean, 4)
        row[f"seconds_{name}"] = (
            None if mean is None else round(seconds / len(distances), 2)
        )
        compared = job["loop"] == "averaged" and name in OURS and name in found
        value = (
            log_density(found[name], theta[left_out], x[left_out]) if compared else None
        )
        row[f"density_{name}"] = None if value is None else round(value, 3)
    return row


def summary(rows: Sequence[Row]) -> Sequence[Row]:
    """Return all methods side by side, one row for each task and size."""
    table, cell = pd.DataFrame(list(rows)), ["task", "num_simulations", "seed"]
    values = [f"{kind}_{name}" for kind in ("c2st", "seconds") for name in METHODS]
    long = table.melt([*cell, "loop"], values, "of").dropna()
    long["column"] = long["of"] + ", " + long["loop"]
    wide = long.pivot_table(index=cell, columns="column", values="value").reset_index()
    ours = table[table["loop"] == "averaged"].groupby(cell).first()
    densities = ours[[f"density_{name}" for name in OURS]]
    # Only where all of them have been trained.
    chosen = densities.dropna().idxmax(axis=1).str.removeprefix("density_")
    best = {key: ours.loc[key, f"c2st_{name}"] for key, name in chosen.items()}
    keys = list(wide[cell].itertuples(index=False, name=None))
    wide["c2st_best"] = [best.get(key) for key in keys]
    columns = [name for name in wide.columns if name not in cell]
    means = mean_and_sem(wide, cell[:2], columns).round(4)
    # Of the first seed.
    names = {key[:2]: name for key, name in reversed(list(chosen.items()))}
    means["best"] = [
        names.get(key) for key in means[cell[:2]].itertuples(index=False, name=None)
    ]
    return means.to_dict("records")


STUDY = Study(
    name="training-c2st",
    title="C2ST of posteriors by sbi's loop and by the averaged schedule",
    jobs=jobs,
    run=run,
    summary=summary,
)
