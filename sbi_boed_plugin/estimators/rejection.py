r"""Draws from a base, corrected by weights :math:`w = e^{\rho}`.

Rejection accepts a draw of the base with probability :math:`\min(1, w / M)`. The
largest weight of all would be the exact bound :math:`M`, but one outlier makes it
useless: the default is a high quantile of the weights of pilot draws. The mass that is
lost above it, :math:`E[(w - M)_+] / E[w]`, is an upper bound of the total variation
between the samples and the hybrid; where a quantile would lose more than 2 %, the bound
is higher, and the rate of acceptance lower. Both are measured, like everything that
tells how well the base fits.

Pilot draws come from a fixed seed, inside a random state of their own: what is measured
of an observation is always the same, and a hybrid without a correction draws exactly
what its base would draw.
"""

import math
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from sbi.samplers.rejection.rejection import accept_reject_sample
from torch import Tensor

from sbi_boed_plugin._rng import isolated_rng

__all__ = [
    "WeightDiagnostics",
    "measure_weights",
    "sample_corrected",
]

_NUM_PILOT_DRAWS = 10_000
# Of many observations at once: fewer for each, but never fewer than a tenth.
_MAX_PILOT_DRAWS = 200_000

DEFAULT_QUANTILE = 0.999
MIN_ACCEPTANCE_RATE = 1e-3
# Mass that a bound may cut off.
MAX_TRUNCATED_MASS = 0.02
# Draws of all rows together that are held at a time.
_MAX_DRAWS_AT_A_TIME = 100_000
# Draws of the base to resample from: all of them serve every sample.
_POOL_PER_SAMPLE, _MIN_POOL, _MAX_POOL = 64, 100_000, 1_000_000

_SEED = 20_231_001


class _Corrected(Protocol):
    """A base with a correction, as `HybridEstimator` is."""

    def draw(self, num_samples: int, condition: Tensor) -> tuple[Tensor, Tensor]: ...

    def log_ratio(
        self, input: Tensor, condition: Tensor, noise: Tensor | None = None
    ) -> Tensor: ...

    def inside(self, input: Tensor) -> Tensor | None: ...

    def draw_accepted(
        self,
        num_samples: int,
        condition: Tensor,
        accept: Callable[[Tensor], Tensor],
        *,
        reject_outside_prior: bool = True,
    ) -> tuple[Tensor, Tensor]: ...


@dataclass(frozen=True)
class WeightDiagnostics:
    r"""How well a base fits the hybrid given each observation.

    All of shape `(batch_dim,)`.

    Attributes:
        acceptance_rate: Share of draws of the base that rejection accepts.
        effective_sample_size: :math:`(\sum w)^2 / \sum w^2` of `num_draws` draws.
        log_partition: :math:`\log \hat Z(x)` in nats; near zero where the correction
            was trained well.
        truncated_mass: Share of the mass above the bound, which rejection loses: at
            most so far, in total variation, are its samples from the hybrid. NaN
            where no draw has any weight.
        log_bound: :math:`\log M` in nats.
        num_draws: Number of pilot draws of each observation.
    """

    acceptance_rate: Tensor
    effective_sample_size: Tensor
    log_partition: Tensor
    truncated_mass: Tensor
    log_bound: Tensor
    num_draws: int

    def __getitem__(self, rows: slice) -> "WeightDiagnostics":
        """Return the diagnostics of some of the observations."""
        return WeightDiagnostics(
            acceptance_rate=self.acceptance_rate[rows],
            effective_sample_size=self.effective_sample_size[rows],
            log_partition=self.log_partition[rows],
            truncated_mass=self.truncated_mass[rows],
            log_bound=self.log_bound[rows],
            num_draws=self.num_draws,
        )

    def check_not_empty(self) -> None:
        """Raise a `RuntimeError` if a base has no draw in the support of the prior."""
        empty = (self.log_bound == -torch.inf).nonzero().flatten().tolist()
        if empty:
            raise RuntimeError(
                f"None of {self.num_draws} draws of the base lie in the support of the "
                f"prior given the observation in row {empty[0]} of x ({len(empty)} of "
                f"{len(self.log_bound)} rows). It is probably far from all "
                "simulations: check x, simulate closer to it, or use "
                "sample_with='mcmc'."
            )

    @property
    def effective_share(self) -> Tensor:
        """Effective sample size in the place of one draw, of shape `(batch_dim,)`."""
        return self.effective_sample_size / self.num_draws

    def __str__(self) -> str:
        """Return one line per quantity: its median, and its range."""
        lines = [f"{len(self.log_bound)} observations, {self.num_draws:,} draws each"]
        for label, values in (
            ("acceptance rate", self.acceptance_rate),
            ("effective share", self.effective_share),
            ("log Z", self.log_partition),
            ("truncated mass", self.truncated_mass),
        ):
            low, middle, high = values.min(), values.median(), values.max()
            line = f"{label:<16}{middle:8.4f}"
            if len(values) > 1:
                line += f"  ({low:.4f} to {high:.4f})"
            lines.append(line)
        return "\n".join(lines)


