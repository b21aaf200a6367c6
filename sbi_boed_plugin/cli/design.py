"""The command `sbi-boed design`: its arguments, and what is wrong with them."""

import argparse
import inspect
import os
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from sbi_boed_plugin._numbers import check_real
from sbi_boed_plugin._results import ResultFolder
from sbi_boed_plugin._rng import isolated_rng
from sbi_boed_plugin.cli.arguments import InputError, integer_from
from sbi_boed_plugin.cli.design_run import run_design
from sbi_boed_plugin.experiment import POLICIES
from sbi_boed_plugin.search.gradients import POLICY_GRADIENTS
from sbi_boed_plugin.search.information import POLICY_OBJECTIVES
from sbi_boed_plugin.tasks import Task, available_tasks, get_task

__all__ = ["NUM_STEPS", "SEARCH_OPTIONS", "add_design_command"]

DENSITY_ESTIMATORS = ("nsf", "maf", "maf_rqs", "mdn", "made", "zuko_nsf", "zuko_maf")
# What `optimize_design` takes for `num_steps=None` with untrained networks.
NUM_STEPS = 1_000
# Options that are arguments of `optimize_design`, under the same names.
SEARCH_OPTIONS = (
    "method",
    "objective",
    "gradient",
    "num_steps",
    "num_refinement_steps",
    "max_seconds",
    "num_workers",
)

_DESCRIPTION = """\
Find the design of an experiment that tells most about its parameters, measure there
at known true parameters, and infer them from the measurement.

Writes to the output folder: summary.json (design, expected information gain in nats,
posterior), trace.csv (one row per training step), posterior_samples.csv, and figures.
"""
_REFINEMENT_HELP = (
    "further steps of the networks at the design found, for a tighter bound "
    "(default: %(default)s)"
)
_SECONDS_HELP = "stop training after N seconds and use the design found by then"
_DENSITY_ESTIMATOR_HELP = (
    "model of the likelihood: %(choices)s (default: mdn for one measurement, maf for "
    "several)"
)
_OBJECTIVE_HELP = (
    "bound of the information that the policy climbs: %(choices)s (default: "
    "barber_agakov)"
)
_GRADIENT_HELP = (
    "gradient of the policy: %(choices)s (default: %(default)s, which takes any "
    "simulator)"
)
_METHOD_HELP = (
    "joint: policy and networks learn together; multi_start: networks learn for the "
    "whole design space, then many designs climb at once (default: %(default)s)"
)
_POLICY_HELP = (
    "distribution over designs that learns: %(choices)s (default: %(default)s; point "
    "has no density and needs another --gradient than score)"
)


