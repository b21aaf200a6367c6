"""The stages of `NPE_GKL`: a base in sbi's training loop, and an energy on it."""

import warnings
from collections.abc import Callable
from copy import copy
from typing import Any, Literal

import torch
from sbi.inference import NPE_C
from sbi.inference.posteriors.base_posterior import NeuralPosterior
from sbi.inference.posteriors.posterior_parameters import DirectPosteriorParameters
from sbi.inference.potentials import posterior_estimator_based_potential
from sbi.neural_nets.estimators import ConditionalDensityEstimator
from torch import Tensor, nn
from torch.distributions import Distribution

from sbi_boed_plugin._rng import get_rng_state, isolated_rng
from sbi_boed_plugin._sbi_compat import SbiTrainerMixin, if_it_pickles
from sbi_boed_plugin.estimators.energy import EnergyBuilder, energy_nn
from sbi_boed_plugin.estimators.hybrid import HybridEstimator, UnnormalizedHybrid
from sbi_boed_plugin.estimators.noise import has_noise
from sbi_boed_plugin.estimators.weights import draws_at_once
from sbi_boed_plugin.posteriors.hybrid_posterior import (
    HybridPosterior,
    HybridPosteriorParameters,
)
from sbi_boed_plugin.trainers._energy_training import (
    EnergyConfig,
    EnergyHistory,
    train_energy,
)

__all__ = ["HybridTrainer"]

_ENERGY_EPOCHS = "energy_epochs_trained"
_ENERGY_TRAINING = "energy_training_loss"
_ENERGY_VALIDATION = "energy_validation_loss"
_ENERGY_GAIN = "energy_gain"
_ENERGY_GAIN_ERROR = "energy_gain_standard_error"
_ENERGY_KEYS = (
    _ENERGY_EPOCHS,
    _ENERGY_TRAINING,
    _ENERGY_VALIDATION,
    _ENERGY_GAIN,
    _ENERGY_GAIN_ERROR,
)


# One that nobody seeds the simulations with, whose random numbers it would repeat.
_VALIDATION_SEED = 20_231_004


