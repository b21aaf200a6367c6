r"""Weights :math:`w = e^{\rho}` of draws of a base, and what they tell of its fit.

Rejection accepts a draw of the base with probability :math:`\min(1, w / M)`. The
largest weight of all would be the exact bound :math:`M`, but one outlier makes it
useless: the default is a high quantile of the weights of pilot draws. The mass that is
lost above it, :math:`E[(w - M)_+] / E[w]`, is an upper bound of the total variation
between the samples and the hybrid; where a quantile would lose more than 2 %, the bound
is higher, and the rate of acceptance lower. Both are measured, like everything that
tells how well the base fits.

Pilot draws come from a fixed seed, inside a random state of their own: measuring leaves
the caller's random numbers alone, and the same observations get the same numbers.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from sbi_boed_plugin._memory import rows_at_once
from sbi_boed_plugin._rng import isolated_rng

__all__ = [
    "DEFAULT_QUANTILE",
    "Corrected",
    "WeightDiagnostics",
    "check_not_empty",
    "draw_in_parts",
    "draw_weighted",
    "draws_at_once",
    "measure_weights",
]

_NUM_PILOT_DRAWS = 10_000
# Of many observations at once: fewer for each, but never fewer than a tenth.
_MAX_PILOT_DRAWS = 200_000

DEFAULT_QUANTILE = 0.999
# Mass that a bound may cut off.
_MAX_TRUNCATED_MASS = 0.02

_SEED = 20_231_001


class Corrected(Protocol):
    """A base with a correction, as `HybridEstimator` is."""

    @property
    def input_shape(self) -> torch.Size:
        """Shape of a parameter."""
        ...

    def draw(self, num_samples: int, condition: Tensor) -> tuple[Tensor, Tensor]:
        """Draw from the base; see `HybridEstimator.draw`, and so on."""
        ...

    def log_ratio(
        self, input: Tensor, condition: Tensor, noise: Tensor | None = None
    ) -> Tensor:
        """Return the logarithm of the correction."""
        ...

    def inside(self, input: Tensor) -> Tensor | None:
        """Return which parameters are in the support of the prior."""
        ...

    def draw_accepted(
        self,
        num_samples: int,
        condition: Tensor,
        accept: Callable[[Tensor], Tensor],
        *,
        reject_outside_prior: bool = True,
    ) -> tuple[Tensor, Tensor]:
        """Draw from the base, and accept some draws by their ratios."""
        ...


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
        uncorrected: Whether all draws in the support of the prior have the same weight:
            those that are not accepted lie outside.
        num_draws: Number of pilot draws of each observation.
    """

    acceptance_rate: Tensor
    effective_sample_size: Tensor
    log_partition: Tensor
    truncated_mass: Tensor
    log_bound: Tensor
    uncorrected: Tensor
    num_draws: int

    def __getitem__(self, rows: slice) -> "WeightDiagnostics":
        """Return the diagnostics of some of the observations."""
        return WeightDiagnostics(
            acceptance_rate=self.acceptance_rate[rows],
            effective_sample_size=self.effective_sample_size[rows],
            log_partition=self.log_partition[rows],
            truncated_mass=self.truncated_mass[rows],
            log_bound=self.log_bound[rows],
            uncorrected=self.uncorrected[rows],
            num_draws=self.num_draws,
        )

    def check_not_empty(self) -> None:
        """Raise a `RuntimeError` if a base has no draw in the support of the prior."""
        check_not_empty(self.log_bound, self.num_draws)

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


def check_not_empty(largest: Tensor, num_draws: int) -> None:
    """Raise a `RuntimeError` if a base has no draw in the support of the prior.

    Args:
        largest: Largest log-weight of each observation, of shape `(batch_dim,)`.
        num_draws: Number of draws of each.
    """
    empty = (largest == -torch.inf).nonzero().flatten().tolist()
    if empty:
        raise RuntimeError(
            f"None of {num_draws} draws of the base lie in the support of the prior "
            f"given the observation in row {empty[0]} of x ({len(empty)} of "
            f"{len(largest)} rows). It is probably far from all simulations: check x, "
            "simulate closer to it, or use sample_with='mcmc'."
        )


