"""A benchmark on the tasks of sbibm: one posterior a job, run by the common runner."""

import importlib
import inspect
import json
import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import torch

from sbi_boed_plugin import sbibm
from sbi_boed_plugin._numbers import check_integer
from sbi_boed_plugin._parallel import describe_error
from sbi_boed_plugin._rng import isolated_rng
from sbi_boed_plugin.benchmark.metrics import METRICS
from sbi_boed_plugin.benchmark.runner import run_jobs
from sbi_boed_plugin.benchmark.store import Settings, Store

__all__ = ["NUM_SAMPLES", "Job", "hyper_text", "run_benchmark"]

# As many as sbibm's reference posteriors hold.
NUM_SAMPLES = 10_000


@dataclass(frozen=True)
class Job:
    """One posterior of one method, compared with that of one task.

    A method is a name or `module:function`; the number of simulations is for all rounds
    together; a tag tells apart jobs with the same settings.
    """

    task: str
    method: str
    num_simulations: int
    seed: int
    num_observation: int
    num_rounds: int = 1
    num_samples: int = NUM_SAMPLES
    hyper: Mapping[str, Any] = field(default_factory=dict)
    tag: str = ""

    @property
    def label(self) -> str:
        """The method, and what differs from the usual settings, in words.

        Example:
            >>> Job("sir", "npe", 1_000, 0, 1, num_rounds=2, hyper={"a": "b"}).label
            "npe, 2 rounds, a='b'"
        """
        parts = [self.method]
        if self.num_rounds != 1:
            parts.append(f"{self.num_rounds} rounds")
        if self.num_samples != NUM_SAMPLES:
            parts.append(f"{self.num_samples:,} samples")
        parts += [f"{key}={value!r}" for key, value in sorted(self.hyper.items())]
        return ", ".join(parts + ([f"tag {self.tag}"] if self.tag else []))

    def __str__(self) -> str:
        return (
            f"{self.task}, {self.label}, {self.num_simulations:,} simulations, seed "
            f"{self.seed}, observation {self.num_observation}"
        )


def hyper_text(hyper: Mapping[str, Any]) -> str:
    """Return hyperparameters as a text that is empty if there are none."""
    return json.dumps(hyper, sort_keys=True) if hyper else ""


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
    time_limit: float | None = None,
    show_progress: bool = True,
) -> int:
    """Run every combination of tasks, methods, budgets, seeds and observations.

    Each job has a process of its own, and a file, written when the job is finished. A
    run that was stopped, by whatever means, goes on from there; a second run in the
    same folder at the same time is refused. A job's settings decide what it computes,
    and tell it apart from others, nothing else does: results are kept after an upgrade,
    with a warning, and after an edit of a `module:function`. Use another tag or folder
    then. Trained networks in the folder's `cache` are pickles, which run code when they
    are loaded: share a folder with people whom you trust.

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
        retry_failed: Whether jobs that failed in an earlier run are run again.
        time_limit: Seconds that a job may take, metrics included.
        show_progress: Whether to show progress, on standard error.

    Returns:
        Number of jobs among these that failed, now or earlier.

    Raises:
        ValueError: If an argument is out of range, or names what there is not.
        ImportError: If sbibm is not installed.
        FolderInUseError: If another run writes to the folder.
        OSError: If the folder cannot be written to.
    """
    tasks, methods = _listed("tasks", tasks), _listed("methods", methods)
    budgets = sorted(_listed("num_simulations", num_simulations, least=1))
    seeds = _listed("seeds", seeds, least=0)
    observations = _listed("observations", observations, least=1)
    remedy = "There can be one round per simulation at most."
    num_rounds = check_integer("num_rounds", num_rounds, 1, budgets[0], remedy=remedy)
    num_samples = check_integer("num_samples", num_samples, 2)  # for a variance.
    hyper_of = _hyper_by_method(methods, hyper or {})
    # Observations vary slowest: every method has a result early, and processes that run
    # side by side train different networks instead of waiting for the same one.
    jobs = [
        Job(task, method, budget, seed, number, num_rounds, num_samples)
        for number, seed, budget, task, method in product(
            observations, seeds, budgets, tasks, methods
        )
    ]
    jobs = [replace(job, hyper=hyper_of[job.method], tag=str(tag)) for job in jobs]
    if isinstance(metrics, str) or not metrics or not set(metrics) <= set(METRICS):
        raise ValueError(f"metrics={metrics!r} must be some of {', '.join(METRICS)}.")
    _check_methods(jobs)
    for name in tasks:
        # Refuses unknown names, and says how to install sbibm if it is missing.
        most = sbibm.get_task(name).num_observations
        check_integer("observations", max(observations), most=most)
    store = Store(output)
    records = run_jobs(
        partial(_run_job, folder=store.folder, metrics=tuple(metrics)),
        [asdict(job) for job in jobs],
        store,
        num_workers=num_workers,
        time_limit=time_limit,
        retry_failed=retry_failed,
        is_complete=lambda record: set(metrics) <= set(record["result"]["metrics"]),
        show_progress=show_progress,
    )
    return sum(bool(record["error"]) for record in records)


def _hyper_by_method(
    methods: Sequence[str], hyper: Mapping[str, Any]
) -> dict[str, dict[str, Any]]:
    """Return which hyperparameters each method gets.

    A name such as `npe.num_atoms` is for `npe` only, and goes before one that is for
    all.
    """
    given: dict[str, dict[str, Any]] = {method: {} for method in methods}
    for key in sorted(hyper, key=lambda key: "." in key):
        method, dot, name = key.rpartition(".")
        if dot and method not in methods:
            raise ValueError(
                f"hyper={hyper} is for the method {method!r} in {key!r}, which must be "
                f"one of those that run: {', '.join(methods)}."
            )
        for each in [method] if dot else methods:
            given[each][name] = hyper[key]
    return given


