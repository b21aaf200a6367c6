"""What a name of a method stands for: one of ours, or anybody's function."""

import importlib
import inspect
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from sbi_boed_plugin import sbibm
from sbi_boed_plugin._parallel import describe_error
from sbi_boed_plugin._rng import isolated_rng
from sbi_boed_plugin.benchmark.jobs import Job

__all__ = ["check_methods", "run_job_method"]


def check_methods(jobs: Sequence[Job]) -> None:
    """Raise a `ValueError` for methods that cannot run, before anything runs.

    Those are unknown, cannot be imported, or take no rounds or hyperparameter such as
    the given ones.
    """
    for job in {job.method: job for job in jobs}.values():
        name = job.method
        if ":" not in name and name not in sbibm.METHODS:
            raise ValueError(
                f"methods={name!r} is unknown; there are {', '.join(sbibm.METHODS)}, "
                "and functions given as module:function."
            )
        if ":" in name and job.num_rounds > 1 and not _takes_rounds(_import(name)):
            raise ValueError(
                f"methods={name!r} takes no num_rounds, but num_rounds="
                f"{job.num_rounds}; use 1, or let the function take it."
            )
        try:
            _check_hyper(job)
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"hyper={dict(job.hyper)} does not suit the method {name!r}: "
                f"{str(error).rstrip('.')}; `{name}.NAME` gives one to this method "
                "only, `METHOD.NAME` to another."
            ) from error


def _check_hyper(job: Job) -> None:
    if ":" not in job.method:
        sbibm.check_hyper(job.method, num_rounds=job.num_rounds, **job.hyper)
        return
    signature = inspect.signature(_import(job.method))
    signature.bind(**_arguments(job, None, _import(job.method)))


def run_job_method(job: Job, task: Any, cache: Path) -> sbibm.RunOutcome:
    """Run the method of a job, with a folder for trainings that several jobs need.

    Samples are on the CPU in single precision, as sbibm's simulators want them.
    """
    if ":" in job.method:
        outcome = _run_function(job, task)
    else:
        outcome = sbibm.run_method(
            job.method,
            task,
            job.num_samples,
            job.num_simulations,
            job.num_observation,
            seed=job.seed,
            cache=cache,
            cache_tag=job.tag or None,
            num_rounds=job.num_rounds,
            **job.hyper,
        )
    samples = torch.as_tensor(outcome.samples).detach().float().cpu()
    shape = (job.num_samples, task.dim_parameters)
    if tuple(samples.shape) != shape:
        raise ValueError(
            f"method {job.method!r} returned samples of shape {tuple(samples.shape)}, "
            f"which must be {shape}."
        )
    num_wrong = int((~torch.isfinite(samples)).any(dim=1).sum())
    if num_wrong:
        raise ValueError(
            f"method {job.method!r} returned {num_wrong} of {job.num_samples} samples "
            "that are not finite."
        )
    log_prob = outcome.log_prob_true_parameters
    number = None if log_prob is None else float(torch.as_tensor(log_prob).mean())
    return replace(outcome, samples=samples, log_prob_true_parameters=number)


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
    names += ["num_rounds"] if _takes_rounds(function) else []
    settings = {name: getattr(job, name) for name in names}
    return {"task": task, **settings, **job.hyper}


def _import(name: str) -> Callable[..., Any]:
    module, _, function = name.partition(":")
    try:
        found = getattr(importlib.import_module(module), function)
    except Exception as error:  # Modules fail in ways of their own.
        raise ValueError(
            f"methods={name!r} cannot be imported: {describe_error(error)}. It must be "
            "module:function, with the module on Python's path."
        ) from error
    if not callable(found):
        raise ValueError(f"methods={name!r} is not a function but {found!r}.")
    return found


def _takes_rounds(function: Callable[..., Any]) -> bool:
    # Whoever takes any keyword takes it for a hyperparameter, perhaps of a network.
    return "num_rounds" in inspect.signature(function).parameters
