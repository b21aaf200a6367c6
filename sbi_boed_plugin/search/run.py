"""One call of a search: train, find a design, score it, and say what it is worth."""

import math
import warnings
from collections.abc import Callable
from copy import deepcopy
from functools import partial
from typing import Any

from sbi_boed_plugin.search.assessment import assess_design
from sbi_boed_plugin.search.budget import num_ranking
from sbi_boed_plugin.search.doubts import tightest
from sbi_boed_plugin.search.multi_start import multi_start_search
from sbi_boed_plugin.search.optimizer import DesignOptimizer
from sbi_boed_plugin.search.rehearsal import rehearsed_copy
from sbi_boed_plugin.search.result import DesignResult
from sbi_boed_plugin.simulation import CheckedSimulator

__all__ = ["run_search"]

# Simulations that score a design, whatever time is left.
_MIN_SCORING = 100
# Share of the time that is kept free for that.
_SCORING_TIME = 0.2


def run_search(
    optimizer: DesignOptimizer,
    simulator: CheckedSimulator,
    *,
    may_score_less: bool,
    tracker: Any | None,
    show_progress_bar: bool,
) -> DesignResult:
    """Train within the budgets, find a design, and score it.

    Where `may_score_less`, fewer simulations score the design if time is short. Doubts
    about the result are also warnings. A `ValueError` says if the budgets do not allow
    for a single step.
    """
    config, progress, policy = optimizer.config, optimizer.progress, optimizer.policy
    num_samples, max_seconds = config.num_eig_samples, config.max_seconds
    # A search without training has its simulator checked after it.
    num_checks = 0 if config.num_steps else simulator.num_check_calls
    num_after = num_samples + num_ranking(config) + num_checks
    budget = config.max_num_simulations
    max_scoring_seconds = math.inf
    if may_score_less and max_seconds is not None:
        max_scoring_seconds = _SCORING_TIME * max_seconds
    train = partial(optimizer.run, tracker=tracker, show_progress_bar=show_progress_bar)
    stop_reason = _train(optimizer, simulator, train, num_after, max_scoring_seconds)
    reserve = num_samples
    if budget is not None:
        if optimizer.rehearsed is None:
            end = math.inf
            if max_seconds is not None:
                end = max_seconds - min(max_scoring_seconds, max_seconds / 2)
            optimizer.rehearsed = rehearsed_copy(optimizer, end, show_progress_bar)
        simulator.max_calls = budget - progress.num_spent
        reserve = min(reserve, simulator.max_calls)
    design, candidates, num_ranked, num_invalid = policy.mode.clone(), [], 0, 0
    if config.method == "multi_start":
        candidates, num_ranked, num_invalid = _candidates(
            optimizer, simulator, reserve, show_progress_bar
        )
        design = candidates[0][0]
    if may_score_less and max_seconds is not None:
        fitting = (max_seconds - progress.seconds) / max(progress.pace, 1e-9)
        num_samples = int(min(num_samples, max(fitting, _MIN_SCORING)))
    bounds, doubts, num_calls, num_failed = assess_design(
        optimizer, simulator, design, num_samples
    )
    if config.objective == "info_nce" and config.method == "joint":
        _warn_if_capped(progress.history["eig"], config.num_contrastive)
    for doubt in doubts:
        warnings.warn(doubt, stacklevel=4)
    progress.num_scored += num_calls + num_ranked
    num_invalid += progress.num_invalid_simulations + num_failed
    # Copies of what later searches train on.
    kept = deepcopy(optimizer.networks)
    assert kept is not None
    return DesignResult(
        design=design,
        eig=tightest(bounds),
        bounds=bounds,
        doubts=tuple(doubts),
        policy=deepcopy(policy),
        likelihood_estimator=kept.likelihood,
        posterior_estimator=kept.posterior,
        marginal_estimator=kept.marginal,
        config=config,
        history=deepcopy(progress.history),
        candidates=tuple(candidates),
        num_simulations=progress.num_spent,
        num_invalid_simulations=num_invalid,
        seconds=progress.seconds,
        stop_reason=stop_reason,
    )


def _train(
    optimizer: DesignOptimizer,
    simulator: CheckedSimulator,
    train: Callable[[CheckedSimulator, int, float], str],
    num_after: int,
    max_scoring_seconds: float,
) -> str:
    """Train and return why it stopped, or raise if the budgets do not allow for a step.

    `num_after` simulations are left for what follows the training.
    """
    config, progress = optimizer.config, optimizer.progress
    budget, spent = config.max_num_simulations, progress.num_spent
    if spent and budget is not None and spent + num_after > budget:
        raise ValueError(
            f"max_num_simulations={budget} is too few: the search to resume has had "
            f"{spent}, and {num_after} score the design. Raise it, or lower "
            "num_eig_samples."
        )
    stop_reason = train(simulator, num_after, max_scoring_seconds)
    if optimizer.estimators is None or (config.num_steps and not progress.step):
        raise ValueError(
            f"No step was taken: max_num_simulations={budget} and max_seconds="
            f"{config.max_seconds} must allow for a batch of "
            f"{config.training_batch_size} simulations and {num_after} that score the "
            "design."
        )
    return stop_reason


def _candidates(
    optimizer: DesignOptimizer,
    simulator: CheckedSimulator,
    reserve: int,
    show_progress_bar: bool,
) -> tuple[list[Any], int, int]:
    """Search with many starts, and leave `reserve` calls for the score."""
    networks, config = optimizer.networks, optimizer.config
    assert networks is not None
    simulator.max_calls -= reserve
    found = multi_start_search(
        networks,
        optimizer.prior,
        optimizer.policy,
        simulator,
        objective=config.objective,
        config=config.multi_start,
        num_workers=config.num_workers,
        show_progress_bar=show_progress_bar,
    )
    simulator.max_calls += reserve
    return found


def _warn_if_capped(bounds: list[float], num_contrastive: int) -> None:
    """Warn if the bound was too close to its cap to tell good designs apart."""
    last = bounds[-max(1, len(bounds) // 10) :]
    mean, cap = sum(last) / len(last), math.log(num_contrastive + 1)
    if mean > cap - 1.0:
        warnings.warn(
            f"At the end of the search the bound of {mean:.2f} nats was within a nat "
            f"of log(num_contrastive + 1) = {cap:.2f}, the most that it can tell. "
            "Increase num_contrastive to tell good designs apart.",
            stacklevel=5,
        )
