"""Trained networks that are kept in a folder.

A training is used again by a run with the same task of sbibm (its name, settings and
prior), method, hyperparameters, seed, number of simulations and versions of torch, sbi,
sbibm and this package; a task of your own also needs a `cache_tag`, which you change
whenever its code changes.
"""

import hashlib
import io
import json
import warnings
from collections.abc import Callable, Mapping
from dataclasses import asdict, is_dataclass
from pathlib import Path
from types import FunctionType, MethodType
from typing import Any

import numpy as np
import torch
from filelock import FileLock
from torch import Tensor

from sbi_boed_plugin._atomic import write_bytes
from sbi_boed_plugin._results import installed_versions
from sbi_boed_plugin._rng import isolated_rng

__all__ = ["kept_or_made", "training_key"]

# As they are loaded, whatever is installed in the course of a run.
_VERSIONS = installed_versions()


def training_key(
    method: str,
    settings: Mapping[str, Any],
    task: Any,
    num_simulations: int,
    x_o: Tensor,
) -> str:
    """Return a text that is the same for trainings that may be used for each other.

    A `ValueError` says what is missing to tell them apart.
    """
    needing = f"cache={str(settings['cache'])!r} needs"
    if settings["seed"] is None:
        raise ValueError(
            f"{needing} a seed: without one, every run is "
            "another one. Pass seed=0, for example."
        )
    # A task of sbibm's may have had one of its functions replaced.
    is_from_sbibm = type(task).__module__.startswith("sbibm.") and not any(
        isinstance(value, (FunctionType, MethodType)) for value in vars(task).values()
    )
    if settings["cache_tag"] is None and not is_from_sbibm:
        raise ValueError(
            f"{needing} a cache_tag: {type(task).__name__} "
            "is a task of your own, whose code may change. Pass cache_tag='1', for "
            "example, and another one after a change."
        )
    with isolated_rng(0):
        prior = task.get_prior_dist().sample((4,))
    parts = {
        "method": method,
        "hyper": {name: settings[name] for name in settings if name != "cache"},
        "num_simulations": num_simulations,
        "observation": x_o if settings["num_rounds"] > 1 else None,
        "task": f"{type(task).__module__}.{type(task).__qualname__}",
        # Names with an underscore hold what a task computes when it is asked for.
        "settings": {n: v for n, v in vars(task).items() if not n.startswith("_")},
        "prior": prior,
        "versions": _VERSIONS,
    }
    text = json.dumps(parts, sort_keys=True, default=_plain)
    return hashlib.sha256(text.encode()).hexdigest()[:40]


def _plain(value: Any) -> Any:
    """Return numbers and texts for what JSON does not know, or its type."""
    if isinstance(value, (Tensor, np.ndarray, np.generic)):
        return [str(value.dtype), value.tolist()]
    if is_dataclass(value) and not isinstance(value, type):
        return asdict(value)
    return type(value).__name__


def kept_or_made(
    key: str, make: Callable[[], Any], folder: str | Path
) -> tuple[Any, bool]:
    """Return what is kept under a key, or make it, and whether it was kept.

    Of several processes, whoever comes first trains and the others wait for the file; a
    process that is killed leaves no half-written file and no lock.
    """
    path = Path(folder) / f"{key}.pt"
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_suffix(".lock")):
        if path.exists():
            try:
                kept = torch.load(path, map_location="cpu", weights_only=False)
                return kept, True
            except Exception as error:  # Pickles fail in many ways.
                warnings.warn(
                    f"{path} cannot be read ({type(error).__name__}: {error}): it is "
                    "trained again.",
                    stacklevel=2,
                )
        made = make()
        content = io.BytesIO()
        torch.save(made, content)
        try:
            write_bytes(path, content.getvalue())
        except OSError as error:  # As on a full disk, which costs no training.
            warnings.warn(
                f"{path} cannot be written ({error}): the training is used, but not "
                "kept.",
                stacklevel=2,
            )
    return made, False
