"""The command `sbi-boed design`: its arguments, and what is wrong with them."""

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from sbi_boed_plugin._numbers import check_real
from sbi_boed_plugin._results import ResultFolder
from sbi_boed_plugin._rng import isolated_rng
from sbi_boed_plugin.cli.command import InputError, integer_from
from sbi_boed_plugin.cli.design_run import run_design
from sbi_boed_plugin.cli.problem_run import design_problem
from sbi_boed_plugin.cli.problems import load_task
from sbi_boed_plugin.experiment import POLICIES
from sbi_boed_plugin.problem import Problem, read_simulations
from sbi_boed_plugin.search.budget import with_all_numbers
from sbi_boed_plugin.search.checks import check_gradient
from sbi_boed_plugin.search.config import METHODS, DesignSearchConfig
from sbi_boed_plugin.search.gradients import POLICY_GRADIENTS
from sbi_boed_plugin.search.information import POLICY_OBJECTIVES
from sbi_boed_plugin.tasks import Task, available_tasks

__all__ = ["NUM_STEPS", "SEARCH_OPTIONS", "add_design_options"]

DENSITY_ESTIMATORS = ("nsf", "maf", "maf_rqs", "mdn", "zuko_nsf", "zuko_maf")
# What `optimize_design` takes for `num_steps=None` with untrained networks.
NUM_STEPS = 1_000
# Options that are arguments of `optimize_design`, under the same names.
SEARCH_OPTIONS = (
    "method",
    "objective",
    "gradient",
    "num_steps",
    "num_refinement_steps",
    "max_num_simulations",
    "max_seconds",
    "num_workers",
)

_DESCRIPTION = """\
Find the design of an experiment that tells most about its parameters, measure there
at known true parameters, and infer them from the measurement.

Writes to the output folder: summary.json (design, expected information gain in nats,
posterior), trace.csv (one row per training step), posterior_samples.csv, and figures.
"""
_TASK_HELP = (
    f"one of: {', '.join(available_tasks())}; or module:object for a Problem or Task "
    "of your own, or what returns one, searched for in the current folder, too"
)
_DENSITY_ESTIMATOR_HELP = (
    "model of the likelihood: %(choices)s (default: mdn for one measurement, maf for "
    "several)"
)
_OBJECTIVE_HELP = (
    "bound of the information that the policy climbs: %(choices)s (default: "
    "barber_agakov)"
)
_GRADIENT_HELP = "gradient of the policy: %(choices)s; score takes any simulator"
_METHOD_HELP = (
    "rounds: networks learn from all of a few simulations; joint: policy and networks "
    "learn together; multi_start: networks learn for the whole design space, then many "
    "designs climb at once; auto: rounds for at most 30,000 simulations, else joint"
)
_DEFAULT_POLICY = "truncated_normal"
_POLICY_HELP = (
    "distribution over designs that learns, of built-in tasks: %(choices)s; point "
    f"needs another --gradient than score, mixture score alone (default: "
    f"{_DEFAULT_POLICY})"
)


