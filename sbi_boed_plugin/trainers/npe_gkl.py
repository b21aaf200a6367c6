"""NPE_GKL: neural posterior estimation, corrected by an energy ratio."""

import warnings
from collections.abc import Callable
from copy import deepcopy
from typing import Any, Literal

from sbi.inference import NPE_C, DirectPosterior
from sbi.inference.posteriors.base_posterior import NeuralPosterior
from sbi.inference.posteriors.posterior_parameters import (
    DirectPosteriorParameters,
    PosteriorParameters,
)
from sbi.neural_nets.estimators import ConditionalDensityEstimator
from sbi.sbi_types import Tracker
from sbi.utils import del_entries
from torch import Tensor
from torch.distributions import Distribution
from torch.utils.tensorboard.writer import SummaryWriter
from typing_extensions import Self

from sbi_boed_plugin._rng import isolated_rng
from sbi_boed_plugin._sbi_compat import ConditionalEstimatorBuilder, if_it_pickles
from sbi_boed_plugin.estimators.coordinates import warn_of_scales
from sbi_boed_plugin.estimators.energy import EnergyBuilder
from sbi_boed_plugin.estimators.hybrid import HybridEstimator, UnnormalizedHybrid
from sbi_boed_plugin.posteriors.hybrid_posterior import (
    HybridPosterior,
    HybridPosteriorParameters,
)
from sbi_boed_plugin.trainers import _stage
from sbi_boed_plugin.trainers._checks import append_design
from sbi_boed_plugin.trainers._energy_training import EnergyConfig

__all__ = ["NPE_GKL"]

# One that nobody seeds the simulations with, whose random numbers it would repeat.
_VALIDATION_SEED = 20_231_004


