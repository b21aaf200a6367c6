"""sbi's methods and ours as sbibm calls its algorithms, side by side.

Each takes a task, numbers of samples and simulations, and an observation or its number,
and returns samples, the number of simulations, and the log-density of the true
parameters where it is known. With the same seed all methods see the same simulations.
"""

from collections.abc import Callable
from dataclasses import fields
from typing import Any

from sbi.inference import NLE_A, NPE_C, NRE_B
from sbi.neural_nets import classifier_nn, likelihood_nn, posterior_nn
from torch import Tensor

from sbi_boed_plugin.sbibm._run import Method, RunOutcome, SbibmResult, run
from sbi_boed_plugin.sbibm.settings import (
    HybridSettings,
    InfoNCESettings,
    LikelihoodSettings,
    PosteriorSettings,
    RatioSettings,
    RunSettings,
)
from sbi_boed_plugin.trainers.nle_ince import NLE_INCE
from sbi_boed_plugin.trainers.npe_gkl import NPE_GKL
from sbi_boed_plugin.trainers.nre_gkl import NRE_GKL

__all__ = [
    "METHODS",
    "check_hyper",
    "nle",
    "nle_ince",
    "npe",
    "npe_gkl",
    "nre",
    "nre_gkl",
    "run_method",
]

# Trainer, kind of network, and hyperparameters of each method.
_RECIPES: dict[str, tuple[type, Callable[..., Any], type[RunSettings]]] = {
    "nle": (NLE_A, likelihood_nn, LikelihoodSettings),
    "nle_ince": (NLE_INCE, likelihood_nn, InfoNCESettings),
    "npe": (NPE_C, posterior_nn, PosteriorSettings),
    "npe_gkl": (NPE_GKL, posterior_nn, HybridSettings),
    "nre": (NRE_B, classifier_nn, RatioSettings),
    "nre_gkl": (NRE_GKL, classifier_nn, RatioSettings),
}


def run_method(
    name: str,
    task: Any,
    num_samples: int,
    num_simulations: int,
    num_observation: int | None = None,
    observation: Tensor | None = None,
    **hyper: Any,
) -> RunOutcome:
    """Run a method by its name, and tell training from sampling.

    Args:
        name: One of `METHODS`.
        task: Task instance.
        num_samples: Number of samples to generate from the posterior.
        num_simulations: Simulation budget, of all rounds together.
        num_observation: Observation number to load, alternative to `observation`.
        observation: Observation of shape `(1, dim_data)`, alternative to
            `num_observation`.
        hyper: Hyperparameters of the method.

    Returns:
        Samples, their cost, and what the method says of itself.

    Raises:
        ValueError: If there is no such method, not exactly one observation is given or
            it does not match the task, a number is too small, or a cache has no seed
            or, for a task of your own, no tag.
        TypeError: If a hyperparameter is unknown.
    """
    settings = check_hyper(name, **hyper)
    trainer, network, _ = _RECIPES[name]
    method = Method(name, trainer, network, settings)
    return run(method, task, num_samples, num_simulations, num_observation, observation)


def _run_function(name: str, purpose: str) -> Callable[..., SbibmResult]:
    """Return the function of a method that sbibm's runner calls."""

    def run_on_task(
        task: Any,
        num_samples: int,
        num_simulations: int,
        num_observation: int | None = None,
        observation: Tensor | None = None,
        **hyper: Any,
    ) -> SbibmResult:
        return run_method(
            name,
            task,
            num_samples,
            num_simulations,
            num_observation,
            observation,
            **hyper,
        ).to_sbibm()

    # It is found, and pickled, under the name that it gets in this module.
    run_on_task.__name__ = run_on_task.__qualname__ = name
    run_on_task.__doc__ = f"""Run {purpose} on a task of sbibm, in one or more rounds.

    Arguments and errors are those of `run_method`; `hyper` are fields of
    `{_RECIPES[name][2].__name__}`.

    Returns:
        Samples of shape `(num_samples, dim_parameters)`, the number of simulations, and
        the log-density in nats of the true parameters: `None` where an observation is
        given without its number, and for methods without a normalized posterior, which
        are all but `npe` and `npe_gkl`.
    """
    return run_on_task


nle = _run_function("nle", "sbi's NLE")
nle_ince = _run_function("nle_ince", "`NLE_INCE`")
npe = _run_function("npe", "sbi's NPE")
npe_gkl = _run_function("npe_gkl", "`NPE_GKL`")
nre = _run_function("nre", "sbi's NRE (`NRE_B`)")
nre_gkl = _run_function("nre_gkl", "`NRE_GKL`")

METHODS: dict[str, Callable[..., SbibmResult]] = dict(
    zip(_RECIPES, (nle, nle_ince, npe, npe_gkl, nre, nre_gkl), strict=True)
)


def check_hyper(name: str, **hyper: Any) -> RunSettings:
    """Return the hyperparameters of a method, or say which of them it has not.

    Args:
        name: One of `METHODS`.
        hyper: Hyperparameters.

    Returns:
        All hyperparameters of the method.

    Raises:
        ValueError: If there is no such method, or a value is out of range.
        TypeError: If a hyperparameter is unknown.
    """
    if name not in _RECIPES:
        raise ValueError(
            f"there is no method '{name}'. Available: {', '.join(_RECIPES)}."
        )
    kind = _RECIPES[name][2]
    known = [field.name for field in fields(kind)]
    unknown = sorted(set(hyper) - set(known))
    if unknown:
        raise TypeError(
            f"{name} has no hyperparameter '{unknown[0]}'. It has {', '.join(known)}."
        )
    return kind(**hyper)
