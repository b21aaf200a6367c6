"""Runs jobs, each in a process of its own, and keeps every one that ends.

A job is a dictionary of plain settings; a function of them returns a dictionary of
plain results:

    def run(settings):  # all randomness follows from settings["seed"]
        return {"eig": estimate(settings["method"], settings["seed"])}

    jobs = [{"method": m, "seed": s} for m in ("pce", "nmc") for s in range(5)]
    records = run_jobs(run, jobs, Store("results/study"), num_workers=2)
    failed = [record for record in records if record["error"]]
"""

import contextlib
import io
import json
import multiprocessing
import os
import signal
import sys
import threading
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from types import ModuleType
from typing import Any

import cloudpickle
import torch
from threadpoolctl import threadpool_limits
from tqdm.auto import tqdm

from sbi_boed_plugin._numbers import check_integer, check_real
from sbi_boed_plugin._parallel import describe_error
from sbi_boed_plugin._results import finite_or_none, installed_versions
from sbi_boed_plugin._rng import isolated_rng
from sbi_boed_plugin.benchmark.store import Record, Settings, Store, job_key

__all__ = ["describe_versions", "run_jobs"]

Run = Callable[[Settings], Mapping[str, Any]]

# How long a process whose job has ended may take to end, while others go on.
_GRACE_SECONDS = 5.0
# How often jobs that take too long are looked for.
_POLL_SECONDS = 0.2
# Of what a job printed before it failed; the end tells most.
_OUTPUT_CHARACTERS = 2_000
# Of a job's warnings: a training may give thousands.
_NUM_WARNINGS = 20
_WARNING_CHARACTERS = 500


def run_jobs(
    run: Run,
    jobs: Sequence[Settings],
    store: Store,
    *,
    num_workers: int = 1,
    time_limit: float | None = None,
    retry_failed: bool = False,
    is_complete: Callable[[Record], bool] = lambda record: True,
    show_progress: bool = True,
) -> list[Record]:
    """Run the jobs that are not in the store yet, and return the records of all.

    `run` may be any function that cloudpickle can send. Each job has a process with one
    thread, whose generators a setting `seed` seeds, and may take `time_limit` seconds.
    A job that raises an error, takes too long or kills its process leaves a record that
    says so in its `error`; it never replaces an earlier result, but is noted beside it.
    Jobs run again if their result is not complete, or with `retry_failed` if they
    failed. Settings tell jobs apart, nothing else does: whoever edits `run` adds a
    setting to them, such as `{"tag": "v2"}`, or uses another folder.
    """
    remedy = "Use a positive number of processes, or -1 for one per core."
    num_workers = check_integer("num_workers", num_workers, -1, remedy=remedy)
    if num_workers == 0:
        raise ValueError(f"num_workers=0 starts no process. {remedy}")
    remedy = "Pass a positive number of seconds."
    limit = check_real("time_limit", time_limit, above=0.0, or_none=True, remedy=remedy)
    todo = {job_key(settings): settings for settings in jobs}
    keys = list(todo)
    if len(keys) < len(jobs):
        raise ValueError(f"jobs must differ, but {len(jobs) - len(keys)} are repeated.")
    with store.lock():
        earlier = {job_key(record["job"]): record for record in store.read_all()}
        records = {key: earlier[key] for key in keys if key in earlier}
        kept = []
        for key, record in records.items():
            if not retry_failed if record["error"] else is_complete(record):
                del todo[key]
                kept.append(record)
        _warn_of_versions(kept)
        num_failed = sum(bool(record["error"]) for record in kept)
        if num_failed and show_progress:
            _say(
                f"{num_failed} of {len(jobs)} jobs failed earlier and are skipped; "
                "retry_failed (--retry-failed) runs them again."
            )
        workers = num_workers if num_workers > 0 else os.cpu_count() or 1
        bar = {"total": len(jobs), "initial": len(kept), "desc": "jobs", "unit": "job"}
        with (
            tqdm(**bar, smoothing=0.05, disable=not show_progress) as progress,
            contextlib.closing(_in_processes(run, todo, workers, limit)) as ended,
        ):
            for key, record in ended:
                before = records.get(key)
                if record["error"] and before and before["status"] == "done":
                    failure = {name: record[name] for name in ("error", "traceback")}
                    record = {**before, **failure}
                store.write(record)
                records[key] = record
                if error := record["error"]:
                    num_failed += 1
                    words = ", ".join(f"{k}={v}" for k, v in record["job"].items())
                    _say(f"failed: {words}: {error}")
                progress.update()
                progress.set_postfix_str(f"{num_failed} failed")
    return [records[key] for key in keys]


def describe_versions(versions: Mapping[str, str | None]) -> str:
    """Return versions of packages as a text."""
    return ", ".join(f"{name} {text or 'unknown'}" for name, text in versions.items())


def _warn_of_versions(kept: Sequence[Record]) -> None:
    """Say that results of other versions are kept, as they took hours, perhaps."""
    now = describe_versions(installed_versions())
    others = Counter(describe_versions(record["versions"]) for record in kept)
    del others[now]
    if others:
        listed = "; ".join(f"{number} of {text}" for text, number in others.items())
        _say(
            f"warning: results of other versions are kept ({listed}), where {now} are "
            "installed; use another output (--output) to run all with these."
        )


