"""Files that are whole, or not there, at any moment."""

import os
import uuid
from pathlib import Path

__all__ = ["write_bytes"]


def write_bytes(path: Path, content: bytes, *, shared: bool = True) -> None:
    """Write a file under another name, which then takes its place in one step.

    Whoever stops the program, or reads at the same time, finds the earlier file or the
    new one, never a part.

    Args:
        path: The file; folders above it are made.
        content: What it shall hold.
        shared: Whether others may write the file at the same time. If not, what a
            killed program left beside it is written over.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # A name in the same folder that nobody else chooses.
    unique = f".{uuid.uuid4().hex}" if shared else ""
    temporary = path.with_name(f".{path.name}{unique}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            # A name must not point to content that a power cut could still take.
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
