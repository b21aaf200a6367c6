"""`make reproduce NAME=…`: tables and figures of papers."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.papers._table import ForeignTableError
from benchmarks.papers.registry import available_studies, get_study
from benchmarks.papers.runner import run_study
from sbi_boed_plugin.cli.arguments import InputError, integer_from

__all__ = ["main"]

_DESCRIPTION = """\
Run a study: many independent jobs that each make one row of a table, and a figure.

Every row is written as soon as it is finished. A run that was stopped goes on from
there with the same command; jobs that failed are tried again. The exit code is 1 if
jobs failed.

Writes to the output folder: NAME.csv (all rows), NAME_summary.csv (means and standard
errors over seeds) and NAME.png; with --quick NAME_quick.csv and so on.
"""


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
    options = parser.parse_args(arguments)
    try:
        return _reproduce(options)
    except InputError as error:
        print(f"{parser.prog}: error: {error}", file=sys.stderr)
        return 2


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


if __name__ == "__main__":
    sys.exit(main())
