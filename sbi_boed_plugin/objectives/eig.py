r"""Expected information gain of a design: estimates, their errors and their caps.

The expected information gain of a design :math:`\xi` is the mutual information between
parameters and data,

.. math:: EIG(\xi) = E_{p(\theta) p(x \mid \theta, \xi)}
    \big[\log p(x \mid \theta, \xi) - \log p(x \mid \xi)\big],

in nats.

References:
    Foster et al., *A Unified Stochastic Gradient Approach to Designing Bayesian-Optimal
    Experiments*, AISTATS 2020, https://arxiv.org/abs/1911.00294 (`"pce"`; `"lace"` is
    its adaptive contrastive estimation). Rainforth et al., *On Nesting Monte Carlo
    Estimators*, ICML 2018, https://arxiv.org/abs/1709.06181 (`"snmc"`). Nguyen,
    Wainwright and Jordan, *Estimating Divergence Functionals and the Likelihood Ratio
    by Convex Risk Minimization*, 2010 (`"nwj"`). Barber and Agakov, *The IM Algorithm*,
    NeurIPS 2003. Foster et al., *Variational Bayesian Optimal Experimental Design*,
    NeurIPS 2019, https://arxiv.org/abs/1903.05480 (`"marginal"`).
"""

import math
import warnings
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from sbi.neural_nets.estimators import (
    CategoricalMassEstimator,
    ConditionalDensityEstimator,
)
from torch import Tensor
from torch.distributions import Distribution

from sbi_boed_plugin._memory import rows_at_once
from sbi_boed_plugin._numbers import check_integer, check_seed
from sbi_boed_plugin._parallel import check_num_workers
from sbi_boed_plugin._prior import draw_parameters, log_normalization, why_no_density
from sbi_boed_plugin._rng import isolated_rng
from sbi_boed_plugin.objectives._eig_estimate import EIGEstimate, NoEstimateError
from sbi_boed_plugin.objectives._eig_terms import (
    BOUNDS,
    Bound,
    Problem,
    check_estimators,
)
from sbi_boed_plugin.simulation import CheckedSimulator, run_simulator

__all__ = [
    "LOWER_BOUNDS",
    "Bound",
    "EIGEstimate",
    "NoEstimateError",
    "Problem",
    "eig_of_simulations",
    "estimate_eig",
    "simulate_design",
    "summarize",
]

LOWER_BOUNDS = tuple(name for name, kind in BOUNDS.items() if kind.is_lower)

# Added to the user's seed. With the same seed, the parameters and data that a network
# was trained with would be drawn again to judge it.
_STREAM = 5_104_627_393


