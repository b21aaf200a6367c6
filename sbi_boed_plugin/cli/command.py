"""The command `sbi-boed`: design an experiment, measure, infer, and keep the results.

Progress goes to standard error, results to standard output and to files. The exit code
is 0 on success, 1 if jobs failed, 2 for wrong input and 130 after an interruption.
"""

import argparse
import sys
import warnings
from collections.abc import Sequence
from importlib import import_module
from typing import Any, NoReturn

from sbi_boed_plugin import __version__
from sbi_boed_plugin.cli.arguments import InputError
from sbi_boed_plugin.tasks import available_tasks, get_task

__all__ = ["main"]

# The module `sbi_boed_plugin.cli.NAME` of a command is imported if it is asked for.
_COMMANDS = {
    "design": "find the best design of a task, measure there and infer",
    "bench": "run methods on the tasks of sbibm",
    "report": "make tables, figures and a page of a benchmark",
}


class _Parser(argparse.ArgumentParser):
    """Reports wrong arguments in one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {message} (see {self.prog} --help)\n")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command with arguments, or those of the process; return the exit code."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    parser = _parser(arguments[0] if arguments else "")
    options = parser.parse_args(arguments)
    with warnings.catch_warnings():
        warnings.showwarning = _show_warning
        try:
            return options.run(options)
        except InputError as error:
            print(f"{parser.prog}: error: {error}", file=sys.stderr)
            return 2
        except KeyboardInterrupt:
            print(f"\n{parser.prog}: interrupted.", file=sys.stderr)
            return 130


def _parser(asked: str) -> argparse.ArgumentParser:
    """Return a parser that knows the options of the command that is asked for."""
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
    for name, purpose in _COMMANDS.items():
        if name == asked:
            module = import_module(f"sbi_boed_plugin.cli.{name}")
            getattr(module, f"add_{name}_command")(commands)
        else:
            commands.add_parser(name, help=purpose)
    return parser


def _show_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    """Print a warning without the place in the code that it comes from."""
    print(f"Warning: {message}", file=sys.stderr, flush=True)


def _list_tasks(options: argparse.Namespace) -> int:
    """Print the name and the purpose of each task."""
    width = max(len(name) for name in available_tasks())
    for name in available_tasks():
        purpose = (type(get_task(name)).__doc__ or "").strip().splitlines()[0]
        print(f"{name:<{width}}  {purpose}")
    return 0
