"""The folder of a benchmark: whole files, one lock per job, and nothing else.

Whatever is killed at whatever moment, a file under a result's name is a whole result.
Locks belong to the operating system, which releases those of a process that dies.
"""

import io
import json
import os
import time
import uuid
import zipfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock, Timeout

from sbi_boed_plugin._atomic import write_bytes
from sbi_boed_plugin._results import finite_or_none
from sbi_boed_plugin.benchmark.jobs import Job

__all__ = [
    "DamagedFileError",
    "JobLockedError",
    "Store",
    "describe_failure",
    "read_record",
]

Record = dict[str, Any]

# No write takes that long: who began it is dead.
_STALE_SECONDS = 3600.0

# What readers rely on, per status.
_COMMON = ("job", "metrics", "finished", "load", "versions")
_KEYS = {
    "failed": (*_COMMON, "error", "traceback", "output"),
    "done": (
        *_COMMON,
        "training_seconds",
        "sampling_seconds",
        "metric_seconds",
        "from_cache",
        "num_simulations_used",
        "log_prob_true_parameters",
        "diagnostics",
        "samples",
    ),
}

_TYPES: dict[str, Any] = {
    "diagnostics": dict,
    "earlier": list,
    "finished": (int, float),
    "metric_errors": dict,
    "metrics": dict,
    "versions": dict,
    "warnings": list,
}


class DamagedFileError(ValueError):
    """A file under a result's name that does not hold the result."""


class JobLockedError(RuntimeError):
    """Another process runs the job."""


@dataclass(frozen=True)
class Store:
    """Results in a folder that several processes may share.

    Attributes:
        folder: The folder; it need not exist.
    """

    folder: Path

    def open(self) -> None:
        """Make the folder, and remove what killed processes left half-written.

        Raises:
            OSError: If it cannot be made, or not written to.
        """
        self.results.mkdir(parents=True, exist_ok=True)
        probe = self.results / f".probe.{uuid.uuid4().hex}.tmp"
        probe.touch()
        probe.unlink()
        leftovers = [
            *self.results.rglob(".*.tmp"),
            *self.cache.glob(".*.tmp"),
            *self.cache.glob(".*.pt.*"),
        ]
        for path in leftovers:
            # Another process may do the same, or have finished.
            with suppress(FileNotFoundError):
                if time.time() - path.stat().st_mtime > _STALE_SECONDS:
                    path.unlink()

    @property
    def results(self) -> Path:
        """Folder of the results."""
        return self.folder / "results"

    @property
    def cache(self) -> Path:
        """Folder in which methods keep what several jobs need."""
        return self.folder / "cache"

    def read(self, job: Job) -> Record | None:
        """Return the record of a job, or `None` if there is none.

        Args:
            job: The job.

        Raises:
            DamagedFileError: If its file holds anything else.
        """
        path = self.results / job.path("json")
        try:
            record = read_record(path)
        except FileNotFoundError:
            return None
        if record["job"] != job.to_plain():
            raise DamagedFileError(f"{path} holds the result of another job.")
        return record

    def write(self, job: Job, record: Record) -> None:
        """Write the record of a job.

        Args:
            job: The job.
            record: Plain values; what is not finite becomes `null`.
        """
        text = json.dumps(finite_or_none(record), indent=1, ensure_ascii=False)
        write_bytes(self.results / job.path("json"), (text + "\n").encode())

    def write_samples(self, job: Job, samples: np.ndarray) -> str:
        """Write the samples of a job beside its record, and return the file's name."""
        content = io.BytesIO()
        np.savez_compressed(content, samples=samples)
        path = self.results / job.path("npz")
        write_bytes(path, content.getvalue())
        return path.name

    def has_samples(self, record: Record) -> bool:
        """Tell whether the samples of a record are there."""
        path = self.results / Job(**record["job"]).path("npz")
        return bool(record["samples"]) and path.exists()

    def read_samples(self, job: Job) -> np.ndarray | None:
        """Return the samples of a job, or `None` if there are none to be read."""
        try:
            with np.load(self.results / job.path("npz")) as content:
                return content["samples"]
        except (OSError, EOFError, KeyError, ValueError, zipfile.BadZipFile):
            # Not kept, or damaged: the job makes them again.
            return None

    def move_aside(self, job: Job) -> Path:
        """Give a damaged file of a job another name, and return that.

        Only who holds the job's lock may do so: the file may be whole by now.
        """
        path = self.results / job.path("json")
        aside = path.with_name(f"{path.name}.damaged")
        number = 1
        while aside.exists():
            number += 1
            aside = path.with_name(f"{path.name}.{number}.damaged")
        os.replace(path, aside)
        return aside

    @contextmanager
    def locked(self, job: Job) -> Iterator[None]:
        """Hold the lock of a job.

        Args:
            job: The job.

        Raises:
            JobLockedError: If another process holds it.
        """
        path = self._lock(job)
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(path)
        try:
            lock.acquire(blocking=False)
        except Timeout as error:
            raise JobLockedError(f"another process runs {job}.") from error
        begun = path.with_suffix(".begun")
        try:
            begun.touch()
            yield
        finally:
            begun.unlink(missing_ok=True)
            lock.release()

    def is_begun(self, job: Job) -> bool:
        """Tell whether a job is being run, or was when its process was killed."""
        return self._lock(job).with_suffix(".begun").exists()

    def _lock(self, job: Job) -> Path:
        return self.folder / ".locks" / job.path("lock")


def read_record(path: Path) -> Record:
    """Read the record of a job.

    Args:
        path: Its file.

    Returns:
        The record.

    Raises:
        FileNotFoundError: If there is no such file.
        DamagedFileError: If it holds anything else.
    """
    content = path.read_bytes()
    try:
        record = json.loads(content)
        Job(**record["job"])
        missing = sorted(set(_KEYS[record["status"]]) - set(record))
        for name, kind in _TYPES.items():
            if name in record and not isinstance(record[name], kind):
                raise TypeError(f"{name}={record[name]!r}")
    except (ValueError, TypeError, KeyError) as error:
        raise DamagedFileError(
            f"{path} is damaged or not the result of a job ({error!r})."
        ) from error
    if missing:
        raise DamagedFileError(f"{path} lacks {', '.join(missing)}.")
    return record


def describe_failure(record: Record, metrics: Iterable[str] | None = None) -> str:
    """Return in a line what of a job failed, empty if nothing did.

    Args:
        record: The record of a job.
        metrics: Metrics that matter; all if `None`.
    """
    if record["status"] == "failed":
        return record["error"]
    errors = record.get("metric_errors", {})
    wanted = errors if metrics is None else [name for name in metrics if name in errors]
    return "; ".join(f"{name}: {errors[name]['error']}" for name in wanted)
