"""The queue: which jobs are left, who runs them, and what the user sees of it."""

import sys
import time
import warnings
from collections.abc import Generator, Iterator, Mapping, Sequence
from concurrent.futures import BrokenExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

from joblib import Parallel, delayed
from tqdm.auto import tqdm

from sbi_boed_plugin._parallel import check_num_workers
from sbi_boed_plugin.benchmark.jobs import NUM_SAMPLES, Job, expand_jobs
from sbi_boed_plugin.benchmark.methods import check_methods
from sbi_boed_plugin.benchmark.metrics import check_metrics
from sbi_boed_plugin.benchmark.store import DamagedFileError, JobLockedError, Store
from sbi_boed_plugin.benchmark.worker import (
    Orders,
    Outcome,
    failed_record,
    is_settled,
    run_job,
)

__all__ = ["run_benchmark"]

# How long to wait before looking again at jobs of another process.
WAIT_SECONDS = 5.0

# How often a job may lose its process.
_NUM_LOST = 2

_LOST = (
    "the process that ran the job was killed twice, perhaps because this job or one "
    "beside it took too much memory; fewer workers may help"
)


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
    show_progress: bool = True,
) -> int:
    """Run every combination of tasks, methods, budgets, seeds and observations.

    Each job's result is a file of its own, written when the job is finished. A run that
    was stopped, by whatever means, goes on from there; several runs may share a folder
    and its jobs. What a job computes depends on its settings only, neither on the
    worker nor on the order.

    Args:
        tasks: Names of sbibm's tasks.
        methods: Names of methods, or `module:function` for a function in the
            convention of sbibm: `function(task, num_samples, num_simulations,
            num_observation, observation, **hyper)` returns samples, the number of
            simulations, and the log probability of the true parameters or `None`.
        num_simulations: Budgets of simulations.
        seeds: Seeds.
        observations: Numbers of observations, from 1 to 10.
        metrics: Among `"c2st"`, `"mmd"` and `"ppc"`, which are sbibm's, and
            `"c2st_forest"`, a random forest on the first 1,000 samples.
        output: The folder of the benchmark.
        num_rounds: Number of rounds.
        num_samples: Number of posterior samples.
        hyper: Hyperparameters, handed to all methods.
        num_workers: Number of processes, each with one thread; 1 for this process, and
            `None` for the `n_jobs` of `joblib.parallel_config`, whose backend is used
            in any case. Workers elsewhere need the folder under the same path.
        retry_failed: Whether jobs that failed in an earlier run are tried again.
        save_samples: Whether samples are kept beside the results.
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
    check_num_workers(num_workers, None)
    check_metrics(metrics)
    check_methods(methods, num_rounds)
    _check_tasks(tasks, observations)

    store = Store(Path(output).absolute())
    store.open()
    orders = Orders(store, tuple(metrics), retry_failed, save_samples, time.time())
    settled = {job.path("json"): _settled(job, orders) for job in jobs}
    todo = [job for job in jobs if not settled[job.path("json")]]
    num_failed = sum(status == "failed" for status in settled.values())
    if num_failed and show_progress:
        print(
            f"{num_failed} of {len(jobs)} jobs failed earlier and are skipped; "
            "retry_failed (--retry-failed) runs them again.",
            file=sys.stderr,
        )
    with tqdm(
        total=len(jobs),
        initial=len(jobs) - len(todo),
        desc="jobs",
        unit="job",
        smoothing=0.05,
        disable=not show_progress,
    ) as progress:
        for outcome in _run_all(todo, orders, num_workers, show_progress):
            num_failed += outcome.status == "failed"
            for note in outcome.notes:
                _say(f"warning: {note}")
            if outcome.status == "failed":
                _say(f"failed: {outcome.job}: {outcome.error}")
            progress.update()
            progress.set_postfix_str(
                f"{num_failed} failed, last: {outcome.job.task} {outcome.job.method}"
            )
    return num_failed


def _say(message: str) -> None:
    """Print a line to standard error, above the progress line if there is one."""
    tqdm.write(message, file=sys.stderr)


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


def _settled(job: Job, orders: Orders) -> str:
    """Return the status of a job that need not run, or an empty text."""
    try:
        record = orders.store.read(job)
    except DamagedFileError:
        return ""  # Whoever runs the job deals with it, under its lock.
    if record is None or not is_settled(record, orders):
        return ""
    return record["status"]


def _run_all(
    jobs: Sequence[Job], orders: Orders, num_workers: int | None, show_progress: bool
) -> Iterator[Outcome]:
    """Yield what became of each job, once, however often it had to be tried."""
    remaining = {job.path("json"): job for job in jobs}
    num_lost = dict.fromkeys(remaining, 0)
    is_waiting = False
    while remaining:
        sent: list[Job] = []
        answered = set()
        try:
            with closing(
                _outcomes(list(remaining.values()), orders, num_workers, sent)
            ) as outcomes:
                for outcome in outcomes:
                    answered.add(outcome.job.path("json"))
                    if outcome.status != "locked":
                        del remaining[outcome.job.path("json")]
                        yield outcome
        except BrokenExecutor:
            suspects = [job for job in sent if job.path("json") not in answered]
            for job in suspects:
                num_lost[job.path("json")] += 1
                if num_lost[job.path("json")] >= _NUM_LOST:
                    del remaining[job.path("json")]
                    yield _give_up(job, orders)
                else:
                    # Last, so that what it does to its worker disturbs fewer others.
                    remaining[job.path("json")] = remaining.pop(job.path("json"))
            continue
        if remaining:
            if not is_waiting and show_progress:
                _say(
                    f"{len(remaining)} jobs are run by another process on this folder; "
                    "waiting for it."
                )
            is_waiting = True
            time.sleep(WAIT_SECONDS)


def _give_up(job: Job, orders: Orders) -> Outcome:
    """Record a job as failed that has lost its process twice, unless it is done."""
    try:
        with orders.store.locked(job):
            status = _settled(job, orders)
            if status:
                return Outcome(job, "done" if status == "done" else "failed")
            orders.store.write(job, failed_record(job, _LOST, ""))
    except JobLockedError:
        return Outcome(job, "failed", "its process was lost, and another one has it")
    return Outcome(job, "failed", _LOST)


def _outcomes(
    jobs: Sequence[Job], orders: Orders, num_workers: int | None, sent: list[Job]
) -> Generator[Outcome, None, None]:
    """Yield what became of the jobs, whichever finishes first.

    Args:
        jobs: Jobs, in the order in which they are sent.
        orders: What is wanted.
        num_workers: Number of workers.
        sent: Gets the jobs that were sent.
    """

    def calls() -> Iterator[Any]:
        for job in jobs:
            sent.append(job)
            yield delayed(run_job)(job, orders)

    if num_workers == 1:
        yield from (run_job(job, orders) for job in jobs)
        return
    # A job is sent when a worker is free, not ahead of time: jobs take minutes.
    settings: dict[str, Any] = {"n_jobs": num_workers, "batch_size": 1}
    settings["pre_dispatch"] = "n_jobs"
    for return_as in ("generator_unordered", "generator", "list"):
        try:
            parallel = Parallel(return_as=return_as, **settings)
        except ValueError:  # Older versions, and some backends, know fewer.
            continue
        break
    results: Any = parallel(calls())
    try:
        yield from results
    finally:
        with warnings.catch_warnings():
            # Of jobs that nobody waits for, after an interruption.
            warnings.filterwarnings("ignore", ".*tasks .* not used")
            warnings.filterwarnings("ignore", ".*tasks .* by the workers")
            if hasattr(results, "close"):
                results.close()
