r"""What there is to believe of a search's result, from simulations of its own.

A learned bound can be wrong without looking wrong: a density over discrete parameters,
a prior without its constant, networks that have hardly learned, a policy that stopped
on a slope. Bounds that fail in different ways see the same simulations, and a result
says where they contradict each other.

- Barber-Agakov (or its tightening by an energy) hangs on the posterior network, PCE on
  the likelihood and draws of the prior, LACE on both and on the prior's density.
- With the true likelihood, `[pce, snmc]` and `[lace, lace_upper]` enclose the
  information. Where they do not meet, the density of the prior and its draws do not
  belong together, or the likelihood is far off.
- A straight line with a parabola, fitted to half of the simulations and scored on the
  other half, knows at most what a trained network knows.
"""

import math
from dataclasses import dataclass
from typing import cast

import torch
from sbi.neural_nets.estimators import ConditionalDensityEstimator
from scipy.stats import ks_2samp
from torch import Tensor
from torch.distributions import Distribution, MultivariateNormal

from sbi_boed_plugin._memory import rows_at_once
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
from sbi_boed_plugin.search.progress import Progress

__all__ = [
    "Arrival",
    "estimate_bounds",
    "find_arrival",
    "find_doubts",
    "likelihood_mismatch",
    "tightest",
]

# Densities of a bound that is there to compare, and contrasts of each simulation.
_PAIRS, _CONTRASTS = (
    262_144,
    {
        "barber_agakov": 0,
        "lace": 63,
        "lace_upper": 63,
        "pce": 255,
        "snmc": 255,
    },
)
# Nats, and share of the information, by which bounds may differ for reasons of luck.
_SLACK, _SHARE = 0.1, 0.2
# Nats that are much, whatever share of the information they are.
_MANY_NATS = 0.3
# Simulations from which networks may have learned little, whatever they seem to know.
_FEW_SIMULATIONS = 2_000
# Standard errors of a difference that is not one of luck.
_ERRORS = 4.0
# Simulations that tell the slope, if half of the steps have as many.
_NUM_RECENT = 4_000
# Statistic of the likelihood's own draws against simulations.
_MAX_MISMATCH = 0.1
# Rows of the linear bound for each number that it fits.
_ROWS_PER_FEATURE = 5


@dataclass(frozen=True)
class Arrival:
    """Whether a policy arrived: where it came from, and the slope where it stopped.

    The unit of length is the standard deviation of the policy's last draws, for each
    value of the design.

    Attributes:
        distance: Distance of the mode from where the search began.
        last_distance: How far of it came in the last tenth of the steps.
        slope: Nats gained by a move of one unit, for each value of the design, of shape
            `(dim_design,)`. Zero where the move leads out of a box at whose edge the
            design is.
        slope_standard_error: Its standard error, likewise.
    """

    distance: float
    last_distance: float
    slope: Tensor
    slope_standard_error: Tensor

    @property
    def gain(self) -> float:
        """Nats gained by a move of one unit uphill."""
        return float(self.slope.norm())

    @property
    def is_steep(self) -> bool:
        """Whether the information rises by more than luck explains."""
        # Of all values together: a sum of squares that are one in the mean.
        score = float((self.slope / self.slope_standard_error).square().sum())
        dim = len(self.slope)
        return score > dim + _ERRORS * math.sqrt(2.0 * dim) + _ERRORS**2


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

    Args:
        estimators: The networks.
        theta: Parameters of shape `(num_samples, dim_theta)`.
        x: Their data, of shape `(num_samples, dim_x)`, NaN where simulations failed.
        prior: Distribution that the networks learned from.
        fresh_prior: The same distribution for those that know its particles.
        design: Design of shape `(dim_design,)`.
        objective: Name of the objective.
        num_contrastive: Number of contrastive parameters of its own bound.

    Returns:
        Estimates by their names; that of the objective comes first, and `"linear"` is
        that of a regression.
    """
    own = POLICY_OBJECTIVES[objective].bound
    names = [own]
    posterior = None
    if estimators.posterior is not None:
        posterior = estimators.posterior_base
        names += ["barber_agakov", "lace", "lace_upper"]
    names += ["pce", "snmc"]
    failed = not torch.isfinite(x).all()
    constant = log_normalization(getattr(prior, "base_prior", prior))
    bounds: dict[str, EIGEstimate] = {}
    for name in dict.fromkeys(names):
        if failed and name in ("snmc", "lace_upper"):
            continue  # Upper forms need every simulation.
        is_own = name == own
        contrasts = num_contrastive if is_own else _CONTRASTS.get(name, num_contrastive)
        most = len(theta) if is_own else max(256, _PAIRS // (contrasts + 1))
        by_posterior = {"barber_agakov": posterior, "gkl": estimators.posterior}
        try:
            problem = Problem(
                name,
                by_posterior.get(name, estimators.likelihood),
                prior if name in ("pce", "snmc") else fresh_prior,
                design.to(theta).unsqueeze(0),
                posterior_estimator=posterior,
                num_contrastive=contrasts,
            )
            bounds[name] = eig_of_simulations(
                problem, theta[:most], x[:most], constant=constant, warn=is_own
            )
        except NoEstimateError:
            if is_own:
                raise  # The others are there to compare.
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

    Parameters in coordinates without bounds are a Normal around a line and a parabola
    of the data. `None` where there are too few rows, or no density of the parameters.
    """
    before = getattr(prior, "base_prior", prior)
    valid = torch.isfinite(x).all(dim=1)
    num_failed = int((~valid).sum())
    theta, x = theta[valid], x[valid].cpu().double()
    scale = x.std(dim=0)
    x = ((x - x.mean(dim=0)) / scale.where(scale > 0, 1.0)).clamp(-5.0, 5.0)
    features = torch.cat([torch.ones(len(x), 1).double(), x, x.square()], dim=1)
    half = len(features) // 2
    if half < _ROWS_PER_FEATURE * (features.shape[1] + theta.shape[1]):
        return None
    if bool(discrete_columns(before).any()):
        return None
    transform = to_real_numbers(before)
    real = cast(Tensor, transform(theta))
    log_det = transform.log_abs_det_jacobian(theta, real)
    log_det = log_det.sum(dim=-1) if log_det.dim() > 1 else log_det
    log_prior = (prior.log_prob(theta).to(theta) - log_det).cpu().double()
    real = real.cpu().double()
    unit = real.std(dim=0)
    unit = unit.where(unit > 0, 1.0)
    real, log_unit = (real - real.mean(dim=0)) / unit, unit.log().sum()
    halves = (slice(0, half), slice(half, None))
    terms = []
    for fitted, scored in (halves, halves[::-1]):
        solution = torch.linalg.lstsq(features[fitted], real[fitted]).solution
        residual = real[fitted] - features[fitted] @ solution
        covariance = torch.atleast_2d(torch.cov(residual.T))
        covariance = covariance + 1e-9 * torch.eye(len(covariance)).double()
        fit = MultivariateNormal(features[scored] @ solution, covariance)
        terms.append(
            fit.log_prob(real[scored]) - log_unit - log_prior[scored] + constant
        )
    all_terms = torch.cat([*terms, torch.zeros(num_failed).double()])
    error = all_terms.std().item() / math.sqrt(len(all_terms))
    return EIGEstimate(
        all_terms.mean().item(),
        error,
        "barber_agakov",
        None,
        len(all_terms),
        num_failed,
    )


