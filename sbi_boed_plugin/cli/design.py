"""The command `sbi-boed design`: its arguments, and what is wrong with them."""

import argparse
import sys
from pathlib import Path
from typing import Any

from sbi_boed_plugin._results import ResultFolder
from sbi_boed_plugin.cli.arguments import InputError, integer_from, positive_number
from sbi_boed_plugin.cli.design_run import run_design
from sbi_boed_plugin.cli.search_settings import (
    NUM_STEPS,
    SearchSettings,
    check_settings,
)
from sbi_boed_plugin.experiment import POLICIES
from sbi_boed_plugin.search.gradients import POLICY_GRADIENTS
from sbi_boed_plugin.search.information import POLICY_OBJECTIVES
from sbi_boed_plugin.tasks import available_tasks, get_task
from sbi_boed_plugin.tasks.task import Task

__all__ = ["add_design_command"]

DENSITY_ESTIMATORS = ("nsf", "maf", "maf_rqs", "mdn", "made", "zuko_nsf", "zuko_maf")

_DESCRIPTION = """\
Find the design of an experiment that tells most about its parameters, measure there
at known true parameters, and infer them from the measurement.

Writes to the output folder: summary.json (design, expected information gain in nats,
posterior), trace.csv (one row per training step), posterior_samples.csv, and figures.
"""


def add_design_command(commands: Any) -> None:
    """Add the command to those of `sbi-boed`.

    Args:
        commands: What `add_subparsers` of the main parser returned.
    """
    parser = commands.add_parser(
        "design",
        help="find the best design of a task, measure there and infer",
        description=_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(run=_design)
    parser.add_argument(
        "task", metavar="TASK", help="one of: " + ", ".join(available_tasks())
    )
    parser.add_argument(
        "--dim-design",
        type=integer_from(1),
        metavar="D",
        help="number of measurements (default: that of the task)",
    )
    parser.add_argument(
        "--seed", type=integer_from(0), default=0, help="random seed (default: 0)"
    )
    parser.add_argument(
        "--num-steps",
        type=integer_from(1),
        metavar="N",
        help=f"training steps (default: {NUM_STEPS})",
    )
    parser.add_argument(
        "--num-refinement-steps",
        type=integer_from(0),
        default=0,
        metavar="N",
        help="further steps of the networks at the design found, for a tighter bound "
        "(default: 0)",
    )
    parser.add_argument(
        "--max-seconds",
        type=positive_number,
        metavar="S",
        help="stop training after S seconds and use the design found by then",
    )
    parser.add_argument(
        "--output",
        type=Path,
        metavar="DIR",
        help="folder for the results (default: results/TASK)",
    )
    parser.add_argument(
        "--density-estimator",
        choices=DENSITY_ESTIMATORS,
        metavar="NAME",
        help="model of the likelihood: %(choices)s (default: mdn for one "
        "measurement, maf for several)",
    )
    _add_search_options(parser)
    parser.add_argument(
        "--quiet", action="store_true", help="print results only, no progress"
    )


def _add_search_options(parser: argparse.ArgumentParser) -> None:
    """Add how to search; what is not given stays the default of the library."""
    defaults = SearchSettings()
    search = parser.add_argument_group("how to search")
    search.add_argument(
        "--objective",
        choices=sorted(POLICY_OBJECTIVES),
        metavar="NAME",
        help="bound of the information that the policy climbs: %(choices)s "
        "(default: barber_agakov)",
    )
    search.add_argument(
        "--gradient",
        choices=POLICY_GRADIENTS,
        default=defaults.gradient,
        metavar="NAME",
        help="gradient of the policy: %(choices)s (default: %(default)s, which takes "
        "any simulator)",
    )
    search.add_argument(
        "--method",
        choices=("joint", "multi_start"),
        default=defaults.method,
        metavar="NAME",
        help="joint: policy and networks learn together; multi_start: networks learn "
        "for the whole design space, then many designs climb at once (default: "
        "%(default)s)",
    )
    search.add_argument(
        "--policy",
        choices=tuple(POLICIES),
        default=defaults.policy,
        metavar="NAME",
        help="distribution over designs that learns: %(choices)s (default: "
        "%(default)s; point has no density and needs another --gradient than score)",
    )
    search.add_argument(
        "--num-workers",
        type=integer_from(1),
        default=defaults.num_workers,
        metavar="N",
        help="processes that simulate (default: %(default)s; more pay off for slow "
        "simulators)",
    )


def _design(options: argparse.Namespace) -> int:
    task = _get_task(options.task, options.dim_design)
    settings = SearchSettings(
        density_estimator=options.density_estimator,
        policy=options.policy,
        method=options.method,
        objective=options.objective,
        gradient=options.gradient,
        num_steps=options.num_steps,
        num_refinement_steps=options.num_refinement_steps,
        max_seconds=options.max_seconds,
        num_workers=options.num_workers,
    )
    try:
        check_settings(task, settings)
    except ValueError as error:
        raise InputError(error) from error
    folder = _open_folder(options.output or Path("results", task.name))
    try:
        run_design(
            task,
            folder,
            settings,
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


def _get_task(name: str, dim_design: int | None) -> Task:
    try:
        return get_task(
            name, **({} if dim_design is None else {"dim_design": dim_design})
        )
    except ValueError as error:
        raise InputError(error) from error


def _open_folder(path: Path) -> ResultFolder:
    try:
        return ResultFolder(path)
    except OSError as error:
        reason = "it is a file" if path.is_file() else error.strerror
        raise InputError(
            f"cannot write results to {path}: {reason}. Choose another --output."
        ) from error
