"""Samples of a hybrid: draws of its base, accepted or resampled by their weights."""

import math
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass

import torch
from sbi.samplers.rejection.rejection import accept_reject_sample
from torch import Tensor

from sbi_boed_plugin._memory import MEMORY_BYTES
from sbi_boed_plugin.estimators.weights import DrawWeighted, WeightDiagnostics

__all__ = ["MIN_ACCEPTANCE_RATE", "DrawAccepted", "Sampler", "warn_of_resampling"]

MIN_ACCEPTANCE_RATE = 1e-3
# Draws of the base to resample from: all of them serve every sample.
_POOL_PER_SAMPLE, _MIN_POOL, _MAX_POOL = 64, 100_000, 1_000_000
# Observations that are sampled together: each waits for the slowest of them.
_MAX_ROWS = 100
# For a first batch, however little time there is.
_LEAST_SECONDS = 0.01

# From a number, conditions, and a rule from log-ratios to whether they are accepted, to
# so many draws of the base of each condition, and which of them are accepted.
DrawAccepted = Callable[
    [int, Tensor, Callable[[Tensor], Tensor]], tuple[Tensor, Tensor]
]


@dataclass(frozen=True)
class Sampler:
    """Rejection, or resampling where that is hopeless, and what it may take.

    Draws of a condition come in batches, and at most `at_once` of all conditions. Below
    the minimal rate of acceptance all samples are resampled by importance from the same
    100,000 draws of the base or more. After `max_sampling_time`, in seconds, sampling
    gives up, or returns what it has, with a warning.
    """

    draw_accepted: DrawAccepted
    draw_weighted: DrawWeighted
    at_once: int
    dim_theta: int
    min_acceptance_rate: float = MIN_ACCEPTANCE_RATE
    max_sampling_batch_size: int = 10_000
    show_progress_bars: bool = False
    max_sampling_time: float | None = None
    return_partial_on_timeout: bool = False

    def sample(
        self, num_samples: int, condition: Tensor, weights: WeightDiagnostics
    ) -> Tensor:
        """Return samples of shape `(num_samples, batch_dim, dim_theta)`.

        Raises:
            RuntimeError: If no draw of the base has a weight, or the time is over.
        """
        hopeless = _hopeless(weights, self.min_acceptance_rate)
        groups = _groups(weights, ~hopeless)
        # One after another, because of memory.
        alone = list(hopeless.nonzero().flatten().split(1)) if hopeless.any() else []
        started, parts = time.monotonic(), []
        for index, rows in enumerate(groups + alone):
            seconds = self._seconds(started, len(groups + alone) - index)
            given = num_samples, condition[rows], seconds
            if index < len(groups):
                parts.append(self._reject(*given, weights.log_bound[rows]))
            else:
                parts.append(self._resample(*given))
        # After a timeout some have fewer samples.
        num = min(len(part) for part in parts)
        samples = parts[0].new_empty(num, len(condition), *parts[0].shape[2:])
        for rows, part in zip(groups + alone, parts, strict=True):
            samples[:, rows] = part[:num]
        return samples

    def _seconds(self, started: float, num_left: int) -> float | None:
        """Return the time of the next of some parts.

        Where partial results are returned, each part gets an equal share of what is
        left, and a little in any case. Otherwise a part may use up what is left.
        """
        if self.max_sampling_time is None:
            return None
        left = max(0.0, started + self.max_sampling_time - time.monotonic())
        if self.return_partial_on_timeout:
            left = max(left / num_left, _LEAST_SECONDS)
        return left

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
            # Random numbers only if something depends on them: without a correction,
            # the draws are those of the base to the last bit.
            if bool(certain.all()):
                return certain
            return certain | (torch.rand_like(excess).log() < excess)

        @torch.no_grad()
        def propose(sample_shape: torch.Size, condition: Tensor) -> Tensor:
            nonlocal accepted
            num_draws = sample_shape.numel()
            draws, accepted = self.draw_accepted(num_draws, condition, accept)
            return draws

        # Fewer draws of each condition, the more there are.
        size = min(self.max_sampling_batch_size, max(1, self.at_once // len(condition)))
        return accept_reject_sample(
            proposal=propose,
            accept_reject_fn=lambda draws: accepted,
            num_samples=num_samples,
            show_progress_bars=self.show_progress_bars,
            # Below a hundredth sbi warns; the rate here is known and was accepted.
            warn_acceptance=self.min_acceptance_rate,
            max_sampling_batch_size=size,
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
        num_pool = min(max(_POOL_PER_SAMPLE * num_samples, _MIN_POOL), _MAX_POOL)
        num_pool = min(num_pool, MEMORY_BYTES // (4 * self.dim_theta))
        size = min(self.max_sampling_batch_size, self.at_once)
        started, pool = time.monotonic(), []
        for start in range(0, num_pool, size):
            if seconds is not None and time.monotonic() - started > seconds:
                if not (self.return_partial_on_timeout and pool):
                    raise RuntimeError(
                        f"max_sampling_time is over after {start:,} of {num_pool:,} "
                        "draws of the base to resample from. Raise it, or use "
                        "build_posterior(..., sample_with='mcmc')."
                    )
                warnings.warn(
                    f"max_sampling_time is over: {num_samples} samples are resampled "
                    f"from {start:,} draws of the base, in the place of {num_pool:,}.",
                    stacklevel=7,
                )
                break
            pool.append(self.draw_weighted(min(size, num_pool - start), condition))
        draws, log_weights = (torch.cat(part)[:, 0] for part in zip(*pool, strict=True))
        if bool((log_weights == -torch.inf).all()):
            raise RuntimeError(
                f"None of {len(log_weights):,} draws of the base has any weight. Use "
                "build_posterior(..., sample_with='mcmc')."
            )
        probabilities = torch.softmax(log_weights, dim=0)
        chosen = torch.multinomial(probabilities, num_samples, replacement=True)
        return draws[chosen].unsqueeze(1)


def _hopeless(weights: WeightDiagnostics, min_acceptance_rate: float) -> Tensor:
    """Return which rows to resample, of shape `(batch_dim,)`.

    A base without a correction, of which hardly anything lies in the prior, is not
    among them: rejection is exact there, and sbi's own posterior takes as long.
    """
    return (weights.acceptance_rate < min_acceptance_rate) & ~weights.uncorrected


def _groups(weights: WeightDiagnostics, among: Tensor) -> list[Tensor]:
    """Return rows that are drawn together, of which all wait for the slowest one.

    Their rates of acceptance are within a factor of four. Without a correction all rows
    are together, as the base has them.
    """
    level = (-weights.acceptance_rate.log() / math.log(4.0)).floor()
    if weights.uncorrected[among].all():
        level = torch.zeros_like(level)
    return [
        rows
        for value in level[among].unique()
        for rows in (among & (level == value)).nonzero().flatten().split(_MAX_ROWS)
    ]


def warn_of_resampling(weights: WeightDiagnostics, min_acceptance_rate: float) -> None:
    """Warn where rejection is hopeless, if it is anywhere."""
    hopeless = _hopeless(weights, min_acceptance_rate)
    if not hopeless.any():
        return
    row = int(weights.acceptance_rate.masked_fill(~hopeless, 1.0).argmin())
    warnings.warn(
        f"Rejection would accept {weights.acceptance_rate[row].item():.2g} of draws "
        f"of the base given the observation in row {row} of x, less than "
        f"min_acceptance_rate={min_acceptance_rate:g} ({int(hopeless.sum())} of "
        f"{len(hopeless)} rows): samples there are resampled by importance from "
        f"{_MIN_POOL:,} draws or more, some of them repeatedly. The base fits badly "
        f"(effective sample size {weights.effective_sample_size[row].item():.3g} of "
        f"{weights.num_draws}): use more simulations or another density_estimator, or "
        "build_posterior(..., sample_with='mcmc').",
        stacklevel=4,
    )
