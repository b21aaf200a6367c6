"""Samples of a hybrid: draws of its base, accepted or resampled by their weights."""

import math
import time
import warnings
from dataclasses import dataclass
from typing import Any

import torch
from sbi.samplers.rejection.rejection import accept_reject_sample
from torch import Tensor

from sbi_boed_plugin._memory import MEMORY_BYTES
from sbi_boed_plugin.estimators.weights import WeightDiagnostics, draws_at_once

__all__ = ["MIN_ACCEPTANCE_RATE", "Sampler"]

MIN_ACCEPTANCE_RATE = 1e-3
# Draws of the base to resample from: all of them serve every sample.
_POOL_PER_SAMPLE, _MIN_POOL, _MAX_POOL = 64, 100_000, 1_000_000
# Observations that are sampled together: each waits for the slowest of them.
_MAX_ROWS = 100
# For a first batch, however little time there is.
_LEAST_SECONDS = 0.01


@dataclass(frozen=True)
class Sampler:
    """Rejection, or resampling where that is hopeless, and what it may take.

    Below the minimal rate of acceptance all samples are resampled by importance from
    the same 100,000 draws of the base or more. After `max_sampling_time`, in seconds,
    sampling gives up, or returns what it has, with a warning.
    """

    hybrid: Any
    reject_outside_prior: bool = True
    min_acceptance_rate: float = MIN_ACCEPTANCE_RATE
    max_sampling_batch_size: int = 10_000
    show_progress_bars: bool = False
    max_sampling_time: float | None = None
    return_partial_on_timeout: bool = False

    def sample(
        self, num_samples: int, condition: Tensor, weights: WeightDiagnostics
    ) -> Tensor:
        """Return samples of shape `(num_samples, batch_dim, dim_theta)`."""
        if not num_samples:
            return condition.new_empty(0, len(condition), *self.hybrid.input_shape)
        weights.check_not_empty()
        # Without a correction rejection is exact, and as fast as that of sbi.
        too_few = weights.acceptance_rate < self.min_acceptance_rate
        hopeless = too_few & ~weights.uncorrected
        if hopeless.any():
            self._warn_of_resampling(weights, hopeless)
        groups = _groups(weights, ~hopeless)
        num_rejected = len(groups)
        # One after another, because of memory.
        groups += hopeless.nonzero().flatten().split(1) if hopeless.any() else []
        started, parts = time.monotonic(), []
        for index, rows in enumerate(groups):
            seconds = None
            if self.max_sampling_time is not None:
                seconds = max(0.0, started + self.max_sampling_time - time.monotonic())
                if self.return_partial_on_timeout:
                    # An equal share of what is left, and a little in any case.
                    seconds = max(seconds / (len(groups) - index), _LEAST_SECONDS)
            given = num_samples, condition[rows], seconds
            if index < num_rejected:
                parts.append(self._reject(*given, weights.log_bound[rows]))
            else:
                parts.append(self._resample(*given))
        # After a timeout some have fewer samples.
        num = min(len(part) for part in parts)
        samples = parts[0].new_empty(num, len(condition), *parts[0].shape[2:])
        for rows, part in zip(groups, parts, strict=True):
            samples[:, rows] = part[:num]
        return samples

    def _reject(
        self,
        num_samples: int,
        condition: Tensor,
        seconds: float | None,
        log_ceiling: Tensor,
    ) -> Tensor:
        """Return samples by rejection: draws are judged while they are drawn."""
        accepted = torch.empty(0)

        def accept(log_weights: Tensor) -> Tensor:
            excess = log_weights - log_ceiling
            certain = excess >= 0.0
            # Without a correction there are no random numbers but those of the base.
            if bool(certain.all()):
                return certain
            return certain | (torch.rand_like(excess).log() < excess)

        @torch.no_grad()
        def propose(sample_shape: torch.Size, condition: Tensor) -> Tensor:
            nonlocal accepted
            draws, accepted = self.hybrid.draw_accepted(
                sample_shape.numel(),
                condition,
                accept,
                reject_outside_prior=self.reject_outside_prior,
            )
            return draws

        # Fewer draws of each condition, the more there are.
        at_once = draws_at_once(self.hybrid, condition) // len(condition)
        return accept_reject_sample(
            proposal=propose,
            accept_reject_fn=lambda draws: accepted,
            num_samples=num_samples,
            show_progress_bars=self.show_progress_bars,
            # Below a hundredth sbi warns; the rate here is known and was accepted.
            warn_acceptance=self.min_acceptance_rate,
            max_sampling_batch_size=min(self.max_sampling_batch_size, max(1, at_once)),
            proposal_sampling_kwargs={"condition": condition},
            alternative_method="build_posterior(..., sample_with='mcmc')",
            max_sampling_time=seconds,
            return_partial_on_timeout=self.return_partial_on_timeout,
        )[0]

    @torch.no_grad()
    def _resample(
        self, num_samples: int, condition: Tensor, seconds: float | None
    ) -> Tensor:
        """Return samples of one row, chosen by weight from many draws of the base."""
        dim_theta = self.hybrid.input_shape.numel()
        num_pool = min(max(_POOL_PER_SAMPLE * num_samples, _MIN_POOL), _MAX_POOL)
        num_pool = min(num_pool, MEMORY_BYTES // (4 * dim_theta))
        at_once = draws_at_once(self.hybrid, condition)
        size = min(self.max_sampling_batch_size, at_once)
        outside = self.reject_outside_prior
        started, pool = time.monotonic(), []
        for start in range(0, num_pool, size):
            if seconds is not None and time.monotonic() - started > seconds:
                told = f"{start:,} of {num_pool:,} draws of the base to resample from"
                if not (self.return_partial_on_timeout and pool):
                    raise RuntimeError(
                        f"max_sampling_time is over after {told}. Raise it, or use "
                        "build_posterior(..., sample_with='mcmc')."
                    )
                warnings.warn(
                    f"max_sampling_time is over: samples are chosen from {told}.",
                    stacklevel=6,
                )
                break
            num = min(size, num_pool - start)
            pool.append(
                self.hybrid.draw_weighted(num, condition, reject_outside_prior=outside)
            )
        draws, log_weights = (torch.cat(part)[:, 0] for part in zip(*pool, strict=True))
        if bool((log_weights == -torch.inf).all()):
            raise RuntimeError(
                f"None of {len(log_weights):,} draws of the base has any weight. Use "
                "build_posterior(..., sample_with='mcmc')."
            )
        probabilities = torch.softmax(log_weights, dim=0)
        chosen = torch.multinomial(probabilities, num_samples, replacement=True)
        return draws[chosen].unsqueeze(1)

    def _warn_of_resampling(self, weights: WeightDiagnostics, hopeless: Tensor) -> None:
        row = int(weights.acceptance_rate.masked_fill(~hopeless, 1.0).argmin())
        warnings.warn(
            f"Rejection would accept {weights.acceptance_rate[row].item():.2g} of the "
            f"base's draws given row {row} of x, less than min_acceptance_rate="
            f"{self.min_acceptance_rate:g} ({int(hopeless.sum())} of {len(hopeless)} "
            f"rows): samples are resampled by importance from {_MIN_POOL:,} draws or "
            "more, some of them repeatedly. The base fits badly (effective sample size "
            f"{weights.effective_sample_size[row].item():.3g} of {weights.num_draws}): "
            "use more simulations, another density_estimator, or "
            "build_posterior(..., sample_with='mcmc').",
            stacklevel=5,
        )


def _groups(weights: WeightDiagnostics, among: Tensor) -> list[Tensor]:
    """Return rows that are drawn together, with rates within a factor of four.

    Without a correction all rows are together, as the base has them.
    """
    level = (-weights.acceptance_rate.log() / math.log(4.0)).floor()
    if weights.uncorrected[among].all():
        level = torch.zeros_like(level)
    return [
        rows
        for value in level[among].unique()
        for rows in (among & (level == value)).nonzero().flatten().split(_MAX_ROWS)
    ]
