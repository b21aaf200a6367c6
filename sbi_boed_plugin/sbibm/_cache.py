"""Trained networks, kept in memory and, where the user wants it, in a folder.

A training is used again by a run with the same task of sbibm (its name, settings and
prior), method, hyperparameters, seed, number of simulations and versions of torch, sbi,
sbibm and this package; a task of your own also needs a `cache_tag`, which you change
whenever its code changes.
"""

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

__all__ = ["TrainingCache", "is_from_sbibm", "training_key"]

# Networks of the last trainings that are kept in memory: enough for a loop over the
# observations of a task with every method.
_NUM_IN_MEMORY = 8

# As they are loaded, whatever is installed in the course of a run.
_VERSIONS = installed_versions(("sbi", "sbibm", "torch"))


def is_from_sbibm(task: Any) -> bool:
    """Tell whether a task is one of sbibm, none of whose functions was replaced."""
    if not type(task).__module__.startswith("sbibm."):
        return False
    held = vars(task).values()
    return not any(isinstance(value, (FunctionType, MethodType)) for value in held)


def training_key(
    method: str, settings: RunSettings, task: Any, num_simulations: int, x_o: Tensor
) -> str:
    """Return a text that is the same for trainings that may be used for each other."""
    hyper = {name: _plain(value) for name, value in asdict(settings).items()}
    del hyper["cache"]
    if settings.num_rounds == 1:
        # Only later rounds depend on how samples are drawn.
        for name in ("mcmc_method", "mcmc_parameters", "max_sampling_time"):
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
    whom you trust. Several processes may share one: whoever comes first trains, the
    others wait for the file. A process that is killed leaves no half-written file, and
    its lock is released by the operating system.
    """

    def __init__(self) -> None:
        self._memory: dict[str, Any] = {}

    def get(
        self, key: str, make: Callable[[], Any], folder: Path | None
    ) -> tuple[Any, bool]:
        """Return what is kept under a key, or make it, and whether it was kept."""
        if folder is None:
            return self._get(key, make, None)
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / f"{key}.lock"):
            return self._get(key, make, folder / f"{key}.pt")

    def _get(
        self, key: str, make: Callable[[], Any], path: Path | None
    ) -> tuple[Any, bool]:
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
