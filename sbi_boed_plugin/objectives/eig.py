r"""Expected information gain of a design: estimates, their errors and their caps.

The expected information gain of a design :math:`\xi` is the mutual information between
parameters and data,

.. math:: EIG(\xi) = E_{p(\theta) p(x \mid \theta, \xi)}
    \big[\log p(x \mid \theta, \xi) - \log p(x \mid \xi)\big],

in nats. Some estimates are nested: an outer average over simulations and, for each of
them, an inner average over contrastive parameters that stands for the marginal
:math:`p(x \mid \xi)`. Others replace one of the densities by a learned one.

References:
    Foster et al., *A Unified Stochastic Gradient Approach to Designing Bayesian-Optimal
    Experiments*, AISTATS 2020, https://arxiv.org/abs/1911.00294 (prior contrastive
    estimate). Rainforth et al., *On Nesting Monte Carlo Estimators*, ICML 2018,
    https://arxiv.org/abs/1709.06181. The contrasts of `"lace"` from a learned
    posterior are those of adaptive contrastive estimation in the first of them.
"""

import math
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, get_args

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
from sbi_boed_plugin._prior import (
    draw_parameters,
    log_normalization,
    why_no_density,
)
from sbi_boed_plugin._rng import isolated_rng
from sbi_boed_plugin.objectives._eig_terms import information_terms
from sbi_boed_plugin.simulation import CheckedSimulator, run_simulator

__all__ = ["EIGEstimate", "NoEstimateError", "estimate_eig"]

Bound = Literal[
    "pce",
    "snmc",
    "lace",
    "lace_upper",
    "exact",
    "nwj",
    "marginal",
    "barber_agakov",
    "gkl",
]

# Whatever the estimators are, hence also if failed simulations count as zero.
LOWER_BOUNDS = ("pce", "lace", "nwj", "barber_agakov", "gkl")
# Those in which the density of the prior enters, and with it its constant.
_WITH_PRIOR_DENSITY = ("lace", "lace_upper", "barber_agakov", "gkl")

# Far from seeds that people choose: with the same one, the parameters and data that a
# network was trained with would come again to judge it.
_STREAM = 5_104_627_393


class NoEstimateError(ValueError):
    """Simulations of a design from which nothing can be estimated.

    Attributes:
        num_simulations: Number of simulations that were spent on it.
        num_invalid_simulations: How many of them failed.
    """

    def __init__(
        self,
        message: str,
        # Python makes errors that come from other processes of the message alone, and
        # fills in the rest.
        num_simulations: int = 0,
        num_invalid_simulations: int = 0,
    ) -> None:
        super().__init__(message)
        self.num_simulations = num_simulations
        self.num_invalid_simulations = num_invalid_simulations


