"""Images and traces: which network finds designs, and which describes what best.

    make reproduce NAME=generative-models

Three parts, for the tasks `camera` and `trace`:

- `design`: a search in rounds with 10,000 simulations by a posterior network alone, or
  with a likelihood beside it: `share` is the exact information of the design found over
  the largest, `reported` what the result says;
- `posterior`: networks that learn from 10,000 simulations at designs all over the
  space: `information` is the mean log-density of true parameters less that of the
  prior, of 1,000 simulations at the best design, and `rank_error` how far the ranks of
  true parameters among 1,023 draws are from uniform: the largest Kolmogorov distance of
  any parameter, which chance alone makes more than 0.06 once in twenty studies;
- `likelihood`: networks that learn from the same simulations: `log_density` is that of
  data less the true one, which is at most zero, in nats of the whole image or trace,
  and `c2st` tells data of the network from those of the simulator, of which each has
  the parameters beside it; 0.5 is the best. Counts of photons are dequantised.

Networks learn with `AveragedSchedule`.
"""

import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from sklearn.ensemble import RandomForestClassifier
from sklearn.model_selection import cross_val_score
from torch import Tensor

from benchmarks.study import Job, Row, Study, averages
from sbi_boed_plugin import tasks, transformed_likelihood_nn, transformed_posterior_nn
from sbi_boed_plugin._fit import AveragedSchedule
from sbi_boed_plugin.experiment import data_embedding, find_design, make_trainer
from sbi_boed_plugin.search.fitting import fit_network

# The best design and its information, by a grid of nested Monte Carlo.
BEST = {"camera": (1.4, 4.66), "trace": (0.06, 3.62)}
# Networks of a search: posterior, and likelihood if there is one.
SEARCHES = {
    "mdn": ("mdn", None),
    "nsf": ("nsf", None),
    "flow_matching": ("flow_matching", None),
    "mdn and flow_matching": ("mdn", "flow_matching"),
}
POSTERIORS = ("mdn", "maf", "nsf", "flow_matching", "score")
LIKELIHOODS = ("maf", "nsf", "flow_matching", "score")
NUM_SIMULATIONS, NUM_TESTS, NUM_DRAWS, NUM_RANKED = 10_000, 1_000, 1_023, 500
_NUM_FOR_EXACT = 4_096


def jobs(num_seeds: int, quick: bool) -> list[Job]:
    """Return one job for each seed, task, part and network."""
    parts = {"design": SEARCHES, "posterior": POSTERIORS, "likelihood": LIKELIHOODS}
    return [
        {"task": name, "part": part, "model": model, "seed": seed}
        for seed in range(num_seeds)
        for part, models in parts.items()
        for name in BEST
        for model in (list(models)[:1] if quick else models)
    ]


