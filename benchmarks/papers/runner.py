"""Runs the jobs of a study in processes, and keeps every row that is finished."""

import os
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import BrokenExecutor
from dataclasses import dataclass
from pathlib import Path

from joblib import delayed
from tqdm.auto import tqdm

from benchmarks.papers._table import (
    append_row,
    format_table,
    identity,
    read_rows,
)
from benchmarks.papers.study import Job, Row, Study
from sbi_boed_plugin import __version__
from sbi_boed_plugin._parallel import describe_error, one_thread, run_long_calls
from sbi_boed_plugin._results import ResultFolder
from sbi_boed_plugin._rng import isolated_rng

__all__ = ["run_study"]

# Columns that every row ends with.
_ADDED = ("seconds", "load", "version")


@dataclass(frozen=True)
class _Outcome:
    """What became of a job: a row, or the text of an error."""

    job: Job
    row: Row | None = None
    error: str = ""


def run_study(
    study: Study,
    output: Path,
    *,
    num_seeds: int | None = None,
    quick: bool = False,
    num_workers: int = 1,
    show_progress: bool = True,
) -> int:
    """Run what is missing of a study, and make its figure and summary of all rows.

    Each row is appended to `<name>.csv` as soon as it is finished: a run that was
    stopped goes on from there. Jobs that raise are reported at the end, leave no row
    and are tried again by the next run.

    Args:
        study: The study.
        output: Folder of `<name>.csv`, `<name>.png` and `<name>_summary.csv`; a quick
            run writes `<name>_quick.csv` and so on.
        num_seeds: Number of seeds. If `None`, that of the study, and one if quick.
        quick: Whether to run the study's quick version.
        num_workers: Number of processes, each with one thread.
        show_progress: Whether to show progress and what is written.

    Returns:
        Number of jobs that failed.

    Raises:
        ForeignTableError: If the CSV file holds other columns.
        ValueError: If jobs are not told apart, or differ in their columns.
        OSError: If the folder cannot be written to.
    """
    if num_seeds is None:
        num_seeds = 1 if quick else study.num_seeds
    jobs = list(study.jobs(num_seeds, quick))
    columns = _check_jobs(study, jobs)
    folder = ResultFolder(output)
    stem = f"{study.name}_quick" if quick else study.name
    path = output / f"{stem}.csv"
    done = {identity(row, columns) for row in read_rows(path, columns, _ADDED)}
    todo = [job for job in jobs if identity(job, columns) not in done]

    failed = []
    outcomes = _outcomes(study.run, todo, quick, num_workers)
    with tqdm(
        total=len(jobs),
        initial=len(jobs) - len(todo),
        desc=study.name,
        disable=not show_progress,
    ) as progress:
        try:
            for outcome in outcomes:
                if outcome.row is None:
                    failed.append(outcome)
                else:
                    append_row(path, outcome.row)
                progress.update()
        except BrokenExecutor as error:
            # A process was killed, for its memory perhaps, and its job with it.
            failed.append(_Outcome({}, error=describe_error(error)))
        finally:
            outcomes.close()

    try:
        rows = read_rows(path, columns, _ADDED)
        if rows:
            _conclude(study, rows, folder, stem, show_progress)
    finally:
        _report_failures(study.name, failed, len(todo))
    return len(failed)


def _conclude(
    study: Study, rows: Sequence[Row], folder: ResultFolder, stem: str, show: bool
) -> None:
    """Write summary and figure of all rows, and print the summary."""
    summary = list(study.summary(rows))
    header = list(summary[0])
    folder.save_table(f"{stem}_summary.csv", header, [row.values() for row in summary])
    if show:
        print(f"\n{study.title}\n\n{format_table(summary)}\n")
    folder.save_figure(f"{stem}.png", study.figure(rows))
    if show:
        written = ", ".join([f"{stem}.csv", *folder.written])
        print(f"Wrote to {folder.path}: {written}")


def _report_failures(name: str, failed: Sequence[_Outcome], num_jobs: int) -> None:
    """Print the errors of jobs, with their tracebacks, to standard error."""
    for outcome in failed:
        print(f"\n{name}: failed: {dict(outcome.job)}", file=sys.stderr)
        print(outcome.error, file=sys.stderr)
    if failed:
        print(
            f"{name}: {len(failed)} of {num_jobs} jobs failed. The same command tries "
            "them again.",
            file=sys.stderr,
        )


def _check_jobs(study: Study, jobs: Sequence[Job]) -> list[str]:
    """Return the columns of the jobs, or raise if they do not identify them."""
    if not jobs:
        raise ValueError(f"study '{study.name}' has no jobs.")
    columns = list(jobs[0])
    if "seed" not in columns or any(list(job) != columns for job in jobs):
        raise ValueError(
            f"jobs of study '{study.name}' must all have the columns of the first one, "
            f"'seed' among them; it has {columns}."
        )
    if len({identity(job, columns) for job in jobs}) < len(jobs):
        raise ValueError(f"study '{study.name}' has the same job more than once.")
    return columns


def _outcomes(
    run: Callable[[Job, bool], Row], jobs: Sequence[Job], quick: bool, num_workers: int
) -> Generator[_Outcome, None, None]:
    """Yield what became of the jobs, whichever finishes first."""
    num_workers = min(num_workers, len(jobs))
    if num_workers <= 1:
        yield from (_run_job(run, job, quick) for job in jobs)
        return
    calls = (delayed(_run_job)(run, job, quick) for job in jobs)
    yield from run_long_calls(calls, n_jobs=num_workers, backend="loky")


def _run_job(run: Callable[[Job, bool], Row], job: Job, quick: bool) -> _Outcome:
    """Run one job, with errors as results: they must not stop the others."""
    started = time.perf_counter()
    # Warnings would be repeated by hundreds of jobs. The seed is set here, too, so
    # that no row depends on which worker made it.
    with one_thread(), warnings.catch_warnings(), isolated_rng(int(job["seed"])):
        warnings.simplefilter("ignore")
        try:
            made = run(job, quick)
            repeated = sorted(set(made) & {*job, *_ADDED})
            if repeated:
                raise ValueError(f"the row repeats the columns {repeated}.")
        except Exception:
            return _Outcome(job, error=traceback.format_exc())
    seconds = round(time.perf_counter() - started, 2)
    added = (seconds, round(_load(), 2), __version__)
    return _Outcome(job, {**job, **made, **dict(zip(_ADDED, added, strict=True))})


def _load() -> float:
    """Return how many processes wait for a core, or NaN where that is not known."""
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else float("nan")
