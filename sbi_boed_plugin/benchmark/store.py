"""A folder of finished jobs: one JSON file a job, and one run at a time.

Each file holds the record of one job, under a name made of the job's settings. It is
written under another name first and then renamed, so that a full disk or a killed
process never leaves half a record. A file that holds anything else is named in a
warning and renamed, so that it never stops a run or a report; its job runs again.

A record is a dictionary with these entries:

- `job`: the settings, and `status`: `"done"` or `"failed"`;
- `result`: what the job returned (empty if it failed and never succeeded before);
- `error`, `traceback`, `output`: what went wrong, and what was printed before;
- `seconds`, `finished`, `load`, `versions`, `warnings`: how and with what it ran.
"""

import contextlib
import hashlib
import json
import os
import re
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from sbi_boed_plugin._atomic import write_bytes
from sbi_boed_plugin._results import finite_or_none

__all__ = ["FolderInUseError", "Record", "Settings", "Store", "file_name", "job_key"]

Settings = Mapping[str, Any]
Record = dict[str, Any]

_NUMBER = (int, float)
# Which kinds of values the entries of a record have.
_KINDS: dict[str, Any] = {
    "job": dict,
    "status": str,
    "result": dict,
    "error": str,
    "traceback": str,
    "output": str,
    "seconds": _NUMBER,
    "finished": _NUMBER,
    "load": (*_NUMBER, type(None)),
    "versions": dict,
    "warnings": list,
}
_MOST_CHARACTERS = 120


class FolderInUseError(RuntimeError):
    """Another run writes to the folder."""


def job_key(settings: Settings) -> str:
    """Return a text that differs wherever settings do, whatever their order.

    Raises:
        ValueError: If the settings cannot be kept in a file.

    Example:
        >>> job_key({"seed": 0, "method": "npe"})
        '{"method": "npe", "seed": 0}'
    """
    try:
        return json.dumps(settings, sort_keys=True, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"settings={settings} of a job must hold numbers, texts, booleans, None, "
            f"and lists and dictionaries of them, to be kept in a file: {error}."
        ) from error


def file_name(settings: Settings) -> str:
    """Return the name of the file of a job: its settings, readable, and a digest.

    Example:
        >>> file_name({"seed": 0, "method": "npe"})
        'method=npe,seed=0-5ddaf0c9.json'
    """
    parts = [
        f"{name}={value}"
        for name, value in sorted(settings.items())
        if isinstance(value, (str, int, float)) and value != ""
    ]
    # Some file systems ignore case and refuse colons; the digest tells such jobs apart.
    readable = re.sub(r"[^\w.,=+-]+", ".", ",".join(parts), flags=re.ASCII)
    digest = hashlib.sha256(job_key(settings).encode()).hexdigest()[:8]
    return f"{readable[:_MOST_CHARACTERS]}-{digest}.json"


class Store:
    """The records of a folder.

    Args:
        folder: The folder; it need not exist.
        check: Function that raises an error for a record whose result is not what the
            caller's jobs return. Such a record counts as unreadable.
    """

    def __init__(
        self, folder: Path | str, check: Callable[[Record], object] | None = None
    ) -> None:
        self.folder = Path(folder).absolute()
        self.jobs = self.folder / "jobs"
        self._check = check

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Make the folder, and keep other runs out of it.

        The operating system frees the lock when the process ends, however it ends.

        Raises:
            FolderInUseError: If another run has the folder.
            OSError: If the folder cannot be made, or not written to.
        """
        self.jobs.mkdir(parents=True, exist_ok=True)
        lock = FileLock(self.folder / ".lock")
        try:
            lock.acquire(blocking=False)
        except Timeout as error:
            raise FolderInUseError(
                f"another run writes to {self.folder}. Wait for its end, or use "
                "another output folder."
            ) from error
        try:
            # What a killed run left half-written: nobody else writes here now.
            for leftover in self.jobs.glob(".*.tmp"):
                leftover.unlink()
            yield
        finally:
            lock.release()

    def write(self, record: Record) -> None:
        """Write the record of a job in one step, not-a-number and infinity as null."""
        text = json.dumps(finite_or_none(record), indent=1, ensure_ascii=False)
        path = self.jobs / file_name(record["job"])
        write_bytes(path, (text + "\n").encode())

    def read(self, settings: Settings) -> Record | None:
        """Return the record of a job, or `None` if there is none that can be read."""
        path = self.jobs / file_name(settings)
        return self._read(path) if path.exists() else None

    def read_all(self) -> list[Record]:
        """Return all records, in the order of their files' names."""
        found = [self._read(path) for path in sorted(self.jobs.glob("[!.]*.json"))]
        return [record for record in found if record is not None]

    def set_aside(self) -> list[str]:
        """Return the names of the files that were set aside, now or earlier."""
        return sorted(path.name for path in self.jobs.glob("*.unreadable"))

    def _read(self, path: Path) -> Record | None:
        """Read a record; warn of a file that holds none, and rename it."""
        try:
            record = json.loads(path.read_bytes())
            _check_record(record, path.name)
            if self._check is not None:
                self._check(record)
        except OSError:
            raise
        except Exception as error:
            number = 1
            aside = path.with_name(f"{path.name}.unreadable")
            while aside.exists():
                number += 1
                aside = path.with_name(f"{path.name}.{number}.unreadable")
            # The folder of somebody else may be read only.
            with contextlib.suppress(PermissionError):
                os.replace(path, aside)
            warnings.warn(
                f"{path} is not the record of a job ({type(error).__name__}: {error}). "
                f"It is left out and renamed to {aside.name}; its job will run again.",
                stacklevel=3,
            )
            return None
        return record


def _check_record(record: Any, name: str) -> None:
    """Raise an error for a record with missing or wrong entries, or a wrong name."""
    if not isinstance(record, dict):
        raise TypeError("it is no dictionary")
    missing = [key for key in _KINDS if key not in record]
    if missing:
        raise KeyError(f"it lacks {', '.join(missing)}")
    for key, kind in _KINDS.items():
        if not isinstance(record[key], kind) or isinstance(record[key], bool):
            raise TypeError(f"{key}={str(record[key])[:80]!r}")
    if record["status"] not in ("done", "failed"):
        raise ValueError(f"status={record['status']!r}")
    texts = [*record["warnings"], *(v for v in record["versions"].values() if v)]
    if not all(isinstance(text, str) for text in texts):
        raise TypeError("warnings and versions must be texts")
    if name != file_name(record["job"]):
        # A copy would count as another result.
        raise ValueError(f"the record of its job belongs in {file_name(record['job'])}")
