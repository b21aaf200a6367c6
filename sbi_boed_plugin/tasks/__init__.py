"""Experiments to try designs on: simulators with priors, designs and exact answers."""

import difflib
import inspect
from typing import Any

from sbi_boed_plugin.tasks.bmp import BMP
from sbi_boed_plugin.tasks.ces import CES
from sbi_boed_plugin.tasks.death import DeathProcess
from sbi_boed_plugin.tasks.discounting import HyperbolicDiscounting
from sbi_boed_plugin.tasks.linear import GaussianLinear, NoisyLinear, noise_log_prob
from sbi_boed_plugin.tasks.location_finding import LocationFinding
from sbi_boed_plugin.tasks.pharmacokinetic import Pharmacokinetic
from sbi_boed_plugin.tasks.prey import PreyPopulation
from sbi_boed_plugin.tasks.psychometric import Psychometric
from sbi_boed_plugin.tasks.sir import SIR, BruteForceEIG, brute_force_eig
from sbi_boed_plugin.tasks.structured import Camera, Trace
from sbi_boed_plugin.tasks.task import Task

__all__ = [
    "BMP",
    "CES",
    "SIR",
    "BruteForceEIG",
    "Camera",
    "DeathProcess",
    "GaussianLinear",
    "HyperbolicDiscounting",
    "LocationFinding",
    "NoisyLinear",
    "Pharmacokinetic",
    "PreyPopulation",
    "Psychometric",
    "Task",
    "Trace",
    "available_tasks",
    "brute_force_eig",
    "get_task",
    "noise_log_prob",
]

_DISCRETE = (DeathProcess, HyperbolicDiscounting, PreyPopulation, Psychometric)
_MORE = (LocationFinding, NoisyLinear, Pharmacokinetic, SIR, Camera, Trace, *_DISCRETE)
_TASKS: dict[str, type[Task]] = {
    task.name: task for task in (BMP, CES, GaussianLinear, *_MORE)
}


def available_tasks() -> list[str]:
    """Return the names that `get_task` knows, in alphabetical order."""
    return sorted(_TASKS)


def get_task(name: str, **kwargs: Any) -> Task:
    """Return a task by its name.

    Args:
        name: One of `available_tasks()`.
        **kwargs: Arguments of the task, for instance `dim_design`.

    Raises:
        ValueError: If there is no such task, or if it does not take an argument.

    Example:
        >>> get_task("sir", dim_design=2)
        SIR(dim_theta=2, dim_design=2, dim_x=2)
    """
    if name not in _TASKS:
        matches = difflib.get_close_matches(str(name), _TASKS, n=1)
        hint = f" Did you mean {matches[0]!r}?" if matches else ""
        names = ", ".join(available_tasks())
        raise ValueError(f"There is no task {name!r}.{hint} Available: {names}.")
    accepted = list(inspect.signature(_TASKS[name]).parameters)
    for argument, value in kwargs.items():
        if argument not in accepted:
            raise ValueError(
                f"Task {name!r} does not take `{argument}`, got {value!r}. "
                f"Arguments: {', '.join(accepted) or 'none'}."
            )
    return _TASKS[name](**kwargs)
