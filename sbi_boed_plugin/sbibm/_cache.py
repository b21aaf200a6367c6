"""Trained estimators, kept under a key of everything that they depend on."""

import hashlib
import io
import json
import warnings
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock

from sbi_boed_plugin._atomic import write_bytes

__all__ = ["TrainingCache", "cache_key"]

# Networks of the last trainings that are kept in memory: enough for a loop over the
# observations of a task with every method.
_NUM_IN_MEMORY = 8


def cache_key(parts: Mapping[str, Any]) -> str:
    """Return a short text that differs wherever the parts do.

    Args:
        parts: Numbers, texts, tensors, arrays, and lists and dictionaries of them.
            Other objects count by their `repr`.

    Returns:
        Forty hexadecimal digits.

    Example:
        >>> cache_key({"task": "slcp", "seed": 0}) == cache_key(
        ...     {"seed": 0, "task": "slcp"}
        ... )
        True
        >>> cache_key({"seed": 0}) == cache_key({"seed": 1})
        False
    """
    text = json.dumps(parts, sort_keys=True, default=_describe)
    return hashlib.sha256(text.encode()).hexdigest()[:40]


def _describe(value: Any) -> Any:
    if isinstance(value, (torch.Tensor, np.ndarray)):
        return [str(value.dtype), value.tolist()]
    return repr(value)


class TrainingCache:
    """Keeps the last trainings in memory, and all of them in a folder if there is one.

    Files are pickles, which run code when they are loaded: share a folder with people
    whom you trust. Several processes may share one: whoever comes first trains, the
    others wait for the file. A process that is killed leaves no half-written file, and
    its lock is released by the operating system.
    """

    def __init__(self) -> None:
        self._memory: OrderedDict[str, Any] = OrderedDict()

    def get(
        self, key: str, make: Callable[[], Any], folder: Path | None
    ) -> tuple[Any, bool]:
        """Return what was kept under a key, or make it.

        Args:
            key: A key, as `cache_key` returns it.
            make: Called if there is nothing under the key.
            folder: Where to look, and to keep what was made; memory only if `None`.

        Returns:
            The value, and whether it had been kept.
        """
        if key in self._memory:
            value = self._remember(key, self._memory[key])
            if folder is not None:
                with _locked(folder, key) as path:
                    if not path.exists():
                        _save_or_warn(path, value)
            return value, True
        if folder is None:
            return self._remember(key, make()), False
        with _locked(folder, key) as path:
            if path.exists():
                try:
                    return self._remember(key, _load(path)), True
                except Exception as error:  # Pickles fail in many ways.
                    warnings.warn(
                        f"{path} cannot be read ({type(error).__name__}: {error}): it "
                        "is trained again.",
                        stacklevel=2,
                    )
            # First in memory: with a full disk, the training is not lost.
            value = self._remember(key, make())
            _save_or_warn(path, value)
        return value, False

    def clear(self) -> None:
        """Forget what is in memory. Files stay."""
        self._memory.clear()

    def _remember(self, key: str, value: Any) -> Any:
        self._memory[key] = value
        self._memory.move_to_end(key)
        while len(self._memory) > _NUM_IN_MEMORY:
            self._memory.popitem(last=False)
        return value


@contextmanager
def _locked(folder: Path, key: str) -> Iterator[Path]:
    """Keep other processes from the file of a key, and return its path."""
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / f"{key}.lock"):
        yield folder / f"{key}.pt"


def _load(path: Path) -> Any:
    return torch.load(path, map_location="cpu", weights_only=False)


def _save_or_warn(path: Path, value: Any) -> None:
    content = io.BytesIO()
    torch.save(value, content)
    try:
        write_bytes(path, content.getvalue())
    except OSError as error:
        warnings.warn(
            f"{path} cannot be written ({error}): the training is kept in memory only.",
            stacklevel=2,
        )
