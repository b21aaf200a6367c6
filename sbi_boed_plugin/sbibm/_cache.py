"""Trained networks, kept in memory and, where the user wants it, in a folder.

A training is used again by a run with the same task of sbibm (its name, settings and
prior), method, hyperparameters, seed, number of simulations and versions of torch, sbi,
sbibm and this package; a task of your own also needs a `cache_tag`, which you change
whenever its code changes.
"""

import contextlib
import hashlib
import io
import json
import warnings
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from types import FunctionType, MethodType
from typing import Any

import numpy as np
import torch
from filelock import FileLock
from torch import Tensor

from sbi_boed_plugin._atomic import write_bytes
from sbi_boed_plugin._rng import isolated_rng
from sbi_boed_plugin._versions import installed_versions
from sbi_boed_plugin.sbibm.settings import RunSettings

__all__ = ["TrainingCache", "training_key"]

# Networks of the last trainings that are kept in memory: enough for a loop over the
# observations of a task with every method.
_NUM_IN_MEMORY = 8

# As they are loaded, whatever is installed in the course of a run.
_VERSIONS = installed_versions(("sbi", "sbibm", "torch"))


def training_key(
    method: str, settings: RunSettings, task: Any, num_simulations: int, x_o: Tensor
) -> str | None:
    """Return a text that is the same for trainings that may be used for each other.

    It is `None` for a training that is not kept; where the user wants that in a folder,
    a `ValueError` says why it cannot be.
    """
    reason = _why_not_kept(settings, task)
    if reason is not None:
        if settings.cache is not None:
            raise ValueError(f"cache={str(settings.cache)!r} needs {reason}")
        return None
    hyper = {name: _plain(value) for name, value in asdict(settings).items()}
    del hyper["cache"]
    if settings.num_rounds == 1:
        # Only later rounds depend on how samples are drawn.
        for name in ("mcmc_method", "mcmc_parameters"):
            hyper.pop(name, None)
    # Names with an underscore hold what a task computes when it is asked for.
    public = {n: v for n, v in vars(task).items() if not n.startswith("_")}
    with isolated_rng(0):
        prior = task.get_prior_dist().sample((4,))
    parts = {
        "method": method,
        "hyper": hyper,
        "num_simulations": num_simulations,
        "observation": _plain(x_o) if settings.num_rounds > 1 else None,
        "task": f"{type(task).__module__}.{type(task).__qualname__}",
        "settings": _plain(public),
        "prior": _plain(prior),
        "versions": _VERSIONS,
    }
    text = json.dumps(parts, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:40]


def _why_not_kept(settings: RunSettings, task: Any) -> str | None:
    """Return what is missing to use a training again, or `None`."""
    if settings.seed is None:
        return (
            "a seed: without one, every run is another one. Pass seed=0, for example."
        )
    # A task of sbibm's may have had one of its functions replaced.
    is_from_sbibm = type(task).__module__.startswith("sbibm.") and not any(
        isinstance(value, (FunctionType, MethodType)) for value in vars(task).values()
    )
    if settings.cache_tag is None and not is_from_sbibm:
        return (
            f"a cache_tag: {type(task).__name__} is a task of your own, whose code may "
            "change. Pass cache_tag='1', for example, and another one after a change."
        )
    return None


def _plain(value: Any) -> Any:
    """Return numbers, texts and what holds them; of everything else, its type."""
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, (Tensor, np.ndarray, np.generic)):
        return [str(value.dtype), value.tolist()]
    if isinstance(value, dict):
        return {str(name): _plain(part) for name, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(part) for part in value]
    return type(value).__name__


class TrainingCache:
    """Keeps the last trainings in memory, and all of them in a folder if there is one.

    Files are pickles, which run code when they are loaded: share a folder with people
    whom you trust. Of several processes, whoever comes first trains and the others wait
    for the file; a process that is killed leaves no half-written file and no lock.
    """

    def __init__(self) -> None:
        self._memory: dict[str, Any] = {}

    def get(
        self, key: str | None, make: Callable[[], Any], folder: str | Path | None
    ) -> tuple[Any, bool]:
        """Return what is kept under a key, or make it, and whether it was kept."""
        if key is None:
            return make(), False
        path, lock = None, contextlib.nullcontext()
        if folder is not None:
            path = Path(folder) / f"{key}.pt"
            path.parent.mkdir(parents=True, exist_ok=True)
            lock = FileLock(path.with_suffix(".lock"))
        with lock:
            value = self._memory.pop(key, None)
            if value is None and path is not None and path.exists():
                value = _load_or_warn(path)
            was_kept = value is not None
            if not was_kept:
                value = make()
            self._memory[key] = value  # which is now the latest one.
            if len(self._memory) > _NUM_IN_MEMORY:
                del self._memory[next(iter(self._memory))]
            if path is not None and not (was_kept and path.exists()):
                _save_or_warn(path, value)
        return value, was_kept

    def clear(self) -> None:
        """Forget what is in memory. Files stay."""
        self._memory.clear()


def _load_or_warn(path: Path) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=False)
    except Exception as error:  # Pickles fail in many ways.
        warnings.warn(
            f"{path} cannot be read ({type(error).__name__}: {error}): it is trained "
            "again.",
            stacklevel=2,
        )


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
