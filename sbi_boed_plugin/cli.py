"""The command `sbi-boed`: design an experiment, measure, infer, and keep the results.

Progress goes to standard error, results to standard output and to files. The exit code
is 0 on success, 1 if jobs of a study failed, 2 for wrong input and 130 after an
interruption.
"""

import argparse
import math
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from sbi_boed_plugin import __version__
from sbi_boed_plugin._bench_command import add_bench_command
from sbi_boed_plugin._design_command import run_design
from sbi_boed_plugin._report_command import add_report_command
from sbi_boed_plugin._reproduce_command import add_reproduce_command
from sbi_boed_plugin._results import ResultFolder
from sbi_boed_plugin._search_settings import (
    NUM_STEPS,
    SearchSettings,
    check_settings,
)
from sbi_boed_plugin.design.gradients import POLICY_GRADIENTS
from sbi_boed_plugin.design.information import POLICY_OBJECTIVES
from sbi_boed_plugin.experiment import POLICIES
from sbi_boed_plugin.tasks import available_tasks, get_task
from sbi_boed_plugin.tasks.task import Task

__all__ = ["main"]

DENSITY_ESTIMATORS = ("nsf", "maf", "maf_rqs", "mdn", "made", "zuko_nsf", "zuko_maf")

_DESIGN_DESCRIPTION = """\
Find the design of an experiment that tells most about its parameters, measure there
at known true parameters, and infer them from the measurement.

Writes to the output folder: summary.json (design, expected information gain in nats,
posterior), trace.csv (one row per training step), posterior_samples.csv, and figures.
"""


class _InputError(Exception):
    """Wrong input, with a message of one line."""


class _Parser(argparse.ArgumentParser):
    """Reports wrong arguments in one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {message} (see {self.prog} --help)\n")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
        arguments: Arguments after the name of the command; those of the process if
            `None`.

    Returns:
        Exit code.
    """
    parser = _parser()
    options = parser.parse_args(arguments)
    with warnings.catch_warnings():
        warnings.showwarning = _show_warning
        try:
            return options.run(options)
        except _InputError as error:
            print(f"{parser.prog}: error: {error}", file=sys.stderr)
            return 2
        except KeyboardInterrupt:
            print(f"\n{parser.prog}: interrupted.", file=sys.stderr)
            return 130


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="sbi-boed",
        description="Bayesian optimal experimental design with sbi.",
    )
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(
        title="commands", metavar="COMMAND", required=True, dest="command"
    )

    tasks = commands.add_parser(
        "tasks", help="list the tasks", description="List tasks."
    )
    tasks.set_defaults(run=_list_tasks)

    design = commands.add_parser(
        "design",
        help="find the best design of a task, measure there and infer",
        description=_DESIGN_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    design.set_defaults(run=_design)
    design.add_argument(
        "task", metavar="TASK", help="one of: " + ", ".join(available_tasks())
    )
    design.add_argument(
        "--dim-design",
        type=_integer_from(1),
        metavar="D",
        help="number of measurements (default: that of the task)",
    )
    design.add_argument(
        "--seed", type=_integer_from(0), default=0, help="random seed (default: 0)"
    )
    design.add_argument(
        "--num-steps",
        type=_integer_from(1),
        metavar="N",
        help=f"training steps (default: {NUM_STEPS})",
    )
    design.add_argument(
        "--num-refinement-steps",
        type=_integer_from(0),
        default=0,
        metavar="N",
        help="further steps of the networks at the design found, for a tighter bound "
        "(default: 0)",
    )
    design.add_argument(
        "--max-seconds",
        type=_positive_number,
        metavar="S",
        help="stop training after S seconds and use the design found by then",
    )
    design.add_argument(
        "--output",
        type=Path,
        metavar="DIR",
        help="folder for the results (default: results/TASK)",
    )
    design.add_argument(
        "--density-estimator",
        choices=DENSITY_ESTIMATORS,
        metavar="NAME",
        help="model of the likelihood: %(choices)s (default: mdn for one "
        "measurement, maf for several)",
    )
    _add_search_options(design)
    design.add_argument(
        "--quiet", action="store_true", help="print results only, no progress"
    )
    add_reproduce_command(commands, _integer_from(1))
    add_bench_command(commands, _integer_from(1))
    add_report_command(commands)
    return parser


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
        type=_integer_from(1),
        default=defaults.num_workers,
        metavar="N",
        help="processes that simulate (default: %(default)s; more pay off for slow "
        "simulators)",
    )


def _integer_from(least: int) -> Callable[[str], int]:
    def integer(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = None
        # Seeds of numpy have 32 bits.
        if value is None or not least <= value < 2**32:
            raise argparse.ArgumentTypeError(
                f"must be an integer of at least {least}, got {text!r}"
            )
        return value

    return integer


def _positive_number(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0.0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"must be a positive number, got {text!r}")
    return value


def _show_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    print(f"Warning: {message}", file=sys.stderr, flush=True)


def _list_tasks(options: argparse.Namespace) -> int:
    width = max(len(name) for name in available_tasks())
    for name in available_tasks():
        purpose = (type(get_task(name)).__doc__ or "").strip().splitlines()[0]
        print(f"{name:<{width}}  {purpose}")
    return 0


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
        raise _InputError(error) from error
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
        raise _InputError(error) from error


def _open_folder(path: Path) -> ResultFolder:
    try:
        return ResultFolder(path)
    except OSError as error:
        reason = "it is a file" if path.is_file() else error.strerror
        raise _InputError(
            f"cannot write results to {path}: {reason}. Choose another --output."
        ) from error
