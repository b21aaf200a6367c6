"""sbi's methods and ours as sbibm calls its algorithms, side by side.

Each takes a task, numbers of samples and simulations, and an observation or its number,
and returns samples, the number of simulations, and the log-density of the true
parameters where it is known. With the same seed all methods see the same simulations.
"""

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

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


@dataclass(frozen=True)
class _Recipe:
    """What differs from method to method: `own` are settings that `train()` takes."""

    trainer: type
    network: Callable[..., Any]
    settings: type[RunSettings]
    own: tuple[str, ...] = ()


_RECIPES = {
    "nle": _Recipe(NLE_A, likelihood_nn, LikelihoodSettings),
    "nle_ince": _Recipe(
        NLE_INCE,
        likelihood_nn,
        InfoNCESettings,
        ("num_contrastive", "regularization_strength"),
    ),
    "npe": _Recipe(NPE_C, posterior_nn, PosteriorSettings, ("num_atoms",)),
    "npe_gkl": _Recipe(
        NPE_GKL, posterior_nn, HybridSettings, ("num_atoms", "training", "energy")
    ),
    "nre": _Recipe(NRE_B, classifier_nn, RatioSettings, ("num_atoms",)),
    "nre_gkl": _Recipe(NRE_GKL, classifier_nn, RatioSettings, ("num_atoms",)),
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
    method = _make_method(name, check_hyper(name, **hyper))
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
    `{_RECIPES[name].settings.__name__}`.

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

METHODS: dict[str, Callable[..., SbibmResult]] = {
    "nle": nle,
    "nle_ince": nle_ince,
    "npe": npe,
    "npe_gkl": npe_gkl,
    "nre": nre,
    "nre_gkl": nre_gkl,
}


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
    kind = _RECIPES[name].settings
    known = [field.name for field in fields(kind)]
    unknown = sorted(set(hyper) - set(known))
    if unknown:
        raise TypeError(
            f"{name} has no hyperparameter '{unknown[0]}'. It has {', '.join(known)}."
        )
    settings = kind(**hyper)
    _make_method(name, settings)  # sbi has its own say on parameters of MCMC.
    return settings


def _make_method(name: str, settings: Any) -> Method:
    """Return a method with its hyperparameters."""
    recipe = _RECIPES[name]
    learns_posterior = recipe.network is posterior_nn

    def make_trainer(prior: Any) -> Any:
        builder = recipe.network(
            settings.neural_net,
            hidden_features=settings.hidden_features,
            z_score_x=settings.z_score_x,
            z_score_theta=settings.z_score_theta,
        )
        return recipe.trainer(
            prior, builder, tracker=NoOpTracker(), show_progress_bars=False
        )

    build, draw = {}, {}
    if learns_posterior:
        draw = {"max_sampling_time": settings.max_sampling_time}
    else:
        chains = _MCMC if settings.mcmc_parameters is None else settings.mcmc_parameters
        parameters = {"method": settings.mcmc_method, **chains}
        build = {
            "sample_with": "mcmc",
            "posterior_parameters": MCMCPosteriorParameters(**parameters),
        }
    names = ("training_batch_size", "max_num_epochs", *recipe.own)
    return Method(
        name=name,
        settings=settings,
        make_trainer=make_trainer,
        train={name: getattr(settings, name) for name in names},
        build=build,
        draw=draw,
        learns_posterior=learns_posterior,
    )
