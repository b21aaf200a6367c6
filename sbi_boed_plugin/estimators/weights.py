r"""Weights :math:`w = e^{\rho}` of draws of a base, and what they tell of its fit.

Rejection accepts a draw of the base with probability :math:`\min(1, w / M)`. The
largest weight of all would be the exact ceiling :math:`M`, but one outlier makes it
useless: the default is a high quantile of the weights of pilot draws. The mass that is
lost above it, :math:`E[(w - M)_+] / E[w]`, is an upper bound of the total variation
between the samples and the hybrid; where a quantile would lose more than 2 %, the
ceiling is higher, and the rate of acceptance lower.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from sbi.neural_nets.estimators import ConditionalDensityEstimator
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from sbi_boed_plugin._memory import rows_at_once
from sbi_boed_plugin._rng import isolated_rng
from sbi_boed_plugin.objectives.generalized_kl import draw_by_ratio

__all__ = [
    "DEFAULT_QUANTILE",
    "WeightDiagnostics",
    "draws_at_once",
    "gradient_of_log_partition",
    "measure_weights",
]

DEFAULT_QUANTILE = 0.999
# Mass that a ceiling may cut off.
_MAX_TRUNCATED_MASS = 0.02

# From a number and conditions to draws of the base `(num_draws, batch_dim, dim_theta)`
# and log-weights `(num_draws, batch_dim)`.
_DrawWeighted = Callable[[int, Tensor], tuple[Tensor, Tensor]]

# Draws of each condition to measure weights, and of all conditions together: of many
# there are fewer of each, but never fewer than a tenth.
_NUM_PILOT_DRAWS, _MAX_PILOT_DRAWS = 10_000, 200_000
_SEED = 20_231_001
# Draws that tell the gradient of log Z, chosen from the pilot draws. Of more than so
# many conditions each has fewer.
_NUM_GRADIENT_DRAWS, _MAX_GRADIENT_ROWS = 4_000, 20
_GRADIENT_SEED = 20_231_003


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
        log_bound: The ceiling, :math:`\log M`, in nats.
        uncorrected: Whether all draws in the support of the prior have the same weight.
        num_draws: Number of pilot draws of each observation.
    """

    acceptance_rate: Tensor
    effective_sample_size: Tensor
    log_partition: Tensor
    truncated_mass: Tensor
    log_bound: Tensor
    uncorrected: Tensor
    num_draws: int

    def check_not_empty(self) -> None:
        """Raise a `RuntimeError` if a base has no draw in the support of the prior."""
        _check_not_empty(self.log_bound, self.num_draws)

    @property
    def effective_share(self) -> Tensor:
        """Effective sample size per draw, of shape `(batch_dim,)`."""
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


def _check_not_empty(largest: Tensor, num_draws: int) -> None:
    """Raise if the largest log-weight of an observation says that no draw has any."""
    empty = (largest == -torch.inf).nonzero().flatten().tolist()
    if empty:
        raise RuntimeError(
            f"None of {num_draws} draws of the base lie in the support of the prior "
            f"given row {empty[0]} of x ({len(empty)} of {len(largest)} rows), which "
            "is probably far from all simulations: check x, simulate closer to it, or "
            "use sample_with='mcmc'."
        )


