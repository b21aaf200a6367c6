"""What a user names on the command line: a task, or a problem of their own."""

import inspect
from importlib import import_module
from typing import Any

from sbi_boed_plugin.experiment import likelihood_builder
from sbi_boed_plugin.policies import TruncatedNormalPolicy
from sbi_boed_plugin.problem import Problem
from sbi_boed_plugin.tasks import Task, get_task

__all__ = ["load_problem", "load_task"]


def load_task(name: str, dim_design: int | None = None) -> Task | Problem:
    """Return a task by its name, or a user's task or problem by `module:object`.

    A `ValueError` says what is wrong.
    """
    arguments = {} if dim_design is None else {"dim_design": dim_design}
    if ":" not in name:
        return get_task(name, **arguments)
    module, _, attribute = name.partition(":")
    try:
        found: Any = getattr(import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(f"cannot load {name}: {error}") from error
    takes = inspect.signature(found).parameters if callable(found) else ()
    if arguments and "dim_design" not in takes:
        raise ValueError(f"{name} takes no dim_design: leave --dim-design out")
    found = found(**arguments) if callable(found) else found
    if isinstance(found, Problem):
        return found
    if not isinstance(found, Task):
        raise ValueError(
            f"{name} must be a sbi_boed_plugin.Problem or tasks.Task, or a class or "
            f"function that returns one, got {type(found).__name__}"
        )
    missing = [a for a in inspect.get_annotations(Task) if not hasattr(found, a)]
    if missing:
        raise ValueError(f"{name} is a task without {', '.join(missing)}")
    return found


def load_problem(name: str) -> Problem:
    """Return a user's problem, or that of a task, with its truth left out."""
    found = load_task(name)
    if isinstance(found, Problem):
        return found
    if found.x_shape is not None:
        raise ValueError(
            f"{name} has data without a likelihood, which a campaign needs: it is for "
            "sbi-boed design"
        )
    return Problem(
        found.simulator,
        found.prior,
        TruncatedNormalPolicy(found.design_low, found.design_high),
        likelihood_builder(found),
        name=found.name,
        parameter_names=found.parameter_names,
        design_names=found.design_names,
    )
