"""The second stage of `NPE_GKL`, and what it checks and reports."""

import warnings
from copy import copy, deepcopy
from typing import Any

import torch
from sbi.inference.posteriors.base_posterior import NeuralPosterior
from sbi.neural_nets.estimators import ConditionalDensityEstimator
from sbi.sbi_types import Tracker
from torch import Tensor, nn
from torch.distributions import Distribution

from sbi_boed_plugin._numbers import check_integer, check_real
from sbi_boed_plugin._rng import get_rng_state, isolated_rng
from sbi_boed_plugin._sbi_compat import check_default_dtype, if_it_pickles
from sbi_boed_plugin.estimators.design_conditioned import DesignConditionedEstimator
from sbi_boed_plugin.estimators.energy import energy_nn
from sbi_boed_plugin.estimators.hybrid import HybridEstimator
from sbi_boed_plugin.estimators.noise import has_noise
from sbi_boed_plugin.estimators.rejection import draws_at_once
from sbi_boed_plugin.trainers import _energy_training as _training
from sbi_boed_plugin.trainers._checks import (
    check_designs_given,
    check_training,
    one_design,
)

__all__ = [
    "SUMMARY_KEYS",
    "EnergyStage",
    "at_design",
    "check_arguments",
    "check_kind_of_training",
    "check_resumption",
    "check_split",
    "refuse_to_build",
    "report_energy",
    "to_refine",
    "without_idle_energy",
]

Prior = Distribution | None

SUMMARY_KEYS = (
    "energy_epochs_trained",
    "energy_training_loss",
    "energy_validation_loss",
    "energy_gain",
    "energy_gain_standard_error",
)
_NUMBERS = (
    "training_batch_size",
    "learning_rate",
    "validation_fraction",
    "stop_after_epochs",
    "max_num_epochs",
    "clip_max_norm",
)


def check_arguments(given: dict[str, Any]) -> dict[str, Any]:
    """Return arguments of sbi's training with plain numbers, or raise if one is wrong.

    A default precision in which sbi would build other networks is refused, too.
    """
    check_default_dtype()
    numbers = check_training(**{name: given[name] for name in _NUMBERS})
    num_atoms = check_integer("num_atoms", given["num_atoms"], 1)
    return {**given, **numbers, "num_atoms": num_atoms}


def check_kind_of_training(training: str, atomic: bool) -> None:
    """Raise if there is no such training, or not for these simulations."""
    if training not in ("two_stage", "joint"):
        raise ValueError(f"training='{training}' is unknown: use 'two_stage', 'joint'.")
    if training == "joint" and atomic:
        raise ValueError(
            "training='joint' with simulations from a proposal: its loss holds for "
            "simulations from the prior. Use training='two_stage'."
        )


def check_resumption(training: str, network: nn.Module | None) -> None:
    """Raise if there is no network to go on with, or one that had another loss."""
    if network is None:
        raise RuntimeError(
            "resume_training=True, but this trainer has not trained a base. After "
            "refine(), call refine() again."
        )
    before = "joint" if isinstance(network, HybridEstimator) else "two_stage"
    if training != before:
        raise ValueError(
            f"resume_training=True with training='{training}', but the training to "
            f"resume was '{before}': their losses cannot be compared. Pass the same "
            "value or start a new training."
        )


def to_refine(
    posterior: Any, prior: Prior, theta: Any, x: Any
) -> tuple[ConditionalDensityEstimator, Distribution]:
    """Return the estimator of a posterior and its prior, if simulations match it."""
    check_default_dtype()
    estimator = posterior
    if isinstance(posterior, NeuralPosterior):
        estimator = getattr(posterior, "posterior_estimator", None)
        prior = prior or getattr(posterior, "prior", None)
    if isinstance(estimator, HybridEstimator):
        estimator = estimator.base
    if not isinstance(estimator, ConditionalDensityEstimator):
        raise TypeError(
            f"posterior is a {type(posterior).__name__}: refine() corrects what "
            "NPE.train() or NPE.build_posterior() return. Those of NLE and NRE have no "
            "normalized density to correct."
        )
    if prior is None:
        raise ValueError("prior=None, and an estimator knows none: pass prior=...")
    shapes = {"theta": estimator.input_shape, "x": estimator.condition_shape}
    for name, given in (("theta", theta), ("x", x)):
        if not isinstance(given, Tensor) or given.shape[1:] != shapes[name]:
            shape = tuple(given.shape) if isinstance(given, Tensor) else type(given)
            raise ValueError(
                f"{name} has shape {shape}, but the posterior was trained with rows of "
                f"shape {tuple(shapes[name])}. Pass the simulations of that training."
            )
    return estimator, prior


