"""An end for calls that have none of their own, such as samplers that never arrive."""

import ctypes
import threading
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["TimeLimitError", "time_limit"]


class TimeLimitError(TimeoutError):
    """A call took longer than it may."""


@contextmanager
def time_limit(seconds: float | None) -> Iterator[None]:
    """Raise an error in this thread when what is within takes too long.

    It comes when Python next runs one of its own instructions: a single call into
    compiled code ends first. Signals would need the main thread, which workers on a
    cluster do not run in.

    Args:
        seconds: The limit; without one nothing happens.

    Raises:
        TimeLimitError: If it is passed.
    """
    if seconds is None:
        yield
        return
    guard = threading.Lock()
    is_over = False
    thread = threading.get_ident()

    def stop() -> None:
        with guard:
            if not is_over:
                _raise_later(thread, TimeLimitError)

    timer = threading.Timer(seconds, stop)
    timer.daemon = True
    timer.start()
    try:
        try:
            yield
        finally:
            with guard:
                is_over = True
                # On its way, perhaps: it must not arrive outside.
                _raise_later(thread, None)
            timer.cancel()
    except TimeLimitError as error:
        raise TimeLimitError(f"it took longer than {seconds:g} s") from error


def _raise_later(thread: int, kind: type[BaseException] | None) -> None:
    """Have a thread raise an error, or take back one that it has not raised yet."""
    error = None if kind is None else ctypes.py_object(kind)
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread), error)
