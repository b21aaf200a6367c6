"""One job, from its lock to its file; what runs in the processes of a benchmark."""

import io
import os
import sys
import time
import traceback
import warnings
from collections.abc import Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from typing import Literal

import torch
from torch import Tensor

from sbi_boed_plugin import __version__
from sbi_boed_plugin._parallel import describe_error, one_thread
from sbi_boed_plugin._rng import isolated_rng
from sbi_boed_plugin.benchmark.jobs import Job
from sbi_boed_plugin.benchmark.methods import run_job_method
from sbi_boed_plugin.benchmark.metrics import compute_metric
from sbi_boed_plugin.benchmark.store import (
    DamagedFileError,
    JobLockedError,
    Record,
    Store,
)

__all__ = [
    "Orders",
    "Outcome",
    "failed_record",
    "is_settled",
    "present_versions",
    "run_job",
]

# What a method printed before it failed; the end of it tells most.
_OUTPUT_CHARACTERS = 2_000

# Of a job's warnings: a training may give thousands.
_NUM_WARNINGS = 20
_WARNING_CHARACTERS = 500


@dataclass(frozen=True)
class Orders:
    """What all jobs of a run have in common.

    Attributes:
        store: Where results go.
        metrics: Metrics that each must have.
        retry_failed: Whether a job that failed earlier runs again.
        save_samples: Whether samples are kept.
        started: When the run began, in seconds since the epoch. What failed later
            than that was tried in the meantime.
    """

    store: Store
    metrics: tuple[str, ...]
    retry_failed: bool = False
    save_samples: bool = False
    started: float = 0.0


@dataclass(frozen=True)
class Outcome:
    """What became of a job.

    Attributes:
        job: The job.
        status: `"locked"` if another process has it.
        error: The last line of what it failed with.
        notes: What the user should know.
    """

    job: Job
    status: Literal["done", "failed", "locked"]
    error: str = ""
    notes: tuple[str, ...] = ()


def is_settled(record: Record | None, orders: Orders) -> bool:
    """Return whether a record leaves nothing to do.

    Args:
        record: The record of a job, or `None`.
        orders: What is wanted.
    """
    if record is None:
        return False
    if record["status"] == "failed":
        return not orders.retry_failed or record["finished"] >= orders.started
    if orders.save_samples and not record["samples"]:
        return False
    return set(orders.metrics) <= set(record["metrics"])


def run_job(job: Job, orders: Orders) -> Outcome:
    """Run a job that nobody else runs, unless it is done, and write its file.

    Errors become failed records: they must not stop the other jobs.

    Args:
        job: The job.
        orders: What is wanted.

    Returns:
        What became of it.
    """
    notes: list[str] = []
    try:
        with orders.store.locked(job):
            record = _read(job, orders.store, notes)
            if record is None or not is_settled(record, orders):
                done = record if record and record["status"] == "done" else None
                record = _make_record(job, orders, done)
                orders.store.write(job, record)
    except JobLockedError:
        return Outcome(job, "locked")
    return Outcome(job, record["status"], record.get("error", ""), tuple(notes))


def failed_record(job: Job, error: str, trace: str, output: str = "") -> Record:
    """Return the record of a job that failed.

    Args:
        job: The job.
        error: What went wrong, in one line.
        trace: Where, in many.
        output: What the method printed.
    """
    return {
        **_common(job, "failed"),
        "metrics": {},
        "error": error,
        "traceback": trace,
        "output": output,
        "warnings": [],
    }