def _say(message: str) -> None:
    """Print a line to standard error, above the progress line if there is one."""
    tqdm.write(message, file=sys.stderr)


@dataclass
class _Process:
    """A process of a job, which sends `None` when the job begins, and its record."""

    key: str
    process: Any
    begun: float | None = None  # When the job has begun.
    ended: float = 0.0  # When its record was there.


def _in_processes(
    run: Run, jobs: Mapping[str, Settings], num_workers: int, time_limit: float | None
) -> Iterator[tuple[str, Record]]:
    """Yield the key and the record of each job, whichever ends first."""
    code = cloudpickle.dumps(run)
    # A server that has imported the package once forks the processes, where the system
    # can; each would need three seconds for its imports otherwise.
    has_server = "forkserver" in multiprocessing.get_all_start_methods()
    context: Any = multiprocessing.get_context("forkserver" if has_server else "spawn")
    if has_server:
        context.set_forkserver_preload(["sbi_boed_plugin.sbibm"])
    waiting = list(jobs)
    running: dict[Connection, _Process] = {}
    ending: list[_Process] = []
    try:
        while waiting or running or ending:
            ending = [job for job in ending if not _has_left(job)]
            while waiting and len(running) + len(ending) < num_workers:
                key = waiting.pop(0)
                ours, theirs = context.Pipe(duplex=False)
                arguments = (theirs, code, json.dumps(jobs[key]), dict(os.environ))
                process = context.Process(target=_work, args=arguments)
                running[ours] = _Process(key, process)
                _start(process)
                theirs.close()
            sentinels = [job.process.sentinel for job in ending]
            wait([*running, *sentinels], timeout=_POLL_SECONDS)
            for connection, job in list(running.items()):
                record = _ended(connection, job, time_limit)
                if record is None:
                    continue
                del running[connection]
                connection.close()
                job.ended = time.monotonic()
                ending.append(job)
                yield job.key, record
    finally:
        for job in (*running.values(), *ending):
            if job.process.is_alive():
                job.process.kill()


def _start(process: Any) -> None:
    """Start a process that does not run the user's script again.

    It would, to find functions in it, which cloudpickle sends along anyway.
    """
    main = sys.modules["__main__"]
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        process.start()
    finally:
        sys.modules["__main__"] = main


def _has_left(job: _Process) -> bool:
    """Return whether the process of an ended job is gone, by force after a while."""
    if job.process.is_alive() and time.monotonic() < job.ended + _GRACE_SECONDS:
        return False
    job.process.kill()
    job.process.join()
    return True


def _ended(
    connection: Connection, job: _Process, time_limit: float | None
) -> Record | None:
    """Return the record of a job that has ended or takes too long, `None` before.

    A record that is there counts, however long ago the last look was.
    """
    now = time.monotonic()
    seconds = 0.0 if job.begun is None else now - job.begun
    try:
        is_ready = connection.poll()
        if is_ready and (record := connection.recv()) is not None:
            return record
        if is_ready:
            job.begun = now
    except (EOFError, OSError):
        job.process.join()
        error = f"its process ended with exit code {job.process.exitcode}, perhaps "
        error += "because it took too much memory"
    else:
        if time_limit is None or seconds <= time_limit:
            return None
        job.process.kill()
        error = f"it took longer than {time_limit:g} s"
    return _record(json.loads(job.key), seconds, error=error)


def _record(settings: Settings, seconds: float, **found: Any) -> Record:
    """Return the record of a job; it has failed if it has no result."""
    record: Record = {
        "job": settings,
        "status": "done" if "result" in found else "failed",
        "result": {},
        "error": "",
        "traceback": "",
        "seconds": round(seconds, 3),
        "finished": time.time(),
        "load": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        "versions": installed_versions(),
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
    torch.set_num_threads(1)  # Several per process would fight over the cores.
    settings = json.loads(job)
    found: dict[str, Any] = {}
    output = io.StringIO()
    connection.send(None)
    started = time.monotonic()
    with (
        threadpool_limits(limits=1),
        isolated_rng(settings.get("seed")),
        warnings.catch_warnings(record=True) as caught,
        contextlib.redirect_stdout(output),
    ):
        warnings.simplefilter("default")
        # Those are for whoever wrote the code that is called.
        for category in (DeprecationWarning, PendingDeprecationWarning):
            warnings.simplefilter("ignore", category)
        try:
            result = dict(cloudpickle.loads(run)(settings))
            found["result"] = json.loads(json.dumps(finite_or_none(result)))
        except (Exception, SystemExit) as error:
            found["error"] = describe_error(error)
            found["traceback"] = _trace(error)
            if printed := output.getvalue()[-_OUTPUT_CHARACTERS:]:
                found["traceback"] += f"\nPrinted before:\n{printed}"
    messages = [str(each.message)[:_WARNING_CHARACTERS] for each in caught]
    found["warnings"] = list(dict.fromkeys(messages))[:_NUM_WARNINGS]
    connection.send(_record(settings, time.monotonic() - started, **found))


def _leave_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _trace(error: BaseException) -> str:
    """Return a traceback without where somebody's Python is installed."""
    trace = "".join(traceback.format_exception(error))
    for root in sorted({*sys.path, os.getcwd()} - {""}, key=len, reverse=True):
        trace = trace.replace(f'File "{root}{os.sep}', 'File "')
    return trace
