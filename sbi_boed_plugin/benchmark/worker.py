"""One job, from its lock to its file; what runs in the processes of a benchmark."""

import io
import math
import os
import sys
import time
import traceback
import warnings
from collections.abc import Iterable, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor

from sbi_boed_plugin._parallel import describe_error, one_thread
from sbi_boed_plugin._rng import isolated_rng
from sbi_boed_plugin._versions import code_digest, installed_versions
from sbi_boed_plugin.benchmark._old_store import (
    DamagedFileError,
    JobLockedError,
    Record,
    Store,
    describe_failure,
)
from sbi_boed_plugin.benchmark._time_limit import call_within
from sbi_boed_plugin.benchmark.jobs import Job
from sbi_boed_plugin.benchmark.methods import run_job_method
from sbi_boed_plugin.benchmark.metrics import compute_metric

__all__ = [
    "Orders",
    "Outcome",
    "add_failure",
    "is_settled",
    "present_versions",
    "run_job",
]

# What a method printed before it failed; the end of it tells most.
_OUTPUT_CHARACTERS = 2_000

# Of a job's warnings: a training may give thousands.
_NUM_WARNINGS = 20
_WARNING_CHARACTERS = 500

# As they are loaded, whatever is installed in the course of a run. Ten digits of the
# code are enough to tell it apart.
_VERSIONS = {
    **installed_versions(("sbi", "sbibm", "torch")),
    "code": code_digest("benchmark/methods.py", "benchmark/metrics.py")[:10],
}


@dataclass(frozen=True)
class Orders:
    """What all jobs of a run have in common.

    Attributes:
        store: Where results go.
        metrics: Metrics that each must have.
        retry_failed: Whether a job that failed earlier runs again.
        save_samples: Whether samples are kept.
        time_limit: Seconds that a method may take, and then each metric.
        started: When the run began, in seconds since the epoch. What failed later
            than that was tried in the meantime.
    """

    store: Store
    metrics: tuple[str, ...]
    retry_failed: bool = False
    save_samples: bool = False
    time_limit: float | None = None
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
    may_retry = orders.retry_failed and record["finished"] < orders.started
    if record["status"] == "failed":
        return not may_retry
    failed = set(record.get("metric_errors", {})) & set(orders.metrics)
    # A metric that failed is no reason not to measure another.
    if set(orders.metrics) - set(record["metrics"]) - failed:
        return False
    if failed and may_retry:
        return False
    return not orders.save_samples or orders.store.has_samples(record)


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
    error = ""
    try:
        with orders.store.locked(job):
            record = _read(job, orders.store, notes)
            if record is None or not is_settled(record, orders):
                record, error = _make_record(job, orders, record)
                orders.store.write(job, record)
    except JobLockedError:
        return Outcome(job, "locked")
    error = error or describe_failure(record, orders.metrics)
    return Outcome(job, "failed" if error else "done", error, tuple(notes))


def add_failure(
    job: Job,
    earlier: Record | None,
    metrics: Iterable[str],
    error: str,
    trace: str = "",
    output: str = "",
) -> Record:
    """Return the record of a job that failed.

    An earlier result stays, for it may have taken hours; what it was to be completed
    with has failed.

    Args:
        job: The job.
        earlier: Its record so far.
        metrics: Metrics that were wanted.
        error: What went wrong, in one line.
        trace: Where, in many.
        output: What the method printed.
    """
    if earlier is None or earlier["status"] == "failed":
        return {
            **_common(job, "failed"),
            "metrics": {},
            "error": error,
            "traceback": trace,
            "output": output,
            "warnings": [],
        }
    failure = {"error": error, "traceback": trace, "output": output}
    missing = {name: failure for name in metrics if name not in earlier["metrics"]}
    errors = {**earlier.get("metric_errors", {}), **missing}
    return {**earlier, "metric_errors": errors, "finished": time.time()}


def present_versions() -> dict[str, str | None]:
    """Return the versions of the packages that results depend on.

    `code` stands for what of ours makes a result, which may change between releases.
    """
    return dict(_VERSIONS)


def _read(job: Job, store: Store, notes: list[str]) -> Record | None:
    try:
        return store.read(job)
    except DamagedFileError as error:
        aside = store.move_aside(job)
        notes.append(f"{error} It is now {aside.name}, and the job runs.")
        return None


