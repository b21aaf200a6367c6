"""The command `sbi-boed reproduce`: tables and figures of papers."""

import argparse
from pathlib import Path
from typing import Any

from sbi_boed_plugin.cli.arguments import InputError, integer_from
from sbi_boed_plugin.reproduce._table import ForeignTableError
from sbi_boed_plugin.reproduce.registry import available_studies, get_study
from sbi_boed_plugin.reproduce.runner import run_study

__all__ = ["add_reproduce_command"]

_DESCRIPTION = """\
Run a study: many independent jobs that each make one row of a table, and a figure.

Every row is written as soon as it is finished. A run that was stopped goes on from
there with the same command; jobs that failed are tried again. The exit code is 1 if
jobs failed.

Writes to the output folder: NAME.csv (all rows), NAME_summary.csv (means and standard
errors over seeds) and NAME.png; with --quick NAME_quick.csv and so on.
"""


def add_reproduce_command(commands: Any) -> None:
    """Add the command to those of `sbi-boed`.

    Args:
        commands: What `add_subparsers` of the main parser returned.
    """
    parser = commands.add_parser(
        "reproduce",
        help="make a table and a figure of a paper",
        description=_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(run=_reproduce)
    parser.add_argument(
        "study",
        metavar="NAME",
        nargs="?",
        help="one of: " + ", ".join(available_studies()),
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


def _reproduce(options: argparse.Namespace) -> int:
    if options.list:
        names = available_studies()
        for name in names:
            print(f"{name:<{max(map(len, names))}}  {get_study(name).title}")
        return 0
    if options.study is None:
        raise InputError("give the NAME of a study, or --list")
    try:
        study = get_study(options.study)
    except ValueError as error:
        raise InputError(str(error)) from error
    try:
        num_failed = run_study(
            study,
            options.output,
            num_seeds=options.seeds,
            quick=options.quick,
            num_workers=options.num_workers,
        )
    except ForeignTableError as error:
        raise InputError(str(error)) from error
    except OSError as error:
        raise InputError(
            f"cannot write results to {options.output}: {error.strerror}."
        ) from error
    return 1 if num_failed else 0
