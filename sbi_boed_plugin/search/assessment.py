"""What is known of the design that a search found."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.distributions import Distribution

from sbi_boed_plugin._prior import draw_parameters
from sbi_boed_plugin.objectives.eig import EIGEstimate
from sbi_boed_plugin.policies import DesignPolicy, TruncatedNormalMixturePolicy
from sbi_boed_plugin.search.belief import ParticleBelief
from sbi_boed_plugin.search.bounds_of_design import estimate_bounds, tightest
from sbi_boed_plugin.search.information import POLICY_OBJECTIVES
from sbi_boed_plugin.search.multi_start import uniform_designs
from sbi_boed_plugin.search.optimizer import DesignOptimizer
from sbi_boed_plugin.search.trust import (
    Arrival,
    find_arrival,
    find_doubts,
    likelihood_mismatch,
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
    """Score a design by every bound, and look for contradictions."""
    estimators, config = optimizer.networks, optimizer.config
    assert estimators is not None
    for network in estimators.all():
        network.eval()
    # A posterior that was trained with the particles of a belief fits them too well.
    fresh = prior.independent_copy() if isinstance(prior, ParticleBelief) else prior
    theta = draw_parameters(fresh, num_samples)
    limited = simulator.max_calls is not None
    made = run_simulator(
        simulator,
        theta,
        design.to(theta).expand(num_samples, -1),
        num_workers=num_workers,
        # Under a limit calls are small: an error in a large one may use up the budget.
        simulation_batch_size=math.isqrt(num_samples) if limited else None,
        isolate_errors=True,
    )
    # Rows that the limit left out say nothing about the design.
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
    needs_posterior = POLICY_OBJECTIVES[config.objective].needs in _BY_POSTERIOR
    network = "posterior" if needs_posterior else "likelihood"
    finite = theta[valid].float()
    designs = design.to(finite).expand(len(finite), -1)
    arrival, never_moved = None, False
    if config.method == "joint":
        progress, policy = optimizer.progress, optimizer.policy
        steps = progress.search_ended or progress.step
        never_moved = steps <= config.num_warmup_steps
        # Between the modes of a mixture, a regression finds slopes that mean nothing.
        several = isinstance(policy, TruncatedNormalMixturePolicy)
        if policy.has_rsample and not several:
            arrival = find_arrival(progress, _at_edge(policy, design))
    doubts = find_doubts(
        bounds,
        arrival,
        never_moved=never_moved,
        num_learned_from=optimizer.num_learned_from,
        overfit=optimizer.progress.overfit.get(network, (0.0, 0.0)),
        mismatch=likelihood_mismatch(
            estimators.likelihood, finite, designs, x[valid].float()
        ),
    )
    num_invalid = int((~valid).sum())
    return Assessment(
        tightest(bounds), bounds, arrival, doubts, made.num_calls, num_invalid
    )


def _at_edge(policy: DesignPolicy, design: Tensor) -> Tensor:
    """Return for each value whether it is at the lower (-1) or upper (1) edge."""
    box = uniform_designs(policy)
    if box is None:
        return torch.zeros(len(design))
    low, high = box.base_dist.low.to(design), box.base_dist.high.to(design)
    share = (design - low) / (high - low)
    return ((share > 1.0 - _EDGE).float() - (share < _EDGE).float()).cpu()
