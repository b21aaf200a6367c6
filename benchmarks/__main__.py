"""`make reproduce NAME=…`: tables and figures of papers, and of this package."""

import argparse
import importlib
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.study import Study, run_study
from sbi_boed_plugin.benchmark.store import FolderInUseError
from sbi_boed_plugin.cli.command import InputError, integer_from

__all__ = ["MODULES", "load_study", "main"]

# Names of modules rather than studies: only the one that runs is imported.
MODULES = {
    "two-moons": "papers.two_moons",
    "linear-scaling": "papers.linear_scaling",
    "sir-ablation": "papers.sir_ablation",
    "table-sir": "papers.table_sir",
    "table-bmp": "papers.table_bmp",
    "location": "papers.location",
    "pharmacokinetic": "papers.pharmacokinetic",
    "gkl-variance": "papers.gkl_variance",
    "gkl-acceptance": "papers.gkl_acceptance",
    "gkl-dimension": "papers.gkl_dimension",
    "bounds": "bounds_table",
    "design-recovery": "design_recovery",
    "adaptive": "adaptive",
    "generative-models": "generative_models",
    "lambda-map": "lambda_map",
    "pretraining": "pretraining",
    "few-simulations": "few_simulations",
    "gradients": "gradient_table",
    "growth": "growth",
    "honest-bounds": "honest_bounds",
    "lace-objective": "lace_objective",
    "hybrid-calibration": "hybrid_calibration",
    "hybrid-tasks": "hybrid_table:STUDY_OF_TASKS",
    "hybrid-two-moons": "hybrid_table:STUDY_OF_TWO_MOONS",
    "memory": "memory",
    "objective-defaults": "objective_defaults",
    "people": "people",
    "sir-check": "sir_check",
    "training": "training",
    "unnormalized": "unnormalized",
    "training-c2st": "training_c2st",
    "training-growth": "training_growth",
    "training-rule": "training_rule",
}

_DESCRIPTION = """\
Run a study: many independent jobs that each make one row of a table, and a figure.

Every job is kept in NAME/jobs as soon as it is finished. A run that was stopped goes on
from there with the same command; jobs that failed are tried again. The exit code is 1
if jobs failed.

Writes to the output folder: NAME.csv (all rows), NAME_summary.csv (means and standard
errors over seeds) and NAME.png; with --quick NAME_quick.csv and so on.
"""


def load_study(name: str) -> Study:
    """Return the study of a name in `MODULES`."""
    module, _, attribute = MODULES[name].partition(":")
    return getattr(
        importlib.import_module(f"benchmarks.{module}"), attribute or "STUDY"
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
        arguments: Arguments of the command; those of the process if `None`.

    Returns:
        Exit code: 1 if jobs failed, 2 for wrong input.
    """
    parser = argparse.ArgumentParser(
        prog="make reproduce",
        description=_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "study",
        metavar="NAME",
        nargs="?",
        help="one of: " + ", ".join(MODULES),
    )
    parser.add_argument(
        "--list", action="store_true", help="list the studies and what they show"
    )
    parser.add_argument(
        "--output",
        type=Path,
        default=Path("docs", "results"),
        metavar="DIR",
        help="folder for the results (default: %(default)s)",
    )
    parser.add_argument(
        "--seeds",
        type=integer_from(1),
        metavar="N",
        help="number of seeds (default: that of the study)",
    )
    parser.add_argument(
        "--quick",
        action="store_true",
        help="a small version in a few minutes, to files of its own",
    )
    parser.add_argument(
        "--num-workers",
        type=integer_from(1),
        default=1,
        metavar="K",
        help="processes, each with one thread (default: %(default)s)",
    )
    options = parser.parse_args(arguments)
    try:
        return _reproduce(options)
    except InputError as error:
        print(f"{parser.prog}: error: {error}", file=sys.stderr)
        return 2


def _reproduce(options: argparse.Namespace) -> int:
    if options.list:
        for name in MODULES:
            print(f"{name:<{max(map(len, MODULES))}}  {load_study(name).title}")
        return 0
    if options.study is None:
        raise InputError("give the NAME of a study, or --list")
    if options.study not in MODULES:
        raise InputError(f"study '{options.study}' is unknown. Use one of {[*MODULES]}")
    study = load_study(options.study)
    try:
        num_failed = run_study(
            study,
            options.output,
            num_seeds=options.seeds,
            quick=options.quick,
            num_workers=options.num_workers,
        )
    except FolderInUseError as error:
        raise InputError(str(error)) from error
    except OSError as error:
        raise InputError(
            f"cannot write results to {options.output}: {error.strerror}."
        ) from error
    return 1 if num_failed else 0


if __name__ == "__main__":
    sys.exit(main())
