r"""Expected information gain of a design: estimates, their errors and their caps.

The expected information gain of a design :math:`\xi` is the mutual information between
parameters and data,

.. math:: EIG(\xi) = E_{p(\theta) p(x \mid \theta, \xi)}
    \big[\log p(x \mid \theta, \xi) - \log p(x \mid \xi)\big],

in nats. The estimators here are nested: an outer average over simulations and, for each
of them, an inner average over contrastive parameters that stands for the marginal
:math:`p(x \mid \xi)`.

References:
    Foster et al., *A Unified Stochastic Gradient Approach to Designing Bayesian-Optimal
    Experiments*, AISTATS 2020, https://arxiv.org/abs/1911.00294 (prior contrastive
    estimate). Rainforth et al., *On Nesting Monte Carlo Estimators*, ICML 2018,
    https://arxiv.org/abs/1709.06181.
"""

import math
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, cast

import torch
from torch import Tensor
from torch.distributions import Distribution

from sbi_boed_plugin._rng import isolated_rng
from sbi_boed_plugin._simulation import run_simulator
from sbi_boed_plugin.objectives.info_nce import (
    MAX_PAIRS,
    contrastive_bound,
    fresh_contrast,
    log_likelihood_matrix,
)

__all__ = ["EIGEstimate", "estimate_eig"]


