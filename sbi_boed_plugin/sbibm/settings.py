"""Hyperparameters of the methods that run on sbibm's tasks.

Names are those of sbibm's own algorithms. Defaults are sbi's where sbibm's date from
another sbi: batches of 200 for training, where sbibm took all simulations at once.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, get_args

from sbi.inference.posteriors.posterior_parameters import MCMCPosteriorParameters
from sbi.neural_nets.factory import model_builders

from sbi_boed_plugin._numbers import check_fields, check_integer
from sbi_boed_plugin.trainers._energy_training import EnergyConfig

__all__ = [
    "HybridSettings",
    "InfoNCESettings",
    "LikelihoodSettings",
    "PosteriorSettings",
    "RatioSettings",
    "RunSettings",
]

Training = Literal["two_stage", "joint"]
ZScore = Literal["none", "independent", "structured"]

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


@dataclass(frozen=True, kw_only=True)
class RunSettings:
    """What every method has.

    Attributes:
        num_rounds: Number of rounds. From the second on, parameters are drawn from the
            posterior of the observation.
        neural_net: Model of sbi's `likelihood_nn`, `posterior_nn` or `classifier_nn`,
            which also have `hidden_features`, `z_score_x` and `z_score_theta`.
        simulation_batch_size: Number of simulations per call of the simulator.
        automatic_transforms_enabled: Whether networks and samplers see parameters
            without bounds: logarithms of positive ones, for example.
        seed: Seed of simulations, training and sampling. With a seed and a single
            round, all observations of a task share one training. If `None`, the global
            random numbers are used, and nothing is kept.
        cache: Folder in which trained networks are kept; needs a seed.
        cache_tag: Any text; trainings with another one are not used again. Tasks of
            your own are kept only with one: change it whenever their code changes.
    """

    num_rounds: int = 1
    neural_net: str
    hidden_features: int = 50
    simulation_batch_size: int = 1_000
    training_batch_size: int = 200
    automatic_transforms_enabled: bool
    z_score_x: ZScore = "independent"
    z_score_theta: ZScore = "independent"
    max_num_epochs: int = 2**31 - 1
    seed: int | None = None
    cache: str | Path | None = None
    cache_tag: str | None = None

    _trains_with: ClassVar[tuple[str, ...]] = ()
    _choices: ClassVar[Mapping[str, tuple[Any, ...]]] = {
        "automatic_transforms_enabled": (True, False),
        "neural_net": tuple(model_builders),
        "z_score_x": get_args(ZScore),
        "z_score_theta": get_args(ZScore),
    }

    def __post_init__(self) -> None:
        for name, least in _LEAST.items():
            if hasattr(self, name):
                check_fields(self, check_integer, [name], least)
        for name, known in self._choices.items():
            value = getattr(self, name)
            if value not in known:
                raise ValueError(
                    f"{name}={value!r} is unknown. Use one of "
                    f"{', '.join(map(str, known))}."
                )

    def of_train(self) -> dict[str, Any]:
        """Return arguments of `train()`."""
        names = ("training_batch_size", "max_num_epochs", *self._trains_with)
        return {name: getattr(self, name) for name in names}

    def of_build_posterior(self) -> dict[str, Any]:
        """Return arguments of `build_posterior()`."""
        return {}


@dataclass(frozen=True, kw_only=True)
class LikelihoodSettings(RunSettings):
    """Hyperparameters of `nle`: also sbi's MCMC method, and sbi's parameters of it.

    Without parameters, two hundred chains start at likely ones.
    """

    neural_net: str = "maf"
    automatic_transforms_enabled: bool = True
    mcmc_method: str = "slice_np_vectorized"
    mcmc_parameters: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        self.of_build_posterior()  # where sbi checks the parameters of MCMC.

    def of_build_posterior(self) -> dict[str, Any]:
        """Return arguments of `build_posterior()`."""
        chains = _MCMC if self.mcmc_parameters is None else self.mcmc_parameters
        parameters = MCMCPosteriorParameters(**{"method": self.mcmc_method, **chains})
        return {"sample_with": "mcmc", "posterior_parameters": parameters}


@dataclass(frozen=True, kw_only=True)
class InfoNCESettings(LikelihoodSettings):
    """Hyperparameters of `nle_ince`: those of `nle`, and two of `NLE_INCE.train`."""

    num_contrastive: int = 3
    regularization_strength: float = 1.0

    _trains_with = ("num_contrastive", "regularization_strength")


@dataclass(frozen=True, kw_only=True)
class RatioSettings(LikelihoodSettings):
    """Hyperparameters of `nre` and `nre_gkl`: those of `nle`, and `num_atoms`.

    That many parameters does the classifier of `nre` tell apart, and does `nre_gkl`
    evaluate with a gradient.
    """

    neural_net: str = "resnet"
    num_atoms: int = 10

    _trains_with = ("num_atoms",)
    _choices = {**RunSettings._choices, "neural_net": ("linear", "mlp", "resnet")}


@dataclass(frozen=True, kw_only=True)
class PosteriorSettings(RunSettings):
    """Hyperparameters of `npe`: also the atoms of the loss of later rounds."""

    neural_net: str = "nsf"
    automatic_transforms_enabled: bool = False
    num_atoms: int = 10

    _trains_with = ("num_atoms",)


@dataclass(frozen=True, kw_only=True)
class HybridSettings(PosteriorSettings):
    """Hyperparameters of `npe_gkl`: those of `npe`, its base, and of `NPE_GKL.train`.

    The energy may be a dictionary of its values, such as configurations hold.
    """

    training: Training = "two_stage"
    energy: EnergyConfig | None = None

    _trains_with = ("num_atoms", "training", "energy")
    _choices = {**RunSettings._choices, "training": get_args(Training)}

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.energy, Mapping):
            object.__setattr__(self, "energy", EnergyConfig(**self.energy))
