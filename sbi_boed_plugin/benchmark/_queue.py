"""The queue of a benchmark: who runs which job, and whom a lost process is laid to."""

import sys
import time
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import BrokenExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

from joblib import delayed
from tqdm.auto import tqdm

from sbi_boed_plugin._parallel import run_long_calls
from sbi_boed_plugin.benchmark._old_store import (
    DamagedFileError,
    JobLockedError,
    Record,
    describe_failure,
)
from sbi_boed_plugin.benchmark.jobs import Job
from sbi_boed_plugin.benchmark.worker import (
    Orders,
    Outcome,
    add_failure,
    is_settled,
    run_job,
)

__all__ = ["run_all", "say", "settled_record"]

# How long to wait before looking again at jobs of another process.
WAIT_SECONDS = 5.0

_LOST = (
    "the process that ran the job was killed, and once more when no other job ran "
    "beside it, perhaps because it takes too much memory"
)


def say(message: str) -> None:
    """Print a line to standard error, above the progress line if there is one."""
    tqdm.write(message, file=sys.stderr)


def settled_record(job: Job, orders: Orders) -> Record | None:
    """Return the record of a job that need not run, or `None`.

    Args:
        job: The job.
        orders: What is wanted.
    """
    record = _read(job, orders)
    return record if is_settled(record, orders) else None


def _read(job: Job, orders: Orders) -> Record | None:
    try:
        return orders.store.read(job)
    except DamagedFileError:
        return None  # Whoever runs the job deals with it, under its lock.


def run_all(
    jobs: Sequence[Job], orders: Orders, num_workers: int | None, show_progress: bool
) -> Iterator[Outcome]:
    """Yield what became of each job, once, however often it had to be tried.

    A process that dies takes the jobs beside it along, and nobody says which of them
    killed it. All of them are tried again, one after another with none beside it: who
    loses its process then has failed. Where there are no processes to lose, a job kills
    the run: the next one has it last, when the others are done.

    Args:
        jobs: Jobs.
        orders: What is wanted.
        num_workers: Number of workers.
        show_progress: Whether to say that the jobs of another process are waited for.
    """
    jobs = sorted(jobs, key=orders.store.is_begun)
    remaining = {job.path("json"): job for job in jobs}
    suspects: set[Path] = set()
    is_waiting = False
    while remaining:
        together = [job for path, job in remaining.items() if path not in suspects]
        # Last, so that what they do to their worker disturbs no others.
        alone = [[job] for path, job in remaining.items() if path in suspects]
        num_suspects = len(suspects)
        for batch in [together, *alone] if together else alone:
            sent: list[Job] = []
            answered: set[Path] = set()
            try:
                with closing(_outcomes(batch, orders, num_workers, sent)) as outcomes:
                    for outcome in outcomes:
                        answered.add(outcome.job.path("json"))
                        if outcome.status != "locked":
                            del remaining[outcome.job.path("json")]
                            yield outcome
            except Exception as error:
                lost = [job for job in sent if job.path("json") not in answered]
                if not (lost and _is_lost_process(error)):
                    raise
                if batch is together:
                    suspects |= {job.path("json") for job in lost}
                    break
                for job in lost:
                    del remaining[job.path("json")]
                    yield _give_up(job, orders)
        if remaining and len(suspects) == num_suspects:
            if not is_waiting and show_progress:
                say(
                    f"{len(remaining)} jobs are run by another process on this folder; "
                    "waiting for it."
                )
            is_waiting = True
            time.sleep(WAIT_SECONDS)


def _is_lost_process(error: Exception) -> bool:
    # That of dask, by its name: dask need not be installed.
    names = {kind.__name__ for kind in type(error).__mro__}
    return isinstance(error, BrokenExecutor) or "KilledWorker" in names


def _give_up(job: Job, orders: Orders) -> Outcome:
    """Record a job as failed that has lost its process twice, unless it is done."""
    try:
        with orders.store.locked(job):
            record = _read(job, orders)
            if record is None or not is_settled(record, orders):
                record = add_failure(job, record, orders.metrics, _LOST)
                orders.store.write(job, record)
    except JobLockedError:
        return Outcome(job, "failed", "its process was lost, and another one has it")
    error = describe_failure(record, orders.metrics)
    return Outcome(job, "failed" if error else "done", error)


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
    yield from run_long_calls(calls(), n_jobs=num_workers)
