"""What is known of the design that a search found."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.distributions import Distribution

from sbi_boed_plugin._prior import draw_parameters
from sbi_boed_plugin.objectives.eig import EIGEstimate
from sbi_boed_plugin.policies import TruncatedNormalMixturePolicy
from sbi_boed_plugin.search.belief import ParticleBelief
from sbi_boed_plugin.search.information import POLICY_OBJECTIVES
from sbi_boed_plugin.search.multi_start import uniform_designs
from sbi_boed_plugin.search.optimizer import DesignOptimizer
from sbi_boed_plugin.search.trust import (
    Arrival,
    estimate_bounds,
    find_arrival,
    find_doubts,
    likelihood_mismatch,
    tightest,
)
from sbi_boed_plugin.simulation import CheckedSimulator, run_simulator

__all__ = ["Assessment", "assess_design"]

# Share of a box within which a design is at its edge.
_EDGE = 0.01
_BY_POSTERIOR = ("posterior", "hybrid")


@dataclass(frozen=True)
class Assessment:
    """What is known of the design that a search found.

    Attributes:
        eig: Its expected information gain, the tightest of the bounds.
        bounds: Every bound of it, from the same simulations.
        arrival: Whether the policy arrived there, after a joint search.
        doubts: What speaks against the result.
        num_simulations: Number of simulations that were spent.
        num_invalid_simulations: How many of them failed.
    """

    eig: EIGEstimate
    bounds: dict[str, EIGEstimate]
    arrival: Arrival | None
    doubts: list[str]
    num_simulations: int
    num_invalid_simulations: int


def assess_design(
    optimizer: DesignOptimizer,
    simulator: CheckedSimulator,
    *,
    prior: Distribution,
    design: Tensor,
    num_samples: int,
    num_contrastive: int,
    num_workers: int = 1,
) -> Assessment:
    """Score the design that a search found by every bound, and look for contradictions.

    Args:
        optimizer: The search.
        simulator: The simulator and its limit of calls.
        prior: Distribution of the parameters.
        design: Design of shape `(dim_design,)`.
        num_samples: Number of simulations.
        num_contrastive: Number of contrastive parameters of the objective's bound.
        num_workers: Number of processes that simulate.

    Returns:
        The assessment.
    """
    estimators, config = optimizer.networks, optimizer.config
    assert estimators is not None
    for network in estimators.all():
        network.eval()
    # A posterior that was trained with the particles of a belief knows them.
    fresh = prior.anew() if isinstance(prior, ParticleBelief) else prior
    theta = draw_parameters(fresh, num_samples)
    rows = design.to(theta).expand(num_samples, -1)
    limited = simulator.max_calls is not None
    made = run_simulator(
        simulator,
        theta,
        rows,
        num_workers=num_workers,
        # Small calls where the first error may leave no budget for repetitions.
        simulation_batch_size=math.isqrt(num_samples) if limited else None,
        isolate_errors=True,
    )
    # What the limit left out says nothing of the design.
    theta, x, valid = (rows[made.tried] for rows in (theta, made.x, made.valid))
    bounds = estimate_bounds(
        estimators,
        theta,
        x,
        prior=prior,
        fresh_prior=fresh,
        design=design,
        objective=config.objective,
        num_contrastive=num_contrastive,
    )
    arrival, never_moved = None, False
    needs_posterior = POLICY_OBJECTIVES[config.objective].needs in _BY_POSTERIOR
    network = "posterior" if needs_posterior else "likelihood"
    finite = theta[valid].float()
    if config.method == "joint":
        steps = optimizer.progress.search_ended or optimizer.progress.step
        never_moved = steps <= config.num_warmup_steps
        # Between the modes of a mixture there is a slope that leads nowhere.
        several = isinstance(optimizer.policy, TruncatedNormalMixturePolicy)
        if optimizer.policy.has_rsample and not several:
            arrival = find_arrival(optimizer.progress, _at_edge(optimizer, design))
    return Assessment(
        tightest(bounds),
        bounds,
        arrival,
        find_doubts(
            bounds,
            arrival,
            never_moved=never_moved,
            num_learned_from=optimizer.num_learned_from,
            overfit=optimizer.progress.overfit.get(network, (0.0, 0.0)),
            mismatch=likelihood_mismatch(
                estimators.likelihood,
                finite,
                design.to(finite).expand(len(finite), -1),
                x[valid].float(),
            ),
        ),
        made.num_calls,
        int((~valid).sum()),
    )


def _at_edge(optimizer: DesignOptimizer, design: Tensor) -> Tensor:
    """Return for each value whether it is at the lower (-1) or upper (1) edge."""
    box = uniform_designs(optimizer.policy)
    if box is None:
        return torch.zeros(len(design))
    low, high = box.base_dist.low.to(design), box.base_dist.high.to(design)
    share = (design - low) / (high - low)
    return ((share > 1.0 - _EDGE).float() - (share < _EDGE).float()).cpu()
