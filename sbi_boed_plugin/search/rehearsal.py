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

    So often that they see 256,000 rows in all, as in 1,000 steps of 256, until the time
    for training is over, or until none has gained for twenty passes. `None` if they
    have seen as many already.
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
    """Train networks in place, each to its best on rows left out."""
    clip_max_norm, progress = optimizer.config.clip_max_norm, optimizer.progress
    deadline = time.perf_counter() + optimizer.training_seconds - progress.seconds

    def losses_of(chosen: Tensor) -> dict[str, Tensor]:
        """Return the loss of each row by maximum likelihood, for each network.

        On rows that are few, contrasts overfit long before maximum likelihood does.
        """
        theta, x, design = rows.theta[chosen], rows.x[chosen], rows.design[chosen]
        no_contrast = theta.unsqueeze(0)[:0]
        densities = Densities(
            estimators, optimizer.prior, theta, x, design, no_contrast
        )
        return training_losses(densities, 0.0, contrastive=False)

    @torch.no_grad()
    def evaluate(chosen: Tensor) -> dict[str, Tensor]:
        estimators.train(False)
        parts = [losses_of(some) for some in chosen.split(1_024)]
        return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}

    networks = estimators.named()
    order = torch.randperm(len(rows.theta))
    num_held_out = math.ceil(_VALIDATION_SHARE * len(order))
    held_out, training = order[:num_held_out], order[num_held_out:]
    groups = [{"params": network.parameters()} for network in networks.values()]
    adam = AdamW(groups, lr=_LEARNING_RATE, weight_decay=_WEIGHT_DECAY)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(adam, num_passes)
    best = {name: deepcopy(net.state_dict()) for name, net in networks.items()}
    losses, since_best = evaluate(held_out), 0
    hidden = not show_progress_bar
    for _ in tqdm(range(num_passes), "Rehearsing simulations", disable=hidden):
        if since_best >= _PATIENCE or time.perf_counter() > deadline:
            break
        estimators.train()
        for some in training[torch.randperm(len(training))].split(_BATCH_SIZE):
            if len(some) < 2:
                continue  # Batch normalization needs two.
            adam.zero_grad(set_to_none=True)
            torch.stack([*losses_of(some).values()]).mean(dim=1).sum().backward()
            for network in networks.values():
                if clip_max_norm is not None:
                    clip_grad_norm_(network.parameters(), clip_max_norm)
            adam.step()
        schedule.step()
        since_best += 1
        for name, value in evaluate(held_out).items():
            if value.mean() < losses[name].mean():
                losses[name], since_best = value, 0
                best[name] = deepcopy(networks[name].state_dict())
    for name, network in networks.items():
        network.load_state_dict(best[name])
        network.zero_grad(set_to_none=True)
    for name, known in evaluate(training[: 4 * num_held_out]).items():
        parts = [part.cpu().double() for part in (losses[name], known)]
        gap = float(parts[0].mean() - parts[1].mean())
        # The variance of a single row is unknown, and counts as zero.
        errors = [float(p.std() / len(p) ** 0.5) for p in parts if len(p) > 1]
        progress.overfit[name] = gap, math.hypot(*errors)
