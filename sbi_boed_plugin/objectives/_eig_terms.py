"""Terms of the estimates of the expected information gain: one table of bounds."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from sbi.utils.sbiutils import within_support
from torch import Tensor
from torch.distributions import Distribution

from sbi_boed_plugin._numbers import WrongKindError
from sbi_boed_plugin.objectives.generalized_kl import hybrid_loss, partition_function
from sbi_boed_plugin.objectives.info_nce import fresh_contrast, log_likelihood_matrix

__all__ = [
    "BOUNDS",
    "Bound",
    "Problem",
    "check_estimators",
    "contrasted",
    "proposed_contrast",
]

Bound = (
    Literal["pce", "snmc", "lace", "lace_upper", "exact"]
    | Literal["nwj", "marginal", "barber_agakov", "gkl"]
)


@dataclass(frozen=True)
class Problem:
    """What is estimated and from what, as for `estimate_eig`."""

    bound: Bound
    estimator: Any
    prior: Distribution
    design: Tensor
    marginal_estimator: Any | None = None
    posterior_estimator: Any | None = None
    num_contrastive: int = 1_023
    max_pairs: int = 1  # As many as the memory allows; chosen before any is evaluated.

    def with_design(self, rows: Tensor) -> Tensor:
        """Return conditions in which the design follows each row."""
        return torch.cat([rows, self.design.expand(*rows.shape[:-1], -1)], dim=-1)

    def log_likelihoods(self, x: Tensor, theta: Tensor) -> Tensor:
        """Return those of data `(batch_dim, ...)` for `(num_rows, batch_dim, ...)`."""
        conditions = self.with_design(theta)
        return log_likelihood_matrix(
            self._log_likelihood, x, conditions, max_pairs=self.max_pairs
        )

    def _log_likelihood(self, input: Tensor, condition: Tensor) -> Tensor:
        """Evaluate an estimator, or a function `log_likelihood(x, theta, design)`."""
        if hasattr(self.estimator, "log_prob"):
            return _log_prob(self.estimator, input, condition)
        lengths = [condition.shape[1] - self.design.shape[1], self.design.shape[1]]
        values = self.estimator(input[0], *condition.split(lengths, dim=1))
        if values.shape != condition.shape[:1]:
            raise ValueError(
                f"log_likelihood(x, theta, design) returned shape "
                f"{tuple(values.shape)}, but must return one number per row, of shape "
                f"({len(condition)},): sum over the data of a row."
            )
        return values.unsqueeze(0)

    def log_marginal(self, x: Tensor) -> Tensor:
        """Return the learned log-density of the data alone."""
        condition = self.design.expand(len(x), -1)
        return _log_prob(self.marginal_estimator, x.unsqueeze(0), condition)[0]


@dataclass(frozen=True)
class BoundKind:
    """What an estimate of the information is."""

    # From a problem, parameters and data to terms of shape `(batch_dim,)`, or to lower
    # terms, upper terms, caps of the lower ones and effective numbers of contrasts, and
    # which of the terms are averaged.
    terms: Callable[[Problem, Tensor, Tensor], Tensor]
    reports: Literal["lower", "upper", "both"] = "lower"
    # Whether it is a lower bound whatever the estimators are, hence also if failed
    # simulations count as zero.
    is_lower: bool = False
    has_contrasts: bool = True
    has_prior_density: bool = False


def _contrasts_of_prior(problem: Problem, theta: Tensor, x: Tensor) -> Tensor:
    """Return log-likelihoods of simulations, and of parameters from the prior."""
    contrast = fresh_contrast(problem.prior, problem.num_contrastive, len(x))
    return problem.log_likelihoods(x, torch.cat([theta.unsqueeze(0), contrast]))


def _contrastive_terms(log_likelihood: Tensor, log_weights: Tensor) -> Tensor:
    r"""Return lower and upper terms, caps and sample sizes from contrasts.

    The lower ones are a bound for any likelihood :math:`q` and any proposal :math:`r`:
    with weights :math:`f_l = q(x | \theta_l) p(\theta_l) / r(\theta_l | x)`,
    :math:`r(\theta_0 | x) f_0` over the mean of all :math:`f_l` is, averaged over the
    contrasts, a normalized density of :math:`\theta_0`. The caps are what the proposal
    knows, plus that of the contrasts. Effective sample sizes are of contrasts alone.
    """
    log_num = math.log(len(log_weights))
    lower = log_likelihood - torch.logsumexp(log_weights, dim=0) + log_num
    log_sum = torch.logsumexp(log_weights[1:], dim=0)
    upper = log_likelihood - log_sum + math.log(len(log_weights) - 1)
    caps = log_likelihood - log_weights[0] + log_num
    sizes = (2.0 * log_sum - torch.logsumexp(2.0 * log_weights[1:], dim=0)).exp()
    # Where no contrast has any weight, there are none.
    return torch.stack([lower, upper, caps, sizes.nan_to_num(nan=0.0)])


def _prior_contrastive(problem: Problem, theta: Tensor, x: Tensor) -> Tensor:
    matrix = _contrasts_of_prior(problem, theta, x)
    return _contrastive_terms(matrix[0], matrix)


def proposed_contrast(
    prior: Distribution,
    theta: Tensor,
    draws: Tensor,
    log_likelihood: Callable[[Tensor], Tensor],
    log_proposal: Callable[[Tensor], Tensor],
) -> Tensor:
    """Return the terms of `_contrastive_terms` for draws `(num, batch_dim, dim_theta)`.

    The functions take parameters `(num + 1, batch_dim, dim_theta)`, those of the
    simulations first. A draw outside of the prior, or one that is not finite, has no
    weight.
    """
    theta_all, log_prior = contrasted(prior, theta, draws)
    matrix = log_likelihood(theta_all)
    log_prior = log_prior.to(matrix)
    weights = matrix + log_prior - log_proposal(theta_all).to(matrix)
    return _contrastive_terms(matrix[0], weights)


def contrasted(
    prior: Distribution, theta: Tensor, draws: Tensor
) -> tuple[Tensor, Tensor]:
    """Return parameters with draws after them, and their log-densities under the prior.

    Of shapes `(num + 1, batch_dim, dim_theta)` and `(num + 1, batch_dim)`. A draw
    outside of the prior, or one that is not finite, has the density zero, and the
    values of the parameters.
    """
    rows = torch.cat([theta, draws.flatten(0, 1)])
    inside = torch.isfinite(rows).all(dim=-1)
    inside[inside.clone()] = within_support(prior, rows[inside])
    rows = torch.where(inside.unsqueeze(-1), rows, theta.repeat(len(draws) + 1, 1))
    log_prior = prior.log_prob(rows).masked_fill(~inside, -torch.inf)
    return rows.reshape(-1, *theta.shape), log_prior.reshape(-1, len(theta))


def _posterior_contrastive(problem: Problem, theta: Tensor, x: Tensor) -> Tensor:
    """Return the bounds with contrasts that a posterior draws."""
    # Any proposal that covers the posterior will do; the base of a hybrid costs least.
    proposal = getattr(problem.posterior_estimator, "base", problem.posterior_estimator)
    data = problem.with_design(x)

    def log_proposal(theta_all: Tensor) -> Tensor:
        parts = theta_all.split(max(1, problem.max_pairs // len(data)))
        return torch.cat([_log_prob(proposal, part, data) for part in parts])

    draws = _draw(proposal, problem, data).to(theta)
    log_likelihood = partial(problem.log_likelihoods, x)
    return proposed_contrast(problem.prior, theta, draws, log_likelihood, log_proposal)


def _nwj(problem: Problem, theta: Tensor, x: Tensor) -> Tensor:
    r"""Return :math:`T(\theta_0) - \frac1L \sum_l e^{T(\theta_l) - 1}`.

    A lower bound for any critic that does not depend on the :math:`\theta_l`, here
    :math:`T = 1 + \log q(x | \theta) - \log m(x)`.
    """
    matrix = _contrasts_of_prior(problem, theta, x)
    contrasts = matrix[1:]
    if problem.marginal_estimator is not None:
        log_marginal = problem.log_marginal(x)
    else:
        # The marginal comes from parameters that the critic does not see.
        half = len(contrasts) // 2
        log_marginal = torch.logsumexp(contrasts[:half], dim=0) - math.log(half)
        contrasts = contrasts[half:]
    penalty = (contrasts - log_marginal).exp().mean(dim=0)
    return 1.0 + matrix[0] - log_marginal - penalty


def _marginal(problem: Problem, theta: Tensor, x: Tensor) -> Tensor:
    log_likelihood = problem.log_likelihoods(x, theta.unsqueeze(0))[0]
    return log_likelihood - problem.log_marginal(x)


def _barber_agakov(problem: Problem, theta: Tensor, x: Tensor) -> Tensor:
    log_prior = problem.prior.log_prob(theta).to(theta)
    data = problem.with_design(x)
    return _log_prob(problem.estimator, theta.unsqueeze(0), data)[0] - log_prior


def _generalized_kl(problem: Problem, theta: Tensor, x: Tensor) -> Tensor:
    estimator = problem.estimator
    log_prior = problem.prior.log_prob(theta)
    dtype = _precision_of(estimator, theta.dtype)
    theta, data = theta.to(dtype), problem.with_design(x).to(dtype)
    draws = _draw(estimator.base, problem, data)
    parts = draws.split(max(1, problem.max_pairs // len(data)))
    ratios = torch.cat([estimator.log_ratio(part, data) for part in parts])
    # No parameter outside of the support of the prior was drawn or has a posterior.
    inside = estimator.with_prior(problem.prior).inside(draws)
    loss = hybrid_loss(
        estimator.base.log_prob(theta.unsqueeze(0), data)[0],
        estimator.log_ratio(theta.unsqueeze(0), data)[0],
        partition_function(ratios, inside),
    )
    return 1.0 - log_prior.to(theta) - loss


BOUNDS: dict[str, BoundKind] = {
    "pce": BoundKind(_prior_contrastive, is_lower=True),
    "snmc": BoundKind(_prior_contrastive, "upper"),
    "lace": BoundKind(_posterior_contrastive, is_lower=True, has_prior_density=True),
    "lace_upper": BoundKind(_posterior_contrastive, "upper", has_prior_density=True),
    "exact": BoundKind(_prior_contrastive, "both"),
    "nwj": BoundKind(_nwj, is_lower=True),
    "marginal": BoundKind(_marginal, has_contrasts=False),
    "barber_agakov": BoundKind(
        _barber_agakov, is_lower=True, has_contrasts=False, has_prior_density=True
    ),
    "gkl": BoundKind(_generalized_kl, is_lower=True, has_prior_density=True),
}


def check_estimators(problem: Problem) -> None:
    """Raise if a bound is unknown, or if its estimators are not what it needs."""
    bound, estimator = problem.bound, problem.estimator
    if bound not in BOUNDS:
        raise ValueError(f"bound='{bound}' is unknown. Use one of {tuple(BOUNDS)}.")
    is_density = hasattr(estimator, "log_prob")
    is_hybrid = hasattr(estimator, "log_ratio")
    fault = ""
    if not is_density and not callable(estimator):
        fault = "estimator must be an estimator with log_prob, or a function"
    elif bound == "exact" and is_density:
        fault = "it needs the true likelihood, a function. Use bound='pce'"
    elif bound == "barber_agakov" and (is_hybrid or not is_density):
        fault = (
            "it needs a normalized posterior, conditioned on (x, design) in one row. "
            "For a hybrid use bound='gkl', or estimator.base for its base alone"
        )
    elif bound == "gkl" and not (is_hybrid and is_density):
        fault = (
            "it needs a HybridEstimator, conditioned on (x, design) in one row. For a "
            "normalized posterior use bound='barber_agakov'"
        )
    elif bound == "marginal" and problem.marginal_estimator is None:
        fault = "it needs marginal_estimator, the density of data given the design"
    elif bound.startswith("lace") and problem.posterior_estimator is None:
        fault = "it needs posterior_estimator to draw parameters from. Or use 'pce'"
    if fault:
        kind = type(estimator).__name__
        raise WrongKindError(f"bound='{bound}' with a {kind}: {fault}.")


def _draw(density: Any, problem: Problem, data: Tensor) -> Tensor:
    """Draw the contrastive parameters of each row, not too many at once."""
    parts = torch.arange(problem.num_contrastive)
    condition = data.to(_precision_of(density, data.dtype))
    draws = [
        density.sample(torch.Size((len(part),)), condition)
        for part in parts.split(max(1, problem.max_pairs // len(data)))
    ]
    return torch.cat(draws)


def _log_prob(estimator: Any, input: Tensor, condition: Tensor) -> Tensor:
    """Return the log-density, evaluated in the precision of the estimator."""
    dtype = _precision_of(estimator, input.dtype)
    return estimator.log_prob(input.to(dtype), condition.to(dtype))


def _precision_of(estimator: Any, default: torch.dtype) -> torch.dtype:
    """Return the precision of an estimator's weights, if it has any."""
    if not isinstance(estimator, torch.nn.Module):
        return default
    return next((weight.dtype for weight in estimator.parameters()), default)