def estimate_eig(
    estimator: Any,
    simulator: Callable[[Tensor, Tensor], Tensor],
    *,
    prior: Distribution,
    design: Tensor,
    bound: Bound = "pce",
    marginal_estimator: Any | None = None,
    posterior_estimator: Any | None = None,
    num_samples: int = 1_000,
    num_contrastive: int = 1_023,
    num_workers: int | None = 1,
    seed: int | None = None,
) -> EIGEstimate:
    r"""Estimate the expected information gain of a design from fresh simulations.

    With :math:`\theta_0` and :math:`x` from the joint distribution, each simulation
    contributes, from a likelihood :math:`q(x|\theta)` and :math:`L` contrastive
    :math:`\theta_l` from the prior,

    - `"pce"`: :math:`\log q(x|\theta_0) - \log \frac{1}{L+1} \sum_{l=0}^{L}
      q(x|\theta_l)`. A lower bound for any :math:`q`, at most :math:`\log(L + 1)`.
    - `"snmc"`: the mean over :math:`l \geq 1`. An upper bound if :math:`q` is the true
      likelihood; of no fixed sign if it is learned.
    - `"exact"`: the mean of both, for the true likelihood. Half of their difference
      bounds the nested bias and is added to the standard error.
    - `"lace"`, `"lace_upper"`: the same as `"pce"` and `"snmc"` with :math:`\theta_l`
      from `posterior_estimator` as :math:`r` and :math:`q(x|\theta_l) p(\theta_l) /
      r(\theta_l|x)` in the mean. `"lace"` is a lower bound for any :math:`q` and
      :math:`r`, at most :math:`\log(L + 1)` above `"barber_agakov"` of :math:`r`.
    - `"nwj"`: :math:`T(\theta_0) - \frac1e \frac{1}{L'} \sum_l e^{T(\theta_l)}` with
      :math:`T = 1 + \log q(x|\theta) - \log m(x)`. A lower bound for any :math:`q` and
      :math:`m`, without a cap, of high variance. :math:`m` is `marginal_estimator`,
      or the mean of :math:`q` over half of the contrastive parameters.
    - `"marginal"`: :math:`\log q(x|\theta_0) - \log r(x)` with `marginal_estimator` as
      :math:`r`. No cap; an upper bound if :math:`q` is the true likelihood, a lower one
      if :math:`r` is the true marginal, no bound if both are learned.

    and from a posterior :math:`q(\theta|x)`, conditioned on `(x, design)` in one row,

    - `"barber_agakov"`: :math:`\log q(\theta_0|x) - \log p(\theta_0)`. A lower bound
      for any normalized :math:`q`, without a cap.
    - `"gkl"`: the same for a hybrid posterior :math:`b \, e^\rho`, :math:`\log b + \rho
      - \log p + 1 - Z(x)` with its partition function :math:`Z` from `num_contrastive`
      draws of the base inside the support of `prior`. A lower bound, without a cap.

    Args:
        estimator: A likelihood: an estimator of sbi's kind, conditioned on `(theta,
            design)` in one row, or a function `log_likelihood(x, theta, design)` that
            returns nats of shape `(batch_dim,)`. Or a posterior: an estimator of sbi's
            kind, for `"gkl"` a `HybridEstimator`.
        simulator: Function from `theta` of shape `(batch_dim, dim_theta)` and `design`
            of shape `(batch_dim, dim_design)` to `x` of shape `(batch_dim, dim_x)`.
            Rows with NaN or infinite values count as experiments that tell nothing.
        prior: Distribution of the parameters before the experiment.
        design: Design of shape `(dim_design,)` or `(1, dim_design)`.
        bound: Which estimate.
        marginal_estimator: Density of the data alone, conditioned on the design.
        posterior_estimator: Density of the parameters to draw contrasts from,
            conditioned on `(x, design)` in one row; of a `HybridEstimator` its base.
        num_samples: Number of simulations (outer samples).
        num_contrastive: Number of contrastive samples :math:`L` of each simulation.
        num_workers: Number of processes that simulate, through joblib.
        seed: Seed of everything that is drawn (other numbers than after
            `torch.manual_seed(seed)`). If `None`, the global random state is used.

    Returns:
        The estimate with its standard error and cap.

    Raises:
        ValueError: If an argument is wrong, or if no simulation is finite.

    Example:
        >>> import torch
        >>> from torch.distributions import Independent, Normal
        >>> eig = estimate_eig(
        ...     lambda x, theta, d: Normal(theta * d, 1.0).log_prob(x).sum(-1),
        ...     lambda theta, d: theta * d + torch.randn_like(theta),
        ...     prior=Independent(Normal(torch.zeros(1), 1.0), 1),
        ...     design=torch.ones(1),
        ...     seed=0,
        ... )
        >>> abs(eig.value - 0.5 * math.log(2.0)) < 0.1
        True
    """
    design = torch.atleast_2d(torch.as_tensor(design))
    if design.shape[:-1] != (1,):
        raise ValueError(
            f"design has shape {tuple(design.shape)}, but one design of shape "
            "(dim_design,) is scored at a time. Call estimate_eig once per design."
        )
    problem = Problem(
        bound,
        estimator,
        prior,
        design,
        marginal_estimator,
        posterior_estimator,
        check_integer("num_contrastive", num_contrastive, 2 if bound == "nwj" else 1),
    )
    check_estimators(problem)
    num_samples = check_integer("num_samples", num_samples, 2)
    num_workers, seed = check_num_workers(num_workers), check_seed(seed)
    with torch.no_grad(), isolated_rng(None if seed is None else _STREAM + seed):
        theta, x, num_calls = simulate_design(
            simulator, prior, problem.design, num_samples, num_workers
        )
        problem = replace(problem, design=problem.design.to(theta))
        try:
            estimate = eig_of_simulations(problem, theta, x)
        except NoEstimateError as error:
            error.num_simulations = num_calls
            raise
    return replace(estimate, num_simulations=num_calls)


