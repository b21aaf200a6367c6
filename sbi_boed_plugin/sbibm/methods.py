"""sbi's methods and ours as sbibm calls its algorithms, side by side.

Each takes a task, numbers of samples and simulations, and an observation or its number,
and returns samples, the number of simulations, and the log-density of the true
parameters where it is known. With the same seed all methods see the same simulations.
"""

from collections.abc import Callable
from dataclasses import asdict, fields
from functools import partial
from typing import Any

import torch
from sbi.inference import NLE_A, NPE_C, NRE_B
from sbi.inference.posteriors.posterior_parameters import MCMCPosteriorParameters
from sbi.neural_nets import classifier_nn, likelihood_nn, posterior_nn
from torch import Tensor

from sbi_boed_plugin.experiment import NoOpTracker
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

# More and shorter chains than sbibm's hundred with every tenth sample: a step of two
# hundred costs little more than one of a hundred, and there are ten times fewer. Each
# starts at a likely one of 500 draws; sbi evaluates them anew for every chain.
_MCMC: dict[str, Any] = {
    "num_chains": 200,
    "thin": 2,
    "warmup_steps": 60,
    "init_strategy": "resample",
    "init_strategy_parameters": {"num_candidate_samples": 500},
}


def nle(
    task: Any,
    num_samples: int,
    num_simulations: int,
    num_observation: int | None = None,
    observation: Tensor | None = None,
    **hyper: Any,
) -> SbibmResult:
    """Run sbi's NLE on a task of sbibm, or SNLE with `num_rounds`.

    Args:
        task: Task instance.
        num_samples: Number of samples to generate from the posterior.
        num_simulations: Simulation budget, of all rounds together.
        num_observation: Observation number to load, alternative to `observation`.
        observation: Observation of shape `(1, dim_data)`, alternative to
            `num_observation`.
        hyper: Fields of `LikelihoodSettings`.

    Returns:
        Samples of shape `(num_samples, dim_parameters)`, the number of simulations, and
        the log-density in nats of the true parameters. The density is `None` here, as
        it is for `nle_ince`, `nre` and `nre_gkl`, whose posteriors are not normalized,
        and wherever an observation is given without its number.

    Raises:
        ValueError: If not exactly one observation is given or it does not match the
            task, a number is too small, or a cache has no seed.
        TypeError: If a hyperparameter is unknown.
    """
    return run_method(
        "nle", task, num_samples, num_simulations, num_observation, observation, **hyper
    ).to_sbibm()


def _run_function(name: str, purpose: str, settings: type[RunSettings]) -> Any:
    """Return a function like `nle` for another method."""

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
    run_on_task.__doc__ = f"""Run {purpose} on a task of sbibm.

    Arguments, results and errors are those of `nle`; `hyper` are fields of
    `{settings.__name__}`.
    """
    return run_on_task


nle_ince = _run_function("nle_ince", "`NLE_INCE`", InfoNCESettings)
npe = _run_function("npe", "sbi's NPE, whose density is known,", PosteriorSettings)
npe_gkl = _run_function("npe_gkl", "`NPE_GKL`, whose density is known,", HybridSettings)
nre = _run_function("nre", "sbi's NRE (`NRE_B`)", RatioSettings)
nre_gkl = _run_function("nre_gkl", "`NRE_GKL`", RatioSettings)

