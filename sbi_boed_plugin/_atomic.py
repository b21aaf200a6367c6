"""Steps that are done as a whole or not at all, whenever the program is stopped."""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["defer_interrupts", "write_bytes"]


@contextmanager
def defer_interrupts() -> Iterator[None]:
    """Let Ctrl-C take effect at the end of a short block rather than inside it."""
    handler = signal.getsignal(signal.SIGINT)
    in_main_thread = threading.current_thread() is threading.main_thread()
    if not in_main_thread or not callable(handler):  # Nothing can be received here.
        yield
        return
    received = []
    signal.signal(signal.SIGINT, lambda *details: received.append(details))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)
    if received:
        handler(*received[-1])


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file under another name, then rename it in one step.

    One process writes a file at a time; what a killed one left is overwritten.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            # The content must be on the disk before the name points to it.
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
