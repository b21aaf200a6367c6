"""The command `sbi-boed`: design an experiment, measure, infer, and keep the results.

Progress goes to standard error, results to standard output and to files. The exit code
is 0 on success, 1 if jobs failed, 2 for wrong input and 130 after an interruption.
"""

import argparse
import os
import sys
import warnings
from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Any

from sbi_boed_command import make_parser
from sbi_boed_plugin.tasks import available_tasks, get_task

__all__ = ["InputError", "integer_from", "main"]

# The module with the function `add_NAME_options` is imported if NAME is asked for.
_MODULES = {
    "design": "design",
    "campaign": "campaign",
    "bench": "bench",
    "report": "bench",
}


class InputError(Exception):
    """Wrong input, with a message of one line."""


def integer_from(least: int) -> Callable[[str], int]:
    """Return a type of arguments that are integers of at least `least`."""

    def integer(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = None
        # Seeds of numpy have 32 bits.
        if value is None or not least <= value < 2**32:
            raise argparse.ArgumentTypeError(
                f"must be an integer of at least {least} and below 2**32, got {text!r}"
            )
        return value

    return integer


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command with arguments, or those of the process; return the exit code."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    parser = _parser(arguments[0] if arguments else "")
    options = parser.parse_args(arguments)
    # Modules of the user are beside the command that names them, in general.
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    with warnings.catch_warnings():
        warnings.showwarning = _show_warning
        try:
            return options.run(options)
        except InputError as error:
            text = " ".join(str(error).split())
            print(f"{parser.prog}: error: {text}", file=sys.stderr)
            return 2
        except KeyboardInterrupt as interruption:
            print(f"\n{parser.prog}: interrupted. {interruption}", file=sys.stderr)
            return 130


def _parser(asked: str) -> argparse.ArgumentParser:
    """Return a parser that knows the options of the command that is asked for."""
    parser, commands = make_parser()
    commands["tasks"].set_defaults(run=_list_tasks)
    if asked in _MODULES:
        loaded = import_module(f"sbi_boed_plugin.cli.{_MODULES[asked]}")
        getattr(loaded, f"add_{asked}_options")(commands[asked])
    return parser


def _show_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    """Print a warning without the place in the code that it comes from."""
    print(f"Warning: {message}", file=sys.stderr, flush=True)


def _list_tasks(options: argparse.Namespace) -> int:
    """Print the name and the purpose of each task."""
    for name in available_tasks():
        purpose = (type(get_task(name)).__doc__ or "").strip().splitlines()[0]
        print(f"{name:<16}  {purpose}")
    return 0
