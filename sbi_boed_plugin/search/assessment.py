"""What is known of the design that a search found."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.distributions import Distribution

from sbi_boed_plugin.objectives.eig import EIGEstimate, simulate_design
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
from sbi_boed_plugin.simulation import CheckedSimulator

__all__ = ["Assessment", "assess_design"]

# Share of a box within which a design is at its edge.
_EDGE = 0.01


@dataclass(frozen=True)
class Assessment:
    """What is known of the design that a search found, as in `DesignResult`."""

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
    """Return every bound of a design's information, and what contradicts them."""
    estimators, config = optimizer.networks, optimizer.config
    assert estimators is not None
    for network in estimators.all():
        network.eval()
    # A posterior that was trained with the particles of a belief fits them too well.
    fresh = prior.independent_copy() if isinstance(prior, ParticleBelief) else prior
    theta, x, num_calls = simulate_design(
        simulator, fresh, design, num_samples, num_workers
    )
    valid = torch.isfinite(x).all(dim=1)
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
    needs = POLICY_OBJECTIVES[config.objective].needs
    network = "posterior" if needs in ("posterior", "hybrid") else "likelihood"
    finite = theta[valid].float()
    mismatch = likelihood_mismatch(
        estimators.likelihood,
        finite,
        design.to(finite).expand(len(finite), -1),
        x[valid].float(),
    )
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
        mismatch=mismatch,
    )
    num_failed = int((~valid).sum())
    return Assessment(tightest(bounds), bounds, arrival, doubts, num_calls, num_failed)


def _at_edge(policy: DesignPolicy, design: Tensor) -> Tensor:
    """Return for each value whether it is at the lower (-1) or upper (1) edge."""
    box = uniform_designs(policy)
    if box is None:
        return torch.zeros(len(design))
    low, high = box.base_dist.low.to(design), box.base_dist.high.to(design)
    share = (design - low) / (high - low)
    return ((share > 1.0 - _EDGE).float() - (share < _EDGE).float()).cpu()