def find_arrival(progress: Progress, at_edge: Tensor) -> Arrival | None:
    """Return whether a policy arrived, from the last steps of a joint search.

    The slope is a regression of the terms of the objective on the designs that the
    policy drew: no further simulation is needed.

    Args:
        progress: Progress of the search, with its last designs and terms.
        at_edge: For each value of the design -1 or 1 at the lower or upper edge of a
            box, else 0, of shape `(dim_design,)`.

    Returns:
        The answer, or `None` if designs did not vary or were too few to tell.
    """
    told = [batch for batch in progress.stored if batch.information is not None]
    if not told:
        return None
    enough = max(progress.step // 10, _NUM_RECENT // len(told[0].theta))
    told = told[-max(1, min(enough, progress.step // 2)) :]
    designs = torch.cat([batch.design for batch in told]).cpu().double()
    terms = torch.cat([cast(Tensor, batch.information) for batch in told])
    terms = terms.cpu().double()
    # Within each step: the policy drifts, and the networks learn.
    rows = [len(batch.design) for batch in told]
    centred, centred_terms = (
        torch.cat([part - part.mean(dim=0) for part in values.split(rows)])
        for values in (designs, terms)
    )
    scale = centred.std(dim=0)
    if len(terms) < 10 * (designs.shape[1] + 1) or not (scale > 0).all():
        return None
    unit = centred / scale
    slope = torch.linalg.lstsq(unit, centred_terms.unsqueeze(1)).solution[:, 0]
    # Terms vary more at some designs than at others (White's standard errors).
    residual = unit * (centred_terms - unit @ slope).unsqueeze(1)
    inverse = torch.linalg.pinv(unit.T @ unit)
    variance = (inverse @ residual.T @ residual @ inverse).diagonal()
    slope = slope.masked_fill(slope.sign() == at_edge.double(), 0.0)
    modes = torch.tensor(progress.history["mode"][: progress.search_ended]).double()
    before = modes[-1 - len(modes) // 10]
    return Arrival(
        float(((modes[-1] - modes[0]) / scale).norm()),
        float(((modes[-1] - before) / scale).norm()),
        slope,
        variance.clamp_min(1e-24).sqrt(),
    )


@torch.no_grad()
def likelihood_mismatch(
    likelihood: ConditionalDensityEstimator, theta: Tensor, design: Tensor, x: Tensor
) -> float:
    r"""Return how simulations differ from what the likelihood itself would draw.

    The Kolmogorov-Smirnov statistic of :math:`\log q(x \mid \theta, \xi)` at simulated
    data and at draws of :math:`q` for the same parameters and designs. For one value, a
    likelihood that is a quarter too wide, or misses the mean by two thirds of its
    width, gives 0.1; with 1,000 rows the true one gives more once in 10,000 times. A
    small value is necessary, not sufficient: a likelihood that ignores the parameters
    may fit the data of all parameters together.

    Args:
        likelihood: Likelihood, conditioned on `(theta, design)` in one row.
        theta: Parameters of shape `(batch_dim, dim_theta)`.
        design: Designs of shape `(batch_dim, dim_design)`.
        x: Finite data simulated with them, of shape `(batch_dim, *x_event_shape)`.

    Returns:
        Largest difference of the two distribution functions, between 0 and 1.
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


def find_doubts(
    bounds: dict[str, EIGEstimate],
    arrival: Arrival | None = None,
    *,
    never_moved: bool = False,
    num_learned_from: int | None = None,
    overfit: tuple[float, float] = (0.0, 0.0),
    mismatch: float = 0.0,
) -> list[str]:
    """Return what speaks against a result, in sentences for its reader.

    Args:
        bounds: What `estimate_bounds` returned.
        arrival: What `find_arrival` returned.
        never_moved: Whether a policy that was to be trained took no step.
        num_learned_from: Number of simulations that new networks learned from.
        overfit: Nats by which the network that drives the search knows more of the
            simulations that it learned from than of others, and its standard error.
        mismatch: What `likelihood_mismatch` returned.

    Returns:
        Sentences that name what was found, what it can mean and what to do.
    """
    doubts = []
    reported = tightest(bounds)
    for low, high in (("lace", "snmc"), ("pce", "lace_upper")):
        if low in bounds and high in bounds and _exceeds(bounds[low], bounds[high]):
            doubts.append(
                f"The bounds contradict each other: {low} says at least "
                f"{bounds[low].value:.2f} nats and {high} at most "
                f"{bounds[high].value:.2f}, by the same likelihood. Either the density "
                "of the prior and its draws do not belong together (check that "
                "prior.log_prob is normalized and describes what prior.sample draws), "
                "or the likelihood is far off: train it longer."
            )
    linear = bounds.get("linear")
    capped = reported.cap is not None and reported.value > reported.cap - 1.0
    if linear is not None and not capped and _exceeds(linear, reported):
        doubts.append(
            f"A linear regression knows more than the networks ({linear.value:.2f} "
            f"against {reported.value:.2f} nats): they have hardly learned. Use more "
            "steps or simulations, or check the scales of theta, x and the design."
        )
    gap, error = overfit
    allowed = min(_MANY_NATS, max(_SLACK, _SHARE * reported.value))
    if gap > allowed and gap > 2.0 * error:
        doubts.append(
            f"The networks know {gap:.2f} nats more of the simulations that they "
            f"learned from than of others: these are too few, and the information may "
            "be so much higher than reported, or more. Allow for more simulations."
        )
    elif num_learned_from is not None and num_learned_from < _FEW_SIMULATIONS:
        doubts.append(
            f"The networks learned from {num_learned_from:,} simulations only: what "
            "they do not know yet is not in the bound, and the information may be well "
            "above it. Allow for more simulations."
        )
    # What 1,000 rows exceed by chance once in 10,000 times, and few rows likewise.
    num_valid = reported.num_simulations - reported.num_invalid_simulations
    scarcity = max(1.0, 1_000 / max(1, num_valid)) ** 0.5
    if mismatch > _MAX_MISMATCH * scarcity:
        doubts.append(
            "The likelihood draws other data than the simulator does at this design "
            f"(Kolmogorov-Smirnov statistic {mismatch:.2f}): bounds from it may be far "
            "too low, and what observe() and MCMC learn from it may be wrong. Train it "
            "longer, or use another density_estimator."
        )
    upper, own = bounds.get("lace_upper"), bounds.get("barber_agakov")
    if upper is not None and own is not None:
        slack = max(_SLACK, _SHARE * abs(own.value))
        if _exceeds(own, upper, slack):
            doubts.append(
                f"The likelihood knows less than the posterior network "
                f"({upper.value:.2f} against {own.value:.2f} nats): what observe() "
                "and MCMC learn from it will be too wide. Train it longer, or use "
                "another density_estimator."
            )
    if never_moved:
        doubts.append(
            "The policy took no step: the design is the one that it started from. "
            "Allow for more simulations or time."
        )
    # A slope that matters: a twentieth of the information, if that is much.
    elif (
        arrival is not None
        and arrival.is_steep
        and arrival.gain > max(_SLACK / 2, 0.05 * abs(reported.value))
    ):
        doubts.append(
            "The policy stopped on a slope: a move by one standard deviation of its "
            f"draws gains another {arrival.gain:.2f} nats. Allow for more steps, or a "
            "larger design_learning_rate."
        )
    if arrival is not None and arrival.last_distance > 1.0 and not never_moved:
        doubts.append(
            f"The policy still moved, by {arrival.last_distance:.1f} standard "
            "deviations of its draws in the last tenth of the steps. Allow for more "
            "steps."
        )
    return doubts


def _exceeds(low: EIGEstimate, high: EIGEstimate, slack: float = _SLACK) -> bool:
    """Whether a lower bound is above a value by more than luck explains."""
    error = math.hypot(low.standard_error, high.standard_error)
    return low.value > high.value + _ERRORS * error + slack