@torch.no_grad()
def measure_weights(
    hybrid: Corrected,
    condition: Tensor,
    *,
    num_draws: int | None = None,
    bound_quantile: float = DEFAULT_QUANTILE,
    reject_outside_prior: bool = True,
    max_batch_size: int = _NUM_PILOT_DRAWS,
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
            nothing. Otherwise they weigh what the base says: no energy was trained
            there.
        max_batch_size: Number of draws of a condition at a time; fewer where they
            would take more than about 256 MB.

    Returns:
        The diagnostics.
    """
    batch_dim = len(condition)
    if num_draws is None:
        fair = _MAX_PILOT_DRAWS // max(batch_dim, 1)
        num_draws = min(_NUM_PILOT_DRAWS, max(_NUM_PILOT_DRAWS // 10, fair))
    with isolated_rng(_SEED):
        parts = [
            log_weights
            for _, log_weights in draw_in_parts(
                hybrid, num_draws, condition, reject_outside_prior, max_batch_size
            )
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
    largest = log_weights.amax(dim=0)
    same = (log_weights == -torch.inf) | (log_weights == largest)
    # A single draw with a weight tells nothing of others.
    several = (log_weights > -torch.inf).sum(dim=0) > 1
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
        uncorrected=(same.all(dim=0) & several).to(condition.device),
        num_draws=num_draws,
    )


def draws_at_once(hybrid: Corrected, condition: Tensor) -> int:
    """Return how many draws fit into memory, of all conditions together.

    Args:
        hybrid: The estimator.
        condition: Conditions of shape `(batch_dim, *condition_event_shape)`.
    """
    return rows_at_once(hybrid, hybrid.input_shape.numel() + condition[:1].numel())


def draw_in_parts(
    hybrid: Corrected,
    num_draws: int,
    condition: Tensor,
    reject_outside_prior: bool = True,
    max_batch_size: int = _NUM_PILOT_DRAWS,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Draw from the base, with log-weights, what fits into memory at a time.

    Args:
        hybrid: The estimator.
        num_draws: Number of draws of each condition.
        condition: Conditions of shape `(batch_dim, *condition_event_shape)`.
        reject_outside_prior: As for `measure_weights`, like the following.
        max_batch_size: Number of draws of a condition at a time.

    Yields:
        What `draw_weighted` returns, of the first conditions, of the next, and so on.
    """
    at_once = draws_at_once(hybrid, condition)
    size = min(max_batch_size, num_draws, at_once)
    batches = [min(size, num_draws - start) for start in range(0, num_draws, size)]
    for rows in condition.split(max(1, at_once // size)):
        parts = [
            draw_weighted(hybrid, batch, rows, reject_outside_prior)
            for batch in batches
        ]
        draws, log_weights = zip(*parts, strict=True)
        yield torch.cat(draws), torch.cat(log_weights)


def draw_weighted(
    hybrid: Corrected, num_draws: int, condition: Tensor, reject_outside_prior: bool
) -> tuple[Tensor, Tensor]:
    """Draw from the base, with log-weights.

    Args:
        hybrid: The estimator.
        num_draws: Number of draws of each condition.
        condition: Conditions of shape `(batch_dim, *condition_event_shape)`.
        reject_outside_prior: As for `measure_weights`.

    Returns:
        Draws of shape `(num_draws, batch_dim, dim_theta)` and log-weights of shape
        `(num_draws, batch_dim)`.
    """
    draws, noise = hybrid.draw(num_draws, condition)
    log_weights = hybrid.log_ratio(draws, condition, noise)
    inside = hybrid.inside(draws)
    if inside is not None:
        outside = -torch.inf if reject_outside_prior else 0.0
        log_weights = log_weights.masked_fill(~inside, outside)
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
    allowed = (lost > _MAX_TRUNCATED_MASS).sum(dim=0)
    chosen = torch.maximum(rank, allowed).clamp(max=num - 1)
    return ordered.gather(0, chosen.unsqueeze(0))[0]
