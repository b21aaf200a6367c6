"""Every bound of the information of a design, from the same simulations."""

import math
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
)
from sbi_boed_plugin.search.estimators import DesignEstimators
from sbi_boed_plugin.search.information import POLICY_OBJECTIVES

__all__ = ["estimate_bounds", "tightest"]

# Contrasts for each simulation, and densities in total, of bounds to compare with.
_CONTRASTS = {"lace": 63, "lace_upper": 63, "pce": 255, "snmc": 255}
_MAX_PAIRS = 262_144
# Rows of the linear bound for each number that it fits.
_ROWS_PER_FEATURE = 5


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


def tightest(bounds: dict[str, EIGEstimate]) -> EIGEstimate:
    """Return the estimate to report: the larger of the objective's bound and LACE."""
    own = next(iter(bounds.values()))
    lace = bounds.get("lace", own)
    return lace if lace.value > own.value else own


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