def add_design_command(commands: Any) -> None:
    """Add the command to what `add_subparsers` of the main parser returned."""
    parser = commands.add_parser(
        "design",
        description=_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(run=_design)
    parser.add_argument(
        "task",
        metavar="TASK",
        help=f"one of: {', '.join(available_tasks())}; or module:object for a Task of "
        "your own, or what returns one, searched for in the current folder, too",
    )
    for name, kind, default, text in (
        ("dim-design", integer_from(1), None, "number of measurements, if not fixed"),
        ("seed", integer_from(0), 0, "random seed (default: %(default)s)"),
        ("num-steps", integer_from(1), None, f"training steps (default: {NUM_STEPS})"),
        ("num-refinement-steps", integer_from(0), 0, _REFINEMENT_HELP),
        ("max-seconds", float, None, _SECONDS_HELP),
        ("num-workers", integer_from(1), 1, "processes for slow simulators"),
    ):
        parser.add_argument(
            f"--{name}", type=kind, metavar="N", default=default, help=text
        )
    for name, choices, default, text in (
        ("density-estimator", DENSITY_ESTIMATORS, None, _DENSITY_ESTIMATOR_HELP),
        ("objective", sorted(POLICY_OBJECTIVES), None, _OBJECTIVE_HELP),
        ("gradient", POLICY_GRADIENTS, "score", _GRADIENT_HELP),
        ("method", ("joint", "multi_start"), "joint", _METHOD_HELP),
        ("policy", tuple(POLICIES), "truncated_normal", _POLICY_HELP),
    ):
        parser.add_argument(
            f"--{name}", choices=choices, metavar="NAME", default=default, help=text
        )
    parser.add_argument(
        "--output",
        type=Path,
        metavar="DIR",
        help="folder for the results (default: results/TASK)",
    )
    parser.add_argument(
        "--quiet", action="store_true", help="print results only, no progress"
    )


def _design(options: argparse.Namespace) -> int:
    """Run the command."""
    try:
        check_real("--max-seconds", options.max_seconds, above=0.0, or_none=True)
        task = _load_task(options.task, options.dim_design)
        _check_search(task, options)
    except ValueError as error:
        raise InputError(error) from error
    folder = _open_folder(options.output or Path("results", task.name))
    try:
        run_design(
            task,
            folder,
            density_estimator=options.density_estimator,
            policy=options.policy,
            search={name: getattr(options, name) for name in SEARCH_OPTIONS},
            seed=options.seed,
            show_progress=not options.quiet,
        )
    except KeyboardInterrupt:
        kept = "Nothing was written."
        if folder.written:
            kept = f"Kept in {folder.path}: {', '.join(folder.written)}."
        print(f"\nsbi-boed: interrupted. {kept}", file=sys.stderr)
        return 130
    print(f"\nWrote to {folder.path}: {', '.join(folder.written)}")
    return 0


def _load_task(name: str, dim_design: int | None) -> Task:
    """Return a task by its name, or a user's task given as `module:object`."""
    arguments = {} if dim_design is None else {"dim_design": dim_design}
    if ":" not in name:
        return get_task(name, **arguments)
    # Modules of the user are beside the command that names them, in general.
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    module, _, attribute = name.partition(":")
    try:
        task = getattr(import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(f"cannot load {name}: {error}") from error
    if callable(task):
        if arguments and "dim_design" not in inspect.signature(task).parameters:
            raise ValueError(f"{name} takes no dim_design: leave --dim-design out")
        task = task(**arguments)
    elif arguments:
        raise ValueError(f"{name} is no function or class: leave --dim-design out")
    if not isinstance(task, Task):
        raise ValueError(
            f"{name} must be a sbi_boed_plugin.tasks.Task, or a class or function "
            f"that returns one, got {type(task).__name__}"
        )
    missing = [a for a in inspect.get_annotations(Task) if not hasattr(task, a)]
    if missing:
        raise ValueError(f"{name} is a task without {', '.join(missing)}")
    return task


def _check_search(task: Task, options: argparse.Namespace) -> None:
    """Refuse options that do not go together, before any time is spent."""
    is_joint = options.method == "joint"
    if not is_joint and options.num_refinement_steps:
        raise ValueError(
            "--num-refinement-steps belongs to --method joint: a multi-start search "
            "trains for all designs alike"
        )
    if is_joint and options.gradient == "score" and options.policy == "point":
        raise ValueError(
            "a point policy has no density, and hence no --gradient score: add "
            "--gradient surrogate, or choose another --policy"
        )
    needs_path = not is_joint or options.gradient in ("surrogate", "implicit")
    if needs_path and options.density_estimator == "made":
        raise ValueError(
            "--density-estimator made cannot make data of noise, as --method "
            "multi_start and --gradient surrogate and implicit need: choose maf or mdn"
        )
    if is_joint and options.gradient == "pathwise" and not _is_differentiable(task):
        raise ValueError(
            f"the simulator of {task.name} is not differentiable, as --gradient "
            "pathwise needs: choose score, surrogate or implicit"
        )


def _is_differentiable(task: Task) -> bool:
    """Return whether gradients go through the simulator to the design."""
    with isolated_rng(0):
        theta = task.prior.sample(torch.Size((1,)))
        design = task.design_space.sample(torch.Size((1,))).requires_grad_()
        return task.simulator(theta, design).requires_grad


def _open_folder(path: Path) -> ResultFolder:
    """Return a folder that can be written to."""
    try:
        return ResultFolder(path)
    except OSError as error:
        reason = "it is a file" if path.is_file() else error.strerror
        raise InputError(
            f"cannot write results to {path}: {reason}. Choose another --output."
        ) from error
