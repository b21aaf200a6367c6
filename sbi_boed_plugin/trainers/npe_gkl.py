"""NPE_GKL: neural posterior estimation, corrected by an energy ratio."""

import warnings
from collections.abc import Callable
from copy import deepcopy
from typing import Any, Literal

from sbi.inference.posteriors import DirectPosterior
from sbi.inference.posteriors.base_posterior import NeuralPosterior
from sbi.inference.posteriors.posterior_parameters import (
    DirectPosteriorParameters,
    ImportanceSamplingPosteriorParameters,
    MCMCPosteriorParameters,
    RejectionPosteriorParameters,
    VIPosteriorParameters,
)
from sbi.neural_nets.estimators import ConditionalDensityEstimator
from sbi.sbi_types import Tracker
from torch import Tensor
from torch.distributions import Distribution
from torch.utils.tensorboard.writer import SummaryWriter
from typing_extensions import Self

from sbi_boed_plugin._numbers import check_integer, check_real
from sbi_boed_plugin._sbi_compat import ConditionalEstimatorBuilder
from sbi_boed_plugin.estimators.coordinates import warn_of_scales
from sbi_boed_plugin.estimators.design_conditioned import (
    DesignConditionedEstimator,
    posterior_at_design,
)
from sbi_boed_plugin.estimators.energy import EnergyBuilder
from sbi_boed_plugin.estimators.hybrid import HybridEstimator
from sbi_boed_plugin.trainers._checks import check_designs_given, check_training
from sbi_boed_plugin.trainers._conditions import append_design_to_data, one_design
from sbi_boed_plugin.trainers._energy_training import (
    EnergyConfig,
)
from sbi_boed_plugin.trainers._hybrid_trainer import HybridTrainer

__all__ = ["NPE_GKL"]


