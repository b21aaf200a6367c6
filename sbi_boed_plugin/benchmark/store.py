"""A folder of finished jobs: one JSON file a job, and one run at a time.

A record is a dictionary with these entries:

- `job`: the settings, and `status`: `"done"` or `"failed"`;
- `result`: what the job returned (empty if it failed and never succeeded before);
- `error`, `traceback`: what went wrong, and what was printed before;
- `seconds`, `finished`, `load`, `versions`, `warnings`: how and with what it ran.
"""

import contextlib
import hashlib
import json
import re
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from sbi_boed_plugin._atomic import write_bytes
from sbi_boed_plugin._results import finite_or_none

__all__ = ["FolderInUseError", "Record", "Settings", "Store", "file_name", "job_key"]

Settings = Mapping[str, Any]
Record = dict[str, Any]

_ENTRIES = {
    *("job", "status", "result", "error", "traceback"),
    *("seconds", "finished", "load", "versions", "warnings"),
}


class FolderInUseError(RuntimeError):
    """Another run writes to the folder."""


def job_key(settings: Settings) -> str:
    """Return a text that differs wherever settings do, whatever their order."""
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
    return f"{readable[:120]}-{digest}.json"


class Store:
    """The records of a folder, which need not exist.

    A file that holds no record is named in a warning and set aside under another name:
    it never stops a run or a report, and its job runs again.
    """

    def __init__(self, folder: Path | str) -> None:
        self.folder = Path(folder).absolute()
        self.jobs = self.folder / "jobs"

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Make the folder, and keep other runs out of it.

        The operating system frees the lock when the process ends, however it ends.
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
            yield
        finally:
            lock.release()

    def write(self, record: Record) -> None:
        """Write the record of a job in one step, not-a-number and infinity as null."""
        text = json.dumps(finite_or_none(record), indent=1, ensure_ascii=False)
        write_bytes(self.jobs / file_name(record["job"]), (text + "\n").encode())

    def read(self, settings: Settings) -> Record | None:
        """Return the record of a job, or `None` if there is none that can be read."""
        path = self.jobs / file_name(settings)
        return self._read(path) if path.exists() else None

    def read_all(self) -> list[Record]:
        """Return all records, in the order of their files' names."""
        found = [self._read(path) for path in sorted(self.jobs.glob("[!.]*.json"))]
        return [record for record in found if record is not None]

    def _read(self, path: Path) -> Record | None:
        try:
            record = json.loads(path.read_bytes())
            if missing := _ENTRIES - set(record):
                raise ValueError(f"it lacks {', '.join(sorted(missing))}")
            if path.name != (name := file_name(record["job"])):
                # A copy would count as another result.
                raise ValueError(f"the record of its job belongs in {name}")
        except OSError:
            raise
        except Exception as error:
            aside = path.with_name(f"{path.name}.unreadable")
            # The folder of somebody else may be read only.
            with contextlib.suppress(PermissionError):
                path.replace(aside)
            warnings.warn(
                f"{path} is not the record of a job ({type(error).__name__}: {error}). "
                f"It is set aside as {aside.name}; its job will run again.",
                stacklevel=3,
            )
            return None
        return record
