"""Around the second stage of `NPE_GKL`: what it starts from, and what it reports."""

import warnings
from copy import copy
from typing import Any

import torch
from sbi.inference.posteriors.base_posterior import NeuralPosterior
from sbi.neural_nets.estimators import ConditionalDensityEstimator
from sbi.sbi_types import Tracker
from torch import Tensor, nn
from torch.distributions import Distribution

from sbi_boed_plugin._sbi_compat import check_default_dtype, if_it_pickles
from sbi_boed_plugin.estimators.design_conditioned import DesignConditionedEstimator
from sbi_boed_plugin.estimators.energy import energy_nn
from sbi_boed_plugin.estimators.hybrid import HybridEstimator
from sbi_boed_plugin.estimators.noise import has_noise
from sbi_boed_plugin.estimators.rejection import draws_at_once
from sbi_boed_plugin.trainers._checks import check_design, check_designs_given
from sbi_boed_plugin.trainers._energy_training import EnergyHistory

__all__ = [
    "SUMMARY_KEYS",
    "EnergyModel",
    "at_design",
    "check_kind",
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


def check_kind(
    training: str, atomic: bool, network: nn.Module | None, resume: bool
) -> None:
    """Raise if there is no such training, for these simulations or after the last."""
    if training not in ("two_stage", "joint"):
        raise ValueError(f"training='{training}' is unknown: use 'two_stage', 'joint'.")
    if training == "joint" and atomic:
        raise ValueError(
            "training='joint' with simulations from a proposal: its loss holds for "
            "simulations from the prior. Use training='two_stage'."
        )
    if resume and network is None:
        raise RuntimeError(
            "resume_training=True, but this trainer has not trained a base. After "
            "refine(), call refine() again."
        )
    before = "joint" if isinstance(network, HybridEstimator) else "two_stage"
    if resume and training != before:
        raise ValueError(
            f"resume_training=True with training='{training}' after '{before}': their "
            "losses cannot be compared. Pass the same value or start a new training."
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
            "NPE.train() or NPE.build_posterior() return."
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


def refuse_to_build(theta: Tensor, x: Tensor) -> ConditionalDensityEstimator:
    """Stand in for the builder of a base that was trained elsewhere."""
    raise RuntimeError(
        "A trainer of refine() cannot build another one: use NPE_GKL(prior, ...)."
    )


def at_design(
    estimator: Any,
    prior: Prior,
    design: Tensor | None,
    dim_design: int | None,
    x_shape: torch.Size | None,
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
        raise ValueError("density_estimator has a design already: pass no other one.")
    if design is None:
        return estimator
    design = check_design(design, dim_design, None)
    if len(design) != 1:
        raise ValueError(
            f"design has shape {tuple(design.shape)}, but an amortised posterior has "
            "one design, of shape (dim_design,). For several observations use NLE_INCE."
        )
    return estimator.at_design(design[0], x_shape)


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


class EnergyModel:
    """How the energy of a trainer is built, from arguments of the user."""

    def __init__(self, energy_net: Any, latent_features: Any) -> None:
        if isinstance(energy_net, str):
            energy_net = energy_nn(energy_net)
        if not callable(energy_net):
            raise TypeError(
                "energy_net must be a string or a function that builds a network, got "
                f"{type(energy_net).__name__}."
            )
        if not isinstance(latent_features, bool | None):
            kind = type(latent_features).__name__
            raise TypeError(f"latent_features must be True, False or None, got {kind}.")
        self._build = energy_net
        self._latent_features = latent_features

    def shows_noise(self, base: nn.Module, theta: Tensor, x: Tensor) -> bool:
        """Return whether an energy on this base is shown noise, or raise."""
        if self._latent_features is False:
            return False
        device = next(base.parameters()).device
        is_known = has_noise(base.cpu().eval(), theta.cpu(), x.cpu())
        base.to(device)
        if self._latent_features and not is_known:
            raise ValueError(
                f"latent_features=True, but a {type(base).__name__} cannot tell "
                "which noise it makes parameters of. Give it a method "
                "to_noise(input, condition), or pass latent_features=None."
            )
        return is_known

    def put_on(
        self, base: Any, theta: Tensor, x: Tensor, prior: Prior, *, frozen: bool = False
    ) -> HybridEstimator:
        """Put a new energy on a base, for the simulations that will train it."""
        if self._build is None:
            raise RuntimeError(
                "The trainer was pickled, and pickling leaves out energy_net. Start "
                "again with a new trainer."
            )
        device = next(base.parameters()).device
        latent_features = self.shows_noise(base, theta, x)
        theta, x, base = theta.cpu(), x.cpu(), base.cpu()
        hybrid = HybridEstimator(
            base,
            nn.Identity(),
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
        energy = self._build(theta, torch.cat(parts))
        if not isinstance(energy, nn.Module):
            kind = type(energy).__name__
            raise TypeError(f"energy_net must build a torch.nn.Module, built a {kind}.")
        if not (latent_features or getattr(energy, "sees_parameters", True)):
            raise ValueError(
                "energy_net is shown neither parameters nor, with latent_features="
                f"{self._latent_features} and a {type(base).__name__} as base, their "
                "noise. Use energy_nn(sees_parameters=True)."
            )
        hybrid.energy = energy
        return hybrid.to(device)

    def __getstate__(self) -> dict[str, Any]:
        """Return the state to be pickled, without a function that cannot be."""
        return {**vars(self), "_build": if_it_pickles(self._build)}


def report_energy(
    history: EnergyHistory, summary: dict, tracker: Tracker, round_: int
) -> None:
    """Write losses and gain into the summary and the tracker; warn if it has none."""
    gain, error = history.gain, history.gain_standard_error
    losses = history.training_loss, history.validation_loss
    first = sum(summary["energy_epochs_trained"])
    of_round = [len(losses[0])], *losses, [gain if history.kept else 0.0], [error]
    for key, values in zip(SUMMARY_KEYS, of_round, strict=True):
        summary[key].extend(values)
        start = first if key.endswith("loss") else round_ + 1
        for step, value in enumerate(values, start):
            tracker.log_metric(name=key, value=value, step=step)
    tracker.flush()
    if history.kept:
        return
    what, told = "held-out log-densities", f"{gain:.3f} ± {error:.3f} nats"
    if history.objective_gain <= 0.0 < gain:
        what = "the held-out objective"
        told = (
            f"{history.objective_gain:.3g} nats, as rare draws of the base have huge "
            f"ratios (in log-densities {told})"
        )
    warnings.warn(
        f"The energy does not improve {what}: {told}. The posterior is that of the "
        "base alone, which may be right already; if not, more simulations may help.",
        stacklevel=4,
    )