class NPE_GKL(HybridTrainer):
    r"""Neural posterior estimation with a hybrid of the generalized-KL family [1].

    The posterior is :math:`q(\theta \mid x) \propto b(\theta \mid x)
    \, e^{\rho(\theta, x)}`: a base, which NPE trains, times an energy ratio that is
    trained afterwards to minimise

    .. math:: E_{p(\theta, x)}[-\log b - \rho] + E_{p(x)} E_{b(\theta' \mid x)}
        [1(\theta' \in \Theta) \, e^{\rho(\theta', x)}],

    the generalized Kullback-Leibler divergence from the posterior. The energy corrects
    what the base cannot represent, above all the edges and gaps between modes that a
    flow smears out. If it does not improve the objective on the validation set, the
    base is kept as it is. Joint training is not judged in this way; and in rounds
    from a proposal the judgement is that of the atomic loss, which sees no draws of
    the base: how rare draws weigh is then for `diagnostics` to tell.

    It takes the place of `sbi.inference.NPE` in any pipeline, with the same arguments,
    summary, trackers and posteriors.

    [1] Miller, Federici, Weniger and Forré, *Simulation-based Inference with the
        Generalized Kullback-Leibler Divergence*, 2023,
        https://arxiv.org/abs/2310.01808

    Example:
    --------
    ::

        from sbi_boed_plugin import NPE_GKL

        inference = NPE_GKL(prior, density_estimator="maf")
        inference.append_simulations(theta, x).train()
        posterior = inference.build_posterior()
        samples = posterior.sample((1000,), x=x_o)
        print(posterior.diagnostics(x_o))

        # Or improve a posterior that is there already
        posterior = NPE_GKL.refine(npe_posterior, theta, x).build_posterior()
    """

    def __init__(
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
        r"""Initialize the trainer.

        Args:
            prior: A probability distribution that expresses prior knowledge about the
                parameters. The posterior is zero outside of its support.
            density_estimator: The base: a string (one of nsf, maf, mdn, made, or
                another model of `posterior_nn`) or a function that builds the network,
                as for `NPE`. With designs it receives `(x, design)` in one row in the
                place of `x`.
            device: Training device, e.g., "cpu", "cuda" or "cuda:{0, 1, ...}".
            logging_level: Minimum severity of messages to log.
            summary_writer: Deprecated alias for the TensorBoard summary writer.
            tracker: Tracking adapter used to log training metrics. If None, a
                TensorBoard tracker is used with a default log directory.
            show_progress_bars: Whether to show a progressbar during training.
            energy_net: The energy: a model of `energy_nn`, or a function that builds a
                module from parameters of shape `(num, dim_theta)` and features of shape
                `(num, num_features)`. Features are the data as the base embeds them
                and, as `latent_features` says, the noise that it makes the parameters
                of. The module is called with batches of both, and returns ratios
                without the last dimension. It should be zero before training.
            latent_features: Whether the energy is shown the noise that the base makes
                the parameters of. If `None`, wherever the base can tell it: flows and
                mixtures can, and estimators of your own with a method
                `to_noise(input, condition)`.

        Raises:
            TypeError: If `energy_net` or `latent_features` is of another type.
        """
        super().__init__(
            prior=prior,
            density_estimator=density_estimator,
            device=device,
            logging_level=logging_level,
            summary_writer=summary_writer,
            tracker=tracker,
            show_progress_bars=show_progress_bars,
        )
        self._set_energy(energy_net, latent_features)

    @classmethod
    def refine(
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

        The posterior itself stays as it is; its network is copied and frozen. Which
        simulations it was validated with is not known: the energy is judged by others
        than it was trained with, most of which the posterior has seen. Where that fits
        its simulations much better than new ones, pass new ones as `theta` and `x`.

        Args:
            posterior: A `DirectPosterior`, as `NPE.build_posterior()` returns, or the
                estimator that `NPE.train()` returns.
            theta: Parameters of shape `(num_simulations, dim_theta)`, drawn from the
                prior: those that the posterior was trained with, or others.
            x: Their simulations, of shape `(num_simulations, *x_event_shape)`. Rows
                that are NaN or infinite are left out.
            prior: The prior. If `None`, that of the posterior.
            energy_net: As for the trainer.
            latent_features: As for the trainer.
            energy: How to train the energy.
            validation_fraction: The fraction of data to use for validation.
            device: Training device. If `None`, that of the posterior.
            tracker: As for the trainer.
            show_progress_bars: Whether to show progress.
            design: Designs of the simulations, of shape
                `(num_simulations, dim_design)`, for a posterior that was trained with
                `(x, design)` in one row.

        Returns:
            A trainer whose `build_posterior()` returns the corrected posterior.

        Raises:
            TypeError: If `posterior` is of another kind.
            ValueError: If there is no prior, shapes do not match, no simulations are
                left to train or to validate with, or the estimator cannot tell its
                noise and `latent_features` is true.
        """
        estimator = posterior
        if isinstance(posterior, NeuralPosterior):
            estimator = getattr(posterior, "posterior_estimator", None)
            prior = prior or getattr(posterior, "prior", None)
        if isinstance(estimator, HybridEstimator):
            estimator = estimator.base
        if not isinstance(estimator, ConditionalDensityEstimator):
            raise TypeError(
                f"posterior is a {type(posterior).__name__}: refine() corrects what "
                "NPE.train() or NPE.build_posterior() return. Posteriors of NLE and "
                "NRE have no normalized density to correct."
            )
        if prior is None:
            raise ValueError(
                "prior=None, and an estimator does not know its prior: pass prior=..."
            )
        shown = x if design is None else append_design_to_data(x, design, None)[0]
        _check_matches(estimator, theta, shown)
        validation_fraction = check_real(
            "validation_fraction",
            validation_fraction,
            above=0.0,
            below=1.0,
            remedy="An energy must help simulations that it has not seen.",
        )
        if device is None:
            device = str(next(estimator.parameters()).device)
        trainer = cls(
            prior,
            _given_estimator,
            device=device,
            tracker=tracker,
            show_progress_bars=show_progress_bars,
            energy_net=energy_net,
            latent_features=latent_features,
        )
        trainer.append_simulations(theta, x, design=design)
        num_simulations = len(trainer.get_simulations()[0])
        num_training = int((1.0 - validation_fraction) * num_simulations)
        if not 0 < num_training < num_simulations:
            raise ValueError(
                f"validation_fraction={validation_fraction} leaves {num_training} of "
                f"{num_simulations} valid simulations to train with and the rest to "
                "validate with. Both need some."
            )
        trainer.get_dataloaders(0, validation_fraction=validation_fraction)
        trainer._neural_net = deepcopy(estimator).to(device)
        trainer._round = 0
        trainer._train_energy(energy or EnergyConfig(), None, atomic=False)
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
        r"""Store parameters, simulation outputs and their designs for training.

        Args:
            theta: Parameter sets of shape `(num_simulations, dim_theta)`.
            x: Simulation outputs of shape `(num_simulations, *x_event_shape)`; with
                designs of shape `(num_simulations, dim_x)`.
            proposal: The distribution that the parameters were sampled from. `None` for
                the prior; another triggers the loss of later rounds.
            exclude_invalid_x: Whether invalid simulations are discarded during
                training, as for `NPE`. If `None`, in the first round only.
            data_device: Where to store the data, default is on the same device where
                the training is happening.
            design: Designs of the simulations, of shape
                `(num_simulations, dim_design)`, or `None` if the experiment has none.
                They must be drawn independently of `theta`. What the posterior is
                conditioned on, `(x, design)`, is stored in one row.

        Returns:
            The trainer (returned so that this function is chainable).

        Raises:
            ValueError: If designs are missing, superfluous, of a wrong shape or not
                finite.
        """
        if self._data_round_index or self._neural_net is not None:
            check_designs_given(design, self._dim_design)
        dim_design = 0
        if design is not None:
            x, dim_design = append_design_to_data(x, design, self._dim_design)
        super().append_simulations(
            theta=theta,
            x=x,
            proposal=proposal,
            exclude_invalid_x=exclude_invalid_x,
            data_device=data_device,
        )
        self._dim_design = dim_design
        warn_of_scales(self._build_neural_net, theta, x)
        return self

    def train(
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

        The base is trained as by `NPE`, with the same arguments, split and random
        numbers. The summary and the tracker also get the losses of each epoch of the
        energy, `energy_training_loss` and `energy_validation_loss`, the number of these
        epochs, and `energy_gain` with its standard error: the nats by which the energy
        raises log-densities of every other row of the validation set. They decide
        whether it is kept; the rest choose the best epoch. With fewer than four rows
        all do both.

        In later rounds a mixture of Gaussians as base has the closed-form loss of
        `NPE`, if the proposal is a mixture without an energy that was kept. Otherwise
        the loss is atomic.

        Args:
            num_atoms: Number of atoms of the base's loss in later rounds.
            training_batch_size: As in `sbi.inference.NPE.train`, like the following.
            learning_rate: Learning rate for Adam optimizer.
            validation_fraction: The fraction of data to use for validation.
            stop_after_epochs: Number of epochs without improvement before stopping.
            max_num_epochs: Maximum number of epochs to run.
            clip_max_norm: Value at which to clip the total gradient norm.
            calibration_kernel: A function to weigh simulations by their `x`.
            resume_training: Whether to continue the training of the base. The energy
                belongs to a base and is trained anew.
            force_first_round_loss: Whether to train with maximum likelihood whatever
                the proposal was.
            discard_prior_samples: Whether to discard samples of round 1.
            use_combined_loss: Whether to add maximum likelihood on prior samples.
            retrain_from_scratch: Whether to retrain from scratch each round.
            show_train_summary: Whether to print the number of epochs and the loss.
            dataloader_kwargs: Additional or updated kwargs of both dataloaders.
            training: `"two_stage"`, or `"joint"` for the variant of the paper: base and
                energy learn together from the generalized-KL loss, with all arguments
                above. Only for simulations from the prior.
            energy: How to train the energy; for `"joint"`, only its
                `num_partition_samples` counts.

        Returns:
            The hybrid estimator of :math:`p(\theta \mid x)`.

        Raises:
            RuntimeError: If there are no simulations.
            ValueError: If arguments do not go together, or the base cannot tell its
                noise and `latent_features` is true.
        """
        energy = energy or EnergyConfig()
        numbers = check_training(
            training_batch_size,
            learning_rate,
            validation_fraction,
            stop_after_epochs,
            max_num_epochs,
            clip_max_norm,
        )
        num_atoms = check_integer("num_atoms", num_atoms, 1)
        if training not in ("two_stage", "joint"):
            raise ValueError(
                f"training='{training}' is unknown. Use 'two_stage' or 'joint'."
            )
        later_round = bool(self._data_round_index) and max(self._data_round_index) > 0
        atomic = later_round and not force_first_round_loss
        if training == "joint" and atomic:
            raise ValueError(
                "training='joint' with simulations from a proposal: the loss of the "
                "paper holds for simulations from the prior. Use training='two_stage'."
            )
        if resume_training and not hasattr(self, "optimizer"):
            raise RuntimeError(
                "resume_training=True, but this trainer has not trained a base: after "
                "refine() there is none to go on with. Call refine() again."
            )
        if resume_training and training != self._training:
            raise ValueError(
                f"resume_training=True with training='{training}', but the training to "
                f"resume was '{self._training}': their losses cannot be compared. Pass "
                "the same value or start a new training."
            )
        self._training = training
        self._num_partition_samples = energy.num_partition_samples
        before = self._neural_net
        base = None
        if training == "two_stage" and isinstance(before, HybridEstimator):
            # The base goes on learning; whoever has the hybrid keeps what belongs to
            # its energy.
            base = before.base
            self._neural_net, before.net = base, deepcopy(base)
        self._base_started = False
        try:
            trained = super().train(
                num_atoms=num_atoms,
                **numbers,
                calibration_kernel=calibration_kernel,
                resume_training=resume_training,
                force_first_round_loss=force_first_round_loss,
                discard_prior_samples=discard_prior_samples,
                use_combined_loss=use_combined_loss,
                retrain_from_scratch=retrain_from_scratch,
                show_train_summary=show_train_summary,
                dataloader_kwargs=dataloader_kwargs,
            )
        except BaseException:
            if not self._base_started:
                # Refused before anything changed.
                self._neural_net = before
                if base is not None and isinstance(before, HybridEstimator):
                    before.net = base
            raise
        if training == "joint":
            return trained
        return self._train_energy(energy, calibration_kernel, atomic=atomic)

    def build_posterior(
        self,
        density_estimator: ConditionalDensityEstimator | None = None,
        prior: Distribution | None = None,
        sample_with: Literal[
            "mcmc", "rejection", "vi", "importance", "direct"
        ] = "direct",
        mcmc_method: Literal[
            "slice_np",
            "slice_np_vectorized",
            "hmc_pyro",
            "nuts_pyro",
            "slice_pymc",
            "hmc_pymc",
            "nuts_pymc",
        ] = "slice_np_vectorized",
        vi_method: Literal["rKL", "fKL", "IW", "alpha"] = "rKL",
        direct_sampling_parameters: dict[str, Any] | None = None,
        mcmc_parameters: dict[str, Any] | None = None,
        vi_parameters: dict[str, Any] | None = None,
        rejection_sampling_parameters: dict[str, Any] | None = None,
        importance_sampling_parameters: dict[str, Any] | None = None,
        posterior_parameters: DirectPosteriorParameters
        | MCMCPosteriorParameters
        | VIPosteriorParameters
        | RejectionPosteriorParameters
        | ImportanceSamplingPosteriorParameters
        | None = None,
        *,
        design: Tensor | None = None,
    ) -> NeuralPosterior:
        r"""Build the posterior from base and energy.

        Args:
            density_estimator: The estimator that the posterior is based on. If `None`,
                use the latest that was trained.
            prior: Prior distribution.
            sample_with: Method to use for sampling from the posterior. Must be one of
                [`direct` | `mcmc` | `rejection` | `vi` | `importance`]. `direct`
                returns a `HybridPosterior`, which draws by rejection from the base;
                `rejection` is sbi's, which draws from the prior.
            mcmc_method: As in `sbi.inference.NPE.build_posterior`, like the following.
            vi_method: Method used for VI, one of [`rKL`, `fKL`, `IW`, `alpha`].
            direct_sampling_parameters: Additional kwargs passed to `HybridPosterior`.
            mcmc_parameters: Additional kwargs passed to `MCMCPosterior`.
            vi_parameters: Additional kwargs passed to `VIPosterior`.
            rejection_sampling_parameters: Additional kwargs passed to
                `RejectionPosterior`.
            importance_sampling_parameters: Additional kwargs passed to
                `ImportanceSamplingPosterior`.
            posterior_parameters: Configuration passed to the init method for the
                posterior, in the place of the arguments above; for `direct` a
                `HybridPosteriorParameters` or `DirectPosteriorParameters`.
            design: Design at which the observation was or will be made, of shape
                `(dim_design,)` or `(1, dim_design)`. Needed if and only if the
                simulations have designs.

        Returns:
            Posterior :math:`p(\theta|x)` with `.sample()` and `.log_prob()` methods.

        Raises:
            ValueError: If a design is missing, superfluous or of a wrong shape.
            RuntimeError: If nothing was trained.
        """
        estimator = density_estimator or self._neural_net
        base = estimator.base if isinstance(estimator, HybridEstimator) else estimator
        if not isinstance(base, DesignConditionedEstimator):
            check_designs_given(design, self._dim_design)
        elif design is not None:
            raise ValueError(
                f"design={design.tolist()} was given, but "
                "density_estimator has a design already. Leave one of them out."
            )
        if estimator is None:
            raise RuntimeError(
                "There is no posterior estimator yet: call append_simulations() and "
                "train() before build_posterior()."
            )
        if density_estimator is None and not isinstance(estimator, HybridEstimator):
            warnings.warn(
                "The training was interrupted before there was an energy: the "
                "posterior is that of the base alone, as far as it was trained. Go on "
                "with train(resume_training=True).",
                stacklevel=2,
            )
        if design is not None:
            design = one_design(design, self._dim_design)
            if isinstance(estimator, HybridEstimator):
                estimator = estimator.at_design(design)
            else:
                estimator = posterior_at_design(estimator, design)
        return super().build_posterior(
            density_estimator=estimator,
            prior=prior,
            sample_with=sample_with,
            mcmc_method=mcmc_method,
            vi_method=vi_method,
            direct_sampling_parameters=direct_sampling_parameters,
            mcmc_parameters=mcmc_parameters,
            vi_parameters=vi_parameters,
            rejection_sampling_parameters=rejection_sampling_parameters,
            importance_sampling_parameters=importance_sampling_parameters,
            posterior_parameters=posterior_parameters,
        )


def _given_estimator(theta: Tensor, x: Tensor) -> ConditionalDensityEstimator:
    """Stand in for the builder of a base that was trained elsewhere."""
    raise RuntimeError(
        "This trainer refines an estimator that was trained elsewhere, and cannot "
        "build another one. Start with NPE_GKL(prior, density_estimator=...)."
    )


def _check_matches(
    estimator: ConditionalDensityEstimator, theta: Tensor, x: Tensor
) -> None:
    """Raise if simulations do not have the shapes of an estimator."""
    for name, given, expected in (
        ("theta", theta, estimator.input_shape),
        ("x", x, estimator.condition_shape),
    ):
        if not isinstance(given, Tensor) or given.shape[1:] != expected:
            shape = tuple(given.shape) if isinstance(given, Tensor) else type(given)
            raise ValueError(
                f"{name} has shape {shape}, but the posterior was trained with rows of "
                f"shape {tuple(expected)}. Pass the simulations that it was trained "
                "with."
            )
