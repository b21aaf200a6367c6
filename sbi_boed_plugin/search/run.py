"""One call of a search: train, find a design, score it, and say what it is worth."""

import math
import warnings
from copy import deepcopy
from typing import Any

from torch import Tensor

from sbi_boed_plugin.objectives.eig import EIGEstimate
from sbi_boed_plugin.search.assessment import assess_design
from sbi_boed_plugin.search.budget import num_ranking
from sbi_boed_plugin.search.doubts import find_doubts, tightest
from sbi_boed_plugin.search.information import network_of
from sbi_boed_plugin.search.learned_model import LearnedModel
from sbi_boed_plugin.search.multi_start import multi_start_search
from sbi_boed_plugin.search.optimizer import DesignOptimizer
from sbi_boed_plugin.search.rehearsal import rehearsed_copy
from sbi_boed_plugin.search.result import DesignResult
from sbi_boed_plugin.search.rounds import RoundsSearch
from sbi_boed_plugin.search.sharpen import better_by_simulations, sharper_design
from sbi_boed_plugin.simulation import CheckedSimulator

__all__ = ["run_search", "search_stored"]

# Simulations that score a design, whatever time is left.
_MIN_SCORING = 100


def run_search(
    optimizer: DesignOptimizer | RoundsSearch,
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
    num_samples, budget = config.num_eig_samples, config.max_num_simulations
    # A search without training has its simulator checked after it.
    trains = config.num_steps or config.num_rounds
    num_checks = 0 if trains else simulator.num_check_calls
    num_after = num_samples + num_ranking(config.multi_start) + num_checks
    progress.check_budget(budget, num_after)
    stop_reason = optimizer.run(simulator, num_after, tracker, show_progress_bar)
    if isinstance(optimizer, DesignOptimizer):
        optimizer.rehearsed = optimizer.rehearsed or rehearsed_copy(
            optimizer, show_progress_bar
        )
    left = math.inf if budget is None else budget - progress.num_spent
    simulator.max_calls = left
    networks = optimizer.networks
    assert networks is not None
    design, candidates, num_ranked, num_invalid = policy.mode.clone(), [], 0, 0
    if isinstance(optimizer, RoundsSearch):
        candidates = optimizer.candidates
        design = candidates[0][0]
    # Networks that were refined at the mode know no other design as well.
    may_sharpen = config.max_seconds is None and not config.num_refinement_steps
    if config.method == "joint" and may_sharpen:
        assert isinstance(optimizer, DesignOptimizer)
        each = num_samples // 4
        better = None
        if each >= _MIN_SCORING:
            better = sharper_design(optimizer, design)
        if better is not None:
            design, num_ranked, num_invalid = better_by_simulations(
                optimizer, simulator, [better, design], each
            )
            num_samples -= 2 * each
    if config.method == "multi_start":
        simulator.max_calls = max(0, left - num_samples)
        candidates, num_ranked, num_invalid = multi_start_search(
            LearnedModel(networks, optimizer.prior, config.objective, config.utility),
            policy,
            simulator,
            config.multi_start,
            num_workers=config.num_workers,
            show_progress_bar=show_progress_bar,
        )
        simulator.max_calls = left - num_ranked
        design = candidates[0][0]
    if may_score_less and config.max_seconds is not None and progress.num_simulations:
        # As many as the time that is left allows for, at the pace of training.
        seconds = progress.seconds - progress.rehearsal_seconds
        pace = seconds / progress.num_simulations
        if isinstance(optimizer, RoundsSearch):
            pace = optimizer.pace[0] or pace
        affordable = int((config.max_seconds - progress.seconds) / pace)
        num_samples = min(num_samples, max(affordable, _MIN_SCORING))
    bounds, doubts, num_calls, num_failed = assess_design(
        optimizer, simulator, design, num_samples
    )
    if isinstance(optimizer, RoundsSearch):
        doubts += optimizer.unsettled
    if config.objective == "info_nce" and config.method == "joint":
        last = progress.history["eig"][-max(1, progress.step // 10) :]
        mean, cap = sum(last) / len(last), math.log(config.num_contrastive + 1)
        if mean > cap - 1.0:
            warnings.warn(
                f"At the end of the search the bound of {mean:.2f} nats was within a "
                f"nat of log(num_contrastive + 1) = {cap:.2f}, the most that it can "
                "tell. Increase num_contrastive to tell good designs apart.",
                stacklevel=4,
            )
    for doubt in doubts:
        warnings.warn(doubt, stacklevel=4)
    progress.num_scored += num_calls + num_ranked
    num_invalid += progress.num_invalid_simulations + num_failed
    return _result(
        optimizer,
        design,
        bounds,
        doubts,
        candidates=tuple(candidates),
        num_invalid_simulations=num_invalid,
        stop_reason=stop_reason,
    )


def search_stored(
    search: RoundsSearch, tracker: Any | None, show_progress_bar: bool
) -> DesignResult:
    """Find a design by stored simulations alone, and what they tell of it."""
    search.run(None, 0, tracker, show_progress_bar)
    assert search.fit is not None
    design, objective = search.candidates[0][0], search.config.objective
    eig = search.fit.estimate_near(design, objective)
    bounds = {eig.bound: eig}
    doubts = find_doubts(
        bounds,
        num_learned_from=search.num_learned_from,
        overfit=search.progress.overfit[network_of(objective)],
    )
    doubts += search.unsettled
    num_effective = search.fit.effective_sample_size
    if num_effective < 0.5 * search.num_learned_from:
        doubts.append(
            f"By what is known of the parameters now, only {num_effective:.0f} of "
            f"{search.num_learned_from:,} stored simulations count. Simulate anew."
        )
    doubts.append(
        "No simulation has scored the design: what is reported is the learned model's "
        "value, corrected by stored simulations at the designs nearest to it. Simulate "
        "there to make sure."
    )
    for doubt in doubts:
        warnings.warn(doubt, stacklevel=5)
    return _result(search, design, bounds, doubts, candidates=tuple(search.candidates))


def _result(
    optimizer: DesignOptimizer | RoundsSearch,
    design: Tensor,
    bounds: dict[str, EIGEstimate],
    doubts: list[str],
    **others: Any,
) -> DesignResult:
    # Copies of what later searches train on.
    progress, kept = optimizer.progress, deepcopy(optimizer.networks)
    assert kept is not None
    worth, cost, utility = optimizer.config.utility, None, None
    if worth.cost is not None:
        rows, value = design.unsqueeze(0), tightest(bounds).value
        cost = float(worth.costs(rows))
        utility = float(worth(design.new_tensor([value]), rows))
    return DesignResult(
        design=design,
        eig=tightest(bounds),
        bounds=bounds,
        doubts=tuple(doubts),
        policy=deepcopy(optimizer.policy),
        likelihood_estimator=kept.likelihood,
        posterior_estimator=kept.posterior,
        marginal_estimator=kept.marginal,
        target_estimator=kept.target,
        cost=cost,
        utility=utility,
        config=optimizer.config,
        history=deepcopy(progress.history),
        num_simulations=progress.num_spent,
        seconds=progress.seconds,
        **{"num_invalid_simulations": 0, "stop_reason": "num_rounds", **others},
    )
