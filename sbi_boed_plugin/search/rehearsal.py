"""Passes of the networks over the simulations that a search has made already.

Each step of a search learns from new simulations, once. Where these are few, there is
more to learn from them: rows of parameters, designs and data from any policy train
networks that are conditioned on the design.
"""

import math
import time
from copy import deepcopy
from functools import partial
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from sbi_boed_plugin._fit import AveragedSchedule, Batches, Fit
from sbi_boed_plugin._rng import isolated_rng
from sbi_boed_plugin.search.batch import Batch
from sbi_boed_plugin.search.estimators import DesignEstimators
from sbi_boed_plugin.search.optimizer import DesignOptimizer

__all__ = ["rehearsed_copy"]

_SCHEDULE = AveragedSchedule(learning_rate=6e-3, weight_decay=1e-3)
_VALIDATION_SHARE, _BATCH_SIZE, _LEAST_ROWS = 0.15, 128, 10
# Rows that networks learn from, new ones or again.
_NUM_ROWS_WANTED = 256_000
_SEED = 20_261_129


def rehearsed_copy(
    optimizer: DesignOptimizer, show_progress_bar: bool
) -> DesignEstimators | None:
    """Return networks that learned again from the simulations that a search kept.

    So often that they see 256,000 rows in all, as in 1,000 steps of 256, until the time
    for training is over, or until none gains any more. `None` if they have seen as many
    already.
    """
    progress = optimizer.progress
    if not progress.stored:
        return None
    rows = Batch.join(progress.stored).finite()
    missing = _NUM_ROWS_WANTED - progress.num_simulations
    num_passes = missing // max(1, len(rows.theta))
    if num_passes < 1 or len(rows.theta) < _LEAST_ROWS:
        return None
    started = time.perf_counter()
    copies = deepcopy(optimizer.estimators)
    assert copies is not None
    # What comes after it is drawn as if it had not been.
    with isolated_rng(_SEED):
        _rehearse(optimizer, copies.trained, rows, num_passes, show_progress_bar)
    seconds = time.perf_counter() - started
    progress.rehearsal_seconds += seconds
    progress.seconds += seconds
    return copies


def _rehearse(
    optimizer: DesignOptimizer,
    estimators: DesignEstimators,
    rows: Batch,
    num_passes: int,
    show_progress_bar: bool,
) -> None:
    """Train networks in place, each to its best on rows left out.

    By maximum likelihood: on rows that are few, contrasts overfit long before it does.
    """
    config, progress = optimizer.config, optimizer.progress
    seconds_left = optimizer.training_seconds - progress.seconds
    order = torch.randperm(len(rows.theta))
    num_held_out = math.ceil(_VALIDATION_SHARE * len(order))
    held_out, used = order[:num_held_out], order[num_held_out:]
    networks = estimators.named()
    # Of input and condition, as estimators take them.
    pairs = {
        "likelihood": (rows.x, torch.cat([rows.theta, rows.design], dim=-1)),
        "posterior": (rows.theta, torch.cat([rows.x, rows.design], dim=-1)),
        "marginal": (rows.x, rows.design),
    }
    for name, network in networks.items():
        losses_of = partial(_losses, network, pairs[name])
        fit = Fit(network, _SCHEDULE, config.clip_max_norm)
        size = _SCHEDULE.batch_size(_BATCH_SIZE, len(used))
        batches = Batches(pairs[name], used, size)
        most = num_passes * len(batches)
        deadline = time.perf_counter() + seconds_left / len(networks)
        bar = tqdm(desc=f"Rehearsing {name}", disable=not show_progress_bar)
        with bar:
            while fit.num_steps < most and time.perf_counter() < deadline:
                if fit.finished:
                    break
                fit.run(
                    batches,
                    lambda batch, network=network: network.loss(*batch),
                    lambda losses_of=losses_of: float(losses_of(held_out).mean()),
                    max_num_epochs=fit.epoch + 1,
                )
                bar.update()
        parts = [losses_of(chosen) for chosen in (held_out, used[: 4 * num_held_out])]
        gap = float(parts[0].mean() - parts[1].mean())
        # The variance of a single row is unknown, and counts as zero.
        errors = [float(p.std() / len(p) ** 0.5) for p in parts if len(p) > 1]
        progress.overfit[name] = gap, math.hypot(*errors)


@torch.no_grad()
def _losses(network: Any, pair: tuple[Tensor, Tensor], chosen: Tensor) -> Tensor:
    """Return the losses of chosen rows, in nats, on the CPU."""
    batches = Batches(pair, chosen, 1_024, shuffle=False)
    return torch.cat([network.loss(*batch) for batch in batches]).cpu().double()
