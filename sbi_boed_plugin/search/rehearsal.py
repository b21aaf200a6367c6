"""Passes of the networks over the simulations that a search has made already.

Each step of a search learns from new simulations, once. Where these are few, there is
more to learn from them: rows of parameters, designs and data from any policy train
networks that are conditioned on the design.
"""

import math
import time
from copy import deepcopy

import torch
from torch import Tensor
from torch.distributions import Distribution
from torch.nn.utils.clip_grad import clip_grad_norm_
from torch.optim.adamw import AdamW
from tqdm.auto import tqdm

from sbi_boed_plugin._rng import isolated_rng
from sbi_boed_plugin.search.batch import Batch
from sbi_boed_plugin.search.estimators import DesignEstimators
from sbi_boed_plugin.search.information import Densities, training_losses
from sbi_boed_plugin.search.optimizer import DesignOptimizer

__all__ = ["rehearsed_copy"]

_LEARNING_RATE, _WEIGHT_DECAY, _BATCH_SIZE = 2e-3, 1e-3, 128
_VALIDATION_SHARE, _PATIENCE = 0.15, 20
# Rows that networks learn from, new ones or again.
_NUM_ROWS_WANTED = 256_000
_SEED = 20_261_129


def rehearsed_copy(
    optimizer: DesignOptimizer, show_progress_bar: bool
) -> DesignEstimators | None:
    """Return networks that learned again from the simulations that a search kept.

    So often that they see 256,000 rows in all, as in 1,000 steps of 256, or until the
    time for training is over. `None` if they have seen as many already.
    """
    progress = optimizer.progress
    if not progress.stored:
        return None
    rows = Batch.join(progress.stored).finite()
    missing = _NUM_ROWS_WANTED - progress.num_simulations
    num_passes = missing // max(1, len(rows.theta))
    if num_passes < 1 or len(rows.theta) < 2:
        return None
    started = time.perf_counter()
    deadline = started + optimizer.training_seconds - progress.seconds
    copies = deepcopy(optimizer.estimators)
    assert copies is not None
    bar = tqdm(
        total=num_passes, disable=not show_progress_bar, desc="Rehearsing simulations"
    )
    # What comes after it is drawn as if it had not been.
    with isolated_rng(_SEED), bar:
        progress.overfit = _rehearse(optimizer, copies.trained, rows, deadline, bar)
    seconds = time.perf_counter() - started
    progress.rehearsal_seconds += seconds
    progress.seconds += seconds
    return copies


def _rehearse(
    optimizer: DesignOptimizer,
    estimators: DesignEstimators,
    rows: Batch,
    deadline: float,
    bar: tqdm,
) -> dict[str, tuple[float, float]]:
    """Train networks in place, each to its best on rows left out, for a bar's steps.

    It ends sooner if no network gains for twenty. Returned is for each how much smaller
    its loss is on the rows that it learned from than on those left out, in nats, and
    the standard error of that.
    """
    prior, clip_max_norm = optimizer.prior, optimizer.config.clip_max_norm
    networks = estimators.named()
    order = torch.randperm(len(rows.theta))
    num_held_out = math.ceil(_VALIDATION_SHARE * len(order))
    held_out, training = order[:num_held_out], order[num_held_out:]
    groups = [{"params": network.parameters()} for network in networks.values()]
    adam = AdamW(groups, lr=_LEARNING_RATE, weight_decay=_WEIGHT_DECAY)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(adam, bar.total)
    best = {name: deepcopy(net.state_dict()) for name, net in networks.items()}
    losses = _row_losses(estimators, prior, rows, held_out)
    since_best = 0
    for _ in range(bar.total):
        if since_best >= _PATIENCE or time.perf_counter() > deadline:
            break
        estimators.train()
        for some in training[torch.randperm(len(training))].split(_BATCH_SIZE):
            if len(some) < 2:
                continue  # Batch normalization needs two.
            values = _losses(estimators, prior, rows, some)
            adam.zero_grad(set_to_none=True)
            torch.stack(list(values.values())).mean(dim=1).sum().backward()
            for network in networks.values():
                if clip_max_norm is not None:
                    clip_grad_norm_(network.parameters(), clip_max_norm)
            adam.step()
        schedule.step()
        since_best += 1
        for name, value in _row_losses(estimators, prior, rows, held_out).items():
            if value.mean() < losses[name].mean():
                losses[name], since_best = value, 0
                best[name] = deepcopy(networks[name].state_dict())
        bar.set_postfix(loss=f"{losses['likelihood'].mean():.3f}", refresh=False)
        bar.update()
    for name, network in networks.items():
        network.load_state_dict(best[name])
        network.zero_grad(set_to_none=True)
    overfit = {}
    known = _row_losses(estimators, prior, rows, training[: 4 * num_held_out])
    for name, parts in known.items():
        gap = losses[name].mean() - parts.mean()
        # The variance of a single row is unknown, and taken for zero.
        variances = [v.var() / len(v) for v in (losses[name], parts) if len(v) > 1]
        overfit[name] = float(gap), math.sqrt(sum(map(float, variances)))
    return overfit


def _losses(
    estimators: DesignEstimators, prior: Distribution, rows: Batch, some: Tensor
) -> dict[str, Tensor]:
    """Return the loss of each row by maximum likelihood, for each network.

    On rows that are few, contrasts overfit long before maximum likelihood does.
    """
    theta, x, design = rows.theta[some], rows.x[some], rows.design[some]
    no_contrast = theta.unsqueeze(0)[:0]
    densities = Densities(estimators, prior, theta, x, design, no_contrast)
    return training_losses(estimators, densities, 0.0, contrastive=False)


@torch.no_grad()
def _row_losses(
    estimators: DesignEstimators, prior: Distribution, rows: Batch, chosen: Tensor
) -> dict[str, Tensor]:
    """Return the losses of trained networks, row by row."""
    estimators.train(False)
    parts = [_losses(estimators, prior, rows, some) for some in chosen.split(1_024)]
    return {name: torch.cat([part[name] for part in parts]).cpu() for name in parts[0]}
