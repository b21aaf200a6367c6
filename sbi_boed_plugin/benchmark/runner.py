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
import io
import json
import math
import multiprocessing
import os
import signal
import sys
import threading
import time
import traceback
import warnings
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from types import ModuleType
from typing import Any

import cloudpickle
from tqdm.auto import tqdm

from sbi_boed_plugin._numbers import check_integer, check_real
from sbi_boed_plugin._parallel import describe_error, one_thread
from sbi_boed_plugin._results import finite_or_none
from sbi_boed_plugin._rng import isolated_rng
from sbi_boed_plugin._versions import installed_versions
from sbi_boed_plugin.benchmark.store import Record, Settings, Store, job_key

__all__ = ["IncompleteError", "describe_versions", "run_jobs", "shorten_paths"]

Run = Callable[[Settings], Mapping[str, Any]]

# How long a process may take to end before it is killed.
_GRACE_SECONDS = 5.0
# Of what a job printed before it failed; the end tells most.
_OUTPUT_CHARACTERS = 2_000
# Of a job's warnings: a training may give thousands.
_NUM_WARNINGS = 20
_WARNING_CHARACTERS = 500


class IncompleteError(Exception):
    """Raised by a job that failed in part; the record keeps the other part.

    Attributes:
        result: What the job would have returned, without what failed.
        trace: Traceback of what failed.
    """

    def __init__(self, message: str, result: Mapping[str, Any], trace: str) -> None:
        super().__init__(message)
        self.result = dict(result)
        self.trace = trace


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
        show_progress: Whether to show progress, failures and warnings, on standard
            error.

    Returns:
        The record of each job, in the order of the jobs. Its `error` is not empty if
        the job failed, or a part of it.

    Raises:
        ValueError: If an argument is out of range, or two jobs have the same settings.
        FolderInUseError: If another run writes to the folder.
        OSError: If the folder cannot be written to.
    """
    num_workers = _check_workers(num_workers)
    time_limit = check_real(
        "time_limit",
        time_limit,
        most=threading.TIMEOUT_MAX,
        above=0.0,
        or_none=True,
        remedy="Pass a positive number of seconds.",
    )
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
        if show_progress:
            _tell_of_settled(settled, len(jobs))
        num_failed = sum(bool(record["error"]) for record in settled)
        processes = _Processes(cloudpickle.dumps(run), num_workers, time_limit)
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
                    if show_progress:
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


def _check_workers(num_workers: Any) -> int:
    remedy = "Use a positive number of processes, or -1 for one per core."
    checked = check_integer("num_workers", num_workers, -1, remedy=remedy)
    if checked == 0:
        raise ValueError(f"num_workers=0 starts no process. {remedy}")
    return checked if checked > 0 else os.cpu_count() or 1


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


def _tell_of_settled(settled: Sequence[Record], num_jobs: int) -> None:
    """Say which earlier failures are skipped, and which results are of other code."""
    num_failed = sum(bool(record["error"]) for record in settled)
    if num_failed:
        _say(
            f"{num_failed} of {num_jobs} jobs failed earlier and are skipped; "
            "retry_failed (--retry-failed) runs them again."
        )
    now = describe_versions(_versions())
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


def _versions() -> dict[str, str | None]:
    return installed_versions(("sbi", "sbibm", "torch"))


@dataclass
class _Running:
    """A job in its process, and the time of the monotonic clock when it must end."""

    key: str
    settings: Settings
    process: Any
    started: float
    end: float = math.inf

    def fail(self, error: str) -> Record:
        """Return the record of a job whose process was lost."""
        seconds = time.monotonic() - self.started
        return _record(json.loads(json.dumps(self.settings)), seconds, error=error)


class _Processes:
    """Runs jobs in processes, so many at a time."""

    def __init__(self, run: bytes, number: int, time_limit: float | None) -> None:
        self._run, self._number, self._time_limit = run, number, time_limit
        # A server that has imported the package once forks the processes, where the
        # system can; each would need three seconds for its imports otherwise.
        has_server = "forkserver" in multiprocessing.get_all_start_methods()
        method = "forkserver" if has_server else "spawn"
        self._context: Any = multiprocessing.get_context(method)
        if has_server:
            self._context.set_forkserver_preload(["sbi_boed_plugin.sbibm"])

    def run(self, jobs: Mapping[str, Settings]) -> Iterator[tuple[str, Record]]:
        """Yield the key and the record of each job, whichever ends first."""
        queue = deque(jobs.items())
        running: dict[Connection, _Running] = {}
        try:
            while queue or running:
                while queue and len(running) < self._number:
                    connection, job = self._start(*queue.popleft())
                    running[connection] = job
                next_end = min(job.end for job in running.values())
                seconds = max(0.0, next_end - time.monotonic())
                for connection in wait(
                    list(running), seconds if math.isfinite(seconds) else None
                ):
                    record = self._receive(connection, running[connection])
                    if record is not None:
                        yield running.pop(connection).key, record
                for connection, job in list(running.items()):
                    if job.end <= time.monotonic():
                        del running[connection]
                        _end(job.process)
                        limit = f"{self._time_limit:g} s"
                        yield job.key, job.fail(f"it took longer than {limit}")
        finally:
            for job in running.values():
                _end(job.process)

    def _start(self, key: str, settings: Settings) -> tuple[Connection, _Running]:
        ours, theirs = self._context.Pipe(duplex=False)
        arguments = (theirs, self._run, json.dumps(settings), dict(os.environ))
        process = self._context.Process(target=_work, args=arguments)
        # Without this, the process would run the user's script again, to find functions
        # in it, which cloudpickle sends along anyway.
        main = sys.modules["__main__"]
        sys.modules["__main__"] = ModuleType("__main__")
        try:
            process.start()
        finally:
            sys.modules["__main__"] = main
        theirs.close()
        return ours, _Running(key, settings, process, time.monotonic())

    def _receive(self, connection: Connection, job: _Running) -> Record | None:
        """Return the record of a job, or `None` if its process says that it begins."""
        try:
            record = connection.recv()
        except EOFError:
            job.process.join()
            record = job.fail(
                f"its process ended with exit code {job.process.exitcode}, perhaps "
                "because it took too much memory"
            )
        if record is None:
            job.started = time.monotonic()
            job.end = job.started + (self._time_limit or math.inf)
            return None
        job.process.join(_GRACE_SECONDS)
        _end(job.process)
        return record


def _end(process: Any) -> None:
    """End a process, with force if it does not end by itself."""
    process.terminate()
    process.join(_GRACE_SECONDS)
    if process.is_alive():
        process.kill()
        process.join()


def _record(settings: Settings, seconds: float, **found: Any) -> Record:
    """Return the record of a job; it has failed if it has no result."""
    record: Record = {
        "job": settings,
        "status": "done" if "result" in found else "failed",
        "result": {},
        "error": "",
        "traceback": "",
        "output": "",
        "seconds": round(seconds, 3),
        "finished": time.time(),
        "load": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        "versions": _versions(),
        "warnings": [],
    }
    return {**record, **found}


def _work(
    connection: Connection, run: bytes, job: str, environment: Mapping[str, str]
) -> None:
    """Run a job in a process of its own, and send its record."""
    # The parent ends its jobs itself, and none of them outlives it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_leave_with_parent, daemon=True).start()
    os.environ.update(environment)
    settings = json.loads(job)
    found: dict[str, Any] = {}
    output = io.StringIO()
    connection.send(None)
    started = time.monotonic()
    with (
        one_thread(),
        isolated_rng(settings.get("seed")),
        warnings.catch_warnings(record=True) as caught,
        contextlib.redirect_stdout(output),
    ):
        warnings.simplefilter("default")
        # Those are for whoever wrote the code that is called.
        for category in (DeprecationWarning, PendingDeprecationWarning):
            warnings.simplefilter("ignore", category)
        try:
            try:
                result = cloudpickle.loads(run)(settings)
            except IncompleteError as error:
                result = error.result
                found |= {"error": str(error), "traceback": error.trace}
            found["result"] = json.loads(json.dumps(finite_or_none(dict(result))))
        except (Exception, SystemExit) as error:
            found["error"] = describe_error(error)
            found["traceback"] = shorten_paths(traceback.format_exc())
    if "error" in found:
        found["output"] = output.getvalue()[-_OUTPUT_CHARACTERS:]
    messages = [str(warning.message)[:_WARNING_CHARACTERS] for warning in caught]
    found["warnings"] = list(dict.fromkeys(messages))[:_NUM_WARNINGS]
    connection.send(_record(settings, time.monotonic() - started, **found))


def _leave_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def shorten_paths(trace: str) -> str:
    """Return a traceback with files as Python finds their modules.

    Results are shared; where somebody's Python is installed says nothing to others.
    """
    for root in sorted({*sys.path, os.getcwd()}, key=len, reverse=True):
        if root:
            trace = trace.replace(f'File "{root}{os.sep}', 'File "')
    return trace