def add_design_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of `sbi-boed design`."""
    parser.description = _DESCRIPTION
    parser.set_defaults(run=_design)
    parser.add_argument("task", metavar="TASK", help=_TASK_HELP)
    positive, natural = integer_from(1), integer_from(0)
    for name, kind, default, text in (
        ("dim-design", positive, None, "number of measurements, if not fixed"),
        ("seed", natural, 0, "random seed"),
        ("num-steps", positive, None, f"training steps (default: {NUM_STEPS})"),
        (
            "num-refinement-steps",
            natural,
            0,
            "steps at the design, for a tighter bound",
        ),
        ("max-num-simulations", positive, None, "simulations in all"),
        ("max-seconds", float, None, "end training, with the design found by then"),
        ("num-workers", positive, 1, "processes for slow simulators"),
    ):
        parser.add_argument(
            f"--{name}", type=kind, metavar="N", default=default, help=text
        )
    for name, choices, default, text in (
        ("density-estimator", DENSITY_ESTIMATORS, None, _DENSITY_ESTIMATOR_HELP),
        ("objective", sorted(POLICY_OBJECTIVES), None, _OBJECTIVE_HELP),
        ("gradient", POLICY_GRADIENTS, "score", _GRADIENT_HELP),
        ("method", METHODS, "auto", _METHOD_HELP),
        ("policy", tuple(POLICIES), None, _POLICY_HELP),
    ):
        text += f" (default: {default})" if default else ""
        parser.add_argument(
            f"--{name}", choices=choices, metavar="NAME", default=default, help=text
        )
    text = (
        "of a Problem: table (.csv, .parquet) or archive (.npz) of earlier simulations "
        "to learn from; without --max-num-simulations, from these alone"
    )
    parser.add_argument("--simulations", type=Path, metavar="FILE", help=text)
    text = "folder for the results (default: results/TASK)"
    parser.add_argument("--output", type=Path, metavar="DIR", help=text)
    text = "print results only, no progress"
    parser.add_argument("--quiet", action="store_true", help=text)


def _design(options: argparse.Namespace) -> int:
    """Run the command; wrong input is refused before any time is spent."""
    search = {name: getattr(options, name) for name in SEARCH_OPTIONS}
    try:
        check_real("--max-seconds", options.max_seconds, above=0.0, or_none=True)
        config = DesignSearchConfig(**search).with_method(has_simulator=True)
        if config.method == "rounds" and options.simulations is None:
            with_all_numbers(config, has_networks=False, num_check_calls=0)
        task = load_task(options.task, options.dim_design)
        if isinstance(task, Problem):
            if options.policy is not None:
                raise ValueError(
                    f"--policy {options.policy} is for built-in tasks: a Problem has "
                    "its own design_policy"
                )
            return _design_problem(task, options, search)
        if options.simulations is not None:
            raise ValueError("--simulations is for a Problem of your own")
        if task.x_shape is not None and options.density_estimator is None:
            config.check_without_likelihood()
        chosen = options.policy or _DEFAULT_POLICY
        if config.method == "joint":
            policy = POLICIES[chosen](task.design_low, task.design_high)
            check_gradient(options.gradient, policy)
            if options.gradient == "pathwise" and not _is_differentiable(task):
                raise ValueError(
                    f"the simulator of {task.name} is not differentiable, as "
                    "--gradient pathwise needs: choose score, surrogate or implicit"
                )
    except ValueError as error:
        raise InputError(error) from error
    path = options.output or Path("results", task.name)
    folder = _folder(path)
    try:
        run_design(
            task,
            folder,
            density_estimator=options.density_estimator,
            policy=chosen,
            search=search,
            seed=options.seed,
            show_progress=not options.quiet,
        )
    except KeyboardInterrupt:
        written = ", ".join(folder.written)
        kept = f"Kept in {path}: {written}." if written else "Nothing was written."
        raise KeyboardInterrupt(kept) from None
    print(f"\nWrote to {path}: {', '.join(folder.written)}")
    return 0


def _folder(path: Path) -> ResultFolder:
    """Return the folder for results, or say why there is none."""
    try:
        return ResultFolder(path)
    except OSError as error:
        reason = "it is a file" if path.is_file() else error.strerror
        raise InputError(
            f"cannot write results to {path}: {reason}. Choose another --output."
        ) from error


def _design_problem(
    problem: Problem, options: argparse.Namespace, search: dict[str, Any]
) -> int:
    """Find the design of a user's problem, from stored simulations where there are."""
    rows = None
    if options.simulations is not None:
        rows = read_simulations(
            options.simulations,
            problem.prior.event_shape.numel(),
            problem.design_policy.dim_design,
        )
    if options.density_estimator is not None:
        problem = replace(problem, density_estimator=options.density_estimator)
    path = options.output or Path("results", problem.name)
    folder = _folder(path)
    design_problem(
        problem,
        folder,
        search=search,
        rows=rows,
        seed=options.seed,
        show_progress=not options.quiet,
    )
    print(f"\nWrote to {path}: {', '.join(folder.written)}")
    return 0


def _is_differentiable(task: Task) -> bool:
    """Return whether data of the simulator carry a gradient of the design."""
    with isolated_rng(0):
        theta = task.prior.sample(torch.Size((1,)))
        design = task.design_space.sample(torch.Size((1,))).requires_grad_()
        return task.simulator(theta, design).requires_grad