def check_split(validation_fraction: float, num_simulations: int) -> None:
    """Raise if there are no simulations to train with, or none to validate with."""
    fraction = check_real("validation_fraction", validation_fraction)
    num_training = int((1.0 - fraction) * num_simulations)
    if not 0 < num_training < num_simulations:
        raise ValueError(
            f"validation_fraction={fraction} leaves {num_training} of "
            f"{num_simulations} valid simulations to train with, and the rest to "
            "validate with. Both need some."
        )


def refuse_to_build(theta: Tensor, x: Tensor) -> ConditionalDensityEstimator:
    """Stand in for the builder of a base that was trained elsewhere."""
    raise RuntimeError(
        "This trainer refines an estimator that was trained elsewhere, and cannot "
        "build another one. Start with NPE_GKL(prior, density_estimator=...)."
    )


def at_design(
    estimator: Any, prior: Prior, design: Tensor | None, dim_design: int | None
) -> Any:
    """Return an estimator as a hybrid, at a design if simulations have designs."""
    if not isinstance(estimator, ConditionalDensityEstimator):
        return estimator  # of which sbi says what is wrong.
    if not isinstance(estimator, HybridEstimator):
        never = nn.Identity()
        estimator = HybridEstimator(estimator, never, prior=prior, corrects=False)
    if not isinstance(estimator.base, DesignConditionedEstimator):
        check_designs_given(design, dim_design)
    elif design is not None:
        raise ValueError(
            f"design={design.tolist()} was given, but density_estimator has a "
            "design already. Leave one of them out."
        )
    if design is None:
        return estimator
    return estimator.at_design(one_design(design, dim_design))


def without_idle_energy(proposal: Any) -> Any:
    """Return a proposal as the posterior of its base, if its energy was not kept.

    For a mixture of Gaussians, sbi then has the closed-form loss.
    """
    hybrid = getattr(proposal, "posterior_estimator", None)
    if not isinstance(hybrid, HybridEstimator) or hybrid.corrects:
        return proposal
    # A new posterior would draw random numbers.
    proposal = copy(proposal)
    proposal.posterior_estimator = hybrid.base
    return proposal


