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
        neural_net: Model of sbi's `likelihood_nn`, `posterior_nn` or `classifier_nn`.
        hidden_features: Number of hidden features in the network.
        simulation_batch_size: Number of simulations per call of the simulator.
        training_batch_size: Batch size for training.
        automatic_transforms_enabled: Whether networks and samplers see parameters
            without bounds: logarithms of positive ones, for example.
        z_score_x: Whether data are z-scored, as in sbi.
        z_score_theta: Whether parameters are z-scored, as in sbi.
        max_num_epochs: Maximum number of epochs.
        seed: Seed of simulations, training and sampling. With a seed and a single
            round, all observations of a task share one training. If `None`, the global
            random numbers are used, and nothing is kept.
        cache: Folder in which trained networks are kept; needs a seed.
        cache_tag: Any text; trainings with another one are not used again. Tasks of
            your own are kept only with one: change it whenever their code changes.

    Raises:
        ValueError: If a value is out of range.
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
    _choices: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "neural_net": tuple(model_builders),
        "z_score_x": get_args(ZScore),
        "z_score_theta": get_args(ZScore),
    }

    def __post_init__(self) -> None:
        """Refuse what would fail after the simulations, or mean nothing."""
        for name, least in _LEAST.items():
            if hasattr(self, name):
                check_fields(self, check_integer, [name], least)
        if not isinstance(self.automatic_transforms_enabled, bool):
            raise ValueError(
                "automatic_transforms_enabled must be True or False, got "
                f"{self.automatic_transforms_enabled!r}."
            )
        for name, known in self._choices.items():
            if getattr(self, name) not in known:
                raise ValueError(
                    f"{name}={getattr(self, name)!r} is unknown. Use one of "
                    f"{', '.join(known)}."
                )

    def of_train(self) -> dict[str, Any]:
        """Return arguments of `train()`."""
        names = ("training_batch_size", "max_num_epochs", *self._trains_with)
        return {name: getattr(self, name) for name in names}

    def of_build_posterior(self) -> dict[str, Any]:
        """Return arguments of `build_posterior()`."""
        return {}

    def of_sample(self) -> dict[str, Any]:
        """Return arguments of `posterior.sample()`."""
        return {"show_progress_bars": False}


@dataclass(frozen=True, kw_only=True)
class LikelihoodSettings(RunSettings):
    """Hyperparameters of `nle`, beside those of every method.

    Attributes:
        mcmc_method: MCMC method of sbi.
        mcmc_parameters: MCMC parameters of sbi; if `None`, two hundred chains that
            start at likely parameters.
    """

    neural_net: str = "maf"
    automatic_transforms_enabled: bool = True
    mcmc_method: str = "slice_np_vectorized"
    mcmc_parameters: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        """Let sbi check the parameters of MCMC, too."""
        super().__post_init__()
        self.of_build_posterior()

    def of_build_posterior(self) -> dict[str, Any]:
        """Return arguments of `build_posterior()`."""
        chains = _MCMC if self.mcmc_parameters is None else self.mcmc_parameters
        parameters = MCMCPosteriorParameters(**{"method": self.mcmc_method, **chains})
        return {"sample_with": "mcmc", "posterior_parameters": parameters}


@dataclass(frozen=True, kw_only=True)
class InfoNCESettings(LikelihoodSettings):
    """Hyperparameters of `nle_ince`, beside those of `nle`.

    Attributes:
        num_contrastive: Number of contrastive parameters, as in `NLE_INCE.train`.
        regularization_strength: Weight of maximum likelihood, as there.
    """

    _trains_with = ("num_contrastive", "regularization_strength")

    num_contrastive: int = 3
    regularization_strength: float = 1.0


@dataclass(frozen=True, kw_only=True)
class RatioSettings(LikelihoodSettings):
    """Hyperparameters of `nre` and `nre_gkl`, beside those of `nle`.

    Attributes:
        num_atoms: Number of parameters that the classifier of `nre` tells apart, or
            that `nre_gkl` evaluates with a gradient.
    """

    _trains_with = ("num_atoms",)
    _choices = {**RunSettings._choices, "neural_net": ("linear", "mlp", "resnet")}

    neural_net: str = "resnet"
    num_atoms: int = 10


@dataclass(frozen=True, kw_only=True)
class PosteriorSettings(RunSettings):
    """Hyperparameters of `npe`, beside those of every method.

    Attributes:
        num_atoms: Number of atoms of the loss of later rounds.
        max_sampling_time: Time in seconds after which sampling gives up, for posteriors
            nearly all of whose mass is outside of the prior. No limit if `None`.
    """

    _trains_with = ("num_atoms",)

    neural_net: str = "nsf"
    automatic_transforms_enabled: bool = False
    num_atoms: int = 10
    max_sampling_time: float | None = None

    def of_sample(self) -> dict[str, Any]:
        """Return arguments of `posterior.sample()`."""
        return {**super().of_sample(), "max_sampling_time": self.max_sampling_time}


@dataclass(frozen=True, kw_only=True)
class HybridSettings(PosteriorSettings):
    """Hyperparameters of `npe_gkl`, beside those of `npe`, which is its base.

    Attributes:
        training: `"two_stage"` or `"joint"`, as in `NPE_GKL.train`.
        energy: How the energy is trained, as there; or a dictionary of its values, such
            as configurations hold.
    """

    _trains_with = ("num_atoms", "training", "energy")
    _choices = {**RunSettings._choices, "training": get_args(Training)}

    training: Training = "two_stage"
    energy: EnergyConfig | None = None

    def __post_init__(self) -> None:
        """Make a configuration of a dictionary."""
        super().__post_init__()
        if isinstance(self.energy, Mapping):
            object.__setattr__(self, "energy", EnergyConfig(**self.energy))
