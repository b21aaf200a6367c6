"""Hyperparameters of the methods that run on sbibm's tasks.

Names are those of sbibm's own algorithms. Defaults are sbi's where sbibm's date from
another sbi: batches of 200 for training, where sbibm took all simulations at once.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from sbi.inference import NLE_A, NPE_C, NRE_B
from sbi.inference.posteriors.posterior_parameters import MCMCPosteriorParameters
from sbi.neural_nets import classifier_nn, likelihood_nn, posterior_nn
from sbi.neural_nets.factory import model_builders

from sbi_boed_plugin._numbers import check_integer
from sbi_boed_plugin.trainers._energy_training import EnergyConfig
from sbi_boed_plugin.trainers.nle_ince import NLE_INCE
from sbi_boed_plugin.trainers.npe_gkl import NPE_GKL
from sbi_boed_plugin.trainers.nre_gkl import NRE_GKL

__all__ = ["RECIPES", "Recipe", "check_hyper", "posterior_arguments"]

# More and shorter chains than sbibm's hundred with every tenth sample: a step of two
# hundred costs little more than one of a hundred, and there are ten times fewer. Each
# starts at a likely one of 500 draws; sbi evaluates them anew for every chain.
_CHAINS: dict[str, Any] = {
    "num_chains": 200,
    "thin": 2,
    "warmup_steps": 60,
    "init_strategy": "resample",
    "init_strategy_parameters": {"num_candidate_samples": 500},
}

_SHARED = {
    "num_rounds": 1,
    "hidden_features": 50,
    "simulation_batch_size": 1_000,
    "training_batch_size": 200,
    "z_score_x": "independent",
    "z_score_theta": "independent",
    "max_num_epochs": 2**31 - 1,
    "seed": None,
    "cache": None,
    "cache_tag": None,
}
_LIKELIHOOD = {
    **_SHARED,
    "neural_net": "maf",
    "automatic_transforms_enabled": True,
    "mcmc_method": "slice_np_vectorized",
    "mcmc_parameters": None,
}
# sbi's loop, as in the methods to compare with.
_LOOP = {"schedule": "constant"}
_INFO_NCE = {
    **_LIKELIHOOD,
    **_LOOP,
    "num_contrastive": 3,
    "regularization_strength": 1.0,
}
_RATIO = {**_LIKELIHOOD, "neural_net": "resnet", "num_atoms": 10}
_POSTERIOR = {
    **_SHARED,
    "neural_net": "nsf",
    "automatic_transforms_enabled": False,
    "num_atoms": 10,
}
_HYBRID = {**_POSTERIOR, **_LOOP, "training": "two_stage", "energy": None}


class Recipe(NamedTuple):
    """How a method is made, and its hyperparameters with their defaults."""

    trainer: type
    network: Callable[..., Any]
    defaults: Mapping[str, Any]


RECIPES = {
    "nle": Recipe(NLE_A, likelihood_nn, _LIKELIHOOD),
    "nle_ince": Recipe(NLE_INCE, likelihood_nn, _INFO_NCE),
    "npe": Recipe(NPE_C, posterior_nn, _POSTERIOR),
    "npe_gkl": Recipe(NPE_GKL, posterior_nn, _HYBRID),
    "nre": Recipe(NRE_B, classifier_nn, _RATIO),
    "nre_gkl": Recipe(NRE_GKL, classifier_nn, {**_RATIO, **_LOOP}),
}

# The least that makes sense of what is counted.
_LEAST = {
    "hidden_features": 1,
    "max_num_epochs": 0,
    "num_atoms": 2,
    "num_contrastive": 1,
    "num_rounds": 1,
    "simulation_batch_size": 1,
    "training_batch_size": 1,
}
_Z_SCORES = ("none", "independent", "structured")
_CHOICES = {
    "automatic_transforms_enabled": (True, False),
    "schedule": ("constant", "averaged"),
    "training": ("two_stage", "joint"),
    "z_score_x": _Z_SCORES,
    "z_score_theta": _Z_SCORES,
}


def check_hyper(name: str, **hyper: Any) -> dict[str, Any]:
    """Return all hyperparameters of a method, or raise for wrong or unknown ones."""
    if name not in RECIPES:
        raise ValueError(
            f"there is no method '{name}'. Available: {', '.join(RECIPES)}."
        )
    _, network, defaults = RECIPES[name]
    for unknown in sorted(set(hyper) - set(defaults)):
        raise TypeError(
            f"{name} has no hyperparameter '{unknown}'. It has {', '.join(defaults)}."
        )
    settings = {**defaults, **hyper}
    is_classifier = network is classifier_nn
    networks = ("linear", "mlp", "resnet") if is_classifier else tuple(model_builders)
    for key, known in {**_CHOICES, "neural_net": networks}.items():
        if key in settings and settings[key] not in known:
            raise ValueError(
                f"{key}={settings[key]!r} is unknown. Use one of "
                f"{', '.join(map(str, known))}."
            )
    for key, least in _LEAST.items():
        if key in settings:
            settings[key] = check_integer(key, settings[key], least)
    # Configurations hold a dictionary of the energy's values.
    if isinstance(settings.get("energy"), Mapping):
        settings["energy"] = EnergyConfig(**settings["energy"])
    posterior_arguments(settings)  # sbi checks the parameters of MCMC.
    return settings


def posterior_arguments(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of `build_posterior()`."""
    if "mcmc_method" not in settings:
        return {}
    chains = settings["mcmc_parameters"]
    parameters = MCMCPosteriorParameters(
        **{"method": settings["mcmc_method"], **(_CHAINS if chains is None else chains)}
    )
    return {"sample_with": "mcmc", "posterior_parameters": parameters}
