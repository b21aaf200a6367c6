"""NLE_INCE: neural likelihood estimation with the InfoNCE-λ objective and designs."""

from typing import Any, Literal

from sbi.inference.posteriors.base_posterior import NeuralPosterior
from sbi.inference.posteriors.posterior_parameters import (
    ImportanceSamplingPosteriorParameters,
    MCMCPosteriorParameters,
    RejectionPosteriorParameters,
    VIPosteriorParameters,
)
from sbi.neural_nets.estimators import ConditionalDensityEstimator
from sbi.sbi_types import Tracker
from torch import Tensor
from torch.distributions import Distribution
from torch.distributions.transforms import Transform
from torch.utils.tensorboard.writer import SummaryWriter
from typing_extensions import Self

from sbi_boed_plugin._sbi_compat import (
    ConditionalEstimatorBuilder,
)
from sbi_boed_plugin.estimators.coordinates import warn_if_gaussian, warn_of_scales
from sbi_boed_plugin.estimators.design_conditioned import DesignConditionedEstimator
from sbi_boed_plugin.estimators.transformed import transformed_likelihood_nn
from sbi_boed_plugin.policies.policy import DesignPolicy
from sbi_boed_plugin.trainers._checks import (
    append_designs,
    check_design,
    check_designs_given,
    check_objective,
    check_training,
)
from sbi_boed_plugin.trainers._info_nce import EIG_KEY, InfoNCETrainer
from sbi_boed_plugin.trainers._sequential import SequentialMixin

__all__ = ["NLE_INCE"]