@dataclass(frozen=True)
class EIGEstimate:
    """An estimate of the expected information gain of one design.

    Attributes:
        value: Estimate, in nats.
        standard_error: Its standard error, in nats.
        bound: What the estimate is: `"pce"`, `"lace"`, `"nwj"`, `"barber_agakov"` and
            `"gkl"` lower bounds in expectation, `"snmc"`, `"lace_upper"` and
            `"marginal"` upper bounds if the likelihood is the true one, `"exact"`
            consistent for the expected information gain, with what remains of the
            nested bias counted in the standard error.
        cap: Largest value that the estimate can take, in nats, or `None`.
        num_simulations: Number of rows that the simulator got, those of its check and
            those repeated after errors included.
        num_invalid_simulations: How many of them failed, and count as telling nothing.
    """

    value: float
    standard_error: float
    bound: Bound
    cap: float | None = None
    num_simulations: int = 0
    num_invalid_simulations: int = 0

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as a dictionary of plain Python values."""
        return asdict(self)


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
    max_pairs: int | None = None,
    num_workers: int | None = 1,
    seed: int | None = None,
) -> EIGEstimate:
    r"""Estimate the expected information gain of a design from fresh simulations.

    With :math:`\theta_0` and :math:`x` from the joint distribution and :math:`L`
    contrastive :math:`\theta_l` from the prior, a simulation contributes, from a
    likelihood :math:`q(x|\theta)`:

    - `"pce"`: :math:`\log q(x|\theta_0) - \log \frac{1}{L+1} \sum_{l=0}^{L}
      q(x|\theta_l)`. A lower bound for any :math:`q`, at most :math:`\log(L + 1)`.
    - `"snmc"`: the sum without :math:`l = 0`, divided by :math:`L`. An upper bound if
      :math:`q` is the true likelihood; of no fixed sign if it is learned.
    - `"lace"`: :math:`\log q(x|\theta_0) - \log \frac{1}{L+1} \sum_{l=0}^{L}
      q(x|\theta_l) p(\theta_l) / r(\theta_l|x)` with :math:`\theta_1, \dots,
      \theta_L` from `posterior_estimator` as :math:`r`. A lower bound for any
      :math:`q` and :math:`r`, at most :math:`\log(L + 1)` above the value of
      `"barber_agakov"` for :math:`r`: a good proposal needs few contrasts.
    - `"lace_upper"`: the sum without :math:`l = 0`, divided by :math:`L`. An upper
      bound if :math:`q` is the true likelihood.
    - `"exact"`: the mean of `"pce"` and `"snmc"`, which needs the true likelihood.
      Half of their difference bounds the nested bias and is added to the standard
      error (in squares), so that the error reported is honest where `num_contrastive`
      is small.
    - `"nwj"`: :math:`T(\theta_0) - \frac1e \frac{1}{L'} \sum_l e^{T(\theta_l)}` with
      :math:`T = 1 + \log q(x|\theta) - \log m(x)`. A lower bound for any :math:`q` and
      :math:`m`, without a cap, of high variance. :math:`m` is `marginal_estimator`,
      or the mean of :math:`q` over half of the contrastive parameters.
    - `"marginal"`: :math:`\log q(x|\theta_0) - \log r(x)` with `marginal_estimator` as
      :math:`r`. No cap, and an upper bound if :math:`q` is the true likelihood; not a
      bound if both are learned.

    and from a posterior :math:`q(\theta|x)`, conditioned on `(x, design)` in one row:

    - `"barber_agakov"`: :math:`\log q(\theta_0|x) - \log p(\theta_0)`. A lower bound
      for any normalized :math:`q`, without a cap.
    - `"gkl"`: the same for a hybrid posterior :math:`b \, e^\rho`, :math:`\log b + \rho
      - \log p + 1 - Z(x)` with its partition function :math:`Z` from `num_contrastive`
      draws of the base, of which those outside the support of `prior` count nothing.
      A lower bound, without a cap.

    Args:
        estimator: For a likelihood: an estimator with sbi's
            `log_prob(input, condition)`, conditioned on `(theta, design)` in one row,
            or a function `log_likelihood(x, theta, design)` that returns nats of
            shape `(batch_dim,)`. For a posterior: an estimator of sbi's kind, for
            `"gkl"` a `HybridEstimator`.
        simulator: Function from `theta` of shape `(batch_dim, dim_theta)` and
            `design` of shape `(batch_dim, dim_design)` to `x` of shape
            `(batch_dim, dim_x)`. Simulations with NaN or infinite values count as
            experiments that tell nothing. If failing depends on `theta`, a likelihood
            of finite outcomes among all outcomes, as `optimize_design` returns, gives
            the tightest lower bound.
        prior: Distribution of the parameters before the experiment.
        design: Design of shape `(dim_design,)` or `(1, dim_design)`.
        bound: Which estimate, see above.
        marginal_estimator: Density of the data alone, conditioned on the design.
        posterior_estimator: Density of the parameters to draw contrasts from, an
            estimator of sbi's kind conditioned on `(x, design)` in one row; of a
            `HybridEstimator` its base.
        num_samples: Number of simulations (outer samples).
        num_contrastive: Number of contrastive samples :math:`L` of each simulation.
        max_pairs: Largest number of densities evaluated at once. If `None`, as many as
            take about 256 MB, and 16,384 at most.
        num_workers: Number of processes that simulate, through joblib.
        seed: Seed of everything that is drawn, which is not what is drawn after
            `torch.manual_seed(seed)`. The global random state is left as it was. If
            `None`, the global random state is used and advanced.

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
    design = _check_arguments(
        estimator, design, bound, marginal_estimator, posterior_estimator
    )
    num_samples = check_integer("num_samples", num_samples, 2)
    num_contrastive = check_integer(
        "num_contrastive", num_contrastive, 2 if bound == "nwj" else 1
    )
    max_pairs = check_integer("max_pairs", max_pairs, 1, or_none=True)
    num_workers, seed = check_num_workers(num_workers), check_seed(seed)
    # Small calls where the first error may leave no budget for repetitions.
    limited = (
        isinstance(simulator, CheckedSimulator) and simulator.max_calls is not None
    )

    with torch.no_grad(), isolated_rng(None if seed is None else _STREAM + seed):
        theta = draw_parameters(prior, num_samples)
        design = design.to(theta)
        made = run_simulator(
            simulator,
            theta,
            design.repeat(num_samples, 1),
            num_workers=num_workers,
            simulation_batch_size=math.isqrt(num_samples) if limited else None,
            isolate_errors=True,
        )
        try:
            estimate = eig_of_simulations(
                estimator,
                # What a limit of calls left out says nothing of the design.
                theta[made.tried],
                made.x[made.tried],
                prior=prior,
                design=design,
                bound=bound,
                marginal_estimator=marginal_estimator,
                posterior_estimator=posterior_estimator,
                num_contrastive=num_contrastive,
                max_pairs=max_pairs,
            )
        except NoEstimateError as error:
            error.num_simulations = made.num_calls
            raise
    return replace(estimate, num_simulations=made.num_calls)


