"""Runs jobs, each in a process of its own, and keeps every one that ends.

A job is a dictionary of plain settings; a function of them returns a dictionary of
plain results. A study of a paper uses it like this:

    def run(settings):  # all randomness follows from settings["seed"]
        return {"eig": estimate(settings["method"], settings["seed"])}

    jobs = [{"method": m, "seed": s} for m in ("pce", "nmc") for s in range(5)]
    records = run_jobs(run, jobs, Store("results/study"), num_workers=2)
    failed = [record for record in records if record["error"]]
    table = mean_and_sem(result_table(records), by=["method"], values=["eig"])

`run` may be any function that cloudpickle can send, such as a `functools.partial`. The
same call goes on after whatever stopped it: what is in the store is not run again.
Settings tell jobs apart, nothing else does; whoever edits `run` adds a setting to
them, such as `{"tag": "v2"}`, or uses another folder. `result_table` and
`mean_and_sem` are in `sbi_boed_plugin.benchmark.frames` and need pandas.
"""

import contextlib
import os
import sys
import threading
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from tqdm.auto import tqdm

from sbi_boed_plugin._numbers import check_integer, check_real
from sbi_boed_plugin.benchmark.processes import IncompleteError as IncompleteError
from sbi_boed_plugin.benchmark.processes import Processes, result_versions
from sbi_boed_plugin.benchmark.store import Record, Settings, Store, job_key

__all__ = ["IncompleteError", "check_limits", "describe_versions", "run_jobs"]

Run = Callable[[Settings], Mapping[str, Any]]


def run_jobs(
    run: Run,
    jobs: Sequence[Settings],
    store: Store,
    *,
    num_workers: int = 1,
    time_limit: float | None = None,
    retry_failed: bool = False,
    is_complete: Callable[[Record], bool] | None = None,
    show_progress: bool = True,
) -> list[Record]:
    """Run the jobs that are not in the store yet, and return the records of all.

    Each job has a process of its own, with one thread; if it has a setting `seed`, that
    seeds the generators of torch, numpy and Python. A job that raises an error, takes
    too long or kills its process leaves a record that says so. A failure never replaces
    an earlier result: it is noted beside it.

    Args:
        run: Function from settings to a dictionary of plain results.
        jobs: Settings of the jobs, in the order in which they are begun.
        store: Where records are kept.
        num_workers: Number of processes at a time, or -1 for one per core.
        time_limit: Seconds that a job may take, from the start of its function.
        retry_failed: Whether jobs that failed in an earlier run are run again.
        is_complete: Function that tells whether an earlier result is all that is
            wanted now; if not, the job runs again.
        show_progress: Whether to show progress. Failures and results of other versions
            are told on standard error in any case.

    Returns:
        The record of each job, in the order of the jobs. Its `error` is not empty if
        the job failed, or a part of it.

    Raises:
        ValueError: If an argument is out of range, or two jobs have the same settings.
        FolderInUseError: If another run writes to the folder.
        OSError: If the folder cannot be written to.
    """
    num_workers, time_limit = check_limits(num_workers, time_limit)
    keys = [job_key(settings) for settings in jobs]
    (repeated, count), *_ = [*Counter(keys).most_common(1), ("", 0)]
    if count > 1:
        raise ValueError(f"jobs must differ, but {count} have the settings {repeated}.")
    with store.lock():
        earlier = {job_key(record["job"]): record for record in store.read_all()}
        records = {key: earlier[key] for key in keys if key in earlier}
        todo = {}
        for key, settings in zip(keys, jobs, strict=True):
            if not _is_settled(records.get(key), retry_failed, is_complete):
                todo[key] = settings
        settled = [record for key, record in records.items() if key not in todo]
        _warn_of_versions(settled)
        num_failed = sum(bool(record["error"]) for record in settled)
        if num_failed and show_progress:
            _say(
                f"{num_failed} of {len(jobs)} jobs failed earlier and are skipped; "
                "retry_failed (--retry-failed) runs them again."
            )
        processes = Processes(run, store.folder, num_workers, time_limit)
        with (
            tqdm(
                total=len(jobs),
                initial=len(settled),
                desc="jobs",
                unit="job",
                smoothing=0.05,
                disable=not show_progress,
            ) as progress,
            contextlib.closing(processes.run(todo)) as outcomes,
        ):
            for key, outcome in outcomes:
                record = _merge(records.get(key), outcome)
                store.write(record)
                records[key] = record
                if error := record["error"]:
                    num_failed += 1
                    _say(f"failed: {_in_words(record['job'])}: {error}")
                progress.update()
                progress.set_postfix_str(f"{num_failed} failed")
    return [records[key] for key in keys]


def describe_versions(versions: Mapping[str, str | None]) -> str:
    """Return versions of packages as a text.

    Example:
        >>> describe_versions({"sbi": "0.27", "sbibm": None})
        'sbi 0.27, sbibm unknown'
    """
    return ", ".join(f"{name} {text or 'unknown'}" for name, text in versions.items())


def check_limits(
    num_workers: Any, time_limit: float | None
) -> tuple[int, float | None]:
    """Return the number of processes and the time limit, or raise a `ValueError`."""
    remedy = "Use a positive number of processes, or -1 for one per core."
    workers = check_integer("num_workers", num_workers, -1, remedy=remedy)
    if workers == 0:
        raise ValueError(f"num_workers=0 starts no process. {remedy}")
    limit = check_real(
        "time_limit",
        time_limit,
        most=threading.TIMEOUT_MAX,
        above=0.0,
        or_none=True,
        remedy="Pass a positive number of seconds.",
    )
    return (workers if workers > 0 else os.cpu_count() or 1), limit


def _is_settled(
    record: Record | None,
    retry_failed: bool,
    is_complete: Callable[[Record], bool] | None,
) -> bool:
    """Whether a job need not run."""
    if record is None:
        return False
    if record["error"]:
        return not retry_failed
    return is_complete is None or is_complete(record)


def _merge(earlier: Record | None, outcome: Record) -> Record:
    """Return the outcome, or an earlier result with the failure of what followed it."""
    if outcome["status"] == "done" or earlier is None or earlier["status"] == "failed":
        return outcome
    failure = {name: outcome[name] for name in ("error", "traceback", "output")}
    return {**earlier, **failure}


def _warn_of_versions(settled: Sequence[Record]) -> None:
    """Say that results of other versions are kept, as they took hours, perhaps."""
    now = describe_versions(result_versions())
    others = Counter(describe_versions(record["versions"]) for record in settled)
    others.pop(now, None)
    if others:
        listed = "; ".join(f"{number} of {text}" for text, number in others.items())
        _say(
            f"warning: {sum(others.values())} results of other versions are kept "
            f"({listed}), where {now} are installed; use another output (--output) to "
            "run all with these."
        )


def _say(message: str) -> None:
    """Print a line to standard error, above the progress line if there is one."""
    tqdm.write(message, file=sys.stderr)


def _in_words(settings: Settings) -> str:
    return ", ".join(f"{name}={value}" for name, value in settings.items())