class NLE_INCE(SequentialMixin, InfoNCETrainer):
    r"""Neural likelihood estimation with the InfoNCE-λ objective (SBI-BOED) [1].

    Like NLE it trains a normalized density estimator of the likelihood, but maximises

    .. math::
        E\Big[(1 + \lambda) \log q(x \mid \theta_0, \xi)
        - \log \frac{1}{L + 1} \sum_{l=0}^{L} q(x \mid \theta_l, \xi)\Big],

    a lower bound of the mutual information between parameters and data plus
    :math:`\lambda` times the log-likelihood. Experiments can have a design
    :math:`\xi`, stored with the simulations, or learned together with the likelihood
    by `optimize_design`.

    Without designs it takes the place of `sbi.inference.NLE` in any pipeline, with the
    same arguments, summary, trackers and posteriors. With `num_contrastive=0` and
    `regularization_strength=1` it is NLE, to the last bit.

    [1] Zaballa and Hui, *Optimizing Likelihoods via Mutual Information: Bridging
        Simulation-Based Inference and Bayesian Optimal Experimental Design*, UAI 2026,
        https://arxiv.org/abs/2502.08004

    Example:
    --------
    ::

        import torch
        from sbi.utils import BoxUniform
        from sbi_boed_plugin import NLE_INCE, TruncatedNormalPolicy

        prior = BoxUniform(low=torch.zeros(2), high=torch.ones(2))
        policy = TruncatedNormalPolicy(low=torch.zeros(1), high=torch.ones(1))
        inference = NLE_INCE(prior, "nsf", design_policy=policy)

        # 1. Learn where to measure, and the likelihood with it
        result = inference.optimize_design(simulator)  # simulator(theta, design) -> x

        # 2. Measure there, and infer
        posterior = inference.build_posterior(design=result.design)
        samples = posterior.sample((1000,), x=x_o)
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
        design_policy: DesignPolicy | None = None,
        posterior_estimator: str
        | ConditionalEstimatorBuilder[ConditionalDensityEstimator] = "mdn",
        marginal_estimator: str
        | ConditionalEstimatorBuilder[ConditionalDensityEstimator] = "mdn",
        x_transform: Transform | Literal["auto"] | None = "auto",
    ):
        r"""Initialize the trainer.

        Args:
            prior: A probability distribution that expresses prior knowledge about the
                parameters. If `None`, it must be passed to `.build_posterior()`, and
                `.optimize_design()` is not available.
            density_estimator: A string (one of nsf, maf, mdn, made, or another model
                of `likelihood_nn`) or a function that builds the network, as for
                `NLE`. With one value of `x` a maf is no more than a Gaussian whose
                mean and scale depend on `theta`: use mdn or nsf for other shapes.
                With designs it receives `(theta, design)` in one row in the
                place of `theta`.
            device: Training device, e.g., "cpu", "cuda" or "cuda:{0, 1, ...}".
            logging_level: Minimum severity of messages to log.
            summary_writer: Deprecated alias for the TensorBoard summary writer.
            tracker: Tracking adapter used to log training metrics. If None, a
                TensorBoard tracker is used with a default log directory.
            show_progress_bars: Whether to show a progressbar during simulation and
                sampling.
            design_policy: Distribution over designs to learn by `.optimize_design()`.
            posterior_estimator: Network of the posterior that `.optimize_design()`
                trains beside the likelihood where its objective needs one: a model of
                `posterior_nn`, or a function that builds it from `theta` and
                `(x, design)` in one row.
            marginal_estimator: Network of the data alone, likewise: a model of
                `likelihood_nn`, or a function that builds it from `design` and `x`.
            x_transform: Coordinates of the data in which networks that are given by
                name work where there are designs: a `Transform` from natural units,
                `None` for these, or `"auto"`, which takes (almost) logarithms of data
                that spread over decades, and warns, as
                :func:`~sbi_boed_plugin.transformed_likelihood_nn` describes. Densities
                are those of natural units always.

        Raises:
            ValueError: If `x_transform` is none of these, or there is no named network
                of the likelihood to work in it.
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
        search_likelihood = None
        self._model = density_estimator if isinstance(density_estimator, str) else None
        if isinstance(density_estimator, str):
            search_likelihood = transformed_likelihood_nn(
                density_estimator, x_transform=x_transform
            )
        elif x_transform != "auto":
            raise ValueError(
                f"x_transform={x_transform!r} is for networks that are given by name, "
                "but density_estimator is a function. Give it the transform: "
                "transformed_likelihood_nn(..., x_transform=...)."
            )
        self._set_design_search(
            design_policy, posterior_estimator, marginal_estimator, search_likelihood
        )

    def append_simulations(
        self,
        theta: Tensor,
        x: Tensor,
        exclude_invalid_x: bool = False,
        from_round: int = 0,
        algorithm: str = "NLE_INCE",
        data_device: str | None = None,
        *,
        design: Tensor | None = None,
    ) -> Self:
        r"""Store parameters, simulation outputs and their designs for training.

        Args:
            theta: Parameter sets of shape `(num_simulations, dim_theta)`.
            x: Simulation outputs of shape `(num_simulations, *x_event_shape)`.
            exclude_invalid_x: Whether invalid simulations are discarded during
                training. If `False`, an error is raised when they are found. If
                `True`, the likelihood is that of outcomes that do not fail: what it
                tells that one did not is left out, and the posterior is wrong where
                failing depends on the parameters.
            from_round: Which round the data stemmed from. Round 0 means from the prior.
            algorithm: Name of the algorithm in warnings and errors.
            data_device: Where to store the data, default is on the same device where
                the training is happening.
            design: Designs of the simulations, of shape
                `(num_simulations, dim_design)`, or `None` if the experiment has none.
                They must be drawn independently of `theta`. What the likelihood is
                conditioned on, `(theta, design)`, is stored in one row.

        Returns:
            The trainer (returned so that this function is chainable).

        Raises:
            ValueError: If designs are missing, superfluous, of a wrong shape, not
                finite or outside the support of the policy.
        """
        if self._data_round_index or self._neural_net is not None:
            # Without simulations and network there is nothing to be consistent with.
            check_designs_given(design, self._dim_design)
        dim_design = 0
        if design is not None:
            rows = append_designs(theta, design, self._dim_design, self._design_policy)
            theta, dim_design = rows, rows.shape[-1] - theta.shape[-1]
        if len(theta) != len(x):
            raise ValueError(
                f"theta has {len(theta)} rows and x {len(x)}: each simulation needs a "
                "row in both."
            )
        super().append_simulations(
            theta=theta,
            x=x,
            exclude_invalid_x=exclude_invalid_x,
            from_round=from_round,
            algorithm=algorithm,
            data_device=data_device,
        )
        self._dim_design = dim_design
        if dim_design and self._search_likelihood is not None:
            self._build_neural_net = self._search_likelihood
        warn_of_scales(self._build_neural_net, theta, x)
        if not dim_design:
            warn_if_gaussian(self._model, x)
        return self

    def train(
        self,
        training_batch_size: int = 200,
        learning_rate: float = 5e-4,
        validation_fraction: float = 0.1,
        stop_after_epochs: int = 20,
        max_num_epochs: int = 2**31 - 1,
        clip_max_norm: float | None = 5.0,
        resume_training: bool = False,
        discard_prior_samples: bool = False,
        retrain_from_scratch: bool = False,
        show_train_summary: bool = False,
        dataloader_kwargs: dict | None = None,
        *,
        num_contrastive: int | None = None,
        regularization_strength: float = 1.0,
    ) -> ConditionalDensityEstimator:
        r"""Train the density estimator on the stored simulations.

        Early stopping uses the same objective on the validation set, with contrastive
        parameters that stay the same from epoch to epoch. The summary and the tracker
        also get the `validation_log_likelihood` and the `eig_lower_bound` (nats) of
        each epoch; the latter averages over the designs of the simulations and never
        exceeds :math:`\log(L + 1)`.

        Args:
            training_batch_size: As in `sbi.inference.NLE.train`, like the following.
            learning_rate: Learning rate for Adam optimizer.
            validation_fraction: The fraction of data to use for validation.
            stop_after_epochs: Number of epochs without improvement before stopping.
            max_num_epochs: Maximum number of epochs to run.
            clip_max_norm: Value at which to clip the total gradient norm.
            resume_training: Whether to continue the previous call.
            discard_prior_samples: Whether to discard samples of round 1.
            retrain_from_scratch: Whether to retrain from scratch each round.
            show_train_summary: Whether to print the number of epochs and the loss.
            dataloader_kwargs: Additional or updated kwargs of both dataloaders.
            num_contrastive: Number :math:`L` of contrastive parameters of each
                simulation, other rows of its batch, fewer than the batch has rows.
                With 0 the objective is :math:`\lambda` times the log-likelihood. If
                `None`, 3 or as many as the batch allows.
            regularization_strength: Weight :math:`\lambda \geq 0` of maximum
                likelihood beside the contrastive bound.

        Returns:
            Density estimator of :math:`p(x \mid \theta)`, or of
            :math:`p(x \mid \theta, \xi)` if the simulations have designs.

        Raises:
            RuntimeError: If there are no simulations.
            ValueError: If `num_contrastive` or `regularization_strength` is out of
                range, or is changed on resuming.
        """
        asked = check_objective(num_contrastive, regularization_strength)
        numbers = check_training(
            training_batch_size,
            learning_rate,
            validation_fraction,
            stop_after_epochs,
            max_num_epochs,
            clip_max_norm,
        )
        if (
            resume_training
            and self._summary[EIG_KEY]
            and asked != self._objective_asked
        ):
            raise ValueError(
                f"resume_training=True with num_contrastive={num_contrastive} and "
                f"regularization_strength={regularization_strength}, but the training "
                f"to resume used {self._objective_asked[0]} and "
                f"{self._objective_asked[1]}: their losses cannot be compared. Pass "
                "the same values or start a new training."
            )
        self._objective_asked = asked
        self._regularization_strength = asked[1]
        return super().train(
            **numbers,
            resume_training=resume_training,
            discard_prior_samples=discard_prior_samples,
            retrain_from_scratch=retrain_from_scratch,
            show_train_summary=show_train_summary,
            dataloader_kwargs=dataloader_kwargs,
        )

    def build_posterior(
        self,
        density_estimator: ConditionalDensityEstimator | None = None,
        prior: Distribution | None = None,
        sample_with: Literal[
            "mcmc", "rejection", "vi", "importance", "direct"
        ] = "mcmc",
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
        mcmc_parameters: dict[str, Any] | None = None,
        vi_parameters: dict[str, Any] | None = None,
        rejection_sampling_parameters: dict[str, Any] | None = None,
        importance_sampling_parameters: dict[str, Any] | None = None,
        posterior_parameters: MCMCPosteriorParameters
        | VIPosteriorParameters
        | RejectionPosteriorParameters
        | ImportanceSamplingPosteriorParameters
        | None = None,
        *,
        design: Tensor | None = None,
    ) -> NeuralPosterior:
        r"""Build posterior from the likelihood estimator.

        Args:
            density_estimator: The density estimator that the posterior is based on.
                If `None`, use the latest neural density estimator that was trained.
            prior: Prior distribution.
            sample_with: Method to use for sampling from the posterior. Must be one of
                [`mcmc` | `rejection` | `vi` | `importance` | `direct`]. `direct` takes
                the amortised posterior that `.optimize_design()` trained beside the
                likelihood, from what was known at that time.
            mcmc_method: As in `sbi.inference.NLE.build_posterior`, like the following.
            vi_method: Method used for VI, one of [`rKL`, `fKL`, `IW`, `alpha`].
            mcmc_parameters: Additional kwargs passed to `MCMCPosterior`.
            vi_parameters: Additional kwargs passed to `VIPosterior`.
            rejection_sampling_parameters: Additional kwargs passed to
                `RejectionPosterior`.
            importance_sampling_parameters: Additional kwargs passed to
                `ImportanceSamplingPosterior`.
            posterior_parameters: Configuration passed to the init method for the
                posterior, in the place of the arguments above.
            design: Designs at which the observation was or will be made: shape
                `(dim_design,)`, or `(num_designs, dim_design)` with one row for each
                row of `x_o`. Needed if and only if the likelihood was trained with
                designs. If `None` after `.observe()`, the posterior is the one given
                all observations, which are its default `x`; for `direct` the last.

        Returns:
            Posterior :math:`p(\theta|x)` with `.sample()` and `.log_prob()` methods
            (the returned log-probability is unnormalized).

        Raises:
            ValueError: If a design is missing, superfluous or outside the support of
                the policy.
            RuntimeError: If a design is given and nothing was trained.
        """
        if sample_with == "direct":
            return self._build_direct_posterior(density_estimator, prior, design)
        x_o = None
        if design is None and density_estimator is None and self._observations:
            density_estimator, x_o = self._observed_likelihood()
        if not isinstance(density_estimator, DesignConditionedEstimator):
            check_designs_given(design, self._dim_design)
        if design is not None:
            estimator = density_estimator or self._neural_net
            if estimator is None:
                raise RuntimeError(
                    "There is no likelihood yet: call optimize_design() or train() "
                    "before build_posterior()."
                )
            density_estimator = DesignConditionedEstimator(
                estimator, check_design(design, self._dim_design, self._design_policy)
            )
        posterior = super().build_posterior(
            density_estimator=density_estimator,
            prior=prior,
            sample_with=sample_with,
            mcmc_method=mcmc_method,
            vi_method=vi_method,
            mcmc_parameters=mcmc_parameters,
            vi_parameters=vi_parameters,
            rejection_sampling_parameters=rejection_sampling_parameters,
            importance_sampling_parameters=importance_sampling_parameters,
            posterior_parameters=posterior_parameters,
        )
        return posterior if x_o is None else posterior.set_default_x(x_o)
