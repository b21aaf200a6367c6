"""C2ST of posteriors whose networks sbi's loop or the averaged schedule trained.

    make reproduce NAME=training-c2st

sbibm's classifier on 2,000 samples, mean over the first three observations of each of
its tasks, with mafs. `npe` and `nle` see the same simulations with both loops;
`npe_gkl` is `npe` of the averaged schedule with an energy on top, and `nle_hybrid` is
`nle` of it, sampled without chains. Seconds are processor time for one observation.
"""

import contextlib
import io
import time
from collections.abc import Sequence
from typing import Any

import pandas as pd
import torch
from sbi.inference import NLE, NPE
from sbi.inference.posteriors import DirectPosterior
from sbi.inference.posteriors.posterior_parameters import MCMCPosteriorParameters
from sbibm.metrics.c2st import c2st
from torch import Tensor

from benchmarks.study import Job, Row, Study
from sbi_boed_plugin import NLE_INCE, NPE_GKL, sbibm
from sbi_boed_plugin.benchmark.summary import mean_and_sem
from sbi_boed_plugin.experiment import NoOpTracker

METHODS = ("npe", "npe_gkl", "nle", "nle_hybrid")
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


def posteriors(job: Job, task: Any, theta: Tensor, x: Tensor) -> dict[str, Any]:
    """Train, and return posteriors by name."""
    prior = task.get_prior_dist()
    settings = {"tracker": NoOpTracker(), "show_progress_bars": False}
    name, is_ours = job["method"], job["loop"] == "averaged"
    # sbi prints how each training ends.
    with contextlib.redirect_stdout(io.StringIO()):
        if name == "nle":
            trainer = (NLE_INCE if is_ours else NLE)(prior, "maf", **settings)
            trainer.append_simulations(theta, x)
            if not is_ours:
                trainer.train()
                return {"nle": trainer.build_posterior(posterior_parameters=CHAINS)}
            trainer.train(schedule="averaged", num_contrastive=0)
            chains = trainer.build_posterior(posterior_parameters=CHAINS)
            hybrid = trainer.build_posterior(sample_with="hybrid")
            return {"nle": chains, "nle_hybrid": hybrid}
        trainer = (NPE_GKL if is_ours else NPE)(prior, "maf", **settings)
        trainer.append_simulations(theta, x)
        if not is_ours:
            trainer.train()
            return {"npe": trainer.build_posterior()}
        hybrid = trainer.train(schedule="averaged")
    base = DirectPosterior(hybrid.base, prior)
    return {"npe": base, "npe_gkl": trainer.build_posterior()}


def run(job: Job, quick: bool) -> Row:
    """Train, draw given each observation, and compare with the references."""
    torch.manual_seed(job["seed"])
    task = sbibm.get_task(job["task"])
    theta = task.get_prior_dist().sample((job["num_simulations"],))
    x = task.get_simulator()(theta)
    started = time.process_time()
    found = posteriors(job, task, theta, x)
    row = {"training_cpu_s": round(time.process_time() - started, 1)}
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
    return row


def summary(rows: Sequence[Row]) -> Sequence[Row]:
    """Return all methods side by side, one row for each task and size."""
    table = pd.DataFrame(list(rows))
    values = [f"{kind}_{name}" for kind in ("c2st", "seconds") for name in METHODS]
    cell = ["task", "num_simulations"]
    long = table.melt([*cell, "loop", "seed"], values, "of").dropna()
    long["column"] = long["of"] + ", " + long["loop"]
    wide = long.pivot_table(index=[*cell, "seed"], columns="column", values="value")
    wide = wide.reset_index()
    columns = [name for name in wide.columns if name not in (*cell, "seed")]
    return mean_and_sem(wide, cell, columns).round(4).to_dict("records")


STUDY = Study(
    name="training-c2st",
    title="C2ST of posteriors by sbi's loop and by the averaged schedule",
    jobs=jobs,
    run=run,
    summary=summary,
)
