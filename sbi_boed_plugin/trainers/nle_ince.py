"""NLE_INCE: neural likelihood estimation with the InfoNCE-λ objective and designs."""

from typing import Any, Literal

import torch
from sbi.inference.posteriors.base_posterior import NeuralPosterior
from sbi.neural_nets.estimators import ConditionalDensityEstimator
from sbi.neural_nets.estimators.shape_handling import reshape_to_batch_event
from sbi.sbi_types import Tracker
from sbi.utils.torchutils import assert_all_finite
from torch import Tensor
from torch.distributions import Distribution
from torch.utils import data
from torch.utils.tensorboard.writer import SummaryWriter
from typing_extensions import Self

from sbi_boed_plugin._sbi_compat import (
    ConditionalEstimatorBuilder,
    LikelihoodEstimatorTrainer,
)
from sbi_boed_plugin.design.policy import DesignPolicy
from sbi_boed_plugin.estimators.design_conditioned import DesignConditionedEstimator
from sbi_boed_plugin.objectives.info_nce import (
    NEGLIGIBLE,
    contrastive_bound,
    in_batch_contrast,
    info_nce_loss,
    log_likelihood_matrix,
)
from sbi_boed_plugin.trainers._checks import (
    append_designs,
    check_design,
    check_objective,
    resolve_num_contrastive,
)
from sbi_boed_plugin.trainers._design_optimization import DesignOptimizationMixin

__all__ = ["NLE_INCE"]

# Summary keys beside sbi's, one value per epoch.
LOG_LIKELIHOOD_KEY = "validation_log_likelihood"
EIG_KEY = "eig_lower_bound"