@torch.no_grad()
def measure_weights(
    hybrid: _Corrected,
    condition: Tensor,
    *,
    num_draws: int | None = None,
    bound_quantile: float = DEFAULT_QUANTILE,
    reject_outside_prior: bool = True,
) -> WeightDiagnostics:
    """Measure the weights of draws of the base given each condition.

    Args:
        hybrid: The estimator.
        condition: Conditions of shape `(batch_dim, *condition_event_shape)`.
        num_draws: Number of draws for each condition. If `None`, 10,000, or less for
            more than 20 conditions.
        bound_quantile: Quantile of the weights to take for the bound, or a higher one
            if it would lose more than 2 % of the mass; 1 is the largest.
        reject_outside_prior: Whether draws outside the support of the prior weigh
            nothing.

    Returns:
        The diagnostics.
    """
    batch_dim = len(condition)
    if num_draws is None:
        fair = _MAX_PILOT_DRAWS // max(batch_dim, 1)
        num_draws = min(_NUM_PILOT_DRAWS, max(_NUM_PILOT_DRAWS // 10, fair))
    # Fewer rows at a time if they are wide: every draw is shown its own.
    width = max(1, condition[:1].numel() // 100)
    rows = max(1, _MAX_PILOT_DRAWS // (num_draws * width))
    with isolated_rng(_SEED):
        parts = [
            _draw(hybrid, num_draws, chunk, reject_outside_prior)[1]
            for chunk in condition.split(rows)
        ]
    # In double precision, which not every device has.
    log_weights = torch.cat(parts, dim=1).cpu().double()
    bound = _bound(log_weights, bound_quantile)
    total = torch.logsumexp(log_weights, dim=0)
    squares = torch.logsumexp(2.0 * log_weights, dim=0)
    # Relative to the bound, so that nothing overflows; NaN where all weights are zero.
    relative = (log_weights - bound).exp()
    mean = relative.mean(dim=0)
    acceptance = relative.clamp(max=1.0).mean(dim=0)
    truncated = (relative - 1.0).clamp(min=0.0).mean(dim=0) / mean
    effective = (2.0 * total - squares).exp()
    empty = bound == -torch.inf
    zero = torch.zeros_like(bound)
    like = log_weights.new_tensor(num_draws).log()

    def made(values: Tensor) -> Tensor:
        return values.float().to(condition.device)

    return WeightDiagnostics(
        acceptance_rate=made(torch.where(empty, zero, acceptance)),
        effective_sample_size=made(torch.where(empty, zero, effective)),
        log_partition=made(total - like),
        truncated_mass=made(truncated),
        log_bound=made(bound),
        num_draws=num_draws,
    )


def sample_corrected(
    hybrid: _Corrected,
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
        weights: What `measure_weights` returned for these conditions, if it was called.
        min_acceptance_rate: Rate of acceptance below which samples are resampled by
            importance, all of them from the same 100,000 draws of the base or more.
        reject_outside_prior: Whether samples outside the support of the prior are
            rejected.
        max_sampling_batch_size: Number of draws of the base at a time.
        show_progress_bars: Whether to show sampling progress.
        max_sampling_time: Time in seconds after which rejection gives up.
        return_partial_on_timeout: Whether it then returns what it has.

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
    hopeless = weights.acceptance_rate < min_acceptance_rate
    if hopeless.any():
        _warn_of_resampling(weights, hopeless, min_acceptance_rate)

    started = time.monotonic()

    def reject(rows: Tensor, log_bound: Tensor) -> Tensor:
        left = None
        if max_sampling_time is not None:
            left = max(0.0, max_sampling_time - (time.monotonic() - started))
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
                max_sampling_batch_size, max(1, _MAX_DRAWS_AT_A_TIME // len(rows))
            ),
            proposal_sampling_kwargs={"condition": rows},
            alternative_method="build_posterior(..., sample_with='mcmc')",
            max_sampling_time=left,
            return_partial_on_timeout=return_partial_on_timeout,
        )[0]

    parts = []
    if hopeless.any():
        resampled = _resample(
            hybrid,
            num_samples,
            condition[hopeless],
            reject_outside_prior,
            max_sampling_batch_size,
        )
        parts.append((hopeless, resampled))
    for group in _groups(weights, ~hopeless):
        parts.append((group, reject(condition[group], weights.log_bound[group])))
    # After a timeout some have fewer samples.
    num = min(len(part) for _, part in parts)
    samples = parts[0][1].new_empty(num, len(condition), parts[0][1].shape[-1])
    for group, part in parts:
        samples[:, group] = part[:num]
    return samples


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
    if torch.allclose(rate[rows], weights.effective_share[rows], rtol=1e-3):
        return [rows]
    level = (-rate.log() / math.log(4.0)).floor()
    return [rows & (level == value) for value in level[rows].unique()]


def _draw(
    hybrid: _Corrected, num_draws: int, condition: Tensor, mask: bool
) -> tuple[Tensor, Tensor]:
    """Return draws of the base, and their log-weights `(num_draws, batch_dim)`."""
    draws, noise = hybrid.draw(num_draws, condition)
    log_weights = hybrid.log_ratio(draws, condition, noise)
    inside = hybrid.inside(draws) if mask else None
    if inside is not None:
        log_weights = log_weights.masked_fill(~inside, -torch.inf)
    return draws, log_weights


def _bound(log_weights: Tensor, quantile: float) -> Tensor:
    """Return logarithms of bounds, `-inf` where all weights are zero.

    A quantile of the weights that are not zero, or the first weight above it that cuts
    off no more mass than is allowed.
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
    allowed = (lost > MAX_TRUNCATED_MASS).sum(dim=0)
    chosen = torch.maximum(rank, allowed).clamp(max=num - 1)
    return ordered.gather(0, chosen.unsqueeze(0))[0]


@torch.no_grad()
def _resample(
    hybrid: _Corrected,
    num_samples: int,
    condition: Tensor,
    mask: bool,
    max_batch_size: int,
) -> Tensor:
    """Return samples, chosen by weight from many draws; some come repeatedly."""
    num_pool = min(max(_POOL_PER_SAMPLE * num_samples, _MIN_POOL), _MAX_POOL)
    samples = []
    for row in condition.split(1):
        parts = [
            _draw(hybrid, min(max_batch_size, num_pool - start), row, mask)
            for start in range(0, num_pool, max_batch_size)
        ]
        draws = torch.cat([part[0][:, 0] for part in parts])
        weights = torch.cat([part[1][:, 0] for part in parts])
        chosen = torch.multinomial(
            torch.softmax(weights, dim=0), num_samples, replacement=True
        )
        samples.append(draws[chosen])
    return torch.stack(samples, dim=1)


def _warn_of_resampling(
    weights: WeightDiagnostics, hopeless: Tensor, min_acceptance_rate: float
) -> None:
    row = int(weights.acceptance_rate.argmin())
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
