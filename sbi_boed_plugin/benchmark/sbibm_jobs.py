"""A benchmark on the tasks of sbibm: its jobs, run by the common runner."""

import io
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from sbi_boed_plugin import sbibm
from sbi_boed_plugin._atomic import write_bytes
from sbi_boed_plugin._parallel import describe_error
from sbi_boed_plugin._rng import isolated_rng
from sbi_boed_plugin.benchmark.jobs import (
    NUM_SAMPLES,
    Job,
    expand_jobs,
    hyper_by_method,
)
from sbi_boed_plugin.benchmark.methods import check_methods, run_job_method
from sbi_boed_plugin.benchmark.metrics import check_metrics, compute_metric
from sbi_boed_plugin.benchmark.processes import IncompleteError
from sbi_boed_plugin.benchmark.runner import check_limits, run_jobs
from sbi_boed_plugin.benchmark.store import Record, Settings, Store, file_name

__all__ = ["benchmark_store", "run_benchmark"]

_NUMBER = (int, float)
_MAYBE_NUMBER = (*_NUMBER, type(None))
# Which kinds of values the results of a job have.
_KINDS: dict[str, Any] = {
    "metrics": dict,
    "training_seconds": _MAYBE_NUMBER,
    "sampling_seconds": _MAYBE_NUMBER,
    "metric_seconds": _NUMBER,
    "num_simulations_used": int,
    "log_prob_true_parameters": _MAYBE_NUMBER,
    "from_cache": bool,
    "diagnostics": dict,
}


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
    tag: str = "",
    num_workers: int = 1,
    retry_failed: bool = False,
    save_samples: bool = False,
    time_limit: float | None = None,
    show_progress: bool = True,
) -> int:
    """Run every combination of tasks, methods, budgets, seeds and observations.

    Each job has a process of its own, and a file, written when the job is finished. A
    run that was stopped, by whatever means, goes on from there; a second run in the
    same folder at the same time is refused. What a job computes depends on its settings
    only.

    Settings tell jobs apart, nothing else does: results are kept after an upgrade, with
    a warning, and after an edit of a `module:function`. Use another tag or folder then.
    Trained networks in the folder's `cache` are pickles, which run code when they are
    loaded: share a folder with people whom you trust.

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
            `"c2st_forest"`, a random forest on 1,000 of the samples. An earlier job
            that lacks one runs again.
        output: The folder of the benchmark.
        num_rounds: Number of rounds.
        num_samples: Number of posterior samples.
        hyper: Hyperparameters, for all methods, or for one if its name is before
            theirs: `{"npe.num_atoms": 5}`.
        tag: Text that tells these jobs apart from others with the same settings.
        num_workers: Number of processes, each with one thread; -1 for one per core.
        retry_failed: Whether jobs that failed in an earlier run, or a metric of which
            did, run again.
        save_samples: Whether samples are kept.
        time_limit: Seconds that a job may take, metrics included: its process is ended
            then, and the job has failed.
        show_progress: Whether to show progress, on standard error.

    Returns:
        Number of jobs among these that failed, now or earlier.

    Raises:
        ValueError: If an argument is out of range, or names what there is not.
        ImportError: If sbibm is not installed.
        FolderInUseError: If another run writes to the folder.
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
        tag=tag,
    )
    check_limits(num_workers, time_limit)
    check_metrics(metrics)
    check_methods(methods, num_rounds, hyper_by_method(methods, hyper or {}))
    _check_tasks(tasks, observations)
    store = benchmark_store(output)

    def is_complete(record: Record) -> bool:
        has_samples = _samples_path(store.folder, record["job"]).exists()
        has_metrics = set(metrics) <= set(record["result"]["metrics"])
        return has_metrics and (has_samples or not save_samples)

    records = run_jobs(
        partial(
            _run_job,
            folder=store.folder,
            metrics=tuple(metrics),
            save_samples=save_samples,
        ),
        [job.settings() for job in jobs],
        store,
        num_workers=num_workers,
        time_limit=time_limit,
        retry_failed=retry_failed,
        is_complete=is_complete,
        show_progress=show_progress,
    )
    return sum(bool(record["error"]) for record in records)


def benchmark_store(folder: Path | str) -> Store:
    """Return the store of a benchmark, which refuses records of other jobs."""
    return Store(folder, _check_record)


def _check_record(record: Record) -> None:
    """Raise an error if a record is not that of a job of a benchmark."""
    job = Job(**record["job"])
    for field in fields(Job):
        kind = field.type if field.type in (str, int) else dict
        if not isinstance(getattr(job, field.name), kind):
            raise TypeError(f"{field.name}={getattr(job, field.name)!r}")
    if record["status"] == "failed":
        return
    result = record["result"]
    for name, kind in _KINDS.items():
        if not isinstance(result[name], kind):
            raise TypeError(f"{name}={result[name]!r}")
    for name, value in {**result["metrics"], **result["diagnostics"]}.items():
        if not isinstance(value, _MAYBE_NUMBER):
            raise TypeError(f"{name}={value!r}")


def _check_tasks(tasks: Sequence[str], observations: Sequence[int]) -> None:
    for name in tasks:
        # Refuses unknown names, and says how to install sbibm if it is missing.
        most = sbibm.get_task(name).num_observations
        if max(observations) > most:
            raise ValueError(
                f"observations={max(observations)} must be at most {most}: task "
                f"{name!r} has no more."
            )


def _run_job(
    settings: Settings, *, folder: Path, metrics: Sequence[str], save_samples: bool
) -> dict[str, Any]:
    """Return the result of a job: metrics, times, and what the method says of itself.

    What an earlier run measured is measured again, so that all is of one posterior.
    """
    job = Job(**settings)
    task = sbibm.get_task(job.task)
    earlier = benchmark_store(folder).read(settings)
    known = earlier["result"].get("metrics", {}) if earlier else {}
    run = run_job_method(job, task, folder / "cache")
    samples_path = _samples_path(folder, settings)
    if save_samples or samples_path.exists():
        # Before anything is measured: who runs out of memory there has them.
        content = io.BytesIO()
        np.savez_compressed(content, samples=run.samples.numpy())
        write_bytes(samples_path, content.getvalue())
    started = time.perf_counter()
    values, errors = {}, {}
    for name in sorted({*metrics, *known}):
        try:
            # Each from the seed, so that none depends on which others are computed.
            with isolated_rng(job.seed):
                value = compute_metric(name, task, run.samples, job.num_observation)
            if not math.isfinite(value):
                raise ValueError(f"its value is {value}")
            values[name] = value
        except Exception as error:
            # The others are good, and the samples took hours, perhaps.
            errors[name] = error
    result = {
        "metrics": values,
        "training_seconds": run.training_seconds,
        "sampling_seconds": run.sampling_seconds,
        "metric_seconds": time.perf_counter() - started,
        "num_simulations_used": run.num_simulations,
        "log_prob_true_parameters": run.log_prob_true_parameters,
        "from_cache": run.from_cache,
        "diagnostics": dict(run.diagnostics),
    }
    if errors:
        message = "; ".join(f"{k}: {describe_error(e)}" for k, e in errors.items())
        if set(errors) & set(known):
            # The earlier record stays, with this failure noted in it.
            raise RuntimeError(message) from next(iter(errors.values()))
        raise IncompleteError(message, result, list(errors.values()))
    return result


def _samples_path(folder: Path, settings: Settings) -> Path:
    return folder / "samples" / Path(file_name(settings)).with_suffix(".npz").name
