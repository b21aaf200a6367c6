"""Training of the networks of a search on simulations in memory."""

import math
import time
from collections.abc import Sequence
from dataclasses import replace
from itertools import chain
from typing import Any, NamedTuple

import torch
from sbi.neural_nets.estimators import ConditionalDensityEstimator
from torch import Tensor
from tqdm.auto import tqdm

from sbi_boed_plugin._fit import AveragedSchedule, Batches, Fit
from sbi_boed_plugin._rng import isolated_rng
from sbi_boed_plugin.estimators.vector_field import (
    is_slow,
    is_vector_field,
    takes_context,
)
from sbi_boed_plugin.search.batch import Batch

__all__ = ["Fitted", "fit_network", "pairs_of"]

_VALIDATION_BATCH_SIZE = 1_024
_VALIDATION_SEED = 20_261_130
# Squared errors of a vector field that are a gain, and values of rows whose flow is
# solved, each of which takes a gradient.
_LEAST_GAIN_OF_FIELD, _VALUES_SOLVED, _LEAST_SOLVED = 2e-3, 2_000, 20


class Fitted(NamedTuple):
    """What training has come to, in nats."""

    loss: float  # Mean of rows left out.
    gap: float  # By how much more is known of the rows used.
    gap_error: float  # Standard error of that.


def pairs_of(rows: Batch) -> dict[str, tuple[Tensor, Tensor]]:
    """Return what each network of a search describes, and on what condition."""
    data = torch.cat([rows.x, rows.design], dim=-1)
    return {
        "likelihood": (rows.x, torch.cat([rows.theta, rows.design], dim=-1)),
        "posterior": (rows.theta, data),
        "target": (rows.theta, data),
        "marginal": (rows.x, rows.design),
    }


def fit_network(
    network: ConditionalDensityEstimator,
    pair: Sequence[Tensor],
    used: Tensor,
    left_out: Tensor,
    schedule: AveragedSchedule,
    *,
    weights: Tensor | None = None,
    batch_size: int = 128,
    clip_max_norm: float | None = 5.0,
    max_num_passes: float = math.inf,
    deadline: float = math.inf,
    description: str = "Training",
    show_progress_bar: bool = False,
) -> Fitted:
    """Train a network in place to its best on rows left out, by maximum likelihood.

    One that learns in context, such as sbi's `TabPFNFlow`, is given the rows. Others
    learn until they gain no more, `used` rows have been seen so many times, or the
    clock of `time.perf_counter` is at the deadline. Returns by how many nats it knows
    more of the rows used than of those left out, and the standard error of that.
    """
    if weights is None:
        weights = torch.ones(len(pair[0])).to(pair[0])
    rows = (*pair, weights)
    if takes_context(network):
        context: Any = network
        context.set_context(*(values[used.to(values.device)] for values in pair))
    else:
        limits = clip_max_norm, max_num_passes, deadline
        bar = tqdm(desc=description, unit=" epochs", disable=not show_progress_bar)
        with bar:
            _train(network, rows, used, left_out, schedule, batch_size, *limits, bar)
    # Of those used not many more, evenly.
    some = used[:: max(1, len(used) // (4 * len(left_out)))]
    if is_slow(network):
        most = max(_LEAST_SOLVED, _VALUES_SOLVED // network.input_shape.numel())
        left_out, some = (_evenly(rows, weights, most) for rows in (left_out, some))
    parts = [
        _losses(network, rows, chosen, in_nats=True)
        / weights[chosen.to(weights.device)].mean().cpu()
        for chosen in (left_out, some)
    ]
    gap = float(parts[0].mean() - parts[1].mean())
    # The variance of a single row is unknown, and counts as zero.
    errors = [float(part.std() / len(part) ** 0.5) for part in parts if len(part) > 1]
    return Fitted(float(parts[0].mean()), gap, math.hypot(*errors))


def _train(
    network: ConditionalDensityEstimator,
    rows: Sequence[Tensor],
    used: Tensor,
    left_out: Tensor,
    schedule: AveragedSchedule,
    batch_size: int,
    clip_max_norm: float | None,
    max_num_passes: float,
    deadline: float,
    bar: Any,
) -> None:
    """Train a network by the schedule, to its best on rows left out."""
    if is_vector_field(network):
        schedule = replace(schedule, min_gain=_LEAST_GAIN_OF_FIELD)
    fit = Fit(network, schedule, clip_max_norm)
    batches = Batches(rows, used, schedule.batch_size(batch_size, len(used)))

    def validate() -> float:
        with isolated_rng(_VALIDATION_SEED):  # Losses of vector fields are random.
            return float(_losses(network, rows, left_out).mean())

    while not fit.finished and time.perf_counter() < deadline:
        if fit.num_steps >= max_num_passes * len(batches):
            break
        fit.run(
            batches,
            lambda batch: _loss(network, batch),
            validate,
            max_num_epochs=fit.epoch + 1,
        )
        bar.set_postfix(loss=f"{fit.best_loss:.4f}", refresh=False)
        bar.update()


def _evenly(chosen: Tensor, weights: Tensor, most: int) -> Tensor:
    """Return at most so many of the chosen rows that count, from all over."""
    counts = weights[chosen.to(weights.device)].cpu() > 0
    chosen = chosen[counts] if counts.any() else chosen
    return chosen[:: math.ceil(len(chosen) / most)]


def _loss(
    network: ConditionalDensityEstimator,
    batch: Sequence[Tensor],
    *,
    in_nats: bool = False,
) -> Tensor:
    """Return weighted losses, which are in nats unless they are of a vector field."""
    device = next(chain(network.parameters(), network.buffers())).device
    input, condition, weights = (values.to(device) for values in batch)
    if in_nats and is_slow(network):
        return -weights * network.log_prob(input.unsqueeze(0), condition)[0]
    return weights * network.loss(input, condition)


@torch.no_grad()
def _losses(
    network: ConditionalDensityEstimator,
    rows: Sequence[Tensor],
    chosen: Tensor,
    *,
    in_nats: bool = False,
) -> Tensor:
    """Return the weighted losses of chosen rows, on the CPU."""
    batches = Batches(rows, chosen, _VALIDATION_BATCH_SIZE, shuffle=False)
    return (
        torch.cat([_loss(network, batch, in_nats=in_nats) for batch in batches])
        .cpu()
        .double()
    )