class NLE_INCE(DesignOptimizationMixin, LikelihoodEstimatorTrainer):
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
    ):
        r"""Initialize the trainer.

        Args:
            prior: A probability distribution that expresses prior knowledge about the
                parameters. If `None`, it must be passed to `.build_posterior()`, and
                `.optimize_design()` is not available.
            density_estimator: A string (one of nsf, maf, mdn, made, or another model
                of `likelihood_nn`) or a function that builds the network, as for
                `NLE`. With designs it receives `(theta, design)` in one row in the
                place of `theta`.
            device: Training device, e.g., "cpu", "cuda" or "cuda:{0, 1, ...}".
            logging_level: Minimum severity of messages to log.
            summary_writer: Deprecated alias for the TensorBoard summary writer.
            tracker: Tracking adapter used to log training metrics. If None, a
                TensorBoard tracker is used with a default log directory.
            show_progress_bars: Whether to show a progressbar during simulation and
                sampling.
            design_policy: Distribution over designs to learn by `.optimize_design()`.
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
        self._set_design_policy(design_policy)
        self._dim_design: int | None = None
        self._num_contrastive = 0
        self._regularization_strength = 1.0
        self._objective_asked: tuple[int | None, float] = (None, 1.0)
        self._epoch_metrics: dict[str, float] = {}
        self._validation_contrast: Tensor | None = None
        self._summary[LOG_LIKELIHOOD_KEY] = []
        self._summary[EIG_KEY] = []

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
                `True`, training can proceed, but gives systematically wrong results.
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
            self._check_designs_given(design, "simulations")
        if design is not None:
            theta = append_designs(theta, design, self._dim_design, self._design_policy)
        super().append_simulations(
            theta=theta,
            x=x,
            exclude_invalid_x=exclude_invalid_x,
            from_round=from_round,
            algorithm=algorithm,
            data_device=data_device,
        )
        self._dim_design = design.shape[-1] if design is not None else 0
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
                `None`, 15 or as many as the batch allows.
            regularization_strength: Weight :math:`\lambda \geq 0` of maximum
                likelihood. The smaller, the sooner a small set of simulations is
                overfitted.

        Returns:
            Density estimator of :math:`p(x \mid \theta)`, or of
            :math:`p(x \mid \theta, \xi)` if the simulations have designs.

        Raises:
            RuntimeError: If there are no simulations.
            ValueError: If `num_contrastive` or `regularization_strength` is out of
                range, or is changed on resuming.
        """
        asked = (num_contrastive, regularization_strength)
        check_objective(*asked)
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
        self._regularization_strength = regularization_strength
        return super().train(
            training_batch_size=training_batch_size,
            learning_rate=learning_rate,
            validation_fraction=validation_fraction,
            stop_after_epochs=stop_after_epochs,
            max_num_epochs=max_num_epochs,
            clip_max_norm=clip_max_norm,
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
        sample_with: Literal["mcmc", "rejection", "vi", "importance"] = "mcmc",
        *args,
        design: Tensor | None = None,
        **kwargs,
    ) -> NeuralPosterior:
        r"""Build posterior from the likelihood estimator.

        Args:
            density_estimator: The density estimator that the posterior is based on.
                If `None`, use the latest neural density estimator that was trained.
            prior: Prior distribution.
            sample_with: Method to use for sampling from the posterior. Must be one of
                [`mcmc` | `rejection` | `vi` | `importance`].
            *args: As for `sbi.inference.NLE.build_posterior`.
            design: Designs at which the observation was or will be made: shape
                `(dim_design,)`, or `(num_designs, dim_design)` with one row for each
                row of `x_o`. Needed if and only if the likelihood was trained with
                designs.
            **kwargs: As for `sbi.inference.NLE.build_posterior`.

        Returns:
            Posterior :math:`p(\theta|x)` with `.sample()` and `.log_prob()` methods
            (the returned log-probability is unnormalized).

        Raises:
            ValueError: If a design is missing, superfluous or outside the support of
                the policy.
            RuntimeError: If a design is given and nothing was trained.
        """
        if not isinstance(density_estimator, DesignConditionedEstimator):
            self._check_designs_given(design, "the likelihood")
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
        return super().build_posterior(
            density_estimator, prior, sample_with, *args, **kwargs
        )

    def get_dataloaders(
        self,
        starting_round: int = 0,
        training_batch_size: int = 200,
        validation_fraction: float = 0.1,
        resume_training: bool = False,
        dataloader_kwargs: dict | None = None,
    ) -> tuple[data.DataLoader, data.DataLoader]:
        """Return dataloaders for training and validation.

        As sbi's, but with contrastive samples the validation set is read in a fixed
        order and completely, so that each row keeps its contrastive parameters.

        Args:
            starting_round: First round to use data from.
            training_batch_size: Training batch size.
            validation_fraction: Fraction of the data to validate on.
            resume_training: Whether to keep the split of the previous call.
            dataloader_kwargs: Additional or updated kwargs of the dataloaders.

        Returns:
            Dataloaders for training and validation.
        """
        train_loader, val_loader = super().get_dataloaders(
            starting_round,
            training_batch_size,
            validation_fraction,
            resume_training,
            dataloader_kwargs,
        )
        batch_size = train_loader.batch_size or 0
        asked, _ = self._objective_asked
        self._num_contrastive = resolve_num_contrastive(
            asked, self._regularization_strength, batch_size
        )
        if self._num_contrastive > 0:
            ordered = {
                "batch_size": val_loader.batch_size,
                "sampler": self.val_indices.tolist(),
                "drop_last": False,
            }
            val_loader = data.DataLoader(
                val_loader.dataset, **{**ordered, **(dataloader_kwargs or {})}
            )
            rows = _fixed_contrast_rows(
                self.train_indices, len(self.val_indices), self._num_contrastive
            )
            stored, _, _ = self.get_simulations(starting_round)
            self._validation_contrast = stored[rows.to(stored.device)]
        return train_loader, val_loader

    def _loss(self, theta: Tensor, x: Tensor) -> Tensor:
        r"""Return the InfoNCE-λ loss of each row of a training batch."""
        if self._num_contrastive == 0:
            # lambda * NLE, also for estimators whose loss is more than -log_prob.
            return self._regularization_strength * super()._loss(theta, x)
        # Only the last batch can be smaller, if the user's loader keeps it.
        num_contrastive = min(self._num_contrastive, len(theta) - 1)
        matrix = self._log_likelihoods(
            theta, x, in_batch_contrast(theta, num_contrastive)
        )
        losses = info_nce_loss(matrix, self._regularization_strength)
        assert_all_finite(losses, "InfoNCE loss")
        return losses

    def _log_likelihoods(self, theta: Tensor, x: Tensor, contrast: Tensor) -> Tensor:
        r"""Return the matrix for conditions `(theta, design)` and contrastive ones.

        The contrastive rows bring their parameters; the design is that of the data.
        """
        net = self._neural_net
        assert net is not None
        theta = reshape_to_batch_event(theta, event_shape=net.condition_shape)
        x = reshape_to_batch_event(x, event_shape=net.input_shape)
        if self._dim_design:
            design = theta[:, -self._dim_design :]
            contrast = torch.cat(
                [
                    contrast[..., : -self._dim_design],
                    design.expand(len(contrast), *design.shape),
                ],
                dim=-1,
            )
        return log_likelihood_matrix(
            net.log_prob,
            x,
            torch.cat([theta.unsqueeze(0), contrast]),
            negligible=NEGLIGIBLE,
        )

    def _validate_epoch(
        self, val_loader: data.DataLoader, loss_args: Any | None = None
    ) -> float:
        """Return the mean validation loss, and keep what else an epoch reports."""
        if self._num_contrastive == 0:
            val_loss = super()._validate_epoch(val_loader, loss_args)
            log_likelihood = -val_loss / self._regularization_strength
            self._epoch_metrics = {LOG_LIKELIHOOD_KEY: log_likelihood, EIG_KEY: 0.0}
            return val_loss

        assert self._validation_contrast is not None
        totals = torch.zeros(3, dtype=torch.float64)
        num_rows = 0
        with torch.no_grad():
            for batch in val_loader:
                theta, x = batch[0].to(self._device), batch[1].to(self._device)
                contrast = self._validation_contrast[
                    :, num_rows : num_rows + len(theta)
                ]
                matrix = self._log_likelihoods(theta, x, contrast.to(self._device))
                losses = info_nce_loss(matrix, self._regularization_strength)
                assert_all_finite(losses, "InfoNCE loss")
                terms = (losses, matrix[0], contrastive_bound(matrix))
                totals += torch.stack([term.sum() for term in terms]).double().cpu()
                num_rows += len(theta)
        val_loss, log_likelihood, eig = (totals / num_rows).tolist()
        self._epoch_metrics = {LOG_LIKELIHOOD_KEY: log_likelihood, EIG_KEY: eig}
        return val_loss

    def _summarize_epoch(
        self,
        train_loss: float,
        val_loss: float,
        epoch_start_time: float,
        summarization_kwargs: dict[str, Any],
    ) -> None:
        super()._summarize_epoch(
            train_loss, val_loss, epoch_start_time, summarization_kwargs
        )
        for key, value in self._epoch_metrics.items():
            self._summary[key].append(value)

    def _summarize(self, round_: int) -> None:
        offset = sum(self._summary["epochs_trained"][:-1])
        for key in (LOG_LIKELIHOOD_KEY, EIG_KEY):
            for epoch, value in enumerate(self._summary[key][offset:], start=offset):
                self._tracker.log_metric(name=key, value=value, step=epoch)
        super()._summarize(round_)

    def _check_designs_given(self, design: Tensor | None, of_what: str) -> None:
        """Raise if designs are given where there were none before, or missing."""
        if design is None and self._dim_design:
            raise ValueError(
                f"design=None, but {of_what} of this trainer has designs of "
                f"{self._dim_design} values. Pass design=..."
            )
        if design is not None and self._dim_design == 0:
            raise ValueError(
                f"design was given, but {of_what} of this trainer has no designs. "
                "Leave it out, or store all simulations with their designs."
            )


def _fixed_contrast_rows(
    train_indices: Tensor, num_validation: int, num_contrastive: int
) -> Tensor:
    """Return the stored rows that each validation row is contrasted with.

    Always the same for the same sizes, and drawn from a generator of its own: the
    validation loss is comparable between epochs and after resuming, and the global
    random state is not touched.

    Args:
        train_indices: Stored rows that are trained on.
        num_validation: Number of validation rows.
        num_contrastive: Number of contrastive samples.

    Returns:
        Indices of shape `(num_contrastive, num_validation)`.
    """
    generator = torch.Generator().manual_seed(0)
    draws = torch.randint(
        len(train_indices), (num_contrastive, num_validation), generator=generator
    )
    return train_indices[draws]
