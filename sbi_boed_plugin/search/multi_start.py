"""Search over designs with estimators that are trained for all of them.

Hundreds of designs climb the information of the learned model in parallel, with data
from the learned likelihood that follow the design. Because a climb also finds the
errors of the estimators, the best designs are then scored with simulations (Klein et
al., *Supercharging Simulation-Based Inference for Bayesian Optimal Experimental
Design*, 2026, https://arxiv.org/abs/2602.06900).
"""

import math
import warnings
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Distribution
from torch.optim.adam import Adam
from tqdm.auto import tqdm

from sbi_boed_plugin._rng import get_rng_state, isolated_rng
from sbi_boed_plugin.objectives.eig import (
    EIGEstimate,
    NoEstimateError,
    estimate_eig,
    simulate_design,
)
from sbi_boed_plugin.policies.policy import DesignPolicy
from sbi_boed_plugin.search.belief import unseen
from sbi_boed_plugin.search.config import MultiStartConfig as MultiStartConfig
from sbi_boed_plugin.search.estimators import DesignEstimators
from sbi_boed_plugin.search.information import POLICY_OBJECTIVES
from sbi_boed_plugin.search.learned_model import LearnedModel
from sbi_boed_plugin.search.regressed_model import RegressedModel
from sbi_boed_plugin.search.target import estimate_target
from sbi_boed_plugin.search.utility import Utility

__all__ = [
    "climb_designs",
    "multi_start_search",
    "score_design",
    "spread_designs",
]

# Contrastive parameters of a climb, at most. Their logarithm caps its estimates.
_MAX_CONTRASTIVE = 4_096
# Starts that tell how many contrastive parameters there must be.
_NUM_TO_SET_CONTRASTIVE = 64
# Designs of a list that are all judged.
_MOST_OF_LIST = 4_096
# Steps in widths of the space of a climb without gradient, last and first.
_WANDER = (0.005, 0.1)
# Share of the width of the space within which two designs count as the same.
_SAME = 0.02


def spread_designs(design: Tensor, policy: DesignPolicy) -> Tensor:
    """Return designs that differ, for networks to take a standardization from.

    With those of a point, any other design would be infinitely far away.
    """
    same = (design == design[0]).all(dim=0)
    if not same.any():
        return design
    if policy.box is None:
        spread = design + design.abs().clamp_min(1.0) * torch.randn_like(design)
    else:
        spread = policy.spread(len(design), at_random=True).to(design)
    return torch.where(same, spread, design)


def score_design(
    estimators: DesignEstimators,
    simulator: Callable[[Tensor, Tensor], Tensor],
    *,
    prior: Distribution,
    objective: str,
    **kwargs: Any,
) -> EIGEstimate:
    """Estimate the information of a design by the bound that goes with an objective.

    `kwargs` are `design` and what else :func:`~sbi_boed_plugin.estimate_eig` takes.
    """
    bound = POLICY_OBJECTIVES[objective].bound
    estimators.train(False)
    if objective == "target":
        return _score_target(estimators, simulator, unseen(prior), **kwargs)
    by_posterior = {
        "barber_agakov": estimators.posterior_base,
        "gkl": estimators.posterior,
    }
    return estimate_eig(
        by_posterior.get(bound, estimators.likelihood),
        simulator,
        prior=prior if bound == "pce" else unseen(prior),
        bound=bound,
        posterior_estimator=estimators.posterior_base,
        **kwargs,
    )


def _score_target(
    estimators: DesignEstimators,
    simulator: Callable[[Tensor, Tensor], Tensor],
    prior: Distribution,
    *,
    design: Tensor,
    num_samples: int,
    num_workers: int | None,
    seed: int,
) -> EIGEstimate:
    """Estimate the information about a target from fresh simulations."""
    with torch.no_grad(), isolated_rng(seed):
        theta, x, num_calls = simulate_design(
            simulator, prior, design.unsqueeze(0), num_samples, num_workers or 1
        )
        estimate = estimate_target(estimators.target, theta, x, design, prior)
    return replace(estimate, num_simulations=num_calls)


def multi_start_search(
    model: "LearnedModel",
    policy: DesignPolicy,
    simulator: Callable[[Tensor, Tensor], Tensor],
    config: MultiStartConfig,
    *,
    num_workers: int | None = 1,
    show_progress_bar: bool = True,
) -> tuple[list[tuple[Tensor, EIGEstimate]], int, int]:
    """Climb from many designs and score the best with simulations.

    All of a box is searched from a uniform start, any other support from draws of the
    policy. Candidates of a categorical policy do not climb. Returned are the designs
    with their estimates, best first, and how many simulations scored designs and
    failed, those of designs that could not be scored included.
    """
    model.estimators.train(False)
    designs = climb_designs(model, policy, config, show_progress_bar=show_progress_bar)
    # The same random numbers for all: differences are more accurate than values.
    seed = int(torch.randint(2**31, (1,)))
    candidates, costs = [], []
    for design in designs:
        try:
            estimate = score_design(
                model.estimators,
                simulator,
                prior=model.prior,
                design=design,
                objective=model.objective,
                num_samples=config.num_candidate_samples,
                num_workers=num_workers,
                seed=seed,
            )
            candidates.append((design, estimate))
            costs.append(estimate)
        except NoEstimateError as error:
            # Networks know nothing of designs at which every simulation fails.
            costs.append(error)
            warnings.warn(
                f"The design {design.tolist()}, at which the search arrived, cannot be "
                f"scored with simulations and is left out. {error}",
                stacklevel=5,
            )
    if not candidates:
        raise ValueError(
            "None of the designs that the search arrived at can be scored with "
            "simulations; the warnings before this say why."
        )
    return (
        sorted(candidates, key=lambda one: -_worth(model.utility, *one)),
        sum(cost.num_simulations for cost in costs),
        sum(cost.num_invalid_simulations for cost in costs),
    )