@torch.no_grad()
def measure_weights(
    draw_weighted: _DrawWeighted,
    condition: Tensor,
    *,
    at_once: int,
    num_draws: int | None = None,
    bound_quantile: float = DEFAULT_QUANTILE,
    max_batch_size: int = _NUM_PILOT_DRAWS,
) -> WeightDiagnostics:
    """Return diagnostics of `num_draws` draws of a base given each condition.

    If it is `None`, there are 10,000 of each, or fewer of more than 20 conditions. At
    most `at_once` are made at a time. A quantile of 1 is the largest weight.
    """
    if num_draws is None:
        fair = _MAX_PILOT_DRAWS // max(len(condition), 1)
        num_draws = min(_NUM_PILOT_DRAWS, max(_NUM_PILOT_DRAWS // 10, fair))
    with isolated_rng(_SEED):
        limits = at_once, max_batch_size
        parts = _draw_in_parts(draw_weighted, num_draws, condition, *limits)
        # In double precision, which not every device has.
        log_weights = torch.cat([part.cpu().double() for _, part in parts], dim=1)
    ceiling = _log_ceiling(log_weights, bound_quantile)
    total = torch.logsumexp(log_weights, dim=0)
    squares = torch.logsumexp(2.0 * log_weights, dim=0)
    # Relative to the ceiling, so that nothing overflows; NaN if all weights are zero.
    relative = (log_weights - ceiling).exp()
    acceptance = relative.clamp(max=1.0).mean(dim=0)
    truncated = (relative - 1.0).clamp(min=0.0).mean(dim=0) / relative.mean(dim=0)
    has_weight = log_weights > -torch.inf
    same = (~has_weight | (log_weights == log_weights.amax(dim=0))).all(dim=0)
    device = condition.device
    numbers = (
        acceptance.nan_to_num(0.0),
        (2.0 * total - squares).exp().nan_to_num(0.0),
        total - math.log(num_draws),
        truncated,
        ceiling,
    )
    return WeightDiagnostics(
        *(values.float().to(device) for values in numbers),
        # A single draw with a weight tells nothing of others.
        uncorrected=(same & (has_weight.sum(dim=0) > 1)).to(device),
        num_draws=num_draws,
    )


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


def draws_at_once(estimator: ConditionalDensityEstimator, condition: Tensor) -> int:
    """Return how many draws fit into memory, of all conditions together."""
    num_values = estimator.input_shape.numel() + condition[:1].numel()
    return rows_at_once(estimator, num_values)


def _draw_in_parts(
    draw_weighted: _DrawWeighted,
    num_draws: int,
    condition: Tensor,
    at_once: int,
    max_batch_size: int = _NUM_PILOT_DRAWS,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield draws and log-weights of the first conditions, of the next, and so on.

    At most `max_batch_size` of a condition and `at_once` of all are made at a time.
    """
    size = min(max_batch_size, num_draws, at_once)
    batches = [min(size, num_draws - start) for start in range(0, num_draws, size)]
    for rows in condition.split(max(1, at_once // size)):
        parts = [draw_weighted(batch, rows) for batch in batches]
        draws, log_weights = zip(*parts, strict=True)
        yield torch.cat(draws), torch.cat(log_weights)


def gradient_of_log_partition(hybrid: Any, condition: Tensor) -> Tensor:
    r"""Return zeros, of shape `(batch_dim,)`, with the gradient of :math:`\log Z`.

    It is :math:`E_q[\nabla \log b + \nabla \rho]`, in the condition and in all weights,
    from draws of the hybrid :math:`q`, the same at each call.
    """
    learns = any(weight.requires_grad for weight in hybrid.parameters())
    if not (torch.is_grad_enabled() and (learns or condition.requires_grad)):
        return torch.zeros(len(condition), device=condition.device)
    at_once = draws_at_once(hybrid, condition)
    # Fewer of each if there are many conditions, or if memory is short.
    share = min(1.0, _MAX_GRADIENT_ROWS / max(len(condition), 1))
    num_draws = 1 + min(int(share * _NUM_GRADIENT_DRAWS), at_once)
    num_base = int(max(share, 0.1) * _NUM_PILOT_DRAWS)
    chosen, largest = [], []
    with torch.no_grad(), isolated_rng(_GRADIENT_SEED):
        parts = _draw_in_parts(hybrid.draw_weighted, num_base, condition, at_once)
        for draws, log_weights in parts:
            largest.append(log_weights.amax(dim=0))
            # Less than -100 is as good as no weight.
            indices = draw_by_ratio(log_weights.clamp(min=-100.0), num_draws)
            indices = indices.unsqueeze(-1).expand(-1, -1, draws.shape[2])
            chosen.append(draws.gather(0, indices))
    _check_not_empty(torch.cat(largest), num_base)
    size = max(1, at_once // num_draws)
    evaluate: Callable[..., Any] = hybrid.log_unnormalized
    if len(condition) > size:
        # What does not fit at once is evaluated again for its gradient.
        evaluate = partial(checkpoint, evaluate, use_reentrant=False)
    parts = torch.cat(chosen, dim=1).split(size, dim=1), condition.split(size)
    mean = torch.cat([evaluate(*part).mean(0) for part in zip(*parts, strict=True)])
    return mean - mean.detach()
