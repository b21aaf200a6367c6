"""Keys of trainings: a digest of all that a training depends on."""

import platform
from dataclasses import fields
from typing import Any

from torch import Tensor

from sbi_boed_plugin._versions import code_digest, installed_versions
from sbi_boed_plugin.sbibm._cache import cache_key
from sbi_boed_plugin.sbibm._fingerprint import fingerprint
from sbi_boed_plugin.sbibm.settings import RunSettings

__all__ = ["training_key"]

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

# As they are loaded, whatever is installed or edited in the course of a run.
_VERSIONS = {"python": platform.python_version(), **installed_versions(_PACKAGES)}
_CODE = code_digest()


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
            "versions": _VERSIONS,
            "code": _CODE,
        }
    )
