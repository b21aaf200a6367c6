"""What is known of the design that a search found."""

import math
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor
from torch.distributions import Distribution, MultivariateNormal

from sbi_boed_plugin._prior import (
    discrete_columns,
    log_normalization,
    to_real_numbers,
)
from sbi_boed_plugin.objectives.eig import (
    EIGEstimate,
    NoEstimateError,
    Problem,
    eig_of_simulations,
    simulate_design,
)
from sbi_boed_plugin.policies import DesignPolicy, TruncatedNormalMixturePolicy
from sbi_boed_plugin.search.belief import ParticleBelief
from sbi_boed_plugin.search.estimators import DesignEstimators
from sbi_boed_plugin.search.information import POLICY_OBJECTIVES
from sbi_boed_plugin.search.multi_start import uniform_designs
from sbi_boed_plugin.search.optimizer import DesignOptimizer
from sbi_boed_plugin.search.trust import (
    Arrival,
    find_arrival,
    find_doubts,
    likelihood_mismatch,
    tightest,
)
from sbi_boed_plugin.simulation import CheckedSimulator

__all__ = ["Assessment", "assess_design", "estimate_bounds"]

# Share of a box within which a design is at its edge.
_EDGE = 0.01
# Contrasts for each simulation, and densities in total, of bounds to compare with.
_CONTRASTS = {"lace": 63, "lace_upper": 63, "pce": 255, "snmc": 255}
_MAX_PAIRS = 262_144
# Rows of the linear bound for each number that it fits.
_ROWS_PER_FEATURE = 5


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
        steps = min(progress.step, config.num_steps)
        never_moved = steps <= config.num_warmup_steps
        # Between the modes of a mixture, a regression finds slopes that mean nothing.
        several = isinstance(policy, TruncatedNormalMixturePolicy)
        if policy.has_rsample and not several:
            at_edge = _at_edge(policy, design)
            arrival = find_arrival(progress, config.num_steps, at_edge)
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


def estimate_bounds(
    estimators: DesignEstimators,
    theta: Tensor,
    x: Tensor,
    *,
    prior: Distribution,
    fresh_prior: Distribution,
    design: Tensor,
    objective: str,
    num_contrastive: int,
) -> dict[str, EIGEstimate]:
    """Return every bound of the information that the networks of a search give.

    The own one of the objective comes first, with `num_contrastive` parameters;
    `"linear"` is that of a regression. `x` is NaN where simulations failed.
    `fresh_prior` is the prior for networks that know the particles of the prior.
    """
    own = POLICY_OBJECTIVES[objective].bound
    names, posterior = [own, "pce", "snmc"], None
    if estimators.posterior is not None:
        posterior = estimators.posterior_base
        names = [own, "barber_agakov", "lace", "lace_upper", "pce", "snmc"]
    if not torch.isfinite(x).all():
        # Upper bounds need every simulation.
        names = [name for name in names if name not in ("snmc", "lace_upper")]
    by_posterior = {"barber_agakov": posterior, "gkl": estimators.posterior}
    constant = log_normalization(getattr(prior, "base_prior", prior))
    bounds: dict[str, EIGEstimate] = {}
    for name in dict.fromkeys(names):
        is_own = name == own
        contrasts = num_contrastive if is_own else _CONTRASTS.get(name, 0)
        most = len(theta) if is_own else max(256, _MAX_PAIRS // (contrasts + 1))
        problem = Problem(
            name,
            by_posterior.get(name, estimators.likelihood),
            prior if name in ("pce", "snmc") else fresh_prior,
            design.to(theta).unsqueeze(0),
            posterior_estimator=posterior,
            num_contrastive=contrasts,
        )
        try:
            bounds[name] = eig_of_simulations(
                problem, theta[:most], x[:most], constant=constant, warn=is_own
            )
        except NoEstimateError:
            if is_own:
                raise  # The search can do without the others.
    linear = _linear_bound(theta, x, fresh_prior, constant[0])
    if linear is not None:
        bounds["linear"] = linear
    return bounds


@torch.no_grad()
def _linear_bound(
    theta: Tensor, x: Tensor, prior: Distribution, constant: float
) -> EIGEstimate | None:
    """Return the Barber-Agakov bound of a regression, scored on other simulations.

    Parameters in coordinates without bounds are a Normal around a parabola of the data.
    `None` where there are too few rows, or no density of the parameters.
    """
    before = getattr(prior, "base_prior", prior)
    valid = torch.isfinite(x).all(dim=1)
    num_failed = int((~valid).sum())
    theta, x = theta[valid], x[valid].cpu().double()
    x = ((x - x.mean(dim=0)) / _positive(x.std(dim=0))).clamp(-5.0, 5.0)
    features = torch.cat([torch.ones(len(x), 1).double(), x, x.square()], dim=1)
    half = len(features) // 2
    too_few = half < _ROWS_PER_FEATURE * (features.shape[1] + theta.shape[1])
    if too_few or bool(discrete_columns(before).any()):
        return None
    transform = to_real_numbers(before)
    real = cast(Tensor, transform(theta))
    log_det = transform.log_abs_det_jacobian(theta, real)
    log_det = log_det.sum(dim=-1) if log_det.dim() > 1 else log_det
    log_prior = (prior.log_prob(theta).to(theta) - log_det).cpu().double()
    real = real.cpu().double()
    unit = _positive(real.std(dim=0))
    real, log_unit = (real - real.mean(dim=0)) / unit, unit.log().sum()
    halves = (slice(0, half), slice(half, None))
    terms = [torch.zeros(num_failed).double()]
    for fitted, scored in (halves, halves[::-1]):
        solution = torch.linalg.lstsq(features[fitted], real[fitted]).solution
        residual = real[fitted] - features[fitted] @ solution
        covariance = torch.atleast_2d(torch.cov(residual.T))
        covariance = covariance + 1e-9 * torch.eye(len(covariance)).double()
        fit = MultivariateNormal(features[scored] @ solution, covariance)
        log_posterior = fit.log_prob(real[scored]) - log_unit
        terms.append(log_posterior - log_prior[scored] + constant)
    values = torch.cat(terms)
    mean, error = values.mean().item(), values.std().item() / math.sqrt(len(values))
    return EIGEstimate(mean, error, "barber_agakov", None, len(values), num_failed)


def _positive(scale: Tensor) -> Tensor:
    """Return scales to divide by, one for values that do not vary."""
    return scale.where(scale > 0, 1.0)


def _at_edge(policy: DesignPolicy, design: Tensor) -> Tensor:
    """Return for each value whether it is at the lower (-1) or upper (1) edge."""
    box = uniform_designs(policy)
    if box is None:
        return torch.zeros(len(design))
    low, high = box.base_dist.low.to(design), box.base_dist.high.to(design)
    share = (design - low) / (high - low)
    return ((share > 1.0 - _EDGE).float() - (share < _EDGE).float()).cpu()
