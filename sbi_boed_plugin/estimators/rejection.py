r"""Samples of a hybrid: draws of its base, accepted or resampled by their weights.

A draw has the weight :math:`w = e^{\rho}`, and rejection accepts it with probability
:math:`\min(1, w / M)`. The largest weight of all would be the exact ceiling :math:`M`,
but one outlier makes it useless: the default is a high quantile of the weights of pilot
draws. The mass that is lost above it, :math:`E[(w - M)_+] / E[w]`, is an upper bound of
the total variation between the samples and the hybrid; where a quantile would lose more
than 2 %, the ceiling is higher, and the rate of acceptance lower.
"""

import math
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from sbi.neural_nets.estimators import ConditionalDensityEstimator
from torch import Tensor
from tqdm.auto import tqdm

from sbi_boed_plugin._memory import MEMORY_BYTES, rows_at_once
from sbi_boed_plugin._rng import isolated_rng

__all__ = [
    "DEFAULT_QUANTILE",
    "MIN_ACCEPTANCE_RATE",
    "Sampler",
    "WeightDiagnostics",
    "draws_at_once",
    "measure_weights",
]

DEFAULT_QUANTILE = 0.999
MIN_ACCEPTANCE_RATE = 1e-3
# Mass that a ceiling may cut off.
_MAX_TRUNCATED_MASS = 0.02
# Draws of each condition to measure weights, and of all conditions together: of many
# there are fewer of each, but never fewer than a tenth.
_NUM_PILOT_DRAWS, _MAX_PILOT_DRAWS = 10_000, 200_000
_SEED = 20_231_001
# Nats by which a partition function may be off before a user should know: a factor of
# seven, which ordinary observations hardly ever reach.
_MAX_LOG_PARTITION = 2.0
# Draws of the base to resample from: all of them serve every sample.
_POOL_PER_SAMPLE, _MIN_POOL, _MAX_POOL = 64, 100_000, 1_000_000


@dataclass(frozen=True)
class WeightDiagnostics:
    r"""How well a base fits the hybrid given each observation, of shape `(batch_dim,)`.

    Attributes:
        acceptance_rate: Share of draws of the base that rejection accepts.
        effective_sample_size: :math:`(\sum w)^2 / \sum w^2` of `num_draws` draws.
        log_partition: :math:`\log \hat Z(x)` in nats; near zero where the correction
            was trained well.
        truncated_mass: Share of the mass above the ceiling, which rejection loses: an
            upper bound of the total variation. NaN where no draw has any weight.
        log_ceiling: The ceiling of the weights, :math:`\log M`, in nats.
        tail_index: Mean by which the logarithms of the largest weights exceed the
            smallest of them (Hill's estimate). Above 0.5 weights have no variance: a
            base is narrower than the hybrid, and rare draws count for much.
        num_draws: Number of pilot draws of each observation.
    """

    acceptance_rate: Tensor
    effective_sample_size: Tensor
    log_partition: Tensor
    truncated_mass: Tensor
    log_ceiling: Tensor
    tail_index: Tensor
    num_draws: int

    def check_not_empty(self) -> None:
        """Raise a `RuntimeError` if a base has no draw in the support of the prior."""
        empty = (self.log_ceiling == -torch.inf).nonzero().flatten().tolist()
        if empty:
            raise RuntimeError(
                f"None of {self.num_draws} draws of the base lie in the support of the "
                f"prior given row {empty[0]} of x ({len(empty)} of "
                f"{len(self.log_ceiling)} rows), which is probably far from all "
                "simulations: check x, simulate closer to it, or use "
                "sample_with='mcmc'."
            )

    def warn_if_far(self) -> None:
        """Warn where the partition function, trained to be one, is not."""
        far = self.log_partition.abs() > _MAX_LOG_PARTITION
        if far.any():
            row = int(self.log_partition.abs().argmax())
            warnings.warn(
                f"log Z is {self.log_partition[row].item():.2f} given row {row} of x, "
                f"and 0 where the energy was trained well ({int(far.sum())} of "
                f"{len(far)} rows are off by more than {_MAX_LOG_PARTITION:g}). The "
                "observation is probably far from the simulations: do not trust its "
                "posterior.",
                stacklevel=5,
            )

    @property
    def effective_share(self) -> Tensor:
        """Effective sample size per draw, of shape `(batch_dim,)`."""
        return self.effective_sample_size / self.num_draws

    def __str__(self) -> str:
        """Return one line per quantity: its median, and its range."""
        lines = [f"{len(self.log_ceiling)} observations, {self.num_draws:,} draws each"]
        for label, values in (
            ("acceptance rate", self.acceptance_rate),
            ("effective share", self.effective_share),
            ("log Z", self.log_partition),
            ("truncated mass", self.truncated_mass),
            ("tail index", self.tail_index),
        ):
            low, middle, high = values.min(), values.median(), values.max()
            line = f"{label:<16}{middle:8.4f}"
            lines.append(line + (f"  ({low:.4f} to {high:.4f})" if low < high else ""))
        return "\n".join(lines)


