"""Terms of the estimates of the expected information gain."""

import math
from collections.abc import Callable
from typing import Any, cast

import torch
from sbi.utils.sbiutils import within_support
from torch import Tensor
from torch.distributions import Distribution

from sbi_boed_plugin.objectives.bounds import (
    barber_agakov_bound,
    generalized_kl_bound,
    marginal_difference,
    nwj_bound,
    proposal_contrastive_bounds,
    ratio_critic,
)
from sbi_boed_plugin.objectives.generalized_kl import partition_function
from sbi_boed_plugin.objectives.info_nce import (
    contrastive_bound,
    fresh_contrast,
    log_likelihood_matrix,
)

__all__ = ["information_terms"]


def information_terms(
    bound: str,
    estimator: Any,
    marginal_estimator: Any | None,
    posterior_estimator: Any | None,
    prior: Distribution,
    theta: Tensor,
    x: Tensor,
    design: Tensor,
    num_contrastive: int,
    max_pairs: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return each simulation's term, as a lower and an upper one, and its cap.

    Lower and upper terms differ for the nested estimates alone.

    Args:
        bound: Name of the bound.
        estimator: Likelihood or posterior.
        marginal_estimator: Density of the data, if the bound needs one.
        posterior_estimator: Proposal of contrastive parameters, if the bound needs one.
        prior: Distribution of the parameters.
        theta: Parameters of shape `(num_samples, dim_theta)`.
        x: Data of shape `(num_samples, dim_x)`.
        design: Design of shape `(1, dim_design)`.
        num_contrastive: Number of contrastive parameters, or draws of the base.
        max_pairs: Largest number of densities evaluated at once.

    Returns:
        Lower terms, upper terms and the largest values that the lower ones can take,
        of shape `(num_samples,)` each, in nats.
    """
    # Chunks over simulations as well as over contrastive samples: the parameters of
    # all pairs at once may not fit either.
    num_inner = 0 if bound in ("barber_agakov", "marginal") else num_contrastive
    rows = max(1, max_pairs // (num_inner + 1))
    chunks = zip(theta.split(rows), x.split(rows), strict=True)
    if bound in ("barber_agakov", "gkl"):
        terms = torch.cat(
            [
                _posterior_terms(estimator, prior, *chunk, design, num_inner, max_pairs)
                for chunk in chunks
            ]
        )
        return terms, terms, torch.full_like(terms, torch.inf)
    log_prob = _as_conditional_log_prob(estimator, design.shape[-1])
    lower, upper, caps = [], [], []
    log_num_terms = math.log(num_contrastive + 1)
    for theta_0, x_0 in chunks:
        log_marginal = None
        if marginal_estimator is not None:
            marginal = _in_precision_of(marginal_estimator)
            log_marginal = marginal(x_0.unsqueeze(0), design.expand(len(x_0), -1))[0]
        if bound == "marginal":
            condition = torch.cat([theta_0, design.expand(len(theta_0), -1)], dim=-1)
            log_likelihood = log_prob(x_0.unsqueeze(0), condition)[0]
            terms = marginal_difference(log_likelihood, cast(Tensor, log_marginal))
            lower.append(terms)
            upper.append(terms)
            caps.append(torch.full_like(terms, torch.inf))
            continue
        if posterior_estimator is not None:
            log_likelihood, weights = _proposal_weights(
                log_prob,
                posterior_estimator,
                prior,
                theta_0,
                x_0,
                design,
                num_contrastive,
                max_pairs,
            )
            terms = proposal_contrastive_bounds(log_likelihood, weights)
            lower.append(terms[0])
            upper.append(terms[1])
            # That of the contrasts is on top of what the proposal knows.
            caps.append(log_num_terms + log_likelihood - weights[0])
            continue
        contrast = fresh_contrast(prior, num_contrastive, len(x_0))
        theta_all = torch.cat([theta_0.unsqueeze(0), contrast])
        conditions = torch.cat(
            [theta_all, design.expand(*theta_all.shape[:2], -1)], dim=-1
        )
        matrix = log_likelihood_matrix(log_prob, x_0, conditions, max_pairs=max_pairs)
        if bound == "nwj":
            terms = _nwj_terms(matrix, log_marginal)
            lower.append(terms)
            upper.append(terms)
            caps.append(torch.full_like(terms, torch.inf))
            continue
        lower.append(contrastive_bound(matrix))
        mean = torch.logsumexp(matrix[1:], dim=0) - math.log(num_contrastive)
        upper.append(matrix[0] - mean)
        caps.append(torch.full_like(mean, log_num_terms))
    return torch.cat(lower), torch.cat(upper), torch.cat(caps)


def _proposal_weights(
    log_prob: Callable[[Tensor, Tensor], Tensor],
    proposal: Any,
    prior: Distribution,
    theta: Tensor,
    x: Tensor,
    design: Tensor,
    num_contrastive: int,
    max_pairs: int,
) -> tuple[Tensor, Tensor]:
    """Return log-likelihoods and log-weights of contrasts from a posterior.

    Returns:
        Log-likelihoods of the simulations, of shape `(batch_dim,)`, and log-weights of
        shape `(num_contrastive + 1, batch_dim)`, in nats.
    """
    # Any proposal that covers the posterior serves: a normalized one costs least.
    proposal = getattr(proposal, "base", proposal)
    data = torch.cat([x, design.expand(len(x), -1)], dim=-1)
    dtype = _precision_of(proposal, x.dtype)
    size = max(1, max_pairs // len(data))
    draws = _draw(proposal, num_contrastive, data.to(dtype), size).to(theta)
    theta_all = torch.cat([theta.unsqueeze(0), draws])
    # A draw outside of the prior, or beyond all numbers, has no weight.
    flat = theta_all.flatten(0, 1)
    inside = torch.isfinite(flat).all(dim=-1)
    inside[inside.clone()] = within_support(prior, flat[inside])
    safe = theta.repeat(num_contrastive + 1, 1)
    flat = torch.where(inside.unsqueeze(-1), flat, safe)
    theta_all = flat.reshape(theta_all.shape)
    conditions = torch.cat([theta_all, design.expand(*theta_all.shape[:2], -1)], dim=-1)
    matrix = log_likelihood_matrix(log_prob, x, conditions, max_pairs=max_pairs)
    density = _in_precision_of(proposal)
    log_proposal = torch.cat([density(part, data) for part in theta_all.split(size)])
    log_prior = prior.log_prob(flat).reshape(matrix.shape).to(matrix)
    weights = matrix + log_prior - log_proposal.to(matrix)
    weights = weights.masked_fill(~inside.reshape(matrix.shape), -torch.inf)
    return matrix[0], weights


def _nwj_terms(matrix: Tensor, log_marginal: Tensor | None) -> Tensor:
    """Return the terms, with a marginal from parameters that the critic is not for."""
    marginal_rows = matrix[1:]
    if log_marginal is None:
        half = len(marginal_rows) // 2
        log_marginal = torch.logsumexp(marginal_rows[:half], dim=0) - math.log(half)
        marginal_rows = marginal_rows[half:]
    return nwj_bound(
        ratio_critic(matrix[0], log_marginal),
        ratio_critic(marginal_rows, log_marginal),
    )


def _posterior_terms(
    estimator: Any,
    prior: Distribution,
    theta: Tensor,
    x: Tensor,
    design: Tensor,
    num_partition_samples: int,
    max_pairs: int,
) -> Tensor:
    """Return the terms of a posterior, unnormalized if there are draws to take."""
    log_prior = prior.log_prob(theta)
    data = torch.cat([x, design.expand(len(x), -1)], dim=-1)
    if not num_partition_samples:
        log_prob = _in_precision_of(estimator)
        return barber_agakov_bound(
            log_prob(theta.unsqueeze(0), data)[0], log_prior.to(theta)
        )
    dtype = _precision_of(estimator, theta.dtype)
    theta, data = theta.to(dtype), data.to(dtype)
    size = max(1, max_pairs // len(data))
    draws = _draw(estimator.base, num_partition_samples, data, size)
    ratios = [estimator.log_ratio(part, data) for part in draws.split(size)]
    # No parameter outside of the support of the prior was drawn or has a posterior.
    inside = estimator.with_prior(prior).inside(draws)
    return generalized_kl_bound(
        estimator.base.log_prob(theta.unsqueeze(0), data)[0],
        estimator.log_ratio(theta.unsqueeze(0), data)[0],
        log_prior.to(theta),
        partition_function(torch.cat(ratios), inside),
    )


def _draw(density: Any, num_samples: int, condition: Tensor, size: int) -> Tensor:
    """Draw of each condition, at most `size` times at once."""
    parts = torch.arange(num_samples).split(size)
    return torch.cat(
        [density.sample(torch.Size((len(part),)), condition) for part in parts]
    )


def _as_conditional_log_prob(
    likelihood: Any, dim_design: int
) -> Callable[[Tensor, Tensor], Tensor]:
    """Return `likelihood` in the calling convention of sbi's estimators."""
    if hasattr(likelihood, "log_prob"):
        return _in_precision_of(likelihood)
    if not callable(likelihood):
        raise TypeError(
            "estimator must be an estimator with log_prob(input, condition) or a "
            f"function of (x, theta, design), got {type(likelihood).__name__}."
        )

    log_likelihood = cast(Callable[[Tensor, Tensor, Tensor], Tensor], likelihood)

    def log_prob(input: Tensor, condition: Tensor) -> Tensor:
        theta, design = condition[..., :-dim_design], condition[..., -dim_design:]
        values = log_likelihood(input.squeeze(0), theta, design)
        if values.shape != theta.shape[:1]:
            raise ValueError(
                f"log_likelihood(x, theta, design) returned shape "
                f"{tuple(values.shape)} for {len(theta)} rows, but must return one "
                f"number per row, of shape ({len(theta)},): sum over the data of a row."
            )
        return values.unsqueeze(0)

    return log_prob


def _in_precision_of(estimator: Any) -> Callable[[Tensor, Tensor], Tensor]:
    """Return the density of an estimator for inputs of any precision."""

    def log_prob(input: Tensor, condition: Tensor) -> Tensor:
        dtype = _precision_of(estimator, input.dtype)
        return estimator.log_prob(input.to(dtype), condition.to(dtype))

    return log_prob


def _precision_of(estimator: Any, default: torch.dtype) -> torch.dtype:
    """Return the precision of an estimator's weights, if it has any."""
    if not isinstance(estimator, torch.nn.Module):
        return default
    return next((weight.dtype for weight in estimator.parameters()), default)
