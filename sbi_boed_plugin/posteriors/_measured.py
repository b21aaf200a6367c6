"""Weights of draws of a hybrid's base, measured once for the last observations."""

import warnings
from typing import Any

import torch
from torch import Tensor

from sbi_boed_plugin.estimators.hybrid import HybridEstimator
from sbi_boed_plugin.estimators.weights import WeightDiagnostics, draws_at_once

__all__ = ["MeasuredWeights"]

# Nats by which a partition function may be off before a user should know: a factor of
# seven, which ordinary observations hardly ever reach.
_MAX_LOG_PARTITION = 2.0
# Relative standard error of a normalization, and the draws that it may take, those of
# all observations together.
_PARTITION_ERROR = 0.006
_MAX_DRAWS, _MAX_EVALUATIONS = 200_000, 16


class MeasuredWeights:
    """What was measured of the last observations, and the values that it depends on."""

    diagnostics: WeightDiagnostics

    def __init__(self) -> None:
        """Begin with nothing."""
        self._values: list[Tensor] = []
        self._parts: list[Any] = []
        self._log_partition: Tensor | None = None

    def __getstate__(self) -> dict:
        """Return nothing to be copied: it is measured again at once."""
        return vars(MeasuredWeights())

    def refresh(
        self, hybrid: HybridEstimator, rows: Tensor, quantile: float, batch_size: int
    ) -> "MeasuredWeights":
        """Measure the weights given observations in rows, if they are not known."""
        # Observations and weights of networks may be changed in place.
        values = [rows.detach(), *hybrid.state_dict().values()]
        parts = [*hybrid.modules(), hybrid.prior, hybrid.corrects, quantile]
        if parts != self._parts or not all(map(_is_same, values, self._values)):
            self.diagnostics = hybrid.measure_weights(
                rows, bound_quantile=quantile, max_batch_size=batch_size
            )
            if hybrid.trained_partition:
                _warn_if_far(self.diagnostics.log_partition)
            self._values, self._parts = [value.clone() for value in values], parts
            self._log_partition = None
        return self

    def log_partition(self, hybrid: HybridEstimator, batch_size: int) -> Tensor:
        """Return log Z of the observations, of as many draws as its error asks for."""
        if self._log_partition is None:
            weights, rows = self.diagnostics, self._values[0]
            weights.check_not_empty()
            variance = weights.num_draws / weights.effective_sample_size - 1.0
            # Where draws are dear, no more than so many evaluations of the base.
            most = min(_MAX_DRAWS, _MAX_EVALUATIONS * draws_at_once(hybrid, rows))
            needed = variance.max() / _PARTITION_ERROR**2
            num_draws = int(needed.clamp(max=most // len(rows)))
            if num_draws > weights.num_draws:
                weights = hybrid.measure_weights(
                    rows, num_draws=num_draws, max_batch_size=batch_size
                )
                weights.check_not_empty()
            self._log_partition = weights.log_partition
        return self._log_partition


def _is_same(tensor: Tensor, other: Tensor) -> bool:
    return tensor.dtype == other.dtype and torch.equal(tensor, other)


def _warn_if_far(log_partition: Tensor) -> None:
    """Warn where the partition function, trained to be one, is not."""
    far = log_partition.abs() > _MAX_LOG_PARTITION
    if far.any():
        row = int(log_partition.abs().argmax())
        warnings.warn(
            f"log Z is {log_partition[row].item():.2f} given row {row} of x, and 0 "
            f"where the energy was trained well ({int(far.sum())} of {len(far)} rows "
            f"are off by more than {_MAX_LOG_PARTITION:g}). The observation is "
            "probably far from the simulations, and its posterior not to be trusted.",
            stacklevel=5,
        )