def _worth(utility: Utility, design: Tensor, eig: EIGEstimate) -> float:
    """Return the utility of a design by its estimate."""
    value = design.new_tensor([eig.value])
    return float(utility(value, design.unsqueeze(0)))


def climb_designs(
    model: LearnedModel | RegressedModel,
    policy: DesignPolicy,
    config: MultiStartConfig,
    *,
    starts: Tensor | None = None,
    show_progress_bar: bool = False,
) -> list[Tensor]:
    """Return the best designs after a climb that fewer and fewer finish.

    From `starts`, or from all over the space.
    """
    designs, width = _starts(policy, config.num_starts)
    designs = designs if starts is None else starts.clone()
    num_steps = config.num_climb_steps // 3 if policy.can_move else 0
    by_gradient = num_steps > 0 and model.data_move(designs[:2])
    first = designs[:_NUM_TO_SET_CONTRASTIVE]
    values, num_contrastive = _judge(model, first, config.num_samples, 0)
    bar = tqdm(
        total=3 * num_steps, disable=not show_progress_bar, desc="Climbing designs"
    )
    with bar:
        # As designs become fewer, each gets more: a step costs the same throughout.
        for stage in range(3):
            num_samples = config.num_samples * 2**stage
            unit = designs / width
            optimizer = Adam([unit], lr=config.learning_rate)
            for step in range(num_steps):
                bar.update()
                if not by_gradient:
                    share = (stage * num_steps + step) / (3 * num_steps)
                    designs = _wander(model, policy, designs, share, num_samples)
                    continue
                designs.requires_grad_()
                # The graph of a part is gone before the next: memory is that of one.
                parts = model.parts(designs, num_samples, num_contrastive)
                for some, values in parts:
                    model.utility(values, some).sum().backward(inputs=[designs])
                assert designs.grad is not None
                # Where one draw has no finite gradient, a design stays for a step.
                unit.grad = -designs.grad.nan_to_num(0.0, 0.0, 0.0) * width
                optimizer.step()
                designs = policy.moved(designs.detach(), unit * width)
                unit.copy_(designs / width)
            last = stage == 2
            values, num_contrastive = _judge(
                model, designs, num_samples * (4 if last else 2), num_contrastive
            )
            order = model.utility(values, designs).argsort(descending=True)
            designs = designs[order]
            keep = config.num_candidates if last else len(designs) // 4
            keep = max(config.num_candidates, keep)
            # Different ones, or all would climb the same hill.
            if num_steps:
                designs = torch.stack(_different(designs, width, keep))
            designs = designs[:keep]
    cap = math.log(max(16 * config.num_samples, num_contrastive))
    if model.objective == "info_nce" and values.max() > cap - 1.0:
        warnings.warn(
            f"The information of the learned model, {float(values.max()):.2f} nats "
            f"at the best design, is within a nat of its cap {cap:.2f}: the search "
            "cannot tell the best designs apart. Use objective='barber_agakov', "
            "which has no cap.",
            stacklevel=6,
        )
    return list(designs)


@torch.no_grad()
def _wander(
    model: LearnedModel | RegressedModel,
    policy: DesignPolicy,
    designs: Tensor,
    share: float,
    num_samples: int,
) -> Tensor:
    """Return each design or one beside it, the better one by the same random numbers.

    Data of few values do not follow the design, so that there is no gradient. Steps
    become smaller as the `share` of the climb that is done grows.
    """
    low, high = _WANDER
    step = high * (low / high) ** share * policy.width.to(designs)
    others = policy.moved(designs, designs + step * torch.randn_like(designs))
    state = get_rng_state()
    values = []
    for some in (designs, others):
        with isolated_rng(state):
            values.append(model.utility(model.information(some, num_samples), some))
    is_better = values[1] > values[0].nan_to_num(nan=-torch.inf)
    return torch.where(is_better.unsqueeze(1), others, designs)


@torch.no_grad()
def _judge(
    model: LearnedModel | RegressedModel,
    designs: Tensor,
    num_samples: int,
    num_contrastive: int,
) -> tuple[Tensor, int]:
    """Return the information, and as many contrasts as keep it below its cap."""
    while True:
        values = model.information(designs, num_samples, num_contrastive)
        values = values.nan_to_num(nan=-torch.inf)
        num_terms = max(num_samples, num_contrastive)
        capped = values.max() > math.log(num_terms) - 1
        capped = capped and model.objective == "info_nce"
        if not capped or num_terms >= _MAX_CONTRASTIVE:
            return values, num_contrastive
        num_contrastive = min(4 * num_terms, _MAX_CONTRASTIVE)


def _starts(policy: DesignPolicy, num_starts: int) -> tuple[Tensor, Tensor]:
    """Return designs to climb from, and the width of the space for each value."""
    if policy.box is not None:
        return policy.spread(num_starts), policy.width
    # Of a list all are judged.
    num_starts = max(num_starts, min(policy.num_designs or 0, _MOST_OF_LIST))
    # The networks of sbi are in single precision, whatever the policy is.
    designs = torch.unique(policy.spread(num_starts), dim=0).float()
    return designs, policy.width.float()


def _different(designs: Tensor, width: Tensor, num_designs: int) -> list[Tensor]:
    """Return the first designs that are not the same as one before."""
    chosen: list[Tensor] = []
    for design in designs:
        distances = [((design - other) / width).abs().max() for other in chosen]
        if all(distance > _SAME for distance in distances):
            chosen.append(design)
        if len(chosen) == num_designs:
            break
    return chosen