def simulate_design(
    simulator: Callable[[Tensor, Tensor], Tensor],
    prior: Distribution,
    design: Tensor,
    num_samples: int,
    num_workers: int,
) -> tuple[Tensor, Tensor, int]:
    """Return parameters, their data (NaN where they failed) and the number of calls.

    Rows that a limit of calls leaves out are not returned.
    """
    theta = draw_parameters(prior, num_samples)
    # Under a limit calls are small: an error in a large one could use up the budget.
    is_checked = isinstance(simulator, CheckedSimulator)
    is_limited = is_checked and simulator.max_calls < math.inf
    made = run_simulator(
        simulator,
        theta,
        design.to(theta).expand(num_samples, -1),
        num_workers=num_workers,
        simulation_batch_size=math.isqrt(num_samples) if is_limited else None,
    )
    return theta[made.tried], made.x[made.tried], made.num_calls


def eig_of_simulations(
    problem: Problem,
    theta: Tensor,
    x: Tensor,
    *,
    constant: tuple[float, float] | None = None,
    warn: bool = True,
) -> EIGEstimate:
    """Estimate the information of a design from simulations that are there.

    `x` is NaN where a simulation failed. `constant` is what `log_normalization`
    returned for the prior, if it was called.
    """
    kind = BOUNDS[problem.bound]
    if not kind.has_prior_density:
        constant = (0.0, 0.0)
    else:
        # The density of a belief lacks the constant of the prior that it came from.
        before = getattr(problem.prior, "base_prior", problem.prior)
        _check_describes(problem, before)
        constant = constant or log_normalization(before)
    valid = torch.isfinite(x).all(dim=1)
    num_invalid = int((~valid).sum())
    if num_invalid == len(valid):
        raise NoEstimateError(
            f"All {len(valid)} simulations contain NaN or infinite values. Check the "
            "simulator at this design.",
            len(valid),
            num_invalid,
        )
    if num_invalid and not kind.is_lower:
        raise ValueError(
            f"{num_invalid} of {len(valid)} simulations contain NaN or infinite "
            f"values, but bound='{problem.bound}' needs all of them. Use bound='pce'."
        )
    num_values = theta[0].numel() + x[0].numel() + problem.design.numel()
    densities = (problem.estimator, problem.posterior_estimator)
    max_pairs = min(rows_at_once(density, num_values) for density in densities)
    problem = replace(problem, max_pairs=max_pairs)
    # Simulations are split, too: the parameters of all pairs may not fit in memory.
    num_pairs = problem.num_contrastive + 1 if kind.has_contrasts else 1
    rows = max(1, max_pairs // num_pairs)
    chunks = zip(theta[valid].split(rows), x[valid].split(rows), strict=True)
    with torch.no_grad():
        terms = torch.cat([kind.terms(problem, *chunk) for chunk in chunks], dim=-1)
    terms = terms.cpu().double()
    if terms.dim() == 1:
        unknown = torch.full_like(terms, torch.inf)
        terms = torch.stack([terms, terms, unknown, unknown])
    estimate = summarize(terms, problem, num_invalid, constant)
    if warn:
        _warn_of_doubts(estimate, *constant)
    return estimate


def _check_describes(problem: Problem, prior: Distribution) -> None:
    """Raise if a density stands for parameters that take values which repeat."""
    by_proposal = problem.bound.startswith("lace")
    estimator: Any = problem.posterior_estimator if by_proposal else problem.estimator
    while isinstance(getattr(estimator, "net", None), ConditionalDensityEstimator):
        estimator = estimator.net
    fault = why_no_density(prior)
    if fault is not None and not isinstance(estimator, CategoricalMassEstimator):
        raise ValueError(
            f"bound='{problem.bound}' with a {type(estimator).__name__}: {fault}, and "
            "have no density. Use bound='pce' (objective='info_nce')."
        )


def summarize(
    terms: Tensor, problem: Problem, num_invalid: int, constant: tuple[float, float]
) -> EIGEstimate:
    """Return the mean of the terms of a bound, with its standard error and cap.

    `constant` is what the log-density of the prior lacks, and its standard error.
    """
    bound, prior, kind = problem.bound, problem.prior, BOUNDS[problem.bound]
    lower, upper, caps, sizes = terms
    values = {"lower": lower, "upper": upper}.get(kind.reports, 0.5 * (lower + upper))
    num_samples = len(values) + num_invalid
    num_infinite = int((~torch.isfinite(values)).sum())
    if num_infinite:
        raise NoEstimateError(
            f"{num_infinite} of {num_samples} terms of bound='{bound}' are not finite: "
            "no contrastive parameter explains these data, or they have no density. "
            "Increase num_contrastive, or use bound='pce'.",
            num_samples,
            num_invalid,
        )
    # A failed run adds nothing, whatever the constant of the prior: with a critic that
    # gives all failures the same density, the bound holds for the information in
    # outcomes and failures together.
    values = torch.cat([values, values.new_zeros(num_invalid)])
    share_valid = 1.0 - num_invalid / num_samples
    spread = values.std().item()
    errors = [spread / math.sqrt(num_samples), constant[1]]
    num_atoms = getattr(prior, "num_particles", None)
    if num_atoms is not None:
        # The parameters come from few particles, however many simulations there are.
        errors.append(spread / math.sqrt(num_atoms))
    if kind.has_prior_density:
        # All terms share the error of the evidence in the density.
        errors.append(math.sqrt(getattr(prior, "log_evidence_variance", 0.0)))
    if kind.reports == "both":
        errors.append(0.5 * (upper - lower).mean().item())
    cap, largest = None, caps.mean().item()
    if kind.reports == "lower" and math.isfinite(largest):
        if not kind.has_prior_density:
            # Contrasts from a belief repeat its particles.
            largest = min(largest, math.log(num_atoms or math.inf))
        cap = (largest + constant[0]) * share_valid
    value = values.mean().item() + constant[0] * share_valid
    error = math.hypot(*errors)
    num_contrastive = problem.num_contrastive if kind.has_contrasts else 0
    return EIGEstimate(
        value,
        error,
        bound,
        cap,
        num_samples,
        num_invalid,
        num_contrastive,
        sizes.mean().item() if num_contrastive else None,
    )


def _warn_of_doubts(estimate: EIGEstimate, constant: float, spread: float) -> None:
    """Warn of what makes an estimate doubtful: its prior, failures, cap and sign."""
    value, error, cap = estimate.value, estimate.standard_error, estimate.cap
    num_invalid = estimate.num_invalid_simulations
    warn = partial(warnings.warn, stacklevel=4)
    if constant:
        warn(
            f"prior.log_prob is not normalized: its density integrates to "
            f"{math.exp(constant):.3g}. The estimate allows for this ({constant:+.2f} "
            f"± {spread:.2f} nats). Subtract {constant:.2f} from prior.log_prob."
        )
    if num_invalid:
        warn(
            f"{num_invalid} of {estimate.num_simulations} simulations contain NaN or "
            "infinite values. They count as experiments that tell nothing."
        )
    # Noise makes the estimate of an information of zero slightly negative at times.
    if value < -max(3.0 * error, 0.01):
        warn(
            f"The estimated information gain {value:.3f} ± {error:.3f} is negative. "
            "The estimator tells less of these simulations than no knowledge of theta: "
            "train it longer or over a wider range of designs."
        )
    elif cap is not None and value > cap - 1.0:
        warn(
            f"The {estimate.bound} estimate {value:.2f} is within 1 nat of the largest "
            f"value {cap:.2f} that it can take: the true information gain may be much "
            "larger. Increase num_contrastive."
        )