class EnergyStage:
    """The second stage of a trainer: how an energy is built, and what came of it."""

    # The trained base with its energy, if the base was not trained since.
    hybrid: HybridEstimator | None = None
    num_partition_samples: int = _training.EnergyConfig.num_partition_samples

    def __init__(self, energy_net: Any, latent_features: Any) -> None:
        if not (isinstance(energy_net, str) or callable(energy_net)):
            raise TypeError(
                "energy_net must be a string or a function that builds a network, got "
                f"{type(energy_net).__name__}."
            )
        if not isinstance(latent_features, bool | None):
            kind = type(latent_features).__name__
            raise TypeError(f"latent_features must be True, False or None, got {kind}.")
        is_name = isinstance(energy_net, str)
        self._build_energy = energy_nn(energy_net) if is_name else energy_net
        self._latent_features = latent_features

    def check_base(self, base: nn.Module, theta: Tensor, x: Tensor) -> bool:
        """Return whether the energy is shown the noise of a base on the CPU."""
        if self._latent_features is False:
            return False
        is_known = has_noise(base.eval(), theta.cpu(), x.cpu())
        if self._latent_features and not is_known:
            raise ValueError(
                f"latent_features=True, but a {type(base).__name__} cannot tell which "
                "noise it makes parameters of. Give it a method "
                "to_noise(input, condition), or pass latent_features=None."
            )
        return is_known

    def build(
        self, base: Any, theta: Tensor, x: Tensor, prior: Prior, *, frozen: bool = False
    ) -> HybridEstimator:
        """Put a new energy on a base, for the simulations that will train it."""
        if self._build_energy is None:
            raise RuntimeError(
                "The trainer was pickled, and pickling leaves out energy_net: a new "
                "energy cannot be built. Start again with a new trainer."
            )
        theta, x, device = theta.cpu(), x.cpu(), next(base.parameters()).device
        latent_features = self.check_base(base.cpu(), theta, x)
        hybrid = HybridEstimator(
            base,
            nn.Identity(),
            num_partition_samples=self.num_partition_samples,
            prior=prior,
            embedded=True,
            latent_features=latent_features,
            frozen_base=frozen,
            # Of a frozen base it is known after the training of the energy.
            trained_partition=not frozen,
        )
        parts = []
        with torch.no_grad():
            for rows in torch.arange(len(theta)).split(draws_at_once(hybrid, x)):
                noise = hybrid.latent(theta[rows].unsqueeze(0), x[rows])[0]
                features = hybrid.condition_features(x[rows])
                parts.append(torch.cat([features, noise], dim=-1))
        energy = self._build_energy(theta, torch.cat(parts))
        if not isinstance(energy, nn.Module):
            kind = type(energy).__name__
            raise TypeError(f"energy_net must build a torch.nn.Module, built a {kind}.")
        hybrid.energy = energy
        return hybrid.to(device)

    def join(
        self, network: Any, theta: Tensor, x: Tensor, prior: Prior
    ) -> HybridEstimator:
        """Return a base with a new energy, to learn together, unless it has one."""
        if not isinstance(network, HybridEstimator):
            return self.build(network, theta, x, prior)
        network.num_partition_samples = self.num_partition_samples
        return network

    def train(
        self,
        base: Any,
        theta: Tensor,
        x: Tensor,
        prior: Prior,
        *,
        atomic: bool,
        train_rows: Tensor,
        **settings: Any,
    ) -> tuple[HybridEstimator, _training.EnergyHistory]:
        """Put an energy on a copy of a trained base, and train it.

        The random numbers are its own: those of the base's training go on as if nothing
        came between, and whoever draws from them gets none that were used here.
        """
        with isolated_rng(get_rng_state()):
            seed = int(torch.randint(2**62, ()))
        settings["train_rows"] = train_rows
        settings["atomic_prior"] = prior if atomic else None
        with isolated_rng(seed):
            rows = theta[train_rows], x[train_rows], prior
            hybrid = self.hybrid = self.build(deepcopy(base), *rows, frozen=True)
            history = _training.train_energy(hybrid, theta, x, **settings)
        # Without an energy log Z is the share of the base inside of the prior.
        hybrid.trained_partition = history.kept and not atomic
        hybrid.corrects = history.kept
        return hybrid, history

    def __getstate__(self) -> dict[str, Any]:
        """Return the state to be pickled, without a function that cannot be."""
        return {**vars(self), "_build_energy": if_it_pickles(self._build_energy)}


def report_energy(
    history: _training.EnergyHistory, summary: dict, tracker: Tracker, round_: int
) -> None:
    """Write losses and gain into the summary and the tracker; warn if it has none."""
    num_epochs, first = len(history.training_loss), sum(summary[SUMMARY_KEYS[0]])
    gain = history.gain if history.kept else 0.0
    losses = history.training_loss, history.validation_loss
    values = [num_epochs], *losses, [gain], [history.gain_standard_error]
    for key, new in zip(SUMMARY_KEYS, values, strict=True):
        summary[key].extend(new)
        start = first if key.endswith("loss") else round_ + 1
        for step, value in enumerate(new, start):
            tracker.log_metric(name=key, value=value, step=step)
    tracker.flush()
    if history.kept:
        return
    what = "held-out log-densities"
    told = f"{history.gain:.3f} ± {history.gain_standard_error:.3f} nats"
    if history.objective_gain <= 0.0 < history.gain:
        what = "the held-out objective"
        told = (
            f"{history.objective_gain:.3g} nats, since rare draws of the base have "
            f"huge ratios (in log-densities {told})"
        )
    warnings.warn(
        f"The energy does not improve {what}: {told}. The posterior is that of the "
        "base alone, which may be right already; if not, more simulations may help.",
        stacklevel=4,
    )
