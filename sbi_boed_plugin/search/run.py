"""One call of a search: train, find a design, score it, and say what it is worth."""

import math
import warnings
from copy import deepcopy
from typing import Any

from torch import Tensor
from torch.distributions import Distribution

from sbi_boed_plugin.search.assessment import Assessment, assess_design
from sbi_boed_plugin.search.budget import num_ranking
from sbi_boed_plugin.search.checks import warn_if_capped
from sbi_boed_plugin.search.estimators import EstimatorBuilders
from sbi_boed_plugin.search.multi_start import MultiStartOutcome
from sbi_boed_plugin.search.optimizer import DesignOptimizer
from sbi_boed_plugin.search.result import DesignResult, StopReason
from sbi_boed_plugin.simulation import CheckedSimulator

__all__ = ["run_search"]

# Simulations that score a design, whatever time is left.
_MIN_SCORING = 100
# Share of the time that is kept free for that.
_SCORING_TIME = 0.2


def run_search(
    optimizer: DesignOptimizer,
    simulator: CheckedSimulator,
    builders: EstimatorBuilders,
    *,
    prior: Distribution,
    may_score_less: bool,
    tracker: Any | None = None,
    show_progress_bar: bool = True,
) -> DesignResult:
    """Train within the budgets, find a design, and score it.

    Where `may_score_less`, fewer simulations score the design if time is short. Doubts
    about the result are also warnings.

    Raises:
        ValueError: If the budgets do not allow for a single step.
    """
    config, progress = optimizer.config, optimizer.progress
    num_samples, max_seconds = config.num_eig_samples, config.max_seconds
    # A search without training has its simulator checked after it.
    num_checks = 0 if config.num_steps else simulator.num_check_calls
    num_after = num_samples + num_ranking(config) + num_checks
    budget, spent = config.max_num_simulations, progress.num_spent
    if spent and budget is not None and spent + num_after > budget:
        raise ValueError(
            f"max_num_simulations={budget} is too few: the search to resume has had "
            f"{spent}, and {num_after} score the design. Raise it, or lower "
            "num_eig_samples."
        )
    max_scoring_seconds = math.inf
    if may_score_less and max_seconds is not None:
        max_scoring_seconds = _SCORING_TIME * max_seconds
    stop_reason = optimizer.run(
        simulator,
        builders,
        num_scoring=num_after,
        max_scoring_seconds=max_scoring_seconds,
        tracker=tracker,
        show_progress_bar=show_progress_bar,
    )
    if optimizer.estimators is None or (config.num_steps and not progress.step):
        raise ValueError(
            f"No step was taken: max_num_simulations={budget} and "
            f"max_seconds={max_seconds} must allow for at least one batch of "
            f"{config.training_batch_size} simulations and {num_after} that score the "
            "design."
        )
    if budget is not None:
        end = math.inf
        if max_seconds is not None:
            end = max_seconds - min(max_scoring_seconds, max_seconds / 2)
        optimizer.rehearse(max_seconds=end, show_progress_bar=show_progress_bar)
        simulator.max_calls = budget - progress.num_spent
    # What ranks candidates leaves this for the score.
    reserve = num_samples
    if simulator.max_calls is not None:
        reserve = min(reserve, simulator.max_calls)
    simulator.set_aside(reserve)
    networks = optimizer.networks
    assert networks is not None
    found = optimizer.strategy.find(
        networks, prior, optimizer.policy, simulator, config, show_progress_bar
    )
    simulator.set_aside(-reserve)
    design = optimizer.policy.mode.clone()
    if found.candidates:
        design = found.candidates[0][0]
    if may_score_less and max_seconds is not None:
        fitting = (max_seconds - progress.seconds) / max(progress.pace, 1e-9)
        num_samples = int(min(num_samples, max(fitting, _MIN_SCORING)))
    assessed = assess_design(
        optimizer,
        simulator,
        prior=prior,
        design=design,
        num_samples=num_samples,
        num_contrastive=config.num_eig_contrastive,
        num_workers=config.num_workers,
    )
    if config.objective == "info_nce" and config.method == "joint":
        warn_if_capped(progress.history["eig"], config.num_contrastive)
    for doubt in assessed.doubts:
        warnings.warn(doubt, stacklevel=4)
    progress.num_scored += assessed.num_simulations + found.num_simulations
    return _result(optimizer, design, assessed, found, stop_reason)


def _result(
    optimizer: DesignOptimizer,
    design: Tensor,
    assessed: Assessment,
    found: MultiStartOutcome,
    stop_reason: StopReason,
) -> DesignResult:
    """Return what was found, with copies of what later searches train on."""
    progress, kept = optimizer.progress, deepcopy(optimizer.networks)
    assert kept is not None
    num_invalid = assessed.num_invalid_simulations + found.num_invalid_simulations
    return DesignResult(
        design=design,
        eig=assessed.eig,
        bounds=assessed.bounds,
        arrival=assessed.arrival,
        doubts=tuple(assessed.doubts),
        policy=deepcopy(optimizer.policy),
        likelihood_estimator=kept.likelihood,
        posterior_estimator=kept.posterior,
        marginal_estimator=kept.marginal,
        config=optimizer.config,
        history=deepcopy(progress.history),
        candidates=tuple(found.candidates),
        num_simulations=progress.num_spent,
        num_invalid_simulations=progress.num_invalid_simulations + num_invalid,
        seconds=progress.seconds,
        stop_reason=stop_reason,
    )