def draws_at_once(estimator: ConditionalDensityEstimator, condition: Tensor) -> int:
    """Return how many draws fit into memory, of all conditions together."""
    num_values = estimator.input_shape.numel() + condition[:1].numel()
    return rows_at_once(estimator, num_values)


@torch.no_grad()
def measure_weights(
    draw_weighted: Callable[[int, Tensor], tuple[Tensor, Tensor]],
    condition: Tensor,
    *,
    at_once: int,
    num_draws: int | None = None,
    ceiling_quantile: float = DEFAULT_QUANTILE,
    max_batch_size: int = _NUM_PILOT_DRAWS,
) -> WeightDiagnostics:
    """Return diagnostics of `num_draws` draws of a base given each condition.

    If it is `None`, there are 10,000 of each, or fewer of more than 20 conditions. From
    a number and conditions come draws `(num, batch_dim, dim_theta)` and log-weights
    `(num, batch_dim)`, at most `max_batch_size` of a condition and `at_once` of all.
    """
    if num_draws is None:
        fair = _MAX_PILOT_DRAWS // max(len(condition), 1)
        num_draws = min(_NUM_PILOT_DRAWS, max(_NUM_PILOT_DRAWS // 10, fair))
    size = min(max_batch_size, num_draws, at_once)
    batches = [min(size, num_draws - start) for start in range(0, num_draws, size)]
    columns = []
    with isolated_rng(_SEED):
        for rows in condition.split(max(1, at_once // size)):
            parts = [draw_weighted(batch, rows)[1] for batch in batches]
            # In double precision, which not every device has.
            columns.append(torch.cat(parts).cpu().double())
    log_weights = torch.cat(columns, dim=1)
    ceiling = _log_ceiling(log_weights, ceiling_quantile)
    total = torch.logsumexp(log_weights, dim=0)
    squares = torch.logsumexp(2.0 * log_weights, dim=0)
    # Relative to the ceiling, so that nothing overflows; NaN if all weights are zero.
    relative = (log_weights - ceiling).exp()
    acceptance = relative.clamp(max=1.0).mean(dim=0)
    truncated = (relative - 1.0).clamp(min=0.0).mean(dim=0) / relative.mean(dim=0)
    numbers = (
        acceptance.nan_to_num(0.0),
        (2.0 * total - squares).exp().nan_to_num(0.0),
        total - math.log(num_draws),
        truncated,
        ceiling,
        _tail_index(log_weights),
    )
    on_device = (values.float().to(condition.device) for values in numbers)
    return WeightDiagnostics(*on_device, num_draws=num_draws)


def _tail_index(log_weights: Tensor) -> Tensor:
    """Return Hill's estimate from the largest weights, infinite where most are zero."""
    num = min(math.ceil(3.0 * math.sqrt(len(log_weights))), len(log_weights) - 1)
    if num < 1:
        return torch.zeros_like(log_weights[0])
    largest = log_weights.topk(num + 1, dim=0).values
    excess = (largest[:num] - largest[num]).mean(dim=0)
    return excess.nan_to_num(torch.inf)


def _log_ceiling(log_weights: Tensor, quantile: float) -> Tensor:
    """Return logarithms of ceilings, `-inf` where all weights are zero.

    They are the quantile of the weights that are not zero, or the first weight above it
    that cuts off no more mass than is allowed.
    """
    ordered = log_weights.sort(dim=0).values
    num = len(ordered)
    num_zero = (ordered == -torch.inf).sum(dim=0)
    rank = num_zero + (quantile * (num - num_zero - 1)).ceil().long().clamp(min=0)
    relative = (ordered - ordered[-1]).exp()
    total = relative.sum(dim=0)
    above = total - relative.cumsum(dim=0)
    count = torch.arange(num - 1, -1, -1, dtype=relative.dtype).unsqueeze(1)
    # Falls from weight to weight; NaN where there is none at all.
    lost = (above - count * relative) / total
    allowed = (lost > _MAX_TRUNCATED_MASS).sum(dim=0)
    chosen = torch.maximum(rank, allowed).clamp(max=num - 1)
    return ordered.gather(0, chosen.unsqueeze(0))[0]


def _accept(log_weights: Tensor, log_ceiling: Tensor) -> Tensor:
    """Return which draws are accepted, each with the probability of its weight."""
    excess = log_weights - log_ceiling
    accepted = excess >= 0.0
    # Without a correction there are no random numbers but those of the base.
    if not (accepted | (excess == -torch.inf)).all():
        accepted |= torch.rand_like(excess).log() < excess
    return accepted


@dataclass(frozen=True)
class Sampler:
    """Rejection, or resampling where that is hopeless, and what it may take.

    Below the minimal rate of acceptance all samples are resampled by importance from
    the same 100,000 draws of the base or more. After `max_sampling_time`, in seconds,
    sampling gives up, or returns the samples that rejection has, with a warning.
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
        # Without a correction rejection is exact, however few draws are inside.
        hopeless = weights.acceptance_rate < self.min_acceptance_rate
        hopeless &= self.hybrid.corrects
        if hopeless.any():
            self._warn_of_resampling(weights, hopeless)
        seconds = self.max_sampling_time
        deadline = math.inf if seconds is None else time.monotonic() + seconds
        parts = dict.fromkeys(range(len(condition)), torch.empty(0))
        # One after another, because of memory, and first, as its end is known.
        for row in hopeless.nonzero().flatten().tolist():
            one = condition[row : row + 1]
            parts[row] = self._resample(num_samples, one, deadline)
        rows = (~hopeless).nonzero().flatten()
        given = num_samples, condition[rows], weights.log_ceiling[rows], deadline
        parts.update(zip(rows.tolist(), self._reject(*given), strict=True))
        # After a timeout some have fewer samples.
        num = min(len(part) for part in parts.values())
        return torch.stack([part[:num] for part in parts.values()], dim=1)

    @torch.no_grad()
    def _reject(
        self, num_samples: int, condition: Tensor, log_ceiling: Tensor, deadline: float
    ) -> list[Tensor]:
        """Return samples of each row, `(num_samples, dim_theta)`, by rejection.

        Rows that have their samples draw none. Sizes of batches are those of sbi where
        there is no correction, so that samples are, too; else hardly more than is
        missing, at the rate so far.
        """
        accepted: list[list[Tensor]] = [[] for _ in condition]
        counts = torch.zeros(len(condition))
        lacking, num_drawn, size = torch.arange(len(condition)), 0, num_samples
        bar = tqdm(
            total=num_samples, desc="Sampling", disable=not self.show_progress_bars
        )
        while len(lacking):
            if num_drawn and time.monotonic() > deadline:
                if not (self.return_partial_on_timeout and counts.min() > 0):
                    raise RuntimeError(
                        f"max_sampling_time is over after {num_drawn:,} draws of the "
                        f"base, and {len(lacking)} of {len(counts)} observations lack "
                        f"samples of {num_samples:,}. Raise it, or use "
                        "build_posterior(..., sample_with='mcmc')."
                    )
                warnings.warn(
                    f"max_sampling_time is over: there are {int(counts.min()):,} of "
                    f"{num_samples:,} samples, a partial result.",
                    stacklevel=5,
                )
                break
            at_once = draws_at_once(self.hybrid, condition) // len(lacking)
            size = min(size, self.max_sampling_batch_size, max(1, at_once))
            draws, chosen = self.hybrid.draw_accepted(
                size,
                condition[lacking],
                partial(_accept, log_ceiling=log_ceiling[lacking]),
                reject_outside_prior=self.reject_outside_prior,
            )
            for place, row in enumerate(lacking.tolist()):
                accepted[row].append(draws[chosen[:, place], place])
                counts[row] += len(accepted[row][-1])
            num_drawn += size
            fewest = int(counts.min())
            bar.update(min(fewest, num_samples) - bar.n)
            lacking = (counts < num_samples).nonzero().flatten()
            rate = max(float(counts.min() / num_drawn), 1e-12)
            missing = max(num_samples - fewest, 0)
            spare = 3.0 * math.sqrt(missing) if self.hybrid.corrects else 0.5 * missing
            size = max(int((missing + spare) / rate), 100)
        bar.close()
        return [torch.cat(parts)[:num_samples] for parts in accepted]

    @torch.no_grad()
    def _resample(self, num_samples: int, condition: Tensor, deadline: float) -> Tensor:
        """Return samples of one row, chosen by weight from many draws of the base."""
        dim_theta = self.hybrid.input_shape.numel()
        num_pool = min(max(_POOL_PER_SAMPLE * num_samples, _MIN_POOL), _MAX_POOL)
        num_pool = min(num_pool, MEMORY_BYTES // (4 * dim_theta))
        at_once = draws_at_once(self.hybrid, condition)
        size = min(self.max_sampling_batch_size, at_once)
        outside = self.reject_outside_prior
        pool = []
        for start in range(0, num_pool, size):
            if start and time.monotonic() > deadline:
                over = f"max_sampling_time is over after {start:,} of {num_pool:,} "
                over += "draws of the base to resample from"
                if not self.return_partial_on_timeout:
                    raise RuntimeError(
                        f"{over}. Raise it, or use "
                        "build_posterior(..., sample_with='mcmc')."
                    )
                warnings.warn(f"{over}: fewer stand for the posterior.", stacklevel=5)
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
        return draws[chosen]

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