class NPE_GKL(NPE_C):
    r"""Neural posterior estimation with a hybrid of the generalized-KL family [1].

    It takes the place of `sbi.inference.NPE` in any pipeline. The posterior is
    :math:`q(\theta \mid x) \propto b(\theta \mid x) \, e^{\rho(\theta, x)}`: a base,
    which NPE trains, times an energy ratio that is trained afterwards to minimise

    .. math:: E_{p(\theta, x)}[-\log b - \rho] + E_{p(x)} E_{b(\theta' \mid x)}
        [1(\theta' \in \Theta) \, e^{\rho(\theta', x)}],

    the generalized Kullback-Leibler divergence from the posterior. The energy corrects
    what the base cannot represent, above all the edges and gaps between modes that a
    flow smears out. If it does not improve held-out simulations, the base is kept as
    it is. Joint training is not judged in this way; in rounds from a proposal the
    atomic loss judges, which sees no draws of the base: `diagnostics` tells how rare
    draws weigh.

    [1] Miller et al., *Simulation-based Inference with the Generalized
        Kullback-Leibler Divergence*, 2023, https://arxiv.org/abs/2310.01808

    Example:
    --------
    ::

        inference = NPE_GKL(prior, density_estimator="maf")
        inference.append_simulations(theta, x).train()
        posterior = inference.build_posterior()
        samples = posterior.sample((1000,), x=x_o)
        print(posterior.diagnostics(x_o))

        # Or improve a posterior that is there already
        posterior = NPE_GKL.refine(npe_posterior, theta, x).build_posterior()
    """

    # What sbi's loop trains: the base, or in joint training the hybrid.
    _neural_net: ConditionalDensityEstimator | None
    _training: str = "two_stage"
    # The first round that the present training uses.
    _first_round: int = 0
    _dim_design: int | None = None

    def __init__(  # noqa: D417
        self,
        prior: Distribution | None = None,
        density_estimator: Literal["nsf", "maf", "mdn", "made"]
        | ConditionalEstimatorBuilder[ConditionalDensityEstimator] = "maf",
        device: str = "cpu",
        logging_level: int | str = "WARNING",
        summary_writer: SummaryWriter | None = None,
        tracker: Tracker | None = None,
        show_progress_bars: bool = True,
        *,
        energy_net: Literal["resnet"] | EnergyBuilder = "resnet",
        latent_features: bool | None = None,
    ):
        r"""Initialize the trainer. Arguments not listed are those of `NPE`.

        Args:
            prior: The posterior is zero outside of its support.
            density_estimator: The base, as for `NPE`. With designs, a function that
                builds it receives `(x, design)` in one row in the place of `x`.
            energy_net: The energy: a model of `energy_nn`, or a function that builds a
                module from parameters `(num, dim_theta)` and features
                `(num, num_features)`: the data as the base embeds them and, as
                `latent_features` says, the noise that it makes the parameters of. The
                module is called with batches of both, and returns ratios without the
                last dimension. It should be zero before training.
            latent_features: Whether the energy is shown this noise. If `None`, wherever
                the base can tell it: flows and mixtures can, and estimators of your own
                with a method `to_noise(input, condition)`.

        Raises:
            TypeError: If `energy_net` or `latent_features` is of another type.
        """
        given = (prior, density_estimator, device, logging_level, summary_writer)
        super().__init__(*given, tracker, show_progress_bars)
        self._stage = _stage.EnergyStage(energy_net, latent_features)
        self._summary.update({key: [] for key in _stage.SUMMARY_KEYS})

    @classmethod
    def refine(  # noqa: D417
        cls,
        posterior: DirectPosterior | ConditionalDensityEstimator,
        theta: Tensor,
        x: Tensor,
        *,
        prior: Distribution | None = None,
        energy_net: Literal["resnet"] | EnergyBuilder = "resnet",
        latent_features: bool | None = None,
        energy: EnergyConfig | None = None,
        validation_fraction: float = 0.1,
        device: str | None = None,
        tracker: Tracker | None = None,
        show_progress_bars: bool = True,
        design: Tensor | None = None,
    ) -> "NPE_GKL":
        r"""Train an energy for a posterior that is there already.

        The posterior itself stays as it is; its network is copied and frozen. Where it
        fits the simulations of its training much better than new ones, pass new ones:
        some of them judge the energy. Arguments not listed are those of the trainer and
        of `train`.

        Args:
            posterior: What `NPE.build_posterior()` or `NPE.train()` return.
            theta: Parameters from the prior, of shape `(num_simulations, dim_theta)`.
            x: Their simulations. Rows that are NaN or infinite are left out.
            prior: The prior. If `None`, that of the posterior; so is the device.
            design: Designs of shape `(num_simulations, dim_design)`, for a posterior
                that was trained with `(x, design)` in one row.

        Returns:
            A trainer whose `build_posterior()` returns the corrected posterior.

        Raises:
            TypeError: If `posterior` is of another kind.
            ValueError: If there is no prior, shapes do not match, there are too few
                simulations, or the noise for `latent_features=True` is not known.
        """
        rows, _ = append_design(x, design, None)
        estimator, prior = _stage.to_refine(posterior, prior, theta, rows)
        trainer = cls(
            prior,
            _stage.refuse_to_build,
            device or str(next(estimator.parameters()).device),
            tracker=tracker,
            show_progress_bars=show_progress_bars,
            energy_net=energy_net,
            latent_features=latent_features,
        )
        trainer.append_simulations(theta, x, design=design)
        _stage.check_split(validation_fraction, len(trainer.get_simulations()[0]))
        trainer.get_dataloaders(0, validation_fraction=validation_fraction)
        trainer._neural_net = deepcopy(estimator).to(trainer._device)
        trainer._train_energy(energy or EnergyConfig(), None, atomic=False)
        return trainer

    def append_simulations(  # noqa: D417
        self,
        theta: Tensor,
        x: Tensor,
        proposal: DirectPosterior | None = None,
        exclude_invalid_x: bool | None = None,
        data_device: str | None = None,
        *,
        design: Tensor | None = None,
    ) -> Self:
        r"""Store simulations, and return the trainer. The rest is as for `NPE`.

        Args:
            x: Data of shape `(num_simulations, *x_event_shape)`; with designs of shape
                `(num_simulations, dim_x)`.
            design: Designs of shape `(num_simulations, dim_design)`, or `None` if the
                experiment has none. They must be drawn independently of `theta`.
                `(x, design)` is stored in one row.

        Raises:
            ValueError: If designs are missing, superfluous, misshapen or not finite.
        """
        x, dim_design = append_design(x, design, self._dim_design)
        proposal = _stage.without_idle_energy(proposal)
        super().append_simulations(theta, x, proposal, exclude_invalid_x, data_device)
        self._dim_design = dim_design
        warn_of_scales(self._build_neural_net, theta, x)
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
    ) -> ConditionalDensityEstimator:
        r"""Train the base, then the energy that corrects it.

        The base is trained as by `NPE`, with the same split and random numbers, in
        later rounds with the closed-form loss of mixtures of Gaussians only if the
        proposal has no energy that was kept. Arguments not listed are those of `NPE`.

        The summary and the tracker also get the losses of the energy by epoch, and
        `energy_gain` with its standard error: the nats by which the energy raises
        log-densities of every other row of the validation set. They decide whether it
        is kept; the rest choose the best epoch. With fewer than four rows all do both.

        Args:
            resume_training: Whether to continue the training of the base. The energy is
                trained from the start.
            training: `"two_stage"`, or `"joint"` for the variant of the paper: base and
                energy learn together from the generalized-KL loss, with all arguments
                above. Only for simulations from the prior.
            energy: How to train the energy; for `"joint"`, only its
                `num_partition_samples` counts.

        Returns:
            The hybrid estimator of :math:`p(\theta \mid x)`.

        Raises:
            RuntimeError: If there are no simulations.
            ValueError: If arguments do not go together, or with the base.
        """
        given = del_entries(locals(), ("self", "__class__", "training", "energy"))
        given = _stage.check_arguments(given)
        later_round = max(self._data_round_index, default=0) > 0
        atomic = later_round and not force_first_round_loss
        _stage.check_kind_of_training(training, atomic)
        if resume_training:
            before = self._neural_net if hasattr(self, "optimizer") else None
            _stage.check_resumption(training, before)
        self._training, energy = training, energy or EnergyConfig()
        self._stage.num_partition_samples = energy.num_partition_samples
        trained = super().train(**given)
        if training == "joint":
            return trained
        return self._train_energy(energy, calibration_kernel, atomic=atomic)

    def build_posterior(  # noqa: D417
        self,
        density_estimator: ConditionalDensityEstimator | None = None,
        prior: Distribution | None = None,
        sample_with: Literal[
            "mcmc", "rejection", "vi", "importance", "direct"
        ] = "direct",
        mcmc_method: Any = "slice_np_vectorized",
        vi_method: Literal["rKL", "fKL", "IW", "alpha"] = "rKL",
        direct_sampling_parameters: dict[str, Any] | None = None,
        mcmc_parameters: dict[str, Any] | None = None,
        vi_parameters: dict[str, Any] | None = None,
        rejection_sampling_parameters: dict[str, Any] | None = None,
        importance_sampling_parameters: dict[str, Any] | None = None,
        posterior_parameters: PosteriorParameters | None = None,
        *,
        design: Tensor | None = None,
    ) -> NeuralPosterior:
        r"""Build the posterior. Arguments not listed are those of `NPE`.

        Args:
            density_estimator: An estimator. If `None`, the latest that was trained.
            sample_with: `direct` returns a `HybridPosterior`, which draws by rejection
                from the base; `rejection` is sbi's, which draws from the prior. Chains
                of `mcmc` start from the best of 100 candidates each (sbi takes 1,000),
                unless `init_strategy_parameters` or `posterior_parameters` are given.
            direct_sampling_parameters: Additional kwargs passed to `HybridPosterior`.
            posterior_parameters: In the place of the arguments above; for `direct`,
                `HybridPosteriorParameters`.
            design: Design of the observation, of shape `(dim_design,)` or
                `(1, dim_design)`. Needed if and only if the simulations have designs.

        Returns:
            Posterior :math:`p(\theta|x)` with `.sample()` and `.log_prob()` methods.

        Raises:
            ValueError: If a design is missing, superfluous or of a wrong shape.
            RuntimeError: If nothing was trained.
        """
        given = del_entries(locals(), ("self", "__class__", "design"))
        estimator = density_estimator or self._stage.hybrid or self._neural_net
        if estimator is None:
            raise RuntimeError(
                "There is no posterior estimator yet: call append_simulations() and "
                "train() before build_posterior()."
            )
        if not (density_estimator or isinstance(estimator, HybridEstimator)):
            warnings.warn(
                "The training was interrupted before there was an energy: the posterior"
                " is that of the base. Go on with train(resume_training=True).",
                stacklevel=2,
            )
        prior = self._prior if prior is None else prior
        hybrid = _stage.at_design(estimator, prior, design, self._dim_design)
        return super().build_posterior(**{**given, "density_estimator": hybrid})

    def _build_posterior_parameters(self, sample_with: Any, **kwargs: Any) -> Any:
        """Take arguments of `HybridPosterior`, and start chains from few candidates."""
        if sample_with == "mcmc":
            # Each candidate costs an energy network.
            start = {"init_strategy_parameters": {"num_candidate_samples": 100}}
            kwargs["mcmc_parameters"] = {**start, **(kwargs["mcmc_parameters"] or {})}
        if sample_with == "direct":
            given = kwargs["direct_sampling_parameters"] or {}
            return HybridPosteriorParameters(**given)
        return super()._build_posterior_parameters(sample_with, **kwargs)

    def _create_posterior(
        self, estimator: Any, prior: Any, sample_with: Any, device: Any, parameters: Any
    ) -> NeuralPosterior:
        if isinstance(parameters, DirectPosteriorParameters):
            return HybridPosterior(estimator, prior, device=device, **vars(parameters))
        given = estimator, prior, sample_with, device, parameters
        return super()._create_posterior(*given)

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
        assert network is not None
        theta, x, _ = self.get_simulations(start_idx)
        rows = self.train_indices
        if network is not before:
            self._stage.check_base(network, theta[rows[:2]], x[rows[:2]])
        if self._training == "joint":
            network = self._stage.join(network, theta[rows], x[rows], self._prior)
        elif isinstance(network, HybridEstimator):
            network = deepcopy(network.base)
        self._neural_net, self._first_round = network, start_idx
        self._stage.hybrid = None  # which was put on another base.

    def _validate_epoch(self, val_loader: Any, loss_args: Any) -> float:
        """Validate with the same draws for the partition function each time."""
        seed = _VALIDATION_SEED if self._training == "joint" else None
        with isolated_rng(seed):
            return super()._validate_epoch(val_loader, loss_args)

    def _train_energy(self, config: EnergyConfig, kernel: Any, atomic: bool) -> Any:
        """Put an energy on a copy of the trained base, train it, and report."""
        theta, x, _ = self.get_simulations(self._first_round)
        given = self._neural_net, theta, x, self._prior
        hybrid, history = self._stage.train(
            *given,
            atomic=atomic,
            train_rows=self.train_indices,
            validation_rows=self.val_indices,
            config=config,
            calibration_kernel=kernel,
            show_progress_bar=self._show_progress_bars,
        )
        _stage.report_energy(history, self._summary, self._tracker, self._round)
        return hybrid

    def __getstate__(self) -> dict[str, Any]:
        """Return the state to be pickled, with the tracker if it pickles."""
        return {**super().__getstate__(), "_tracker": if_it_pickles(self._tracker)}

    def __setstate__(self, state_dict: dict[str, Any]) -> None:
        """Set the state, with a new tracker if there is none."""
        vars(self).update(state_dict)
        if self._tracker is None:
            self._tracker = self._default_tracker()
