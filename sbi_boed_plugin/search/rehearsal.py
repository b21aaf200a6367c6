"""Passes of the networks over the simulations that a search has made already.

Each step of a search learns from new simulations, once. Where these are few, there is
more to learn from them: rows of parameters, designs and data from any policy train
networks that are conditioned on the design.
"""

import math
import time
from copy import deepcopy

import torch

from sbi_boed_plugin._fit import AveragedSchedule
from sbi_boed_plugin._rng import isolated_rng
from sbi_boed_plugin.search.batch import Batch
from sbi_boed_plugin.search.estimators import DesignEstimators
from sbi_boed_plugin.search.fitting import fit_network, pairs_of
from sbi_boed_plugin.search.optimizer import DesignOptimizer

__all__ = ["rehearsed_copy"]

_SCHEDULE = AveragedSchedule(learning_rate=6e-3, weight_decay=1e-3)
_VALIDATION_SHARE, _LEAST_ROWS = 0.15, 10
# Rows that networks learn from, new ones or again; without a budget of simulations, at
# most so many times as there are.
_NUM_ROWS_WANTED, _MOST_REPEATS = 256_000, 4
_SEED = 20_261_129


def rehearsed_copy(
    optimizer: DesignOptimizer, show_progress_bar: bool
) -> DesignEstimators | None:
    """Return networks that learned again from the simulations that a search kept.

    So often that they see 256,000 rows in all, as in 1,000 steps of 256, without a
    budget of simulations at most four times as many as there are; until the time for
    training is over, or until none gains any more. `None` if they have seen as many
    already, or without a budget the objective is `info_nce`, whose λ and contrastive
    parameters are then all that the networks learn by.
    """
    progress = optimizer.progress
    has_budget = optimizer.config.max_num_simulations is not None
    if not progress.stored:
        return None
    if optimizer.config.objective == "info_nce" and not has_budget:
        return None
    rows = progress.recent().finite()
    num_wanted = _NUM_ROWS_WANTED
    if not has_budget:
        num_wanted = min(num_wanted, _MOST_REPEATS * progress.num_simulations)
    missing = num_wanted - progress.num_simulations
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
    num_left_out = math.ceil(_VALIDATION_SHARE * len(order))
    networks, pairs = estimators.named(), pairs_of(rows)
    for name, network in networks.items():
        fitted = fit_network(
            network,
            pairs[name],
            order[num_left_out:],
            order[:num_left_out],
            _SCHEDULE,
            clip_max_norm=config.clip_max_norm,
            max_num_passes=num_passes,
            deadline=time.perf_counter() + seconds_left / len(networks),
            description=f"Rehearsing {name}",
            show_progress_bar=show_progress_bar,
        )
        progress.overfit[name] = fitted.gap, fitted.gap_error