def _make_record(
    job: Job, orders: Orders, earlier: Record | None
) -> tuple[Record, str]:
    """Return the record of a job, and the error with which its method failed."""
    error = ""
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
        except (Exception, SystemExit) as raised:
            # A method that calls sys.exit must not end the others' run.
            error = describe_error(raised)
            printed = output.getvalue()[-_OUTPUT_CHARACTERS:]
            failure = error, _trace(), printed
            record = add_failure(job, earlier, orders.metrics, *failure)
    folder = f"{orders.store.folder}{os.sep}"
    messages = [str(warning.message).replace(folder, "") for warning in caught]
    distinct = dict.fromkeys(
        [
            *record.get("warnings", []),
            *(message[:_WARNING_CHARACTERS] for message in messages),
        ]
    )
    return {**record, "warnings": list(distinct)[:_NUM_WARNINGS]}, error


def _compute(job: Job, orders: Orders, earlier: Record | None) -> Record:
    from sbi_boed_plugin.sbibm import get_task

    task = get_task(job.task)
    done = earlier if earlier and earlier["status"] == "done" else None
    # What an earlier run measured is measured again, so that all is of one version.
    wanted = {*orders.metrics, *(done["metrics"] if done else ())}
    samples = _kept_samples(job, orders.store, done)
    if done is None or samples is None:
        with isolated_rng(job.seed):
            run = call_within(
                orders.time_limit,
                lambda: run_job_method(job, task, orders.store.cache),
            )
        samples = run.samples
        record = {
            "metrics": {},
            "metric_errors": {},
            "training_seconds": run.training_seconds,
            "sampling_seconds": run.sampling_seconds,
            "metric_seconds": 0.0,
            "from_cache": run.from_cache,
            "num_simulations_used": run.num_simulations,
            "log_prob_true_parameters": run.log_prob_true_parameters,
            "diagnostics": dict(run.diagnostics),
            "samples": None,
        }
        if done:
            record["earlier"] = _earlier(done)
        if orders.save_samples or (done and done["samples"]):
            # Before anything is measured: who runs out of memory there has them.
            record["samples"] = orders.store.write_samples(job, samples.numpy())
    else:
        record = done
        wanted -= set(done["metrics"])
    started = time.perf_counter()
    metrics, errors = _measure(job, task, samples, wanted, orders.time_limit)
    seconds = record["metric_seconds"] + time.perf_counter() - started
    earlier_errors = record.get("metric_errors", {})
    measured = {
        "metrics": {**record["metrics"], **metrics},
        "metric_errors": {
            name: errors.get(name) or earlier_errors[name]
            for name in sorted({*earlier_errors, *errors} - set(metrics))
        },
        "metric_seconds": seconds,
    }
    return {**record, **_common(job, "done"), **measured}


def _earlier(done: Record) -> list[dict[str, Any]]:
    """Return what was measured on samples that there are no more, by versions.

    It is no value of the new samples, whose metrics may fail, and took hours, perhaps.
    """
    values = {"metrics": done["metrics"], "versions": done["versions"]}
    return [*done.get("earlier", []), values]


def _measure(
    job: Job,
    task: Any,
    samples: Tensor,
    names: Iterable[str],
    seconds: float | None,
) -> tuple[dict[str, float], dict[str, dict[str, str]]]:
    """Return metrics, and what went wrong with those that failed."""
    values, errors = {}, {}
    for name in sorted(names):
        try:
            # Each from the seed, so that none depends on which others are computed.
            with isolated_rng(job.seed):
                value = call_within(
                    seconds,
                    partial(compute_metric, name, task, samples, job.num_observation),
                )
            if not math.isfinite(value):
                raise ValueError(f"its value is {value}")
            values[name] = value
        except Exception as error:
            # The others are good, and the samples took hours, perhaps.
            errors[name] = {
                "error": describe_error(error),
                "traceback": _trace(),
                "output": "",
            }
    return values, errors


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
        "versions": present_versions(),
    }


def _trace() -> str:
    """Return the traceback of an error, with files as Python finds their modules.

    Results are shared; where somebody's Python is installed says nothing to others.
    """
    trace = traceback.format_exc()
    roots: Sequence[str] = sorted({*sys.path, os.getcwd()}, key=len, reverse=True)
    for root in filter(None, roots):
        trace = trace.replace(f'File "{root}{os.sep}', 'File "')
    return trace
