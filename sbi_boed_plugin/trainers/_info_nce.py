"""The InfoNCE-λ objective on stored simulations, within sbi's training loop."""

import warnings
from typing import Any

import torch
from sbi.neural_nets.estimators.shape_handling import reshape_to_batch_event
from sbi.utils.torchutils import assert_all_finite
from torch import Tensor
from torch.utils import data

from sbi_boed_plugin._sbi_compat import LikelihoodEstimatorTrainer, SbiTrainerMixin
from sbi_boed_plugin.estimators.failures import without_failures
from sbi_boed_plugin.objectives.info_nce import (
    choose_negligible,
    contrastive_bound,
    in_batch_contrast,
    info_nce_loss,
    log_likelihood_matrix,
)
from sbi_boed_plugin.trainers._checks import resolve_num_contrastive

__all__ = ["EIG_KEY", "InfoNCETrainer"]

# Summary keys beside sbi's, one value per epoch.
LOG_LIKELIHOOD_KEY = "validation_log_likelihood"
EIG_KEY = "eig_lower_bound"


class InfoNCETrainer(SbiTrainerMixin, LikelihoodEstimatorTrainer):
    """Training and validation losses of InfoNCE-λ in the place of NLE's.

    A subclass sets the objective before it calls `train` of this class, and, if
    its simulations have designs, how many of the last values of a stored row of
    parameters are the design.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Initialize as sbi's trainer of likelihoods."""
        super().__init__(*args, **kwargs)
        self._dim_design: int | None = None
        self._num_contrastive = 0
        self._regularization_strength = 1.0
        # What the user passed to the training that can be resumed.
        self._objective_asked: tuple[int | None, float] = (None, 1.0)
        self._epoch_metrics: dict[str, float] = {}
        self._validation_contrast: Tensor | None = None
        self._negligible = 0.0
        self._summary[LOG_LIKELIHOOD_KEY] = []
        self._summary[EIG_KEY] = []

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
        asked, strength = self._objective_asked
        resolved = resolve_num_contrastive(asked, strength, train_loader.batch_size)
        if resume_training and resolved != self._num_contrastive:
            raise ValueError(
                f"training_batch_size={training_batch_size} allows for "
                f"num_contrastive={resolved}, but the training to resume used "
                f"{self._num_contrastive}: their losses cannot be compared. Keep the "
                "batch size."
            )
        self._num_contrastive = resolved
        self._warn_of_pooled_designs(starting_round)
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

    def _warn_of_pooled_designs(self, starting_round: int) -> None:
        """Warn where contrastive parameters may come from another distribution."""
        num_appended = sum(r >= starting_round for r in self._data_round_index)
        if self._dim_design and self._num_contrastive and num_appended > 1:
            warnings.warn(
                "Simulations with designs were appended in several calls. Contrastive "
                "parameters are drawn from all of them: if theta or design followed "
                "another distribution in each, the two depend on each other in the "
                "pool and the likelihood is biased. Then use num_contrastive=0, "
                "regularization_strength=1.",
                stacklevel=4,
            )

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
        self._negligible = choose_negligible(matrix)
        losses = info_nce_loss(matrix, self._regularization_strength)
        assert_all_finite(losses, "InfoNCE loss")
        return losses

    def _log_likelihoods(self, theta: Tensor, x: Tensor, contrast: Tensor) -> Tensor:
        r"""Return the matrix for conditions `(theta, design)` and contrastive ones.

        The contrastive rows bring their parameters; the design is that of the data.
        """
        assert self._neural_net is not None
        net = without_failures(self._neural_net)
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
            negligible=self._negligible,
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
                totals += torch.stack([term.sum() for term in terms]).cpu().double()
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
