"""An end for calls that have none of their own, such as samplers that never arrive."""

import ctypes
import threading
from collections.abc import Callable
from typing import TypeVar

__all__ = ["TimeLimitError", "call_within"]

Result = TypeVar("Result")

# Who survives the first interruption is given another one after so many seconds.
_AGAIN_SECONDS = 5.0


class TimeLimitError(RuntimeError):
    """A call took longer than it may."""


class _Expired(BaseException):
    """What ends the call: no handler of ordinary errors takes it for one."""


def call_within(seconds: float | None, function: Callable[[], Result]) -> Result:
    """Call a function, and raise an error in it when it takes too long.

    The error comes when Python next runs one of its own instructions: a single call
    into compiled code ends first. Signals would need the main thread, which workers on
    a cluster do not run in.

    Args:
        seconds: The limit, or `None`.
        function: What to call.

    Returns:
        What the function returns.

    Raises:
        TimeLimitError: If the limit is passed.
    """
    if seconds is None:
        return function()
    watch = _Watch(seconds)
    results: list[Result] = []
    cause = None
    # Not a context manager: an error from outside may come at any instruction, also at
    # those between `with` and its body.
    try:
        try:
            watch.start()
            results.append(function())
        finally:
            watch.stop()
    except _Expired as expired:
        watch.stop()  # It may have come before the first stop had done anything.
        cause = expired
    if watch.has_fired:  # Whoever has swallowed the error comes here, too.
        raise TimeLimitError(f"it took longer than {seconds:g} s") from cause
    return results[0]


class _Watch:
    """Interrupts the thread that made it, from a time on until it is stopped."""

    def __init__(self, seconds: float) -> None:
        self.has_fired = False
        self._is_over = False
        self._seconds = seconds
        self._watched = threading.get_ident()
        self._guard = threading.Lock()
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        with self._guard:
            self._is_over = True
            # On its way, perhaps: it must not arrive later.
            _raise_in(self._watched, None)
        self._end.set()

    def _watch(self) -> None:
        wait = self._seconds
        while not self._end.wait(wait):
            wait = _AGAIN_SECONDS
            with self._guard:
                if self._is_over:
                    return
                self.has_fired = True
                _raise_in(self._watched, _Expired)


def _raise_in(thread: int, kind: type[BaseException] | None) -> None:
    """Have a thread raise an error, or take back one that it has not raised yet."""
    error = None if kind is None else ctypes.py_object(kind)
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread), error)