def eig_of_simulations(
    estimator: Any,
    theta: Tensor,
    x: Tensor,
    *,
    prior: Distribution,
    design: Tensor,
    bound: Bound,
    marginal_estimator: Any | None = None,
    posterior_estimator: Any | None = None,
    num_contrastive: int = 1_023,
    max_pairs: int | None = None,
    constant: tuple[float, float] | None = None,
    warn: bool = True,
) -> EIGEstimate:
    """Estimate the information of a design from simulations that are there.

    Args:
        estimator: As for `estimate_eig`, like the following.
        theta: Parameters from the prior, of shape `(num_samples, dim_theta)`.
        x: Their data, of shape `(num_samples, dim_x)`; NaN where a simulation failed.
        prior: Distribution of the parameters before the experiment.
        design: Design of shape `(1, dim_design)`.
        bound: Which estimate.
        marginal_estimator: Density of the data alone.
        posterior_estimator: Density of the parameters to draw contrasts from.
        num_contrastive: Number of contrastive samples of each simulation.
        max_pairs: Largest number of densities evaluated at once, or `None`.
        constant: What `log_normalization` returned for the prior, if it was called.
        warn: Whether to warn of what makes the estimate doubtful.

    Returns:
        The estimate.
    """
    # That of a belief is known up to the constant of the prior it came from.
    before = getattr(prior, "base_prior", prior)
    if bound not in _WITH_PRIOR_DENSITY:
        constant = (0.0, 0.0)
    else:
        density = posterior_estimator if bound.startswith("lace") else estimator
        _check_describes(density, before, bound)
        constant = constant or log_normalization(before)
    valid = torch.isfinite(x).all(dim=1)
    num_invalid = _check_valid(valid, bound)
    if max_pairs is None:
        num_values = theta[0].numel() + x[0].numel() + design.numel()
        max_pairs = min(
            rows_at_once(density, num_values)
            for density in (estimator, posterior_estimator)
        )
    with torch.no_grad():
        lower, upper, caps = information_terms(
            bound,
            estimator,
            marginal_estimator,
            posterior_estimator if bound in ("lace", "lace_upper") else None,
            prior,
            theta[valid],
            x[valid],
            design,
            num_contrastive,
            max_pairs,
        )
    # With any critic that gives failed runs the same density, the bound is one of the
    # information in outcomes and failures together, and a failed run adds nothing.
    lower = torch.cat([lower, lower.new_zeros(num_invalid)])
    estimate = _summarize(
        lower, upper, caps.mean().item(), bound, prior, num_invalid, constant
    )
    if warn:
        _warn_of_constant(*constant)
        _warn_of_value(estimate, len(valid))
    return estimate