@cache
def present_versions() -> dict[str, str | None]:
    """Return the versions of the packages that results depend on."""
    found: dict[str, str | None] = {"sbi_boed_plugin": __version__}
    for name in ("sbi", "sbibm", "torch"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:  # run from a copy of the sources
            found[name] = None
    return found


def _read(job: Job, store: Store, notes: list[str]) -> Record | None:
    try:
        return store.read(job)
    except DamagedFileError as error:
        aside = store.move_aside(job)
        notes.append(f"{error} It is now {aside.name}, and the job runs.")
        return None


def _make_record(job: Job, orders: Orders, earlier: Record | None) -> Record:
    output = io.StringIO()
    # Warnings would be repeated by hundreds of jobs, and training says that it is over.
    with (
        one_thread(),
        warnings.catch_warnings(record=True) as caught,
        redirect_stdout(output),
    ):
        warnings.simplefilter("default")
        # Those are for whoever wrote the code that is called.
        for category in (DeprecationWarning, PendingDeprecationWarning):
            warnings.simplefilter("ignore", category)
        try:
            record = _compute(job, orders, earlier)
        except Exception as error:
            trace = _without_folders(traceback.format_exc())
            printed = output.getvalue()[-_OUTPUT_CHARACTERS:]
            record = failed_record(job, describe_error(error), trace, printed)
    folder = f"{orders.store.folder}{os.sep}"
    messages = [str(warning.message).replace(folder, "") for warning in caught]
    distinct = dict.fromkeys(
        [
            *record.get("warnings", []),
            *(message[:_WARNING_CHARACTERS] for message in messages),
        ]
    )
    return {**record, "warnings": list(distinct)[:_NUM_WARNINGS]}


def _compute(job: Job, orders: Orders, earlier: Record | None) -> Record:
    from sbi_boed_plugin.sbibm import get_task

    task = get_task(job.task)
    # What an earlier run measured is measured again, so that all is of one version.
    wanted = {*orders.metrics, *(earlier["metrics"] if earlier else ())}
    samples = _kept_samples(job, orders.store, earlier)
    if earlier is None or samples is None:
        with isolated_rng(job.seed):
            run = run_job_method(job, task, orders.store.cache)
        samples = run.samples
        record = {
            "metrics": {},
            "training_seconds": run.training_seconds,
            "sampling_seconds": run.sampling_seconds,
            "metric_seconds": 0.0,
            "from_cache": run.from_cache,
            "num_simulations_used": run.num_simulations,
            "log_prob_true_parameters": run.log_prob_true_parameters,
            "diagnostics": dict(run.diagnostics),
            "samples": None,
        }
    else:
        record = earlier
        wanted -= set(earlier["metrics"])
    metrics = dict(record["metrics"])
    started = time.perf_counter()
    for name in sorted(wanted):
        # Each from the seed, so that none depends on which others are computed.
        with isolated_rng(job.seed):
            metrics[name] = compute_metric(name, task, samples, job.num_observation)
    seconds = record["metric_seconds"] + time.perf_counter() - started
    kept = record["samples"]
    if kept is None and (orders.save_samples or (earlier and earlier["samples"])):
        kept = orders.store.write_samples(job, samples.numpy())
    measured = {"metrics": metrics, "metric_seconds": seconds, "samples": kept}
    return {**record, **_common(job, "done"), **measured}


def _kept_samples(job: Job, store: Store, earlier: Record | None) -> Tensor | None:
    """Return the samples of an earlier run, if the same run would make them now."""
    if earlier is None or not earlier["samples"]:
        return None
    if earlier["versions"] != present_versions():
        return None
    samples = store.read_samples(job)
    return None if samples is None else torch.from_numpy(samples)


def _common(job: Job, status: str) -> Record:
    return {
        "status": status,
        "job": job.to_plain(),
        "load": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        "finished": time.time(),
        "versions": dict(present_versions()),
    }


def _without_folders(trace: str) -> str:
    """Name files in a traceback from where Python finds their modules.

    Results are shared; where somebody's Python is installed says nothing to others.
    """
    roots: Sequence[str] = sorted({*sys.path, os.getcwd()}, key=len, reverse=True)
    for root in filter(None, roots):
        trace = trace.replace(f'File "{root}{os.sep}', 'File "')
    return trace
