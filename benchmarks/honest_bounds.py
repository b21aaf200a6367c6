"""Reported lower bounds against exact answers, at the defaults.

    make reproduce NAME=honest-bounds

For each task and seed: the information that `optimize_design` reports of the
design that it finds, the exact one, and whether the result says that it may be far too
low (doubts about the policy do not count). The information of `sir` is by brute force.
"""

import time
from collections.abc import Sequence
from typing import Any

import torch

from benchmarks.study import Job, Row, Study, averages
from sbi_boed_plugin import tasks
from sbi_boed_plugin.experiment import find_design, make_trainer
from sbi_boed_plugin.search.result import DesignResult

TASKS = (
    "bmp",
    "ces",
    "gaussian_linear",
    "location_finding",
    "noisy_linear",
    "pharmacokinetic",
    "sir",
)
SIZES = (("noisy_linear", 10), ("gaussian_linear", 10))
# Shares and nats by which a bound may be too low without a word.
SHARE, NATS = 0.2, 0.5


def exact_information(task: tasks.Task, design: torch.Tensor) -> tuple[float, float]:
    """Return the information of a design and its standard error, in nats."""
    if task.has_exact_eig:
        return task.exact_eig(design)
    estimate = tasks.brute_force_eig(design, num_parameters=1_024)
    return float(estimate.eig[0]), float(estimate.standard_error[0])


def jobs(num_seeds: int, quick: bool) -> list[Job]:
    """Return one job for each seed and task."""
    cases = [(name, 0) for name in TASKS]
    return [
        # As many simulations as a search takes by default.
        {"task": name, "size": size, "budget": 1_000 if quick else 0, "seed": seed}
        for seed in range(num_seeds)
        for name, size in (*cases, *SIZES)
    ]


def search(job: Job, **settings: Any) -> tuple[tasks.Task, DesignResult, float]:
    """Return the task of a job, what a search found, and its processor time."""
    torch.manual_seed(job["seed"])
    sizes = {"dim_design": job["size"]} if job["size"] else {}
    task = tasks.get_task(job["task"], **sizes)
    trainer = make_trainer(task, show_progress_bars=False)
    started = time.process_time()
    result = find_design(trainer, task, **settings)
    return task, result, time.process_time() - started


def run(job: Job, quick: bool) -> Row:
    """Search and compare what is reported with the exact answer."""
    task, result, seconds = search(job, max_num_simulations=job["budget"] or None)
    exact, error = exact_information(task, result.design)
    below = exact - result.eig.value
    return {
        "dim_design": task.dim_design,
        "exact": round(exact, 3),
        "exact_error": round(error, 3),
        "reported": round(result.eig.value, 3),
        "standard_error": round(result.eig.standard_error, 3),
        "bound": result.eig.bound,
        "too_high": below < -3.0 * (error**2 + result.eig.standard_error**2) ** 0.5,
        "too_low": below > max(0.0, min(NATS, SHARE * exact)),
        "told": any("policy" not in doubt for doubt in result.doubts),
        "num_simulations": result.num_simulations,
        "cpu_seconds": round(seconds, 1),
        **{name: round(bound.value, 3) for name, bound in result.bounds.items()},
        "doubts": " | ".join(result.doubts),
    }


def summary(rows: Sequence[Row]) -> list[Row]:
    """Return means over seeds of each task."""
    values = ["reported", "exact", "too_high", "too_low", "told", "num_simulations"]
    return averages(rows, by=["task", "dim_design", "budget"], values=values)


STUDY = Study(
    name="honest-bounds",
    title="Reported lower bounds against exact answers, at the defaults",
    jobs=jobs,
    run=run,
    summary=summary,
    num_seeds=5,
)
