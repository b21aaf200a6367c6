"""The command `sbi-boed report`: what a benchmark has found."""

import argparse
from pathlib import Path
from typing import Any

from sbi_boed_plugin.benchmark import make_report
from sbi_boed_plugin.cli.arguments import InputError

__all__ = ["add_report_command"]

_DESCRIPTION = """\
Make tables, figures and a page of the results of `sbi-boed bench`.

Writes results.csv (one row per job), summary.csv and summary.md (means over seeds and
observations), differences.csv (our methods minus those of sbi, paired), figures, and
index.html, which holds everything in one file and needs no network. A benchmark that
still runs may be reported on.
"""


def add_report_command(commands: Any) -> None:
    """Add the command to what `add_subparsers` of the main parser returned."""
    parser = commands.add_parser(
        "report",
        help="make tables, figures and a page of a benchmark",
        description=_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(run=_report)
    text = "the folder that bench wrote to"
    parser.add_argument("folder", type=Path, metavar="DIR", help=text)
    text = "folder for the report (default: that of the results)"
    parser.add_argument("--output", type=Path, metavar="DIR", help=text)


def _report(options: argparse.Namespace) -> int:
    output = options.output or options.folder
    try:
        written = make_report(options.folder, output)
    except (ValueError, ImportError) as error:
        raise InputError(str(error)) from error
    except OSError as error:
        # One of the results, or what was to be written.
        text = f"cannot make the report in {output}: {error.filename or output}: "
        raise InputError(f"{text}{error.strerror}.") from error
    print(f"Wrote to {output}: {', '.join(path.name for path in written)}")
    return 0
