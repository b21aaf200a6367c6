r"""What the weight :math:`\lambda` of maximum likelihood does, over four decades.

    make reproduce NAME=lambda-map

`noisy_linear` (one measurement) and `sir`: joint searches of 400 steps whose policy
follows the contrastive bound (`objective="info_nce"`); `two_moons`: `NLE_INCE.train`
on 10,000 simulations with three contrastive parameters.

`share` is the exact information of the design found over the largest, `drop` by how
many nats the mean information of a twentieth of the steps ever fell below an earlier
one. `log_likelihood` is that of 2,000 new simulations at designs all over the space,
and `true` that of the true likelihood, where it is known. `lc2st` is the statistic of
sbi's local classifier two-sample test at one observation (0 is calibrated, 0.25 the
most), with the p-value of its permutation test, of the posterior by this likelihood.
"""

import contextlib
import io
import time
from collections.abc import Sequence
from typing import Any

import torch
from sbi.diagnostics.lc2st import LC2ST
from torch import Tensor

from benchmarks.few_simulations import CASES as LARGEST
from benchmarks.few_simulations import information
from benchmarks.papers import two_moons
from benchmarks.study import Job, Row, Study, averages
from sbi_boed_plugin import NLE_INCE, tasks
from sbi_boed_plugin.experiment import NoOpTracker, find_design, make_trainer, measure

TASKS, STRENGTHS = ("noisy_linear", "sir", "two_moons"), (1e-3, 1e-2, 0.1, 1.0, 10.0)
NUM_STEPS, NUM_TESTS, NUM_PAIRS, NUM_NULL = 400, 2_000, 300, 50


def jobs(num_seeds: int, quick: bool) -> list[Job]:
    """Return one job for each seed, task and weight."""
    return [
        {"task": name, "strength": strength, "seed": seed}
        for seed in range(num_seeds)
        for name in TASKS
        for strength in (STRENGTHS[::4] if quick else STRENGTHS)
    ]


def largest_drop(values: Sequence[float]) -> float:
    """Return by how much means of a twentieth of the values fall below earlier ones."""
    size = max(1, len(values) // 20)
    means = torch.tensor(values)[: size * (len(values) // size)].reshape(-1, size)
    means = means.mean(dim=1)
    return float((means.cummax(dim=0).values - means).max())


def local_test(posterior: Any, theta: Tensor, x: Tensor, x_o: Tensor, seed: int) -> Row:
    """Return the local two-sample test of a posterior at an observation."""
    quiet = {"show_progress_bars": False}
    draws = posterior.sample_batched(torch.Size((1,)), x=x, **quiet)[0]
    settings = {"seed": seed, "num_trials_null": NUM_NULL}
    test = LC2ST(theta, x, draws, **settings)
    with contextlib.redirect_stdout(io.StringIO()):
        test.train_under_null_hypothesis(verbosity=0)
        test.train_on_observed_data(verbosity=0)
    samples = posterior.sample((1_000,), x=x_o, **quiet)
    local = {"theta_o": samples, "x_o": x_o}
    return {
        "lc2st": float(test.get_statistic_on_observed_data(**local)),
        "lc2st_p": float(test.p_value(**local)),
    }


def _search(job: Job, quick: bool) -> Row:
    sizes = {"dim_design": 1} if job["task"] == "noisy_linear" else {}
    task = tasks.get_task(job["task"], **sizes)
    trainer = make_trainer(task, show_progress_bars=False)
    result = find_design(
        trainer,
        task,
        objective="info_nce",
        method="joint",
        regularization_strength=job["strength"],
        num_steps=20 if quick else NUM_STEPS,
        **({"training_batch_size": 64} if quick else {}),
    )
    best = LARGEST[job["task"], sizes.get("dim_design", 0)]
    theta = task.prior.sample(torch.Size((NUM_TESTS,)))
    design = task.design_space.sample(torch.Size((NUM_TESTS,)))
    x = task.simulator(theta, design)
    likelihood = result.likelihood_estimator
    with torch.no_grad():
        found = likelihood.log_prob(x[None], torch.cat([theta, design], dim=1))[0]
    row = {
        "share": information(task, result.design) / best,
        "drop": largest_drop(result.history["eig"]),
        "log_likelihood": float(found.mean()),
    }
    if task.has_log_likelihood:
        row["true"] = float(task.log_likelihood(x, theta, design).mean())
    num = 50 if quick else NUM_PAIRS
    theta = task.prior.sample(torch.Size((num,)))
    x = task.simulator(theta, result.design.expand(num, -1))
    posterior = trainer.build_posterior(design=result.design, sample_with="hybrid")
    return {**row, **local_test(posterior, theta, x, measure(task, result.design), 0)}


def _two_moons(job: Job, quick: bool) -> Row:
    prior = two_moons.prior()
    theta = prior.sample(torch.Size((1_000 if quick else 10_000,)))
    trainer = NLE_INCE(prior, "nsf", tracker=NoOpTracker(), show_progress_bars=False)
    trainer.append_simulations(theta, two_moons.simulate(theta))
    with contextlib.redirect_stdout(io.StringIO()):
        likelihood = trainer.train(
            num_contrastive=3,
            regularization_strength=job["strength"],
            schedule="averaged",
            max_num_epochs=2 if quick else 2**31 - 1,
        )
    theta = prior.sample(torch.Size((NUM_TESTS,)))
    x = two_moons.simulate(theta)
    row = {
        "drop": largest_drop(trainer.summary["eig_lower_bound"]),
        "log_likelihood": -float(likelihood.loss(x, theta).detach().mean()),
        "true": float(two_moons.log_likelihood(x, theta).mean()),
    }
    num = 50 if quick else NUM_PAIRS
    posterior = trainer.build_posterior(sample_with="hybrid")
    x_o = two_moons.simulate(torch.tensor([[0.3, -0.2]]))
    return {**row, **local_test(posterior, theta[:num], x[:num], x_o, 0)}


def run(job: Job, quick: bool) -> Row:
    """Train with one weight, and evaluate."""
    torch.manual_seed(job["seed"])
    started = time.process_time()
    row = (_two_moons if job["task"] == "two_moons" else _search)(job, quick)
    seconds = time.process_time() - started
    return {k: round(v, 4) for k, v in {**row, "cpu_seconds": seconds}.items()}


def summary(rows: Sequence[Row]) -> list[Row]:
    """Return means over seeds."""
    values = ["share", "drop", "log_likelihood", "true", "lc2st", "lc2st_p"]
    values += ["cpu_seconds"]
    filled = [{**dict.fromkeys(values), **row} for row in rows]
    return averages(filled, ["task", "strength"], values)


STUDY = Study(
    name="lambda-map",
    title="Designs and likelihoods by the weight of maximum likelihood",
    jobs=jobs,
    run=run,
    summary=summary,
    num_seeds=3,
)
