"""What is known of the design that a search found."""

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from sbi.neural_nets.estimators import (
    CategoricalMassEstimator,
    ConditionalDensityEstimator,
    MixedDensityEstimator,
)
from scipy.stats import ks_2samp
from torch import Tensor
from torch.distributions import Distribution, MultivariateNormal

from sbi_boed_plugin._memory import rows_at_once
from sbi_boed_plugin._prior import discrete_columns, log_normalization, to_real_numbers
from sbi_boed_plugin.estimators.vector_field import is_slow
from sbi_boed_plugin.objectives.eig import (
    EIGEstimate,
    NoEstimateError,
    Problem,
    eig_of_simulations,
    simulate_design,
)
from sbi_boed_plugin.policies.policy import DesignPolicy
from sbi_boed_plugin.search.belief import unseen
from sbi_boed_plugin.search.doubts import find_doubts, find_slope
from sbi_boed_plugin.search.estimators import DesignEstimators
from sbi_boed_plugin.search.information import POLICY_OBJECTIVES, network_of
from sbi_boed_plugin.search.optimizer import DesignOptimizer
from sbi_boed_plugin.search.target import estimate_target, target_of
from sbi_boed_plugin.simulation import CheckedSimulator

__all__ = [
    "assess_design",
    "estimate_bounds",
    "likelihood_mismatch",
    "linear_bound",
]

# Share of a box within which a design is at its edge.
_EDGE = 0.01
# Contrasts for each simulation of bounds to compare with, and densities in total.
_CONTRASTS = {"lace_upper": 63, "pce": 255, "snmc": 255}
_MAX_PAIRS = 262_144
# Contrasts of LACE, of which a few rows tell how many are enough, and its densities.
_LACE_CONTRASTS, _LACE_ROWS, _LACE_PAIRS = (15, 63, 255), 512, 524_288
# Data of so few values are told, if each comes often.
_FEW_VALUES, _ROWS_PER_VALUE = 20, 10
# Rows of the linear bound for each number that it fits: of a parabola, and of a plane.
_ROWS_OF_PARABOLA, _ROWS_OF_PLANE = 5, 2


def assess_design(
    optimizer: DesignOptimizer,
    simulator: CheckedSimulator,
    design: Tensor,
    num_samples: int,
) -> tuple[dict[str, EIGEstimate], list[str], int, int]:
    """Return every bound of a design's information, and what contradicts them.

    Beside them, the numbers of simulations for it and of those that failed.
    """
    estimators, config, prior = optimizer.networks, optimizer.config, optimizer.prior
    assert estimators is not None
    estimators.train(False)
    theta, x, num_calls = simulate_design(
        simulator, unseen(prior), design, num_samples, config.num_workers
    )
    valid = torch.isfinite(x).all(dim=1)
    if config.objective == "target":
        bounds = _bounds_of_target(estimators, theta, x, prior, design)
    else:
        bounds = estimate_bounds(
            estimators,
            theta,
            x,
            prior=prior,
            design=design,
            objective=config.objective,
            num_contrastive=config.num_eig_contrastive,
        )
    finite = theta[valid].float()
    designs = design.to(finite).expand(len(finite), -1)
    slope, never_moved = None, False
    if config.method == "joint":
        progress, policy = optimizer.progress, optimizer.policy
        steps = min(progress.step, config.num_steps)
        never_moved = steps <= config.num_warmup_steps
        # Between the modes of a mixture, a regression finds slopes that mean nothing.
        if policy.has_rsample:
            slope = find_slope(progress, _at_edge(policy, design))
    network = network_of(config.objective)
    discrete, mismatch = None, 0.0
    if estimators.likelihood is not None:
        discrete = _discrete_data(estimators.likelihood, x[valid])
    if estimators.likelihood is not None and discrete is None:
        observed = x[valid].float()
        mismatch = likelihood_mismatch(estimators.likelihood, finite, designs, observed)
    doubts = find_doubts(
        bounds,
        slope,
        never_moved=never_moved,
        num_learned_from=optimizer.num_learned_from,
        unit=config.utility.unit,
        overfit=optimizer.progress.overfit.get(network, (0.0, 0.0)),
        mismatch=mismatch,
    )
    doubts += [] if discrete is None else [discrete]
    return bounds, doubts, num_calls, int((~valid).sum())


