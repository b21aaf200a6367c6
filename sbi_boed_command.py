"""The start of the command `sbi-boed`: its help and version, without an import.

This module is outside the package, whose import takes the seconds that torch and sbi
take. What it cannot answer goes to `sbi_boed_plugin.cli`.
"""

import argparse
import sys
from importlib.metadata import version
from typing import Any, NoReturn

__all__ = ["COMMANDS", "main", "make_parser"]

COMMANDS = {
    "tasks": "list the tasks",
    "design": "find the best design of a task, measure there and infer",
    "campaign": "propose experiments and record their data, over days",
    "bench": "run methods on the tasks of sbibm",
    "report": "make tables, figures and a page of a benchmark",
}


class _Parser(argparse.ArgumentParser):
    """Reports wrong arguments in one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {message} (see {self.prog} --help)\n")


class _Version(argparse.Action):
    """Looks the version up only when it is asked for."""

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        print(version("sbi_boed_plugin"))
        parser.exit()


def make_parser() -> tuple[argparse.ArgumentParser, dict[str, argparse.ArgumentParser]]:
    """Return the parser and those of its commands, which have no options yet."""
    parser = _Parser(
        prog="sbi-boed",
        description="Bayesian optimal experimental design with sbi.",
    )
    parser.add_argument(
        "--version", action=_Version, nargs=0, help="show the version and exit"
    )
    commands = parser.add_subparsers(
        title="commands", metavar="COMMAND", required=True, dest="command"
    )
    return parser, {
        name: commands.add_parser(
            name, help=purpose, formatter_class=argparse.RawDescriptionHelpFormatter
        )
        for name, purpose in COMMANDS.items()
    }


def main() -> int:
    """Run the command with the arguments of the process; return the exit code."""
    arguments = sys.argv[1:]
    if not arguments or arguments[0] not in COMMANDS:
        make_parser()[0].parse_args(arguments)  # which prints, and exits.

    from sbi_boed_plugin.cli import main as run_command

    return run_command(arguments)
