"""A benchmark from its arguments to its end, and what the user sees of it."""

import sys
import threading
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from sbi_boed_plugin._numbers import check_real
from sbi_boed_plugin._parallel import check_num_workers
from sbi_boed_plugin.benchmark._old_store import Record, Store, describe_failure
from sbi_boed_plugin.benchmark._queue import run_all, say, settled_record
from sbi_boed_plugin.benchmark.jobs import (
    NUM_SAMPLES,
    Job,
    expand_jobs,
    hyper_by_method,
)
from sbi_boed_plugin.benchmark.methods import check_methods
from sbi_boed_plugin.benchmark.metrics import check_metrics
from sbi_boed_plugin.benchmark.summary import describe_versions
from sbi_boed_plugin.benchmark.worker import Orders, present_versions

__all__ = ["Plan", "plan_benchmark", "run_benchmark", "run_plan"]


def run_benchmark(
    tasks: Sequence[str],
    methods: Sequence[str],
    *,
    num_simulations: Sequence[int],
    seeds: Sequence[int],
    observations: Sequence[int],
    metrics: Sequence[str],
    output: Path | str,
    num_rounds: int = 1,
    num_samples: int = NUM_SAMPLES,
    hyper: Mapping[str, Any] | None = None,
    num_workers: int | None = 1,
    retry_failed: bool = False,
    save_samples: bool = False,
    time_limit: float | None = None,
    show_progress: bool = True,
) -> int:
    """Run every combination of tasks, methods, budgets, seeds and observations.

    Each job's result is a file of its own, written when the job is finished. A run that
    was stopped, by whatever means, goes on from there; several runs may share a folder
    and its jobs. What a job computes depends on its settings only, neither on the
    worker nor on the order.

    What is finished is kept, whatever became of the code since: a warning tells how
    many results are of other versions of the packages, but nobody sees that a
    `module:function` was edited. Use another folder after a change. Trained networks in
    the folder's `cache` are pickles, which run code when they are loaded: share a
    folder with people whom you trust.

    Args:
        tasks: Names of sbibm's tasks.
        methods: Names of methods, or `module:function` for a function in the
            convention of sbibm: `function(task, num_samples, num_simulations,
            num_observation, **hyper)` returns samples, the number of simulations, and
            the log probability of the true parameters or `None`.
        num_simulations: Budgets of simulations.
        seeds: Seeds.
        observations: Numbers of observations, from 1 to 10.
        metrics: Among `"c2st"`, `"mmd"` and `"ppc"`, which are sbibm's, and
            `"c2st_forest"`, a random forest on 1,000 of the samples.
        output: The folder of the benchmark.
        num_rounds: Number of rounds.
        num_samples: Number of posterior samples.
        hyper: Hyperparameters, for all methods, or for one if its name is before
            theirs: `{"npe.num_atoms": 5}`.
        num_workers: Number of processes, each with one thread; 1 for this process, and
            `None` for the `n_jobs` of `joblib.parallel_config`, whose backend is used
            in any case. Workers elsewhere need the folder under the same path.
        retry_failed: Whether jobs that failed in an earlier run are tried again.
        save_samples: Whether samples are kept beside the results.
        time_limit: Seconds that a method may take for a posterior, and then each
            metric: what takes longer has failed. A training that another job has begun
            is waited for within them. The end comes when Python next runs one of its
            own instructions, not within a call into compiled code.
        show_progress: Whether to show progress, on standard error.

    Returns:
        Number of jobs among these that failed, now or earlier.

    Raises:
        ValueError: If an argument is out of range, or names what there is not.
        ImportError: If sbibm is not installed.
        OSError: If the folder cannot be written to.

    Example:
        >>> run_benchmark(
        ...     ["two_moons"],
        ...     ["npe", "npe_gkl"],
        ...     num_simulations=[1_000],
        ...     seeds=[0],
        ...     observations=range(1, 11),
        ...     metrics=["c2st"],
        ...     output="two-moons",
        ... )  # doctest: +SKIP
        0
    """
    return run_plan(
        plan_benchmark(
            tasks,
            methods,
            num_simulations=num_simulations,
            seeds=seeds,
            observations=observations,
            metrics=metrics,
            output=output,
            num_rounds=num_rounds,
            num_samples=num_samples,
            hyper=hyper,
            num_workers=num_workers,
            retry_failed=retry_failed,
            save_samples=save_samples,
            time_limit=time_limit,
            show_progress=show_progress,
        )
    )