def _check_describes(estimator: Any, prior: Distribution, bound: str) -> None:
    """Raise if a density stands for parameters that take values which repeat."""
    while isinstance(getattr(estimator, "net", None), ConditionalDensityEstimator):
        estimator = estimator.net
    if isinstance(estimator, CategoricalMassEstimator):
        return
    fault = why_no_density(prior)
    if fault is not None:
        raise ValueError(
            f"bound='{bound}' with a {type(estimator).__name__}: {fault}, so that no "
            "density gives the information. Use bound='pce' (objective='info_nce')."
        )


def _warn_of_constant(constant: float, error: float) -> None:
    """Say that a prior's density lacks its constant, if it does."""
    if constant:
        warnings.warn(
            f"prior.log_prob is not normalized: its density integrates to "
            f"{math.exp(constant):.3g}, and not to 1. The estimate allows for this "
            f"({constant:+.2f} ± {error:.2f} nats). Subtract {constant:.2f} from "
            "prior.log_prob.",
            stacklevel=4,
        )


def _check_arguments(
    estimator: Any,
    design: Tensor,
    bound: str,
    marginal_estimator: Any | None,
    posterior_estimator: Any | None,
) -> Tensor:
    """Return the design in shape `(1, dim_design)`, or raise."""
    design = torch.as_tensor(design)
    if design.dim() == 1:
        design = design.unsqueeze(0)
    if design.dim() != 2 or design.shape[0] != 1:
        raise ValueError(
            f"design has shape {tuple(design.shape)}, but one design of shape "
            "(dim_design,) is scored at a time. Call estimate_eig once per design."
        )
    known = get_args(Bound)
    if bound not in known:
        raise ValueError(f"bound='{bound}' is unknown. Use one of {known}.")
    if bound == "exact" and hasattr(estimator, "log_prob"):
        raise ValueError(
            "bound='exact' needs the true likelihood as a function "
            "log_likelihood(x, theta, design), but estimator is a learned one "
            f"({type(estimator).__name__}). Use bound='pce' for a lower bound."
        )
    if bound in ("barber_agakov", "gkl") and not hasattr(estimator, "log_prob"):
        raise TypeError(
            f"bound='{bound}' needs an estimator of the posterior, conditioned on "
            f"(x, design) in one row, got {type(estimator).__name__}."
        )
    if bound == "gkl" and not hasattr(estimator, "log_ratio"):
        raise TypeError(
            "bound='gkl' needs a HybridEstimator, a base with an energy ratio, got "
            f"{type(estimator).__name__}. Use bound='barber_agakov' for a normalized "
            "posterior."
        )
    if bound == "barber_agakov" and hasattr(estimator, "log_ratio"):
        raise ValueError(
            "bound='barber_agakov' needs a normalized posterior, but "
            f"{type(estimator).__name__} has an energy ratio. Use bound='gkl', or pass "
            "estimator.base for the information that its base alone tells."
        )
    if bound == "marginal" and marginal_estimator is None:
        raise ValueError(
            "bound='marginal' needs marginal_estimator, the density of the data "
            "conditioned on the design."
        )
    if bound in ("lace", "lace_upper") and posterior_estimator is None:
        raise ValueError(
            f"bound='{bound}' needs posterior_estimator, the density of the parameters "
            "from which it draws contrasts. Without one use bound='pce'."
        )
    return design


