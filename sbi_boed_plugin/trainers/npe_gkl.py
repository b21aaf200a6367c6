"""NPE_GKL: neural posterior estimation, corrected by an energy ratio."""

import warnings
from collections.abc import Callable
from contextlib import nullcontext, redirect_stdout
from copy import deepcopy
from io import StringIO
from typing import Any, Literal

import torch
from sbi.inference import NPE_C, DirectPosterior
from sbi.inference.posteriors.base_posterior import NeuralPosterior
from sbi.inference.posteriors.posterior_parameters import (
    DirectPosteriorParameters,
    PosteriorParameters,
)
from sbi.neural_nets import posterior_nn
from sbi.neural_nets.estimators import ConditionalDensityEstimator
from sbi.sbi_types import Tracker
from sbi.utils import del_entries
from torch import Tensor
from torch.distributions import Distribution
from torch.utils.tensorboard.writer import SummaryWriter
from typing_extensions import Self

from sbi_boed_plugin._numbers import check_integer, check_real
from sbi_boed_plugin._rng import get_rng_state, isolated_rng
from sbi_boed_plugin._sbi_compat import as_builder, check_default_dtype
from sbi_boed_plugin.estimators.coordinates import warn_of_scales
from sbi_boed_plugin.estimators.energy import EnergyBuilder
from sbi_boed_plugin.estimators.hybrid import HybridEstimator, UnnormalizedHybrid
from sbi_boed_plugin.estimators.vector_field import is_vector_field
from sbi_boed_plugin.posteriors.hybrid_posterior import HybridPosterior
from sbi_boed_plugin.posteriors.parameters import HybridPosteriorParameters
from sbi_boed_plugin.simulation import joint_shape
from sbi_boed_plugin.trainers import _stage
from sbi_boed_plugin.trainers._checks import append_design, check_training
from sbi_boed_plugin.trainers._energy_training import EnergyConfig, train_energy
from sbi_boed_plugin.trainers._scheduled import Schedule, ScheduledTrainer

__all__ = ["NPE_GKL"]

# One that nobody seeds the simulations with, whose random numbers it would repeat.
_VALIDATION_SEED = 20_231_004


