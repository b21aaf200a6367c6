"""The InfoNCE-λ loss of stored simulations, within sbi's training loop."""

import warnings

import torch
from sbi.neural_nets.estimators import ConditionalDensityEstimator
from sbi.neural_nets.estimators.shape_handling import reshape_to_batch_event
from sbi.utils.torchutils import assert_all_finite
from torch import Tensor
from torch.utils import data

from sbi_boed_plugin._numbers import MOST_WEIGHT, check_integer, check_real
from sbi_boed_plugin.estimators.likelihood_with_failures import without_failures
from sbi_boed_plugin.objectives.info_nce import (
    choose_negligible,
    contrastive_bound,
    in_batch_contrast,
    info_nce_loss,
    log_likelihood_matrix,
)

__all__ = ["EPOCH_KEYS", "InfoNCEObjective"]

# Summary keys beside sbi's, one value per epoch.
EPOCH_KEYS = ("validation_log_likelihood", "eig_lower_bound")
# Chosen by experiment, see the results of the documentation.
DEFAULT_NUM_CONTRASTIVE = 3


class InfoNCEObjective:
    """The loss of one training of a likelihood, on its batches and for validation.

    `asked` is the number of contrastive parameters that was asked for and the weight of
    maximum likelihood, `num_contrastive` the number that the batches allow for,
    `dim_design` how many of the last values of a row of parameters are the design, and
    `metrics` what the last epoch reports beside its losses, by summary key.
    """

    def __init__(
        self, num_contrastive: int | None = None, regularization_strength: float = 1.0
    ) -> None:
        asked = check_integer("num_contrastive", num_contrastive, 0, or_none=True)
        strength = check_real(
            "regularization_strength", regularization_strength, 0.0, MOST_WEIGHT
        )
        _check_something_to_train_on(asked, strength)
        self.asked = asked, strength
        self.regularization_strength = strength
        self.num_contrastive = 0
        self.dim_design = 0
        self.metrics: dict[str, float] = {}
        self._validation_contrast: Tensor | None = None
        self._negligible = 0.0

    def check_resumes(self, earlier: "InfoNCEObjective") -> None:
        """Raise if the losses of a training cannot be compared with earlier ones."""
        if self.asked != earlier.asked:
            raise ValueError(
                f"resume_training=True with num_contrastive={self.asked[0]} and "
                f"regularization_strength={self.asked[1]}, but the training to resume "
                f"used {earlier.asked[0]} and {earlier.asked[1]}: their losses cannot "
                "be compared. Pass the same values or start a new training."
            )

    def fit_to_batches(self, batch_size: int, resume_training: bool) -> None:
        """Choose the number of contrastive parameters that a batch allows for."""
        asked, strength = self.asked
        resolved = min(DEFAULT_NUM_CONTRASTIVE, batch_size - 1)
        if asked is None:
            _check_something_to_train_on(resolved, strength)
        elif asked < batch_size:
            resolved = asked
        else:
            raise ValueError(
                f"num_contrastive={asked} must be less than the training batch size "
                f"{batch_size}: contrastive parameters are its other rows. Use fewer, "
                "or more simulations and a larger training_batch_size."
            )
        if resume_training and resolved != self.num_contrastive:
            raise ValueError(
                f"training_batch_size={batch_size} allows for num_contrastive="
                f"{resolved}, but the training to resume used {self.num_contrastive}: "
                "their losses cannot be compared. Keep the batch size."
            )
        self.num_contrastive = resolved

    def warn_of_pooled_designs(self, num_rounds: int) -> None:
        """Warn where contrastive parameters may come from another distribution."""
        if self.dim_design and num_rounds > 1:
            warnings.warn(
                "Simulations with designs were appended in several calls: if theta or "
                "design followed another distribution in each, contrasting biases the "
                "likelihood. Then use num_contrastive=0, regularization_strength=1.",
                stacklevel=5,
            )

    def fix_validation(
        self,
        loader: data.DataLoader,
        stored: Tensor,
        train_indices: Tensor,
        val_indices: Tensor,
        dataloader_kwargs: dict | None,
    ) -> data.DataLoader:
        """Return a loader that reads all validation rows in a fixed order.

        Each row keeps its contrastive parameters, rows that are trained on: losses are
        comparable between epochs and, with a seed of its own, after resuming.
        """
        generator = torch.Generator().manual_seed(0)
        shape = (self.num_contrastive, len(val_indices))
        draws = torch.randint(len(train_indices), shape, generator=generator)
        rows = train_indices[draws].to(stored.device)
        self._validation_contrast = stored[rows]
        ordered = {
            "batch_size": loader.batch_size,
            "sampler": val_indices.tolist(),
            "drop_last": False,
        }
        return data.DataLoader(
            loader.dataset, **{**ordered, **(dataloader_kwargs or {})}
        )

    def loss(
        self, net: ConditionalDensityEstimator, theta: Tensor, x: Tensor
    ) -> Tensor:
        """Return the loss of each row of a training batch."""
        # Only the last batch can be smaller, if the user's loader keeps it.
        num_contrastive = min(self.num_contrastive, len(theta) - 1)
        contrast = in_batch_contrast(theta, num_contrastive)
        matrix = self._log_likelihoods(net, theta, x, contrast)
        self._negligible = choose_negligible(matrix)
        return self._losses(matrix)

    @torch.no_grad()
    def validate(
        self, net: ConditionalDensityEstimator, loader: data.DataLoader, device: str
    ) -> float:
        """Return the mean loss of the validation rows, and keep what else is told."""
        assert self._validation_contrast is not None
        totals = torch.zeros(3, dtype=torch.float64)
        num_rows = 0
        for theta, x, *_ in loader:
            rows = slice(num_rows, num_rows + len(theta))
            contrast = self._validation_contrast[:, rows].to(device)
            theta, x = theta.to(device), x.to(device)
            matrix = self._log_likelihoods(net, theta, x, contrast)
            terms = (self._losses(matrix), matrix[0], contrastive_bound(matrix))
            totals += torch.stack([term.sum() for term in terms]).cpu().double()
            num_rows += len(theta)
        loss, *metrics = (totals / num_rows).tolist()
        self.metrics = dict(zip(EPOCH_KEYS, metrics, strict=True))
        return loss

    def report_likelihood(self, loss: float) -> float:
        """Return the loss of maximum likelihood, and keep what else is told."""
        values = (-loss / self.regularization_strength, 0.0)
        self.metrics = dict(zip(EPOCH_KEYS, values, strict=True))
        return loss

    def _losses(self, matrix: Tensor) -> Tensor:
        losses = info_nce_loss(matrix, self.regularization_strength)
        assert_all_finite(losses, "InfoNCE loss")
        return losses

    def _log_likelihoods(
        self,
        net: ConditionalDensityEstimator,
        theta: Tensor,
        x: Tensor,
        contrast: Tensor,
    ) -> Tensor:
        """Return the matrix for conditions `(theta, design)` and contrastive ones.

        Their design is that of the data.
        """
        net = without_failures(net)
        theta = reshape_to_batch_event(theta, event_shape=net.condition_shape)
        x = reshape_to_batch_event(x, event_shape=net.input_shape)
        if self.dim_design:
            design = theta[:, -self.dim_design :].expand(len(contrast), -1, -1)
            contrast = torch.cat([contrast[..., : -self.dim_design], design], dim=-1)
        return log_likelihood_matrix(
            net.log_prob,
            x,
            torch.cat([theta.unsqueeze(0), contrast]),
            negligible=self._negligible,
        )


def _check_something_to_train_on(num_contrastive: int | None, strength: float) -> None:
    if num_contrastive == 0 and strength == 0.0:
        raise ValueError(
            "num_contrastive=0 with regularization_strength=0 leaves nothing to train "
            "on. Use num_contrastive of at least 1, or regularization_strength=1 for "
            "maximum likelihood."
        )