def _listed(name: str, values: Iterable[Any], least: int | None = None) -> list[Any]:
    """Return entries as a list, numbers as integers of Python, which files can hold."""
    entries = [] if isinstance(values, str) else list(values)
    if not entries:
        raise ValueError(f"{name}={values!r} must be a list of at least one entry.")
    if least is not None:
        entries = [check_integer(name, value, least, 2**32 - 1) for value in entries]
    if len(set(entries)) < len(entries):
        raise ValueError(f"{name}={entries} must not repeat an entry.")
    return entries


def _run_job(
    settings: Settings, *, folder: Path, metrics: Sequence[str]
) -> dict[str, Any]:
    """Return the result of a job: metrics, times, and what the method says of itself.

    What an earlier run measured is measured again, so that all is of one posterior.
    """
    job = Job(**settings)
    task = sbibm.get_task(job.task)
    earlier = Store(folder).read(settings)
    known = earlier["result"].get("metrics", {}) if earlier else {}
    run = _run_method(job, task, folder / "cache")
    started = time.perf_counter()
    values = {}
    for name in sorted({*metrics, *known}):
        # Each from the seed, so that none depends on which others are computed.
        with isolated_rng(job.seed):
            values[name] = METRICS[name](task, run.samples, job.num_observation)
        if not math.isfinite(values[name]):
            raise ValueError(f"{name} is {values[name]}.")
    return {
        "metrics": values,
        "training_seconds": run.training_seconds,
        "sampling_seconds": run.sampling_seconds,
        "metric_seconds": time.perf_counter() - started,
        "num_simulations_used": run.num_simulations,
        "log_prob_true_parameters": run.log_prob_true_parameters,
        "from_cache": run.from_cache,
        "diagnostics": dict(run.diagnostics),
    }


def _check_methods(jobs: Sequence[Job]) -> None:
    """Raise a `ValueError` for methods that cannot run, before anything runs."""
    for job in {job.method: job for job in jobs}.values():
        try:
            if ":" in job.method:
                function = _import(job.method)
                inspect.signature(function).bind(**_arguments(job, None, function))
            else:
                sbibm.check_hyper(job.method, **_settings(job, Path()), **job.hyper)
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"methods={job.method!r} with hyper={dict(job.hyper)}: "
                f"{str(error).rstrip('.')}. METHOD.NAME gives a hyperparameter to one "
                "method only; your own function is given as module:function."
            ) from error


def _run_method(job: Job, task: Any, cache: Path) -> sbibm.RunOutcome:
    """Run the method of a job, with a folder for trainings that several jobs need.

    Samples are on the CPU in single precision, as sbibm's simulators want them.
    """
    if ":" in job.method:
        outcome = _run_function(job, task)
    else:
        numbers = (job.num_samples, job.num_simulations, job.num_observation)
        settings = _settings(job, cache)
        outcome = sbibm.run_method(job.method, task, *numbers, **settings, **job.hyper)
    samples = torch.as_tensor(outcome.samples).detach().float().cpu()
    shape = (job.num_samples, task.dim_parameters)
    if tuple(samples.shape) != shape:
        raise ValueError(
            f"method {job.method!r} returned samples of shape {tuple(samples.shape)}, "
            f"which must be {shape}."
        )
    if num_wrong := int((~torch.isfinite(samples)).any(dim=1).sum()):
        raise ValueError(
            f"method {job.method!r} returned {num_wrong} of {job.num_samples} samples "
            "that are not finite."
        )
    log_prob = outcome.log_prob_true_parameters
    number = None if log_prob is None else float(torch.as_tensor(log_prob).mean())
    return replace(outcome, samples=samples, log_prob_true_parameters=number)


def _settings(job: Job, cache: Path) -> dict[str, Any]:
    """Return what a method of ours is given beside its hyperparameters."""
    return {
        "seed": job.seed,
        "cache": cache,
        "cache_tag": job.tag or None,
        "num_rounds": job.num_rounds,
    }


def _run_function(job: Job, task: Any) -> sbibm.RunOutcome:
    """Run a `module:function`, whose training and sampling nobody can tell apart."""
    function = _import(job.method)
    arguments = _arguments(job, task, function)
    started = time.perf_counter()
    with isolated_rng(job.seed):
        returned = function(**arguments)
    seconds = time.perf_counter() - started
    if not (isinstance(returned, tuple) and len(returned) == 3):
        raise ValueError(
            f"method {job.method!r} returned {type(returned).__name__}, but it must be "
            "the tuple (samples, num_simulations, log_prob_true_parameters or None)."
        )
    samples, num_simulations, log_prob = returned
    return sbibm.RunOutcome(
        samples, int(num_simulations), log_prob, math.nan, seconds, from_cache=False
    )


def _arguments(job: Job, task: Any, function: Callable[..., Any]) -> dict[str, Any]:
    """Return what a function is called with."""
    names = ["num_samples", "num_simulations", "num_observation"]
    # Whoever takes any keyword takes it for a hyperparameter, perhaps of a network.
    if "num_rounds" in inspect.signature(function).parameters:
        names.append("num_rounds")
    elif job.num_rounds > 1:
        raise ValueError(f"it takes no num_rounds, but num_rounds={job.num_rounds}")
    return dict(task=task, **{name: getattr(job, name) for name in names}, **job.hyper)


def _import(name: str) -> Callable[..., Any]:
    module, _, function = name.partition(":")
    try:
        found = getattr(importlib.import_module(module), function)
    except Exception as error:  # Modules fail in ways of their own.
        raise ValueError(f"it cannot be imported: {describe_error(error)}") from error
    if not callable(found):
        raise ValueError(f"it is not a function but {found!r}")
    return found