class NPE_GKL(ScheduledTrainer, NPE_C):
    r"""Neural posterior estimation with a hybrid of the generalized-KL family [1].

    It takes the place of `sbi.inference.NPE` in any pipeline. The posterior is
    :math:`q(\theta \mid x) \propto b(\theta \mid x) \, e^{\rho(\theta, x)}`: a base,
    which NPE trains, times an energy ratio that is trained afterwards to minimise

    .. math:: E_{p(\theta, x)}[-\log b - \rho] + E_{p(x)} E_{b(\theta' \mid x)}
        [1(\theta' \in \Theta) \, e^{\rho(\theta', x)}],

    the generalized Kullback-Leibler divergence from the posterior. It corrects what the
    base cannot represent, above all edges and gaps between modes that a flow smears
    out. If it does not improve held-out simulations, the base is kept as it is. Joint
    training is not judged so; in rounds from a proposal the atomic loss judges, which
    sees no draws of the base: `diagnostics` tells how rare draws weigh.

    [1] Miller et al., *Simulation-based Inference with the Generalized
        Kullback-Leibler Divergence*, 2023, https://arxiv.org/abs/2310.01808

    Example:
    --------
    ::

        inference = NPE_GKL(prior, density_estimator="maf")
        inference.append_simulations(theta, x).train()
        posterior = inference.build_posterior()
        samples = posterior.sample((1000,), x=x_o)

        # Or improve a posterior that is there already
        posterior = NPE_GKL.refine(npe_posterior, theta, x).build_posterior()
    """

    # What sbi's loop trains: the base, or in joint training the hybrid.
    _neural_net: ConditionalDensityEstimator | None
    # The trained base with its energy, if the base was not trained since.
    _hybrid: HybridEstimator | None = None
    _training: str = "two_stage"
    _num_partition_samples: int = EnergyConfig.num_partition_samples
    # The first round that the present training uses.
    _first_round: int = 0
    _dim_design: int | None = None
    # Shape of the data, which are in rows where there are designs.
    _x_shape: torch.Size | None = None

    def __init__(  # noqa: D417
        self,
        prior: Distribution | None = None,
        density_estimator: str | Callable | None = "maf",
        device: str = "cpu",
        logging_level: int | str = "WARNING",
        summary_writer: SummaryWriter | None = None,
        tracker: Tracker | None = None,
        show_progress_bars: bool = True,
        *,
        energy_net: Literal["resnet"] | EnergyBuilder = "resnet",
        latent_features: bool | None = None,
    ):
        """Initialize as `sbi.inference.NPE`, with an energy.

        With designs, a function that builds the base gets `(x, design)` in one row in
        the place of `x`.

        Args:
            energy_net: A model of `energy_nn`, or a function that builds a module from
                parameters `(num, dim_theta)` and features `(num, num_features)`: the
                data as the base embeds them, and the noise that it makes parameters of.
                The module returns ratios of batches of both, at first zero.
            latent_features: Whether the features contain the noise. If `None`, wherever
                the base can tell it: flows and mixtures can, and estimators of your own
                with a method `to_noise(input, condition)`.

        Raises:
            TypeError: If `energy_net` or `latent_features` is of another type.
        """
        build = as_builder(density_estimator, posterior_nn)
        given = (prior, build, device, logging_level, summary_writer)
        super().__init__(*given, tracker, show_progress_bars)
        self._energy_model = _stage.EnergyModel(energy_net, latent_features)
        self._summary.update({key: [] for key in _stage.SUMMARY_KEYS})

    @classmethod
    def refine(  # noqa: D417
        cls,
        posterior: DirectPosterior | ConditionalDensityEstimator,
        theta: Tensor,
        x: Tensor,
        *,
        prior: Distribution | None = None,
        design: Tensor | None = None,
        energy: EnergyConfig | None = None,
        validation_fraction: float = 0.1,
        **kwargs: Any,
    ) -> "NPE_GKL":
        """Train an energy for a posterior that is there already, and stays as it is.

        Where it fits the simulations of its training much better than new ones, pass
        new ones: some of them judge the energy.

        Args:
            posterior: What `NPE.build_posterior()` or `NPE.train()` return.
            theta: Parameters from the prior, of shape `(num_simulations, dim_theta)`.
            x: Their simulations. Rows that are NaN or infinite are left out.
            prior: The prior. If `None`, that of the posterior; so is the device.
            design: Designs of shape `(num_simulations, dim_design)`, for a posterior
                that was trained with `(x, design)` in one row.
            energy: How to train the energy.
            validation_fraction: Share of the simulations that judge the energy.
            **kwargs: Further arguments of the trainer.

        Returns:
            A trainer whose `build_posterior()` returns the corrected posterior.

        Raises:
            TypeError: If `posterior` is of another kind.
            ValueError: If there is no prior, shapes do not match, there are too few
                simulations, or the noise for `latent_features=True` is not known.
        """
        share = "validation_fraction"
        validation_fraction = check_real(share, validation_fraction, above=0, below=1)
        rows, _ = append_design(x, design, None)
        estimator, prior = _stage.to_refine(posterior, prior, theta, rows)
        kwargs.setdefault("device", str(next(estimator.parameters()).device))
        trainer = cls(prior, _stage.refuse_to_build, **kwargs)
        trainer.append_simulations(theta, x, design=design)
        num_rows = len(trainer.get_simulations()[0])
        num_training = int((1.0 - validation_fraction) * num_rows)
        if not 0 < num_training < num_rows:
            raise ValueError(
                f"validation_fraction={validation_fraction} of {num_rows} valid "
                "simulations must leave some to train with, and some to validate with."
            )
        split = torch.randperm(num_rows).tensor_split([num_training])
        trainer.train_indices, trainer.val_indices = split
        trainer._neural_net = deepcopy(estimator).to(trainer._device)
        trainer._train_energy(energy or EnergyConfig(), atomic=False)
        return trainer

    def append_simulations(
        self,
        theta: Tensor,
        x: Tensor,
        proposal: DirectPosterior | None = None,
        exclude_invalid_x: bool | None = None,
        data_device: str | None = None,
        *,
        design: Tensor | None = None,
    ) -> Self:
        """Store simulations as `NPE` does, and return the trainer.

        With `design` of shape `(num_simulations, dim_design)`, drawn independently of
        `theta`, or `None` if the experiment has none; `(x, design)` is one row then,
        with the data flattened.

        Raises:
            ValueError: If designs are missing, superfluous, misshapen or not finite.
        """
        rows, dim_design = append_design(x, design, self._dim_design)
        proposal = _stage.without_idle_energy(proposal)
        given = proposal, exclude_invalid_x, data_device
        x_shape = joint_shape(self._x_shape, x.shape[1:]) if dim_design else None
        super().append_simulations(theta, rows, *given)
        self._dim_design, self._x_shape = dim_design, x_shape
        warn_of_scales(self._build_neural_net, theta, rows)
        return self

    def train(  # noqa: D417
        self,
        num_atoms: int = 10,
        training_batch_size: int = 200,
        learning_rate: float = 5e-4,
        validation_fraction: float = 0.1,
        stop_after_epochs: int = 20,
        max_num_epochs: int = 2**31 - 1,
        clip_max_norm: float | None = 5.0,
        calibration_kernel: Callable | None = None,
        resume_training: bool = False,
        force_first_round_loss: bool = False,
        discard_prior_samples: bool = False,
        use_combined_loss: bool = False,
        retrain_from_scratch: bool = False,
        show_train_summary: bool = False,
        dataloader_kwargs: dict | None = None,
        *,
        training: Literal["two_stage", "joint"] = "two_stage",
        energy: EnergyConfig | None = None,
        schedule: Schedule = "constant",
    ) -> ConditionalDensityEstimator:
        """Train the base as `NPE` does, then the energy that corrects it.

        The summary and the tracker also get the losses of the energy by epoch, and
        `energy_gain` with its standard error: the nats by which the energy raises
        log-densities of every other row of the validation set. They decide whether it
        is kept; the rest choose the best epoch. With fewer than four rows all do both.

        Args:
            calibration_kernel: Weighs the loss of the base, not that of the energy.
            resume_training: Whether the base is trained on; the energy starts anew.
            training: `"two_stage"`, or `"joint"` for the variant of the paper: base and
                energy learn together from the generalized-KL loss, with all arguments
                of `NPE`. Only for simulations from the prior.
            energy: How to train the energy; for `"joint"`, only its
                `num_partition_samples` counts.
            schedule: `"averaged"` trains a better base than sbi's loop, which is the
                default; or an :class:`~sbi_boed_plugin.AveragedSchedule`.

        Returns:
            The hybrid estimator of the posterior.

        Raises:
            RuntimeError: If there are no simulations, or nothing to resume.
            ValueError: If arguments do not go together, or with the base.
        """
        ours = ("self", "__class__", "training", "energy", "schedule")
        given = del_entries(locals(), (*ours, "ours"))
        check_default_dtype()
        of_steps = training_batch_size, learning_rate, validation_fraction
        of_ends = stop_after_epochs, max_num_epochs, clip_max_norm
        given |= check_training(*of_steps, *of_ends)
        given["num_atoms"] = check_integer("num_atoms", num_atoms, 1)
        later_round = max(self._data_round_index, default=0) > 0
        atomic = later_round and not force_first_round_loss
        before = self._neural_net if hasattr(self, "optimizer") else None
        _stage.check_kind(training, atomic, before, resume_training)
        self._choose_schedule(schedule, given)
        self._training, energy = training, energy or EnergyConfig()
        self._num_partition_samples = energy.num_partition_samples
        # sbi prints which loss a later round has, whatever it was asked for.
        is_quiet = later_round and not (self._show_progress_bars or show_train_summary)
        with redirect_stdout(StringIO()) if is_quiet else nullcontext():
            trained = super().train(**given)
        return trained if training == "joint" else self._train_energy(energy, atomic)

    def build_posterior(
        self,
        density_estimator: ConditionalDensityEstimator | None = None,
        prior: Distribution | None = None,
        sample_with: str = "direct",
        mcmc_method: Any = "slice_np_vectorized",
        vi_method: Any = "rKL",
        direct_sampling_parameters: dict[str, Any] | None = None,
        mcmc_parameters: dict[str, Any] | None = None,
        vi_parameters: dict[str, Any] | None = None,
        rejection_sampling_parameters: dict[str, Any] | None = None,
        importance_sampling_parameters: dict[str, Any] | None = None,
        posterior_parameters: PosteriorParameters | None = None,
        *,
        design: Tensor | None = None,
    ) -> NeuralPosterior:
        """Build the posterior as `NPE` does, by default a `HybridPosterior`.

        `direct_sampling_parameters` or `posterior_parameters` are those of
        `HybridPosteriorParameters`. `design`, of shape `(dim_design,)` or
        `(1, dim_design)`, is needed if and only if the simulations have designs. Chains
        start from the best of 100 candidates each by default.

        Raises:
            ValueError: If a design is missing, superfluous or of a wrong shape.
            RuntimeError: If nothing was trained.
        """
        given = del_entries(locals(), ("self", "__class__", "design"))
        estimator = density_estimator or self._hybrid or self._neural_net
        if estimator is None:
            raise RuntimeError(
                "There is no posterior estimator yet: call train() first."
            )
        if not (density_estimator or isinstance(estimator, HybridEstimator)):
            warnings.warn(
                "The training was interrupted before there was an energy: the posterior"
                " is that of the base. Go on with train(resume_training=True).",
                stacklevel=2,
            )
        prior = self._prior if prior is None else prior
        hybrid = _stage.at_design(
            estimator, prior, design, self._dim_design, self._x_shape
        )
        return super().build_posterior(**{**given, "density_estimator": hybrid})

    def _build_posterior_parameters(self, sample_with: Any, **kwargs: Any) -> Any:
        if sample_with == "direct":
            given = kwargs["direct_sampling_parameters"] or {}
            return HybridPosteriorParameters(**given)
        if sample_with == "mcmc":
            # Each candidate costs an energy network; sbi takes 1,000 for each chain.
            start = {"init_strategy_parameters": {"num_candidate_samples": 100}}
            kwargs["mcmc_parameters"] = {**start, **(kwargs["mcmc_parameters"] or {})}
        return super()._build_posterior_parameters(sample_with, **kwargs)

    def _create_posterior(self, estimator: Any, prior: Any, *given: Any) -> Any:
        *_, device, parameters = given
        if isinstance(parameters, DirectPosteriorParameters):
            return HybridPosterior(estimator, prior, device=device, **vars(parameters))
        return super()._create_posterior(estimator, prior, *given)

    def _get_potential_function(self, prior: Distribution, estimator: Any) -> Any:
        """Return a potential without the normalization, which no sampler needs."""
        return super()._get_potential_function(prior, UnnormalizedHybrid(estimator))

    def _initialize_neural_network(
        self, retrain_from_scratch: bool, start_idx: int
    ) -> None:
        """Prepare what sbi's loop trains; sbi has checked everything by now."""
        before = self._neural_net
        super()._initialize_neural_network(retrain_from_scratch, start_idx)
        # Errors from here on leave the network that was there.
        network, self._neural_net = self._neural_net, before
        theta, x, _ = self.get_simulations(start_idx)
        rows = theta[self.train_indices], x[self.train_indices]
        if self._training == "joint":
            if not isinstance(network, HybridEstimator):
                network = self._energy_model.put_on(network, *rows, self._prior)
            network.num_partition_samples = self._num_partition_samples
        else:
            if isinstance(network, HybridEstimator):
                network = deepcopy(network.base)
            self._energy_model.shows_noise(network, *rows)
        self._neural_net, self._first_round = network, start_idx
        self._hybrid = None  # which was put on another base.

    def _validate_epoch(self, val_loader: Any, loss_args: Any) -> float:
        """Validate with the same draws each time, where a loss has any."""
        is_random = self._training == "joint" or is_vector_field(self._neural_net)
        with isolated_rng(_VALIDATION_SEED if is_random else None):
            return super()._validate_epoch(val_loader, loss_args)

    def _train_energy(self, config: EnergyConfig, atomic: bool) -> HybridEstimator:
        """Put an energy on a copy of the trained base, train it, and report.

        The random numbers are its own: those of the base's training go on as if nothing
        came between, and whoever draws from them gets none that were used here.
        """
        theta, x, _ = self.get_simulations(self._first_round)
        rows = self.train_indices
        with isolated_rng(get_rng_state()):
            seed = int(torch.randint(2**62, ()))
        with isolated_rng(seed):
            base = deepcopy(self._neural_net), theta[rows], x[rows], self._prior
            hybrid = self._energy_model.put_on(*base, frozen=True)
            hybrid.num_partition_samples = config.num_partition_samples
            history = train_energy(
                hybrid,
                theta,
                x,
                train_rows=rows,
                validation_rows=self.val_indices,
                config=config,
                atomic_prior=self._prior if atomic else None,
                show_progress_bar=self._show_progress_bars,
            )
        # Without an energy log Z is the share of the base inside of the prior.
        hybrid.trained_partition = history.kept and not atomic
        hybrid.corrects = history.kept
        self._hybrid = hybrid
        _stage.report_energy(history, self._summary, self._tracker, self._round)
        return hybrid
