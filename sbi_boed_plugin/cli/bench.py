"""The commands `sbi-boed bench` and `report`: many runs of sbibm's tasks."""

import argparse
import ast
import re
import sys
from pathlib import Path
from typing import Any

from sbi_boed_plugin.benchmark import make_report, run_benchmark
from sbi_boed_plugin.benchmark.jobs import NUM_SAMPLES
from sbi_boed_plugin.benchmark.metrics import METRICS
from sbi_boed_plugin.benchmark.store import FolderInUseError
from sbi_boed_plugin.cli.command import InputError, integer_from
from sbi_boed_plugin.sbibm import METHODS, TASKS

__all__ = ["add_bench_options", "add_report_options"]

_BENCH = """\
Run methods on tasks of sbibm: one job per task, method, budget, seed and observation.

A run that was stopped goes on from there with the same command. The exit code is 1 if
jobs failed. Finished jobs are kept after an edit of a module:function: use another
--tag or --output then. Networks in cache/ are pickles, which run code when they are
loaded: share a folder with people whom you trust. Lists are separated by commas or
spaces; numbers may be ranges such as 1-10.
"""
_REPORT = """\
Make tables, figures and a page of the results of `sbi-boed bench`, which may still run:
results.csv (one row per job), summary.csv and summary.md (means over seeds and
observations), differences.csv (our methods minus those of sbi, paired), figures, and
index.html, which holds everything in one file and needs no network.
"""


def add_bench_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of `sbi-boed bench`."""
    parser.description = _BENCH
    parser.set_defaults(run=_bench)
    metrics = f"{', '.join(METRICS)}; c2st, mmd and ppc are sbibm's, c2st_forest is a "
    metrics += "random forest on 1,000 samples"
    methods = f"{', '.join(METHODS)}, and functions as module:function in the "
    methods += "convention of sbibm, searched for in the current folder, too"
    for name, metavar, default, text in (
        ("--tasks", "TASK", None, f"all, or some of: {', '.join(TASKS)}"),
        ("--methods", "METHOD", None, f"some of: {methods}"),
        ("--budgets", "N", "1000", "numbers of simulations"),
        ("--seeds", "N", "0", "seeds"),
        ("--observations", "N", "1-10", "numbers of observations"),
        ("--metrics", "NAME", "c2st", f"some of: {metrics}"),
    ):
        parser.add_argument(
            name,
            nargs="+",
            required=default is None,
            default=[default],
            metavar=metavar,
            help=text + (f" (default: {default})" if default else ""),
        )
    setting = "hyperparameters for all methods, or for one as npe.num_atoms=5; values "
    setting += "in Python's notation"
    parser.add_argument(
        "--set",
        nargs="+",
        action="extend",
        default=[],
        metavar="KEY=VALUE",
        help=setting,
    )
    count, folder = integer_from(1), Path("results", "benchmark")
    for name, kind, metavar, default, text in (
        ("--num-rounds", count, "N", 1, "rounds of each method"),
        ("--num-samples", count, "N", NUM_SAMPLES, "posterior samples"),
        ("--jobs", count, "N", 1, "processes, each with one thread"),
        ("--tag", str, "TEXT", "", "tells jobs with the same settings apart"),
        ("--output", Path, "DIR", folder, "folder of the benchmark"),
        (
            "--time-limit",
            float,
            "SECONDS",
            None,
            "end a job that takes longer, metrics included",
        ),
    ):
        text += f" (default: {default or 'none'})"
        parser.add_argument(
            name, type=kind, metavar=metavar, default=default, help=text
        )
    text = "run jobs again that failed in an earlier run"
    parser.add_argument("--retry-failed", action="store_true", help=text)
    parser.add_argument("--quiet", action="store_true", help="show no progress")


def add_report_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of `sbi-boed report`."""
    parser.description = _REPORT
    parser.set_defaults(run=_report)
    text = "the folder that bench wrote to"
    parser.add_argument("folder", type=Path, metavar="DIR", help=text)
    text = "folder for the report (default: that of the results)"
    parser.add_argument("--output", type=Path, metavar="DIR", help=text)


def _bench(options: argparse.Namespace) -> int:
    try:
        tasks = _words(options.tasks)
        num_failed = run_benchmark(
            list(TASKS) if tasks == ["all"] else tasks,
            _words(options.methods),
            num_simulations=_numbers("--budgets", options.budgets),
            seeds=_numbers("--seeds", options.seeds),
            observations=_numbers("--observations", options.observations),
            metrics=_words(options.metrics),
            output=options.output,
            num_rounds=options.num_rounds,
            num_samples=options.num_samples,
            hyper=dict(_setting(text) for text in options.set),
            tag=options.tag,
            num_workers=options.jobs,
            retry_failed=options.retry_failed,
            time_limit=options.time_limit,
            show_progress=not options.quiet,
        )
    except (ValueError, ImportError, FolderInUseError) as error:
        raise InputError(error) from error
    except OSError as error:
        text = f"cannot write results to {options.output}: {error.strerror}."
        raise InputError(text) from error
    except KeyboardInterrupt:
        raise KeyboardInterrupt(
            f"Finished jobs are kept in {options.output}; the same command goes on "
            "from there."
        ) from None
    if num_failed:
        print(
            f"sbi-boed: {num_failed} jobs failed. `sbi-boed report {options.output}` "
            "shows where; --retry-failed runs them again.",
            file=sys.stderr,
        )
    return 1 if num_failed else 0


def _report(options: argparse.Namespace) -> int:
    output = options.output or options.folder
    try:
        written = make_report(options.folder, output)
    except (ValueError, ImportError) as error:
        raise InputError(error) from error
    except OSError as error:
        # One of the results, or what was to be written.
        text = f"cannot make the report in {output}: {error.filename or output}: "
        raise InputError(f"{text}{error.strerror}.") from error
    print(f"Wrote to {output}: {', '.join(path.name for path in written)}")
    return 0


def _words(texts: list[str]) -> list[str]:
    """Split at commas and spaces."""
    return " ".join(texts).replace(",", " ").split()


def _numbers(option: str, texts: list[str]) -> list[int]:
    """Read numbers and ranges of them, both ends included.

    Example:
        >>> _numbers("--seeds", ["0,3-5", "1_000"])
        [0, 3, 4, 5, 1000]
    """
    numbers: list[int] = []
    for word in _words(texts):
        first, _, last = word.partition("-")
        try:
            span = range(int(first), int(last or first) + 1)
        except ValueError:
            span = range(0)
        # Nobody means more, and a list of them would take all memory.
        if not 0 < len(span) <= 10_000 or word.endswith("-"):
            raise ValueError(
                f"argument {option}: must be numbers such as 3 or ranges such as 1-10, "
                f"got {word!r}"
            )
        numbers += span
    return numbers


def _setting(text: str) -> tuple[str, Any]:
    """Read a hyperparameter."""
    key, separator, value = text.partition("=")
    if not (separator and re.fullmatch(r"([\w.:]+\.)?[^\W\d]\w*", key)):
        raise ValueError(
            f"argument --set: must be KEY=VALUE or METHOD.KEY=VALUE, got {text!r}"
        )
    if value in ("true", "false"):
        # As in configuration files: no text is meant.
        return key, value == "true"
    try:
        return key, ast.literal_eval(value)
    except (ValueError, SyntaxError) as error:
        # Quotes for Python within quotes for the shell are a nuisance.
        if re.fullmatch(r"[A-Za-z][\w.-]*", value):
            return key, value
        raise ValueError(
            f"argument --set: value must be in Python's notation, got {text!r}"
        ) from error