class HybridTrainer(SbiTrainerMixin, NPE_C):
    """Builds, trains and reports what `NPE_GKL` adds to NPE."""

    _neural_net: ConditionalDensityEstimator | None
    _build_energy: EnergyBuilder | None
    _latent_features: bool | None
    _training: Literal["two_stage", "joint"]
    # The first round whose simulations the base was trained with.
    _start_index: int = 0
    _base_started: bool = False
    _dim_design: int | None

    def _set_energy(
        self,
        energy_net: Literal["resnet"] | EnergyBuilder,
        latent_features: bool | None,
    ) -> None:
        """Check and store what belongs to the energy."""
        if not (isinstance(energy_net, str) or callable(energy_net)):
            raise TypeError(
                "energy_net must be a string or a function that builds a network, got "
                f"{type(energy_net).__name__}."
            )
        if not (latent_features is None or isinstance(latent_features, bool)):
            raise TypeError(
                "latent_features must be True, False or None, got "
                f"{type(latent_features).__name__}."
            )
        self._build_energy = (
            energy_nn(energy_net) if isinstance(energy_net, str) else energy_net
        )
        self._latent_features = latent_features
        self._training = "two_stage"
        self._num_partition_samples = EnergyConfig.num_partition_samples
        self._dim_design = None
        self._summary.update({key: [] for key in _ENERGY_KEYS})

    def _build_posterior_parameters(self, sample_with: Any, **kwargs: Any) -> Any:
        """Take arguments of `HybridPosterior`, too."""
        if sample_with == "direct":
            given = kwargs.get("direct_sampling_parameters") or {}
            return HybridPosteriorParameters(**given)
        return super()._build_posterior_parameters(sample_with, **kwargs)

    def _create_posterior(
        self,
        estimator: Any,
        prior: Distribution,
        sample_with: Any,
        device: Any,
        posterior_parameters: Any,
    ) -> NeuralPosterior:
        if isinstance(posterior_parameters, DirectPosteriorParameters):
            given = dict(vars(posterior_parameters))
            if isinstance(estimator, HybridEstimator):
                return HybridPosterior(estimator, prior, device=device, **given)
            # A base without energy has no use for what only a hybrid takes.
            known = DirectPosteriorParameters.__dataclass_fields__
            posterior_parameters = DirectPosteriorParameters(
                **{name: value for name, value in given.items() if name in known}
            )
        return super()._create_posterior(
            estimator, prior, sample_with, device, posterior_parameters
        )

    def _multiround_loss_is_per_row(self, proposal: Any | None) -> bool:
        """Return whether a proposal has the density of a mixture of Gaussians.

        That of a hybrid has, where the energy was not kept.
        """
        return super()._multiround_loss_is_per_row(_without_energy(proposal))

    def _set_state_for_mog_proposal(self) -> None:
        try:
            super()._set_state_for_mog_proposal()
        except NotImplementedError as error:
            message = str(error).replace("NPE-C", type(self).__name__)
            raise NotImplementedError(message) from None

    def _log_prob_proposal_posterior_mog(
        self, theta: Tensor, x: Tensor, proposal: Any
    ) -> Tensor:
        return super()._log_prob_proposal_posterior_mog(
            theta, x, _without_energy(proposal)
        )

    def _get_potential_function(self, prior: Distribution, estimator: Any) -> Any:
        if isinstance(estimator, HybridEstimator):
            estimator = UnnormalizedHybrid(estimator)
        return posterior_estimator_based_potential(
            posterior_estimator=estimator, prior=prior, x_o=None
        )

    def _initialize_neural_network(
        self, retrain_from_scratch: bool, start_idx: int
    ) -> None:
        self._start_index = start_idx
        if retrain_from_scratch:
            self._neural_net = None
        is_new = self._neural_net is None
        super()._initialize_neural_network(retrain_from_scratch, start_idx)
        if is_new and self._latent_features:
            self._check_tells_latent(start_idx)
        # Until here an error leaves the network as it was.
        self._base_started = True
        if self._training != "joint":
            return
        hybrid = self._neural_net
        if isinstance(hybrid, HybridEstimator) and hybrid.frozen_base:
            self._neural_net = hybrid = hybrid.base
        if not isinstance(hybrid, HybridEstimator):
            hybrid = self._make_hybrid(start_idx, frozen_base=False)
        hybrid.num_partition_samples = self._num_partition_samples
        self._neural_net = hybrid

    def _validate_epoch(self, val_loader: Any, loss_args: Any) -> float:
        """Validate with the same draws for the partition function each time."""
        if self._training == "joint":
            with isolated_rng(_VALIDATION_SEED):
                return super()._validate_epoch(val_loader, loss_args)
        return super()._validate_epoch(val_loader, loss_args)

    def _check_tells_latent(self, start_idx: int) -> None:
        """Raise before a base is trained that cannot tell its noise."""
        base, self._neural_net = self._neural_net, None
        assert base is not None
        theta, x, _ = self.get_simulations(starting_round=start_idx)
        rows = self.train_indices[:2]
        self._shows_latent(base.eval(), theta[rows].cpu(), x[rows].cpu())
        self._neural_net = base

    def _shows_latent(
        self, base: ConditionalDensityEstimator, theta: Tensor, x: Tensor
    ) -> bool:
        """Return whether the energy is shown the noise of the base."""
        if self._latent_features is False:
            return False
        can_tell = has_noise(base, theta, x)
        if self._latent_features and not can_tell:
            raise ValueError(
                f"latent_features=True, but a {type(base).__name__} cannot tell which "
                "noise it makes parameters of. Give it a method "
                "to_noise(input, condition), use another density_estimator, or "
                "latent_features=None."
            )
        return can_tell

    def _make_hybrid(self, start_idx: int, *, frozen_base: bool) -> HybridEstimator:
        """Put an energy on the base that there is."""
        base = self._neural_net
        assert base is not None
        if self._build_energy is None:
            raise RuntimeError(
                "The trainer was pickled, and pickling leaves out energy_net: a new "
                "energy cannot be built. Start again with a new trainer."
            )
        theta, x, _ = self.get_simulations(starting_round=start_idx)
        rows = self.train_indices
        theta, x = theta[rows].cpu(), x[rows].cpu()
        where = next(base.parameters()).device
        base.cpu().eval()
        hybrid = HybridEstimator(
            base,
            nn.Identity(),
            num_partition_samples=self._num_partition_samples,
            prior=self._prior,
            embedded=True,
            latent_features=self._shows_latent(base, theta, x),
            frozen_base=frozen_base,
            # Of a frozen base it is known after the training of the energy.
            trained_partition=not frozen_base,
        )
        features = []
        with torch.no_grad():
            for chunk in torch.arange(len(theta)).split(draws_at_once(hybrid, x)):
                own, data = theta[chunk], x[chunk]
                noise = hybrid.latent(own.unsqueeze(0), data)[0]
                features.append(
                    torch.cat([hybrid.condition_features(data), noise], dim=-1)
                )
        energy = self._build_energy(theta, torch.cat(features))
        if not isinstance(energy, nn.Module):
            raise TypeError(
                "energy_net must build a torch.nn.Module, but built a "
                f"{type(energy).__name__}."
            )
        if not (hybrid.latent_features or getattr(energy, "sees_parameters", True)):
            raise ValueError(
                "energy_net is shown neither parameters nor, with latent_features="
                f"{self._latent_features} and a {type(base).__name__} as base, their "
                "noise. Use energy_nn(sees_parameters=True)."
            )
        hybrid.energy = energy
        hybrid.to(where)
        return hybrid

    def _train_energy(
        self,
        config: EnergyConfig,
        calibration_kernel: Callable | None,
        *,
        atomic: bool,
    ) -> HybridEstimator:
        """Put an energy on the trained base, train it, and report."""
        # Random numbers of its own: those of the base's training go on as if nothing
        # came between, and whoever draws from them gets none that were used here.
        with isolated_rng(get_rng_state()):
            seed = int(torch.randint(2**62, ()))
        start_idx = self._start_index
        with isolated_rng(seed):
            hybrid = self._make_hybrid(start_idx, frozen_base=True)
            hybrid.to(self._device)
            self._neural_net = hybrid
            theta, x, _ = self.get_simulations(starting_round=start_idx)
            history = train_energy(
                hybrid,
                theta,
                x,
                train_rows=self.train_indices,
                validation_rows=self.val_indices,
                config=config,
                atomic_prior=self._prior if atomic else None,
                calibration_kernel=calibration_kernel,
                device=self._device,
                show_progress_bar=self._show_progress_bars,
            )
        # Without an energy log Z is the share of the base inside of the prior.
        hybrid.trained_partition = history.kept and not atomic
        hybrid.corrects = history.kept
        self._report_energy(history)
        return hybrid

    def _report_energy(self, history: EnergyHistory) -> None:
        """Write losses and gain into the summary and the tracker; warn if useless."""
        summary, offset = self._summary, sum(self._summary[_ENERGY_EPOCHS])
        per_epoch = {
            _ENERGY_TRAINING: history.training_loss,
            _ENERGY_VALIDATION: history.validation_loss,
        }
        per_training = {
            _ENERGY_EPOCHS: len(history.training_loss),
            _ENERGY_GAIN: history.gain if history.kept else 0.0,
            _ENERGY_GAIN_ERROR: history.gain_standard_error,
        }
        for key, values in per_epoch.items():
            summary[key].extend(values)
            for step, value in enumerate(values):
                self._tracker.log_metric(name=key, value=value, step=offset + step)
        for key, value in per_training.items():
            summary[key].append(value)
            self._tracker.log_metric(name=key, value=value, step=self._round + 1)
        self._tracker.flush()
        if not history.kept:
            what = "held-out log-densities"
            told = f"{history.gain:.3f} ± {history.gain_standard_error:.3f} nats"
            if history.objective_gain <= 0.0 < history.gain:
                what = "the held-out objective"
                told = (
                    f"{history.objective_gain:.3g} nats, since rare draws of the base "
                    f"have huge ratios (in log-densities {told})"
                )
            warnings.warn(
                f"The energy does not improve {what}: {told}. The "
                "posterior is that of the base alone, which may be right already; "
                "if not, more simulations may help.",
                stacklevel=4,
            )

    def __getstate__(self) -> dict:
        """Return the state to be pickled, without builders that cannot be."""
        # Functions that users define where they are needed; used again, they are missed
        # with an error.
        build = if_it_pickles(self._build_energy)
        return {**super().__getstate__(), "_build_energy": build}


def _without_energy(proposal: Any) -> Any:
    """Return the posterior of the base, if that is all that a hybrid posterior is."""
    hybrid = getattr(proposal, "posterior_estimator", None)
    if not isinstance(hybrid, HybridEstimator) or hybrid.corrects:
        return proposal
    # A new posterior would draw random numbers.
    proposal = copy(proposal)
    proposal.posterior_estimator = hybrid.base
    return proposal