def _check_valid(valid: Tensor, bound: str) -> int:
    """Return the number of failed simulations, or raise if there are too many."""
    num_invalid = int((~valid).sum())
    if num_invalid == len(valid):
        raise NoEstimateError(
            f"All {len(valid)} simulations contain NaN or infinite values. Check the "
            "simulator at this design.",
            len(valid),
            num_invalid,
        )
    if num_invalid and bound not in LOWER_BOUNDS:
        raise ValueError(
            f"{num_invalid} of {len(valid)} simulations contain NaN or infinite "
            f"values, but bound='{bound}' needs all of them. Use bound='pce'."
        )
    return num_invalid


def _summarize(
    lower: Tensor,
    upper: Tensor,
    largest: float,
    bound: Bound,
    prior: Distribution,
    num_invalid: int,
    constant: tuple[float, float],
) -> EIGEstimate:
    """Turn the terms of both nested estimates into the one asked for."""
    if bound == "exact":
        terms = 0.5 * (lower + upper).cpu().double()
    else:
        terms = upper if bound in ("snmc", "lace_upper") else lower
        terms = terms.cpu().double()
    num_infinite = int((~torch.isfinite(terms)).sum())
    if num_infinite:
        raise NoEstimateError(
            f"{num_infinite} of {terms.numel()} terms of bound='{bound}' are not "
            "finite: no contrastive parameter explains these data, or the estimator "
            "gives them no density. Increase num_contrastive, or use bound='pce'.",
            terms.numel(),
            num_invalid,
        )
    num_samples = terms.numel()
    # A failed run says nothing, whatever the constant of the prior.
    value = terms.mean().item() + constant[0] * (1.0 - num_invalid / num_samples)
    error = math.hypot(terms.std().item() / math.sqrt(num_samples), constant[1])
    num_atoms = getattr(prior, "num_particles", None)
    if num_atoms is not None:
        # A belief has few parameters to draw, however many simulations there are.
        error = math.hypot(error, terms.std().item() / math.sqrt(num_atoms))
    if bound in _WITH_PRIOR_DENSITY:
        # Where its density enters, all terms share the error of its evidence.
        variance = getattr(prior, "log_evidence_variance", 0.0)
        error = math.hypot(error, math.sqrt(variance))
    cap = None
    if bound == "lace":
        cap = (largest + constant[0]) * (1.0 - num_invalid / num_samples)
    elif bound == "pce":
        # Draws of a belief repeat its particles.
        cap = min(largest, math.log(num_atoms or math.inf))
        cap *= 1.0 - num_invalid / num_samples
    if bound == "exact":
        half_gap = 0.5 * (upper - lower).cpu().double().mean().item()
        error = math.hypot(error, half_gap)
    return EIGEstimate(value, error, bound, cap, num_samples, num_invalid)


def _warn_of_value(estimate: EIGEstimate, num_simulations: int) -> None:
    """Warn of failed simulations, of a value near its cap, and of a negative one."""
    value, error, cap = estimate.value, estimate.standard_error, estimate.cap
    if estimate.num_invalid_simulations:
        warnings.warn(
            f"{estimate.num_invalid_simulations} of {num_simulations} simulations "
            "contain NaN or infinite values. They count as experiments that tell "
            "nothing; the estimate stays a lower bound.",
            stacklevel=4,
        )
    if cap is not None and value > cap - 1.0:
        warnings.warn(
            f"The {estimate.bound} estimate {value:.2f} is within 1 nat of the largest "
            f"value {cap:.2f} that it can take, so the true information gain may be "
            "much larger. Increase num_contrastive.",
            stacklevel=4,
        )
    # An information of exactly zero comes out a little negative at times.
    if value < -max(3.0 * error, 0.01):
        warnings.warn(
            f"The estimated information gain {value:.3f} ± {error:.3f} is negative. "
            "The estimator fits these simulations worse than no knowledge of theta: "
            "train it longer or over a wider range of designs.",
            stacklevel=4,
        )
