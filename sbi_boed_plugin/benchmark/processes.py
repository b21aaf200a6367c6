"""The processes of a run: one for each job, ended when its time is up."""

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
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path
from types import ModuleType
from typing import Any

import cloudpickle

from sbi_boed_plugin._parallel import describe_error, one_thread
from sbi_boed_plugin._results import finite_or_none
from sbi_boed_plugin._rng import isolated_rng
from sbi_boed_plugin._versions import installed_versions
from sbi_boed_plugin.benchmark.store import Record, Settings

__all__ = ["IncompleteError", "Processes", "result_versions"]

# How long a process may take to end before it is killed.
_GRACE_SECONDS = 5.0
# The operating system takes no longer times than weeks.
_LONGEST_WAIT = 3600.0
# Of what a job printed before it failed; the end tells most.
_OUTPUT_CHARACTERS = 2_000
# Of a job's warnings: a training may give thousands.
_NUM_WARNINGS = 20
_WARNING_CHARACTERS = 500


class IncompleteError(Exception):
    """Raised by a job that failed in part; the record keeps the other part.

    Attributes:
        result: What the job would have returned, without what failed.
        errors: Errors of what failed.
    """

    def __init__(
        self, message: str, result: Mapping[str, Any], errors: Sequence[Exception]
    ) -> None:
        super().__init__(message)
        self.result = dict(result)
        self.errors = errors


def result_versions() -> dict[str, str | None]:
    """Return the versions of the packages that results depend on most."""
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


class Processes:
    """Runs jobs in processes, so many at a time."""

    def __init__(
        self, run: Any, folder: Path, number: int, time_limit: float | None
    ) -> None:
        self._run, self._folder = cloudpickle.dumps(run), folder
        self._number, self._time_limit = number, time_limit
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
                seconds = min(max(next_end - time.monotonic(), 0.0), _LONGEST_WAIT)
                for connection in wait(list(running), seconds):
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
        job = json.dumps(settings)
        arguments = (theirs, self._run, job, str(self._folder), dict(os.environ))
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
        except (EOFError, OSError):
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
        "versions": result_versions(),
        "warnings": [],
    }
    return {**record, **found}


def _work(
    connection: Connection,
    run: bytes,
    job: str,
    folder: str,
    environment: Mapping[str, str],
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
                found["error"] = str(error)
                found["traceback"] = "\n".join(map(_trace, error.errors))
            found["result"] = json.loads(json.dumps(finite_or_none(dict(result))))
        except (Exception, SystemExit) as error:
            found["error"] = describe_error(error)
            found["traceback"] = _trace(error)
    if "error" in found:
        found["output"] = output.getvalue()[-_OUTPUT_CHARACTERS:]
    # Where somebody keeps results says nothing to others.
    texts = [str(each.message).replace(f"{folder}{os.sep}", "") for each in caught]
    messages = [text[:_WARNING_CHARACTERS] for text in texts]
    found["warnings"] = list(dict.fromkeys(messages))[:_NUM_WARNINGS]
    connection.send(_record(settings, time.monotonic() - started, **found))


def _leave_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _trace(error: BaseException) -> str:
    """Return the traceback of an error, with files as Python finds their modules.

    Results are shared; where somebody's Python is installed says nothing to others.
    """
    trace = "".join(traceback.format_exception(error))
    for root in sorted({*sys.path, os.getcwd()}, key=len, reverse=True):
        if root:
            trace = trace.replace(f'File "{root}{os.sep}', 'File "')
    return trace
