"""Samples of a hybrid: draws of its base, accepted or resampled by their weights."""

import math
import time
import warnings

import torch
from sbi.samplers.rejection.rejection import accept_reject_sample
from torch import Tensor

from sbi_boed_plugin._memory import MEMORY_BYTES
from sbi_boed_plugin.estimators.weights import (
    Corrected,
    WeightDiagnostics,
    draw_weighted,
    draws_at_once,
    measure_weights,
)

__all__ = [
    "MIN_ACCEPTANCE_RATE",
    "SharedTime",
    "sample_corrected",
    "warn_of_resampling",
]

MIN_ACCEPTANCE_RATE = 1e-3
# Draws of the base to resample from: all of them serve every sample.
_POOL_PER_SAMPLE, _MIN_POOL, _MAX_POOL = 64, 100_000, 1_000_000
# For a first batch, however little time there is.
_LEAST_SECONDS = 0.01


def sample_corrected(
    hybrid: Corrected,
    num_samples: int,
    condition: Tensor,
    *,
    weights: WeightDiagnostics | None = None,
    min_acceptance_rate: float = MIN_ACCEPTANCE_RATE,
    reject_outside_prior: bool = True,
    max_sampling_batch_size: int = 10_000,
    show_progress_bars: bool = False,
    max_sampling_time: float | None = None,
    return_partial_on_timeout: bool = False,
) -> Tensor:
    """Draw from a hybrid: by rejection, or by resampling where that is hopeless.

    Args:
        hybrid: The estimator.
        num_samples: Number of samples of each condition.
        condition: Conditions of shape `(batch_dim, *condition_event_shape)`.
        weights: What `measure_weights` returned for these conditions, if it was called
            and checked.
        min_acceptance_rate: Rate of acceptance below which samples are resampled by
            importance, all of them from the same 100,000 draws of the base or more.
            A base without a correction is never resampled.
        reject_outside_prior: Whether samples outside the support of the prior are
            rejected. Otherwise they weigh what the base says.
        max_sampling_batch_size: Number of draws of the base at a time.
        show_progress_bars: Whether to show sampling progress.
        max_sampling_time: Time in seconds after which sampling gives up. What is
            measured before, where `weights` is `None`, does not count.
        return_partial_on_timeout: Whether it then returns what it has. Conditions that
            are drawn one after another share the time.

    Returns:
        Samples of shape `(num_samples, batch_dim, dim_theta)`.

    Raises:
        RuntimeError: If no draw of the base is in the support of the prior, or the time
            is over.
    """
    if weights is None:
        weights = measure_weights(
            hybrid, condition, reject_outside_prior=reject_outside_prior
        )
        weights.check_not_empty()
        warn_of_resampling(weights, min_acceptance_rate)
    hopeless = _hopeless(weights, min_acceptance_rate)

    at_once = draws_at_once(hybrid, condition)

    def reject(rows: Tensor, log_bound: Tensor, left: float | None) -> Tensor:
        # Each batch is judged while it is drawn.
        accepted = rows.new_empty(0)

        def accept(log_weights: Tensor) -> Tensor:
            excess = log_weights - log_bound
            certain = excess >= 0.0
            # Random numbers only if something depends on them: without a correction,
            # the draws are those of the base to the last bit.
            if bool(certain.all()):
                return certain
            return certain | (torch.rand_like(excess).log() < excess)

        @torch.no_grad()
        def propose(sample_shape: torch.Size, condition: Tensor) -> Tensor:
            nonlocal accepted
            draws, accepted = hybrid.draw_accepted(
                sample_shape.numel(),
                condition,
                accept,
                reject_outside_prior=reject_outside_prior,
            )
            return draws

        return accept_reject_sample(
            proposal=propose,
            accept_reject_fn=lambda draws: accepted,
            num_samples=num_samples,
            show_progress_bars=show_progress_bars,
            # Below a hundredth sbi warns; the rate here is known and was accepted.
            warn_acceptance=min_acceptance_rate,
            # Fewer of each, the more rows there are.
            max_sampling_batch_size=min(
                max_sampling_batch_size, max(1, at_once // len(rows))
            ),
            proposal_sampling_kwargs={"condition": rows},
            alternative_method="build_posterior(..., sample_with='mcmc')",
            max_sampling_time=left,
            return_partial_on_timeout=return_partial_on_timeout,
        )[0]

    groups = _groups(weights, ~hopeless)
    # One after another, because of memory.
    alone = hopeless.nonzero().flatten().split(1) if hopeless.any() else ()
    clock = SharedTime(
        max_sampling_time, len(groups) + len(alone), return_partial_on_timeout
    )
    parts: list[tuple[Tensor, Tensor]] = []
    for group in groups:
        left = clock.next_share()
        parts.append((group, reject(condition[group], weights.log_bound[group], left)))
    for row in alone:
        resampled = _resample(
            hybrid,
            num_samples,
            condition[row],
            reject_outside_prior,
            min(max_sampling_batch_size, at_once),
            clock.next_share(),
            return_partial_on_timeout,
        )
        parts.append((row, resampled))
    # After a timeout some have fewer samples.
    num = min(len(part) for _, part in parts)
    samples = parts[0][1].new_empty(num, len(condition), parts[0][1].shape[-1])
    for group, part in parts:
        samples[:, group] = part[:num]
    return samples


def _hopeless(weights: WeightDiagnostics, min_acceptance_rate: float) -> Tensor:
    """Return which rows to resample, of shape `(batch_dim,)`.

    Not those of a base without a correction, of which hardly anything lies in the
    prior: rejection is exact there, and sbi's own posterior takes as long.
    """
    return (weights.acceptance_rate < min_acceptance_rate) & ~weights.uncorrected


def _groups(weights: WeightDiagnostics, rows: Tensor) -> list[Tensor]:
    """Split rows, of which all that are drawn together wait for the slowest one.

    Args:
        weights: What is known of them.
        rows: Booleans of shape `(batch_dim,)`.

    Returns:
        Booleans of the same shape: rows whose rates of acceptance are within a factor
        of four. Without a correction all rows are together, as the base has them.
    """
    if not rows.any():
        return []
    rate = weights.acceptance_rate
    if weights.uncorrected[rows].all():
        return [rows]
    level = (-rate.log() / math.log(4.0)).floor()
    return [rows & (level == value) for value in level[rows].unique()]


@torch.no_grad()
def _resample(
    hybrid: Corrected,
    num_samples: int,
    condition: Tensor,
    reject_outside_prior: bool,
    max_batch_size: int,
    max_seconds: float | None,
    partial: bool,
) -> Tensor:
    """Return samples of one row, chosen by weight from many draws, some repeatedly."""
    num_pool = min(max(_POOL_PER_SAMPLE * num_samples, _MIN_POOL), _MAX_POOL)
    num_pool = min(num_pool, MEMORY_BYTES // (4 * hybrid.input_shape.numel()))
    started = time.monotonic()
    parts = []
    for start in range(0, num_pool, max_batch_size):
        if max_seconds is not None and time.monotonic() - started > max_seconds:
            if partial and parts:
                warnings.warn(
                    f"max_sampling_time is over: {num_samples} samples are resampled "
                    f"from {start:,} draws of the base, in the place of {num_pool:,}.",
                    stacklevel=5,
                )
                break
            raise RuntimeError(
                f"max_sampling_time is over after {start:,} of {num_pool:,} draws of "
                "the base to resample from. Raise it, or use "
                "build_posterior(..., sample_with='mcmc')."
            )
        num_draws = min(max_batch_size, num_pool - start)
        parts.append(draw_weighted(hybrid, num_draws, condition, reject_outside_prior))
    draws = torch.cat([part[0][:, 0] for part in parts])
    weights = torch.cat([part[1][:, 0] for part in parts])
    if bool((weights == -torch.inf).all()):
        raise RuntimeError(
            f"None of {len(weights):,} draws of the base has any weight. Use "
            "build_posterior(..., sample_with='mcmc')."
        )
    chosen = torch.multinomial(
        torch.softmax(weights, dim=0), num_samples, replacement=True
    )
    return draws[chosen].unsqueeze(1)


class SharedTime:
    """Seconds for several parts of a work, one after another.

    Args:
        seconds: Seconds for all parts together, or `None` for any.
        num_parts: Number of parts.
        fairly: Whether each part gets an equal share of what is left, and a little in
            any case. Otherwise a part may use up what is left.
    """

    def __init__(self, seconds: float | None, num_parts: int, fairly: bool) -> None:
        """Start the clock."""
        self._end = None if seconds is None else time.monotonic() + seconds
        self._num_parts, self._fairly = num_parts, fairly

    def next_share(self) -> float | None:
        """Return the seconds of the next part."""
        if self._end is None:
            return None
        left = max(0.0, self._end - time.monotonic())
        if self._fairly:
            left = max(left / self._num_parts, _LEAST_SECONDS)
        self._num_parts -= 1
        return left


def warn_of_resampling(weights: WeightDiagnostics, min_acceptance_rate: float) -> None:
    """Warn where rejection is hopeless, if it is anywhere.

    Args:
        weights: What was measured.
        min_acceptance_rate: Rate of acceptance below which it is.
    """
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