METHODS: dict[str, Callable[..., SbibmResult]] = {
    "nle": nle,
    "nle_ince": nle_ince,
    "npe": npe,
    "npe_gkl": npe_gkl,
    "nre": nre,
    "nre_gkl": nre_gkl,
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
        ValueError: If there is no such method, or as `nle` does.
        TypeError: If a hyperparameter is unknown.
    """
    settings = check_hyper(name, **hyper)
    _, recipe = _RECIPES[name]
    return run(
        recipe(settings),
        settings,
        task,
        num_samples,
        num_simulations,
        num_observation,
        observation,
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
    kind, recipe = _RECIPES[name]
    known = [field.name for field in fields(kind)]
    unknown = sorted(set(hyper) - set(known))
    if unknown:
        raise TypeError(
            f"{name} has no hyperparameter '{unknown[0]}'. It has {', '.join(known)}."
        )
    settings = kind(**hyper)
    # sbi has its own say on parameters of MCMC.
    recipe(settings)
    return settings


def _nle(settings: LikelihoodSettings) -> Method:
    return Method(
        name="nle",
        make_trainer=partial(_make_trainer, NLE_A, likelihood_nn, settings),
        train=_train(settings),
        build=_build_mcmc(settings),
    )


def _nle_ince(settings: InfoNCESettings) -> Method:
    contrast = {
        "num_contrastive": settings.num_contrastive,
        "regularization_strength": settings.regularization_strength,
    }
    return Method(
        name="nle_ince",
        make_trainer=partial(_make_trainer, NLE_INCE, likelihood_nn, settings),
        train=_train(settings) | contrast,
        build=_build_mcmc(settings),
    )


def _npe(settings: PosteriorSettings) -> Method:
    return Method(
        name="npe",
        make_trainer=partial(_make_trainer, NPE_C, posterior_nn, settings),
        train=_train(settings) | {"num_atoms": settings.num_atoms},
        draw={"max_sampling_time": settings.max_sampling_time},
        takes_proposal=True,
        normalized=True,
    )


def _npe_gkl(settings: HybridSettings) -> Method:
    hybrid = {"training": settings.training, "energy": settings.energy}
    return Method(
        name="npe_gkl",
        make_trainer=partial(_make_trainer, NPE_GKL, posterior_nn, settings),
        train=_train(settings) | {"num_atoms": settings.num_atoms} | hybrid,
        draw={"max_sampling_time": settings.max_sampling_time},
        takes_proposal=True,
        normalized=True,
        describe=_describe_weights,
    )


def _nre(settings: RatioSettings) -> Method:
    return Method(
        name="nre",
        make_trainer=partial(_make_trainer, NRE_B, classifier_nn, settings),
        train=_train(settings) | {"num_atoms": settings.num_atoms},
        build=_build_mcmc(settings),
    )


def _nre_gkl(settings: RatioSettings) -> Method:
    return Method(
        name="nre_gkl",
        make_trainer=partial(_make_trainer, NRE_GKL, classifier_nn, settings),
        train=_train(settings) | {"num_atoms": settings.num_atoms},
        build=_build_mcmc(settings),
    )


_RECIPES: dict[str, tuple[type[RunSettings], Callable[..., Method]]] = {
    "nle": (LikelihoodSettings, _nle),
    "nle_ince": (InfoNCESettings, _nle_ince),
    "npe": (PosteriorSettings, _npe),
    "npe_gkl": (HybridSettings, _npe_gkl),
    "nre": (RatioSettings, _nre),
    "nre_gkl": (RatioSettings, _nre_gkl),
}


def _make_trainer(
    trainer: Any, network: Callable[..., Any], settings: RunSettings, prior: Any
) -> Any:
    """Return a trainer with the network of the settings, that keeps no logs."""
    builder = network(
        settings.neural_net,
        hidden_features=settings.hidden_features,
        z_score_x=settings.z_score_x,
        z_score_theta=settings.z_score_theta,
    )
    return trainer(prior, builder, tracker=NoOpTracker(), show_progress_bars=False)


def _train(settings: RunSettings) -> dict[str, Any]:
    return {
        "training_batch_size": settings.training_batch_size,
        "max_num_epochs": settings.max_num_epochs,
    }


def _build_mcmc(settings: LikelihoodSettings | RatioSettings) -> dict[str, Any]:
    parameters = {**_MCMC, "method": settings.mcmc_method}
    if settings.mcmc_parameters is not None:
        parameters = {"method": settings.mcmc_method, **settings.mcmc_parameters}
    return {
        "sample_with": "mcmc",
        "posterior_parameters": MCMCPosteriorParameters(**parameters),
    }


def _describe_weights(posterior: Any, x_o: Tensor) -> dict[str, float]:
    """Return how well the base of a hybrid fits."""
    measured = asdict(posterior.diagnostics(x_o))
    return {
        name: float(value)
        for name, value in measured.items()
        if isinstance(value, torch.Tensor) and value.numel() == 1
    }