@dataclass(frozen=True)
class Plan:
    """A benchmark that can begin: all arguments are right, and the folder is there.

    Attributes:
        jobs: All jobs, in the order in which they are best run.
        orders: What is wanted of each.
        num_workers: Number of processes, or `None` for that of joblib's settings.
        show_progress: Whether to show progress.
    """

    jobs: list[Job]
    orders: Orders
    num_workers: int | None
    show_progress: bool


def plan_benchmark(
    tasks: Sequence[str],
    methods: Sequence[str],
    *,
    num_simulations: Sequence[int],
    seeds: Sequence[int],
    observations: Sequence[int],
    metrics: Sequence[str],
    output: Path | str,
    num_rounds: int,
    num_samples: int,
    hyper: Mapping[str, Any] | None,
    num_workers: int | None,
    retry_failed: bool,
    save_samples: bool,
    time_limit: float | None,
    show_progress: bool,
) -> Plan:
    """Check the arguments of `run_benchmark` and open its folder: all that it refuses.

    Arguments and errors are those of `run_benchmark`.
    """
    jobs = expand_jobs(
        tasks,
        methods,
        num_simulations=num_simulations,
        seeds=seeds,
        observations=observations,
        num_rounds=num_rounds,
        num_samples=num_samples,
        hyper=hyper,
    )
    num_workers = check_num_workers(num_workers)
    time_limit = check_real(
        "time_limit",
        time_limit,
        most=threading.TIMEOUT_MAX,
        above=0.0,
        or_none=True,
        remedy="Pass a positive number of seconds.",
    )
    check_metrics(metrics)
    check_methods(methods, num_rounds, hyper_by_method(methods, hyper or {}))
    _check_tasks(tasks, observations)
    store = Store(Path(output).absolute())
    store.open()
    orders = Orders(
        store, tuple(metrics), retry_failed, save_samples, time_limit, time.time()
    )
    return Plan(jobs, orders, num_workers, show_progress)


def run_plan(plan: Plan) -> int:
    """Run the jobs of a plan, and return how many of them failed, now or earlier."""
    found = {job.path("json"): settled_record(job, plan.orders) for job in plan.jobs}
    settled = [record for record in found.values() if record is not None]
    todo = [job for job in plan.jobs if found[job.path("json")] is None]
    num_failed = sum(
        bool(describe_failure(record, plan.orders.metrics)) for record in settled
    )
    if num_failed and plan.show_progress:
        print(
            f"{num_failed} of {len(plan.jobs)} jobs failed earlier and are skipped; "
            "retry_failed (--retry-failed) runs them again.",
            file=sys.stderr,
        )
    _warn_of_versions(settled)
    with tqdm(
        total=len(plan.jobs),
        initial=len(settled),
        desc="jobs",
        unit="job",
        smoothing=0.05,
        disable=not plan.show_progress,
    ) as progress:
        for outcome in run_all(todo, plan.orders, plan.num_workers, plan.show_progress):
            num_failed += outcome.status == "failed"
            for note in outcome.notes:
                say(f"warning: {note}")
            if outcome.status == "failed":
                say(f"failed: {outcome.job}: {outcome.error}")
            progress.update()
            progress.set_postfix_str(
                f"{num_failed} failed, last: {outcome.job.task} {outcome.job.method}"
            )
    return num_failed


def _warn_of_versions(settled: Sequence[Record]) -> None:
    """Say that results of an earlier version are kept, as they took hours."""
    now = describe_versions(present_versions())
    others = Counter(describe_versions(record["versions"]) for record in settled)
    del others[now]
    if others:
        listed = "; ".join(f"{number} of {text}" for text, number in others.items())
        say(
            f"warning: {others.total()} results of other versions are kept ({listed}), "
            f"where {now} are installed; use another output (--output) to run all "
            "with these."
        )


def _check_tasks(tasks: Sequence[str], observations: Sequence[int]) -> None:
    from sbi_boed_plugin.sbibm import get_task

    for name in tasks:
        # Refuses unknown names, and says how to install sbibm if it is missing.
        most = get_task(name).num_observations
        if max(observations) > most:
            raise ValueError(
                f"observations={max(observations)} must be at most {most}: task "
                f"{name!r} has no more."
            )