def _discrete_data(likelihood: ConditionalDensityEstimator, x: Tensor) -> str | None:
    """Return what to say where a density describes data of a few values."""
    kinds = (CategoricalMassEstimator, MixedDensityEstimator)
    if any(isinstance(module, kinds) for module in likelihood.modules()):
        return None
    for number, column in enumerate(x.flatten(1).unbind(dim=1)):
        values = column.unique()
        if len(values) <= min(_FEW_VALUES, len(column) // _ROWS_PER_VALUE):
            shown = ", ".join(f"{value:g}" for value in values[:5].tolist())
            more = ", …" if len(values) > 5 else ""
            return (
                f"Value {number} of x takes only {len(values)} values ({shown}{more}), "
                "which a density describes badly: what observe() and MCMC learn from "
                "it may be wrong. Use density_estimator=categorical_likelihood_nn("
                "[...]) with all values."
            )
    return None


def _bounds_of_target(
    estimators: DesignEstimators,
    theta: Tensor,
    x: Tensor,
    prior: Distribution,
    design: Tensor,
) -> dict[str, EIGEstimate]:
    """Return what network and regression know of a target."""
    own = estimate_target(estimators.target, theta, x, design, unseen(prior))
    bounds, target = {own.bound: own}, target_of(estimators.target)
    # What is known of the target beforehand is on the CPU.
    linear = linear_bound(target(theta).cpu(), x.cpu(), target.distribution, 0.0)
    return bounds if linear is None else {**bounds, "linear": linear}


def estimate_bounds(
    estimators: DesignEstimators,
    theta: Tensor,
    x: Tensor,
    *,
    prior: Distribution,
    design: Tensor,
    objective: str,
    num_contrastive: int,
) -> dict[str, EIGEstimate]:
    """Return every bound of the information that the networks of a search give.

    The own one of the objective comes first, with `num_contrastive` parameters but for
    LACE, which chooses them; `"linear"` is that of a regression. `x` is NaN where
    simulations failed.
    """
    own, posterior = POLICY_OBJECTIVES[objective].bound, estimators.posterior_base
    names, likelihood = [own, "pce", "snmc"], estimators.likelihood
    # A vector field would solve an equation for each contrast.
    if likelihood is None or is_slow(likelihood):
        names = [own, "barber_agakov"]
    elif posterior is not None and is_slow(posterior):
        names = [own, "barber_agakov", "pce", "snmc"]
    elif posterior is not None:
        names = [own, "barber_agakov", "lace", "lace_upper", "pce", "snmc"]
    if not torch.isfinite(x).all():
        # Upper bounds need every simulation.
        names = [name for name in names if name not in ("snmc", "lace_upper")]
    by_posterior = {"barber_agakov": posterior, "gkl": estimators.posterior}
    constant = log_normalization(getattr(prior, "base_prior", prior))
    bounds: dict[str, EIGEstimate] = {}
    for name in dict.fromkeys(names):
        is_own = name == own
        problem = Problem(
            name,
            by_posterior.get(name, estimators.likelihood),
            prior if name in ("pce", "snmc") else unseen(prior),
            design.to(theta).unsqueeze(0),
            posterior_estimator=posterior,
            num_contrastive=num_contrastive if is_own else _CONTRASTS.get(name, 0),
        )
        estimate = partial(eig_of_simulations, constant=constant, warn=is_own)
        try:
            if name == "lace":
                bounds[name] = _grown_lace(problem, theta, x, estimate)
                continue
            num_rows = max(256, _MAX_PAIRS // (problem.num_contrastive + 1))
            most = len(theta) if is_own else num_rows
            bounds[name] = estimate(problem, theta[:most], x[:most])
        except NoEstimateError:
            if is_own:
                raise  # The search can do without the others.
    linear = linear_bound(theta, x, unseen(prior), constant[0])
    if linear is not None:
        bounds["linear"] = linear
    return bounds


def _grown_lace(
    problem: Problem, theta: Tensor, x: Tensor, estimate: Callable[..., EIGEstimate]
) -> EIGEstimate:
    """Return LACE with so many contrasts that more hardly raise it.

    On the first rows, more of them raise it by less than the standard error that the
    value will have.
    """
    few = theta[:_LACE_ROWS], x[:_LACE_ROWS]
    best, value, num_rows = problem, -math.inf, len(theta)
    for num_contrastive in _LACE_CONTRASTS:
        problem = replace(problem, num_contrastive=num_contrastive)
        found = estimate(problem, *few)
        affordable = min(len(theta), _LACE_PAIRS // (num_contrastive + 1))
        shrink = math.sqrt(len(few[0]) / affordable)
        if found.value <= value + shrink * found.standard_error:
            break
        best, value, num_rows = problem, found.value, affordable
    return estimate(best, theta[:num_rows], x[:num_rows])


@torch.no_grad()
def linear_bound(
    theta: Tensor, x: Tensor, prior: Distribution, constant: float
) -> EIGEstimate | None:
    """Return the Barber-Agakov bound of a regression, scored on other simulations.

    Parameters in coordinates without bounds are a Normal around a parabola of the data,
    or a plane where rows are few. `None` where they are too few for that, too, or
    parameters have no density.
    """
    before = getattr(prior, "base_prior", prior)
    valid = torch.isfinite(x).all(dim=1)
    num_failed = int((~valid).sum())
    theta, (x, _) = theta[valid], _standardized(x[valid])
    x = x.clamp(-5.0, 5.0)
    half = len(x) // 2
    features = torch.cat([torch.ones(len(x), 1).double(), x, x.square()], dim=1)
    if half < _ROWS_OF_PARABOLA * (features.shape[1] + theta.shape[1]):
        features = features[:, : 1 + x.shape[1]]
    too_few = half < _ROWS_OF_PLANE * (features.shape[1] + theta.shape[1])
    if too_few or bool(discrete_columns(before).any()):
        return None
    # By which a fit is closer to its own rows than to others, in variance.
    closer = (1.0 - features.shape[1] / half) ** 2
    to_real: Any = to_real_numbers(before)
    real = to_real(theta)
    log_det = to_real.log_abs_det_jacobian(theta, real)
    log_det = log_det.sum(dim=-1) if log_det.dim() > 1 else log_det
    log_prior = (prior.log_prob(theta).to(theta) - log_det).cpu().double()
    real, unit = _standardized(real)
    halves = (slice(0, half), slice(half, None))
    terms = [torch.zeros(num_failed).double()]
    for fitted, scored in (halves, halves[::-1]):
        solution = torch.linalg.lstsq(features[fitted], real[fitted]).solution
        residual = real[fitted] - features[fitted] @ solution
        covariance = torch.atleast_2d(torch.cov(residual.T))
        covariance = covariance / closer + 1e-9 * torch.eye(len(covariance)).double()
        fit = MultivariateNormal(features[scored] @ solution, covariance)
        log_posterior = fit.log_prob(real[scored]) - unit.log().sum()
        terms.append(log_posterior - log_prior[scored] + constant)
    values = torch.cat(terms)
    mean, error = values.mean().item(), values.std().item() / math.sqrt(len(values))
    return EIGEstimate(mean, error, "barber_agakov", None, len(values), num_failed)


def _standardized(values: Tensor) -> tuple[Tensor, Tensor]:
    """Return rows in double precision on the scale of each column, and the scales."""
    values = values.cpu().double()
    scale = values.std(dim=0)
    scale = scale.where(scale > 0, 1.0)  # Of values that do not vary.
    return (values - values.mean(dim=0)) / scale, scale


@torch.no_grad()
def likelihood_mismatch(
    likelihood: ConditionalDensityEstimator, theta: Tensor, design: Tensor, x: Tensor
) -> float:
    r"""Return how simulations differ from what the likelihood itself would draw.

    The Kolmogorov-Smirnov statistic, between 0 and 1, of :math:`\log q(x \mid \theta,
    \xi)` at simulated data and at draws of :math:`q` for the same parameters and
    designs. For one value, a likelihood that is a quarter too wide, or misses the mean
    by two thirds of its width, gives 0.1.
    """
    condition = torch.cat([theta, design], dim=-1)
    num_values = condition[:1].numel() + x[:1].numel()
    size = max(1, rows_at_once(likelihood, num_values) // 2)
    parts = []
    for given, data in zip(condition.split(size), x.split(size), strict=True):
        draws = likelihood.sample(torch.Size((1,)), given)
        both = torch.cat([data.unsqueeze(0), draws])
        parts.append(likelihood.log_prob(both, given))
    values = torch.cat(parts, dim=1)
    simulated, drawn = values.nan_to_num(nan=-torch.inf).cpu().numpy()
    statistic, _ = ks_2samp(simulated, drawn)
    return float(statistic)


def _at_edge(policy: DesignPolicy, design: Tensor) -> Tensor:
    """Return for each value whether it is at the lower (-1) or upper (1) edge."""
    if policy.box is None:
        return torch.zeros(len(design))
    low, high = (corner.to(design) for corner in policy.box)
    share = (design - low) / (high - low)
    return ((share > 1.0 - _EDGE).float() - (share < _EDGE).float()).cpu()