def simulate(task: tasks.Task, num: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return parameters, designs all over the space, and data in rows."""
    theta = task.prior.sample(torch.Size((num,)))
    design = task.design_space.sample(torch.Size((num,)))
    return theta, design, dequantised(task.simulator(theta, design).flatten(1), task)


def dequantised(x: Tensor, task: tasks.Task) -> Tensor:
    """Return data with a density: counts are spread over an interval of one."""
    return x + torch.rand_like(x) if task.name == "camera" else x


def learn(network: Any, pair: tuple[Tensor, Tensor], quick: bool) -> float:
    """Train a network on nine tenths of the rows; return processor seconds."""
    started, (used, left_out) = time.process_time(), split(len(pair[0]))
    passes = {"max_num_passes": 2} if quick else {}
    fit_network(network, pair, used, left_out, AveragedSchedule(), **passes)
    network.eval()
    return time.process_time() - started


def split(num: int) -> tuple[Tensor, Tensor]:
    """Return the rows to learn from and those to validate with."""
    rows = torch.randperm(num)
    return rows[num // 10 :], rows[: num // 10]


def run(job: Job, quick: bool) -> Row:
    """Run one part."""
    torch.manual_seed(job["seed"])
    np.random.seed(job["seed"])
    task = tasks.get_task(job["task"])
    row = _PARTS[job["part"]](task, job["model"], quick)
    return {k: round(v, 4) if isinstance(v, float) else v for k, v in row.items()}


def _design(task: tasks.Task, model: str, quick: bool) -> Row:
    posterior, likelihood = SEARCHES[model]
    started = time.process_time()
    trainer = make_trainer(
        task,
        density_estimator=likelihood,
        posterior_estimator=posterior,
        posterior_embedding=data_embedding(task),
        show_progress_bars=False,
    )
    budget = 400 if quick else NUM_SIMULATIONS
    result = find_design(trainer, task, method="rounds", max_num_simulations=budget)
    seconds = time.process_time() - started
    num = {"num_samples": 256} if quick else {"num_samples": _NUM_FOR_EXACT}
    exact, error = task.exact_eig(result.design, **num)
    return {
        "design": f"{float(result.design):.4g}",
        "share": exact / BEST[task.name][1],
        "share_se_exact": error / BEST[task.name][1],
        "exact": exact,
        "reported": result.eig.value,
        "calls": result.num_simulations,
        "cpu_seconds": seconds,
    }


def _tests(task: tasks.Task, num: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return parameters, the best design and data there."""
    theta = task.prior.sample(torch.Size((num,)))
    design = torch.tensor([[BEST[task.name][0]]]).expand(num, -1)
    return theta, design, dequantised(task.simulator(theta, design).flatten(1), task)


@torch.no_grad()
def _posterior(task: tasks.Task, model: str, quick: bool) -> Row:
    theta, design, x = simulate(task, 400 if quick else NUM_SIMULATIONS)
    data = torch.cat([x, design], dim=1)
    build = transformed_posterior_nn(
        model,
        embedding_net=data_embedding(task),
        theta_transform=task.theta_transform,
        design_transform=task.design_transform,
        dim_design=task.dim_design,
    )
    network = build(theta, data)
    with torch.enable_grad():
        seconds = learn(network, (theta, data), quick)
    theta, design, x = _tests(task, 50 if quick else NUM_TESTS)
    data = torch.cat([x, design], dim=1)
    ranked = slice(20 if quick else NUM_RANKED)
    started = time.process_time()
    draws = network.sample(torch.Size((NUM_DRAWS,)), data[ranked])
    sampling = time.process_time() - started
    ranks = (draws < theta[ranked]).float().mean(dim=0).sort(dim=0).values
    expected = (torch.arange(len(ranks)) + 0.5) / len(ranks)
    return {
        "information": float(
            (network.log_prob(theta[None], data)[0] - task.prior.log_prob(theta)).mean()
        ),
        "rank_error": float((ranks - expected.unsqueeze(1)).abs().max()),
        "cpu_seconds": seconds,
        "microseconds_per_draw": 1e6 * sampling / draws[..., 0].numel(),
    }


@torch.no_grad()
def _likelihood(task: tasks.Task, model: str, quick: bool) -> Row:
    theta, design, x = simulate(task, 400 if quick else NUM_SIMULATIONS)
    condition = torch.cat([theta, design], dim=1)
    network = transformed_likelihood_nn(
        model,
        dim_design=task.dim_design,
        theta_transform=task.theta_transform,
        design_transform=task.design_transform,
        linear_start=True,
    )(condition, x)
    with torch.enable_grad():
        seconds = learn(network, (x, condition), quick)
    theta, design, x = _tests(task, 50 if quick else NUM_TESTS)
    condition = torch.cat([theta, design], dim=1)
    started = time.process_time()
    rows = slice(20 if quick else 200)  # Some solve an equation for each value.
    found = network.log_prob(x[None, rows], condition[rows])[0]
    each = (time.process_time() - started) / len(found)
    true = task.log_likelihood(x.floor() if task.name == "camera" else x, theta, design)
    drawn = network.sample(torch.Size((1,)), condition)[0]
    pairs = [torch.cat([theta, some], dim=1) for some in (x, drawn)]
    labels = np.repeat([0, 1], len(theta))
    forest = RandomForestClassifier(200, random_state=0)
    scores = cross_val_score(forest, torch.cat(pairs).numpy(), labels, cv=5)
    return {
        "log_density": float((found - true[rows]).mean()),
        "c2st": float(scores.mean()),
        "cpu_seconds": seconds,
        "milliseconds_per_density": 1e3 * each,
    }


_PARTS = {"design": _design, "posterior": _posterior, "likelihood": _likelihood}


def summary(rows: Sequence[Row]) -> list[Row]:
    """Return means over seeds, and the smallest share."""
    values = ["share", "exact", "reported", "information", "rank_error"]
    values += ["log_density", "c2st", "calls", "cpu_seconds"]
    filled = [{**dict.fromkeys(values), **row} for row in rows]
    return averages(filled, ["part", "task", "model"], values)


STUDY = Study(
    name="generative-models",
    title="Networks of images and traces: designs, posteriors and likelihoods",
    jobs=jobs,
    run=run,
    summary=summary,
    num_seeds=5,
)
