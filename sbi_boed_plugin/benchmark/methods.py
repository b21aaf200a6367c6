"""What a name of a method stands for: one of ours, or anybody's function."""

import importlib
import inspect
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sbi_boed_plugin._parallel import describe_error
from sbi_boed_plugin._rng import isolated_rng
from sbi_boed_plugin.benchmark.jobs import Job

__all__ = ["Run", "check_methods", "run_job_method"]


@dataclass(frozen=True)
class Run:
    """What a method made of a job.

    Attributes:
        samples: Posterior samples of shape `(num_samples, dim_parameters)`.
        num_simulations: How many simulations it used.
        log_prob_true_parameters: Logarithm of its posterior density at the true
            parameters, or `None`.
        training_seconds: Time of training, NaN if not known apart.
        sampling_seconds: Time of sampling, or of everything.
        from_cache: Whether the training is that of another job.
        diagnostics: Whatever else the method tells.
    """

    samples: Tensor
    num_simulations: int
    log_prob_true_parameters: float | None
    training_seconds: float
    sampling_seconds: float
    from_cache: bool = False
    diagnostics: Mapping[str, float] = field(default_factory=dict)


def check_methods(
    names: Sequence[str],
    num_rounds: int,
    hyper: Mapping[str, Mapping[str, Any]] | None = None,
) -> None:
    """Refuse methods that there are not, before anything runs.

    Args:
        names: Names of methods, or `module:function`.
        num_rounds: Number of rounds that they shall run.
        hyper: Hyperparameters of each method.

    Raises:
        ValueError: If one is unknown, cannot be imported, or takes no rounds or another
            hyperparameter.
    """
    from sbi_boed_plugin.sbibm import METHODS

    for name in names:
        if ":" in name:
            function = _import(name)
            if num_rounds > 1 and not _takes_rounds(function):
                raise ValueError(
                    f"methods={name!r} takes no num_rounds, but num_rounds="
                    f"{num_rounds}; use 1, or let the function take it."
                )
        elif name not in METHODS:
            raise ValueError(
                f"methods={name!r} is unknown; there are {', '.join(METHODS)}, and "
                "functions given as module:function."
            )
        _check_hyper(name, num_rounds, (hyper or {}).get(name, {}))


def _check_hyper(name: str, num_rounds: int, hyper: Mapping[str, Any]) -> None:
    from sbi_boed_plugin.sbibm import check_hyper

    remedy = f"`{name}.NAME` gives one to this method only, `METHOD.NAME` to another"
    if ":" not in name:
        try:
            check_hyper(name, num_rounds=num_rounds, **hyper)
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"hyper={dict(hyper)} does not suit the method {name!r}: "
                f"{str(error).rstrip('.')}; {remedy}."
            ) from error
        return
    parameters = inspect.signature(_import(name)).parameters
    takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    unknown = [key for key in hyper if key not in parameters]
    if unknown and not takes_any:
        raise ValueError(
            f"hyper={dict(hyper)} does not suit the method {name!r}: it takes no "
            f"{', '.join(unknown)}, but {', '.join(parameters)}; {remedy}."
        )


def run_job_method(job: Job, task: Any, cache: Path) -> Run:
    """Run the method of a job.

    Args:
        job: The job.
        task: Its task.
        cache: Folder for what several jobs need.

    Returns:
        What the method returned, checked.

    Raises:
        ValueError: If that is not what methods return.
    """
    is_function = ":" in job.method
    run = _run_function(job, task) if is_function else _run_ours(job, task, cache)
    shape = (job.num_samples, task.dim_parameters)
    if tuple(run.samples.shape) != shape:
        raise ValueError(
            f"method {job.method!r} returned samples of shape "
            f"{tuple(run.samples.shape)}, which must be {shape}."
        )
    num_wrong = int((~torch.isfinite(run.samples)).any(dim=1).sum())
    if num_wrong:
        raise ValueError(
            f"method {job.method!r} returned {num_wrong} of {job.num_samples} samples "
            "that are not finite."
        )
    return run


def _run_ours(job: Job, task: Any, cache: Path) -> Run:
    from sbi_boed_plugin.sbibm import run_method

    outcome = run_method(
        job.method,
        task,
        job.num_samples,
        job.num_simulations,
        job.num_observation,
        seed=job.seed,
        cache=cache,
        num_rounds=job.num_rounds,
        **job.hyper,
    )
    return Run(
        _plain(outcome.samples),
        int(outcome.num_simulations),
        _as_number(outcome.log_prob_true_parameters),
        float(outcome.training_seconds),
        float(outcome.sampling_seconds),
        bool(outcome.from_cache),
        {key: float(value) for key, value in outcome.diagnostics.items()},
    )


def _run_function(job: Job, task: Any) -> Run:
    function = _import(job.method)
    hyper = dict(job.hyper)
    if _takes_rounds(function):
        hyper["num_rounds"] = job.num_rounds
    started = time.perf_counter()
    with isolated_rng(job.seed):
        returned = function(
            task=task,
            num_samples=job.num_samples,
            num_simulations=job.num_simulations,
            num_observation=job.num_observation,
            **hyper,
        )
    seconds = time.perf_counter() - started
    if not (isinstance(returned, tuple) and len(returned) == 3):
        raise ValueError(
            f"method {job.method!r} returned {type(returned).__name__}, but it must be "
            "the tuple (samples, num_simulations, log_prob_true_parameters or None)."
        )
    samples, num_simulations, log_prob = returned
    return Run(
        _plain(samples),
        int(num_simulations),
        _as_number(log_prob),
        training_seconds=math.nan,
        sampling_seconds=seconds,
    )


def _plain(samples: Any) -> Tensor:
    # NumPy's default is double precision, which sbibm's simulators refuse.
    return torch.as_tensor(samples).detach().float().cpu()


def _as_number(log_prob: Any) -> float | None:
    return None if log_prob is None else float(torch.as_tensor(log_prob).mean())


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
