"""The InfoNCE-λ loss of stored simulations, within sbi's training loop."""

import math
import warnings
from collections.abc import Callable

import torch
from sbi.neural_nets.estimators import ConditionalDensityEstimator
from sbi.neural_nets.estimators.shape_handling import reshape_to_batch_event
from sbi.utils.torchutils import assert_all_finite
from torch import Tensor

from sbi_boed_plugin._numbers import MOST_WEIGHT, check_integer, check_real
from sbi_boed_plugin._rng import isolated_rng
from sbi_boed_plugin.estimators.likelihood_with_failures import without_failures
from sbi_boed_plugin.objectives.info_nce import (
    contrastive_bound,
    in_batch_contrast,
    info_nce_loss,
    log_likelihood_matrix,
)

__all__ = ["EPOCH_KEYS", "InfoNCEObjective"]

# Summary keys beside sbi's, one value per epoch.
EPOCH_KEYS = ("validation_log_likelihood", "eig_lower_bound")
# Chosen by experiment, see the results of the documentation.
_DEFAULT_NUM_CONTRASTIVE = 3
_VALIDATION_SEED = 20_261_129


class InfoNCEObjective:
    """The loss of one training of a likelihood, on its batches and for validation.

    `num_contrastive` is the number that was asked for and, once it is fitted, what the
    batches allow for; `in_nats` is whether the loss of the network is a log-density,
    which that of a vector field is not; `dim_design` is how many of the last values of
    a row of parameters are the design, `parameters` are the rows that are trained on,
    and `metrics` what the last epoch reports beside its losses, by summary key.
    """

    def __init__(
        self,
        num_contrastive: int | None = None,
        regularization_strength: float = 1.0,
        in_nats: bool = True,
    ) -> None:
        asked = check_integer("num_contrastive", num_contrastive, 0, or_none=True)
        self.num_contrastive: int | None = asked
        self.regularization_strength = check_real(
            "regularization_strength", regularization_strength, 0.0, MOST_WEIGHT
        )
        self.in_nats = in_nats
        if not in_nats and self.num_contrastive:
            raise ValueError(
                f"num_contrastive={num_contrastive} with a flow matching or score "
                "model, whose loss is no log-density: leave it out."
            )
        if not in_nats:
            self.num_contrastive = 0
        self.dim_design = 0
        self.parameters: Tensor | None = None
        self.metrics: dict[str, float] = {}
        # What validation has told so far, while it goes on.
        self._validated: list[Tensor] | None = None
        self._check_it_trains()

    def _check_it_trains(self) -> None:
        if self.num_contrastive == 0 and self.regularization_strength == 0.0:
            raise ValueError(
                "num_contrastive=0 with regularization_strength=0 leaves nothing to "
                "train on. Use num_contrastive of at least 1, or "
                "regularization_strength=1 for maximum likelihood."
            )

    def warn_of_calls(self, num_calls: int) -> None:
        """Warn where simulations that were appended together should not be mixed."""
        if self.num_contrastive and self.dim_design and num_calls > 1:
            warnings.warn(
                "Simulations with designs were appended in several calls: if theta or "
                "design followed another distribution in each, contrasting biases the "
                "likelihood. Then use num_contrastive=0, regularization_strength=1.",
                stacklevel=5,
            )

    def fit_to_batches(
        self, batch_size: int, earlier: "InfoNCEObjective | None"
    ) -> None:
        """Choose what batches allow for, as in the training to resume if there is one.

        Losses could not be compared with others.
        """
        if self.num_contrastive is None:
            self.num_contrastive = min(_DEFAULT_NUM_CONTRASTIVE, batch_size - 1)
            self._check_it_trains()
        if self.num_contrastive >= batch_size:
            raise ValueError(
                f"num_contrastive={self.num_contrastive} must be less than the "
                f"training batch size {batch_size}: contrastive parameters are its "
                "other rows. Use fewer, or more simulations and a larger "
                "training_batch_size."
            )
        if earlier is None or not earlier.metrics:
            return
        now, before = (
            f"num_contrastive={objective.num_contrastive} and "
            f"regularization_strength={objective.regularization_strength}"
            for objective in (self, earlier)
        )
        if now != before:
            raise ValueError(
                f"resume_training=True with {now}, but the training to resume used "
                f"{before}: their losses cannot be compared. Keep these values and "
                "training_batch_size, or start a new training."
            )
        self.metrics = dict(earlier.metrics)

    def loss(
        self, net: ConditionalDensityEstimator, theta: Tensor, x: Tensor
    ) -> Tensor:
        """Return the loss of each row, contrasted with other rows that are trained on.

        Those are of the same batch or, in validation, any.
        """
        assert self.num_contrastive is not None
        if self._validated is None:
            # Only the last batch can be smaller, if the user's loader keeps it.
            num_contrastive = min(self.num_contrastive, len(theta) - 1)
            contrast = in_batch_contrast(theta, num_contrastive)
        else:
            assert self.parameters is not None
            shape = (self.num_contrastive, len(theta))
            rows = torch.randint(len(self.parameters), shape)
            contrast = self.parameters[rows.to(self.parameters.device)].to(theta)
        net = without_failures(net)
        theta = reshape_to_batch_event(theta, event_shape=net.condition_shape)
        x = reshape_to_batch_event(x, event_shape=net.input_shape)
        if self.dim_design:
            # The design of contrastive parameters is that of the data.
            design = theta[:, -self.dim_design :].expand(len(contrast), -1, -1)
            contrast = torch.cat([contrast[..., : -self.dim_design], design], dim=-1)
        matrix = log_likelihood_matrix(
            net.log_prob,
            x,
            torch.cat([theta.unsqueeze(0), contrast]),
            sampled=self._validated is None,
        )
        if self._validated is not None:
            self._validated.append(torch.stack([matrix[0], contrastive_bound(matrix)]))
        losses = info_nce_loss(matrix, self.regularization_strength)
        assert_all_finite(losses, "InfoNCE loss")
        return losses

    def validate(self, validate_epoch: Callable[[], float]) -> float:
        """Return the loss of an epoch's validation, and keep what else it tells.

        Rows and their contrastive parameters are the same each time, so that epochs can
        be compared.
        """
        if self.num_contrastive == 0:
            # The loss of a vector field is random.
            with isolated_rng(None if self.in_nats else _VALIDATION_SEED):
                loss = validate_epoch()
            known = -loss / self.regularization_strength
            values = known if self.in_nats else math.nan, 0.0
        else:
            self._validated = []
            try:
                with isolated_rng(_VALIDATION_SEED):
                    loss = validate_epoch()
                values = torch.cat(self._validated, dim=1).mean(dim=1).tolist()
            finally:
                self._validated = None
        self.metrics = dict(zip(EPOCH_KEYS, values, strict=True))
        return loss
