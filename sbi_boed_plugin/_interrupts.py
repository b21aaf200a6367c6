"""Interrupts that wait until a piece of state is consistent."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["defer_interrupts"]


@contextmanager
def defer_interrupts() -> Iterator[None]:
    """Let Ctrl-C take effect at the end of a short block rather than inside it.

    Only the main thread receives signals; elsewhere, and where Ctrl-C has no handler
    of Python's, the block runs as it is.
    """
    handler = signal.getsignal(signal.SIGINT)
    in_main_thread = threading.current_thread() is threading.main_thread()
    if not in_main_thread or not callable(handler):
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
