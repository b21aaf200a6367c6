"""Keys of trainings: a digest of all that a training depends on."""

import contextlib
import hashlib
import platform
from dataclasses import fields
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from torch import Tensor

from sbi_boed_plugin import __version__
from sbi_boed_plugin.sbibm._cache import cache_key
from sbi_boed_plugin.sbibm._fingerprint import fingerprint
from sbi_boed_plugin.sbibm.settings import RunSettings

__all__ = ["code_digest", "training_key"]

# Folders of our package that no training comes through.
_NEVER_TRAINS = ("benchmark", "cli", "plotting", "reproduce")

_PACKAGES = (
    "nflows",
    "numpy",
    "pyro-ppl",
    "sbi",
    "sbibm",
    "scipy",
    "torch",
    "zuko",
)


def training_key(
    method: str, settings: RunSettings, task: Any, num_simulations: int, x_o: Tensor
) -> str:
    """Return a key of all that a training depends on.

    Two tasks have the same key only if they were made with the same values, priors and
    functions, by the same code. What cannot be compared by value has a key of its own
    in each process: it is trained again rather than taken for another.

    Args:
        method: Name of the method.
        settings: Its hyperparameters.
        task: A task of sbibm, or one that looks like it.
        num_simulations: Number of simulations of all rounds together.
        x_o: The observation, on which several rounds depend.

    Returns:
        A text.
    """
    hyper = {f.name: getattr(settings, f.name) for f in fields(settings)}
    # Where files are kept changes nothing; how samples are drawn only later rounds.
    irrelevant = {"cache"}
    if settings.num_rounds == 1:
        irrelevant |= {"mcmc_method", "mcmc_parameters", "max_sampling_time"}
    return cache_key(
        {
            "method": method,
            "hyper": {k: v for k, v in hyper.items() if k not in irrelevant},
            "num_simulations": num_simulations,
            "observation": x_o if settings.num_rounds > 1 else None,
            "task": fingerprint(task),
            "versions": _versions(),
            "code": code_digest(),
        }
    )


def _versions() -> dict[str, str]:
    """Return versions of all that has a part in a training."""
    found = {"python": platform.python_version(), "sbi_boed_plugin": __version__}
    for name in _PACKAGES:
        with contextlib.suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


@cache
def code_digest() -> str:
    """Return a digest of our code that trains: between releases it has no version."""
    digest = hashlib.sha256()
    package = Path(__file__).parents[1]
    for path in sorted(package.rglob("*.py")):
        if path.relative_to(package).parts[0] not in _NEVER_TRAINS:
            digest.update(path.read_bytes())
    return digest.hexdigest()