@dataclass(frozen=True)
class EIGEstimate:
    """An estimate of the expected information gain of one design.

    Attributes:
        value: Estimate, in nats.
        standard_error: Its standard error, in nats.
        bound: What the estimate is: `"pce"` a lower bound in expectation, `"snmc"` an
            upper bound if the likelihood is the true one, `"exact"` consistent for
            the expected information gain, with what remains of the nested bias
            counted in the standard error.
        cap: Largest value that the estimate can take, in nats, or `None`.
        num_simulations: Number of simulations that the estimate used.
        num_invalid_simulations: How many of them failed, and count as telling nothing.
    """

    value: float
    standard_error: float
    bound: Literal["pce", "snmc", "exact"]
    cap: float | None = None
    num_simulations: int = 0
    num_invalid_simulations: int = 0

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as a dictionary of plain Python values."""
        return asdict(self)


def estimate_eig(
    likelihood: Any,
    simulator: Callable[[Tensor, Tensor], Tensor],
    *,
    prior: Distribution,
    design: Tensor,
    bound: Literal["pce", "snmc", "exact"] = "pce",
    num_samples: int = 1_000,
    num_contrastive: int = 1_023,
    max_pairs: int = MAX_PAIRS,
    seed: int | None = None,
) -> EIGEstimate:
    r"""Estimate the expected information gain of a design from fresh simulations.

    With :math:`\theta_0` and :math:`x` from the joint distribution and :math:`L`
    contrastive :math:`\theta_l` from the prior, per simulation:

    - `"pce"`: :math:`\log q(x|\theta_0) - \log \frac{1}{L+1} \sum_{l=0}^{L}
      q(x|\theta_l)`. A lower bound for any :math:`q`, at most :math:`\log(L + 1)`.
    - `"snmc"`: the sum without :math:`l = 0`, divided by :math:`L`. An upper bound if
      :math:`q` is the true likelihood; of no fixed sign if it is learned.
    - `"exact"`: the mean of the two, which needs the true likelihood. Half of their
      difference bounds the nested bias and is added to the standard error (in
      squares), so that the error reported is honest where `num_contrastive` is small.

    Args:
        likelihood: Either an estimator with sbi's
            `log_prob(input, condition)`, conditioned on `(theta, design)` in one row,
            or a function `log_likelihood(x, theta, design)` that returns nats of
            shape `(batch_dim,)`.
        simulator: Function from `theta` of shape `(batch_dim, dim_theta)` and
            `design` of shape `(batch_dim, dim_design)` to `x` of shape
            `(batch_dim, dim_x)`. Simulations with NaN or infinite values count as
            experiments that tell nothing.
        prior: Distribution of the parameters before the experiment.
        design: Design of shape `(dim_design,)` or `(1, dim_design)`.
        bound: Which estimate, see above.
        num_samples: Number of simulations (outer samples).
        num_contrastive: Number of contrastive samples :math:`L` of each simulation.
        max_pairs: Largest number of likelihoods evaluated at once.
        seed: Seed of everything that is drawn. The global random state is left as it
            was. If `None`, the global random state is used and advanced.

    Returns:
        The estimate with its standard error and cap.

    Raises:
        ValueError: If an argument has a wrong shape or value, or if no simulation is
            finite.

    Example:
        >>> import torch
        >>> from torch.distributions import Independent, Normal
        >>> prior = Independent(Normal(torch.zeros(1), 1.0), 1)
        >>> def simulator(theta, design):
        ...     return theta * design + torch.randn_like(theta)
        >>> def log_likelihood(x, theta, design):
        ...     return Normal(theta * design, 1.0).log_prob(x).sum(-1)
        >>> eig = estimate_eig(
        ...     log_likelihood, simulator, prior=prior, design=torch.ones(1), seed=0
        ... )
        >>> abs(eig.value - 0.5 * torch.tensor(2.0).log().item()) < 0.1
        True
    """
    design = torch.as_tensor(design)
    if design.dim() == 1:
        design = design.unsqueeze(0)
    if design.dim() != 2 or design.shape[0] != 1:
        raise ValueError(
            f"design has shape {tuple(design.shape)}, but one design of shape "
            "(dim_design,) is scored at a time. Call estimate_eig once per design."
        )
    if bound not in ("pce", "snmc", "exact"):
        raise ValueError(
            f"bound='{bound}' is unknown. Use one of 'pce', 'snmc', 'exact'."
        )
    if bound == "exact" and hasattr(likelihood, "log_prob"):
        raise ValueError(
            "bound='exact' needs the true likelihood as a function "
            "log_likelihood(x, theta, design), but likelihood is an estimator "
            f"({type(likelihood).__name__}). Use bound='pce' for a lower bound."
        )
    for name, value, least in (
        ("num_samples", num_samples, 2),
        ("num_contrastive", num_contrastive, 1),
    ):
        if value < least:
            raise ValueError(f"{name}={value} must be at least {least}.")

    log_prob = _as_conditional_log_prob(likelihood, design.shape[-1])
    with torch.no_grad(), isolated_rng(seed):
        theta = prior.sample(torch.Size((num_samples,)))
        design = design.to(theta)
        x, valid = run_simulator(simulator, theta, design.repeat(num_samples, 1))
        num_invalid = _check_valid(valid, bound)
        theta, x = theta[valid], x[valid]
        # Chunks over simulations as well as over contrastive samples: the parameters
        # of all pairs at once may not fit either.
        rows = max(1, max_pairs // (num_contrastive + 1))
        lower, upper = [], []
        for theta_0, x_0 in zip(theta.split(rows), x.split(rows), strict=True):
            contrast = fresh_contrast(prior, num_contrastive, len(x_0))
            theta_all = torch.cat([theta_0.unsqueeze(0), contrast])
            conditions = torch.cat(
                [theta_all, design.expand(*theta_all.shape[:2], -1)], dim=-1
            )
            matrix = log_likelihood_matrix(
                log_prob, x_0, conditions, max_pairs=max_pairs
            )
            lower.append(contrastive_bound(matrix))
            marginal = torch.logsumexp(matrix[1:], dim=0) - math.log(num_contrastive)
            upper.append(matrix[0] - marginal)

    # With any critic that gives failed runs the same density, the bound is one of the
    # information in outcomes and failures together, and a failed run adds nothing.
    lower.append(theta.new_zeros(num_invalid))
    estimate = _summarize(torch.cat(lower), torch.cat(upper), bound, num_contrastive)
    return replace(estimate, num_invalid_simulations=num_invalid)


def _as_conditional_log_prob(
    likelihood: Any, dim_design: int
) -> Callable[[Tensor, Tensor], Tensor]:
    """Return `likelihood` in the calling convention of sbi's estimators."""
    if hasattr(likelihood, "log_prob"):
        return _in_precision_of(likelihood)
    if not callable(likelihood):
        raise TypeError(
            "likelihood must be an estimator with log_prob(input, condition) or a "
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
    if not isinstance(estimator, torch.nn.Module):
        return estimator.log_prob
    dtype = next(estimator.parameters()).dtype

    def log_prob(input: Tensor, condition: Tensor) -> Tensor:
        return estimator.log_prob(input.to(dtype), condition.to(dtype))

    return log_prob


def _check_valid(valid: Tensor, bound: str) -> int:
    """Return the number of failed simulations, and say what they mean."""
    num_invalid = int((~valid).sum())
    if num_invalid == len(valid):
        raise ValueError(
            f"All {len(valid)} simulations contain NaN or infinite values. Check the "
            "simulator at this design."
        )
    if num_invalid and bound != "pce":
        raise ValueError(
            f"{num_invalid} of {len(valid)} simulations contain NaN or infinite "
            f"values, but bound='{bound}' needs all of them. Use bound='pce'."
        )
    if num_invalid:
        warnings.warn(
            f"{num_invalid} of {len(valid)} simulations contain NaN or infinite "
            "values. They count as experiments that tell nothing; the estimate stays "
            "a lower bound.",
            stacklevel=3,
        )
    return num_invalid


def _summarize(
    lower: Tensor,
    upper: Tensor,
    bound: Literal["pce", "snmc", "exact"],
    num_contrastive: int,
) -> EIGEstimate:
    """Turn the terms of both nested estimates into the one asked for."""
    if bound == "exact":
        terms = 0.5 * (lower + upper).double()
    else:
        terms = (lower if bound == "pce" else upper).double()
    num_infinite = int((~torch.isfinite(terms)).sum())
    if num_infinite:
        raise ValueError(
            f"{num_infinite} of {terms.numel()} terms of bound='{bound}' are not "
            "finite: no contrastive parameter explains these data. Increase "
            "num_contrastive, or use bound='pce'."
        )
    num_samples = terms.numel()
    value = terms.mean().item()
    error = terms.std().item() / math.sqrt(num_samples)
    cap = None
    if bound == "pce":
        cap = math.log(num_contrastive + 1)
        if value > cap - 1.0:
            warnings.warn(
                f"The estimate {value:.2f} is within 1 nat of the largest value "
                f"log(num_contrastive + 1) = {cap:.2f} that it can take, so the true "
                "information gain may be much larger. Increase num_contrastive.",
                stacklevel=3,
            )
    if bound == "exact":
        half_gap = 0.5 * (upper - lower).double().mean().item()
        error = math.hypot(error, half_gap)
    # An information of exactly zero comes out a little negative at times.
    if value < -max(3.0 * error, 0.01):
        warnings.warn(
            f"The estimated information gain {value:.3f} ± {error:.3f} is negative. "
            "The likelihood fits these simulations worse than no knowledge of theta: "
            "train it longer or over a wider range of designs.",
            stacklevel=3,
        )
    return EIGEstimate(value, error, bound, cap, num_samples)
