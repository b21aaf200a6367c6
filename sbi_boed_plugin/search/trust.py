r"""What speaks against the result of a search, from simulations of its own.

A learned bound can be wrong without looking wrong. Bounds that fail in different ways
see the same simulations, and a result says where they contradict each other.

- Barber-Agakov (or its tightening by an energy) depends on the posterior network, PCE
  on the likelihood and draws of the prior, LACE on both and on the prior's density.
- With the true likelihood, `[pce, snmc]` and `[lace, lace_upper]` enclose the
  information. Where they do not meet, the density of the prior and its draws do not
  belong together, or the likelihood is far off.
- A straight line with a parabola, fitted to half of the simulations and scored on the
  other half, knows at most what a trained network knows.
"""

import math
from dataclasses import dataclass

import torch
from sbi.neural_nets.estimators import ConditionalDensityEstimator
from scipy.stats import ks_2samp
from torch import Tensor

from sbi_boed_plugin._memory import rows_at_once
from sbi_boed_plugin.objectives.eig import EIGEstimate
from sbi_boed_plugin.search.progress import Progress

__all__ = [
    "Arrival",
    "find_arrival",
    "find_doubts",
    "likelihood_mismatch",
    "tightest",
]

# Nats, and share of the information, by which bounds may differ by chance.
_SLACK, _SHARE = 0.1, 0.2
# Largest overfitting in nats, whatever share of the information it is.
_MANY_NATS = 0.3
# With fewer simulations, networks may have learned little.
_FEW_SIMULATIONS = 2_000
# Standard errors that a difference by chance does not reach.
_ERRORS = 4.0
# Simulations from which the slope is told, or half of the steps.
_NUM_RECENT = 4_000
# Largest statistic of the likelihood's own draws against simulations.
_MAX_MISMATCH = 0.1


@dataclass(frozen=True)
class Arrival:
    """Whether a policy arrived: where it came from, and the slope where it stopped.

    The unit of length is the standard deviation of the policy's last draws.

    Attributes:
        distance: Distance of the mode from where the search began.
        last_distance: How far of it came in the last tenth of the steps.
        slope: Nats gained by a move of one unit, for each value of the design, zero
            where the move leads out of the box.
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
        # Without a slope, this is a sum of squares of mean one, one for each value.
        score = float((self.slope / self.slope_standard_error).square().sum())
        dim = len(self.slope)
        return score > dim + _ERRORS * math.sqrt(2.0 * dim) + _ERRORS**2


def find_arrival(progress: Progress, num_steps: int, at_edge: Tensor) -> Arrival | None:
    """Return whether a policy arrived, from the last of the steps of a joint search.

    The slope is a regression of the terms of the objective on the designs that the
    policy drew; `None` if these did not vary or were too few. `at_edge` is -1 or 1 for
    values of the design at the lower or upper edge of a box, else 0.
    """
    recent = [
        (batch.design.cpu().double(), batch.information.cpu().double())
        for batch in progress.stored
        if batch.information is not None
    ]
    if not recent:
        return None
    enough = max(progress.step // 10, _NUM_RECENT // len(recent[0][0]))
    recent = recent[-max(1, min(enough, progress.step // 2)) :]
    # Differences within a step: between steps policy and networks change.
    designs, terms = (
        torch.cat([part - part.mean(dim=0) for part in parts])
        for parts in zip(*recent, strict=True)
    )
    scale = designs.std(dim=0)
    if len(terms) < 10 * (designs.shape[1] + 1) or not (scale > 0).all():
        return None
    unit = designs / scale
    slope = torch.linalg.lstsq(unit, terms.unsqueeze(1)).solution[:, 0]
    # Terms vary more at some designs than at others (White's standard errors).
    residual = unit * (terms - unit @ slope).unsqueeze(1)
    inverse = torch.linalg.pinv(unit.T @ unit)
    variance = (inverse @ residual.T @ residual @ inverse).diagonal()
    slope = slope.masked_fill(slope.sign() == at_edge.double(), 0.0)
    modes = torch.tensor(progress.history["mode"][:num_steps]).double()
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

    The Kolmogorov-Smirnov statistic, between 0 and 1, of
    :math:`\log q(x \mid \theta, \xi)` at simulated data and at draws of :math:`q` for
    the same parameters and designs. For one value, a likelihood that is a quarter too
    wide, or misses the mean by two thirds of its width, gives 0.1. A small value is
    necessary, not sufficient: a likelihood that ignores the parameters may fit the data
    of all parameters together.
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


def tightest(bounds: dict[str, EIGEstimate]) -> EIGEstimate:
    """Return the estimate to report: the larger of the objective's bound and LACE."""
    own = next(iter(bounds.values()))
    lace = bounds.get("lace", own)
    return lace if lace.value > own.value else own


def find_doubts(
    bounds: dict[str, EIGEstimate],
    arrival: Arrival | None = None,
    *,
    never_moved: bool = False,
    num_learned_from: int | None = None,
    overfit: tuple[float, float] = (0.0, 0.0),
    mismatch: float = 0.0,
) -> list[str]:
    """Return sentences that say what speaks against a result, and what to do.

    `overfit` is by how many nats the network that drives the search knows more of the
    simulations that it learned from than of others, and the standard error of that;
    `mismatch` is a `likelihood_mismatch`.
    """
    reported = tightest(bounds)
    doubts = _contradictions(bounds, reported)
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
    # By chance, 1,000 rows exceed the limit once in 10,000 times, and so do fewer.
    num_valid = reported.num_simulations - reported.num_invalid_simulations
    if mismatch > _MAX_MISMATCH * max(1.0, 1_000 / max(1, num_valid)) ** 0.5:
        doubts.append(
            "The likelihood draws other data than the simulator does at this design "
            f"(Kolmogorov-Smirnov statistic {mismatch:.2f}): bounds from it may be far "
            "too low, and what observe() and MCMC learn from it may be wrong. Train it "
            "longer, or use another density_estimator."
        )
    upper, own = bounds.get("lace_upper"), bounds.get("barber_agakov")
    if upper and own and _exceeds(own, upper, max(_SLACK, _SHARE * abs(own.value))):
        doubts.append(
            f"The likelihood knows less than the posterior network "
            f"({upper.value:.2f} against {own.value:.2f} nats): what observe() "
            "and MCMC learn from it will be too wide. Train it longer, or use "
            "another density_estimator."
        )
    return doubts + _doubts_of_policy(arrival, reported, never_moved)


def _contradictions(bounds: dict[str, EIGEstimate], reported: EIGEstimate) -> list[str]:
    """Return which bounds contradict each other."""
    doubts = []
    for low, high in (("lace", "snmc"), ("pce", "lace_upper")):
        if low in bounds and high in bounds and _exceeds(bounds[low], bounds[high]):
            doubts.append(
                f"The bounds contradict each other: {low} says at least "
                f"{bounds[low].value:.2f} nats and {high} at most "
                f"{bounds[high].value:.2f}, by the same likelihood. Either the density "
                "of the prior and its draws do not belong together (check "
                "prior.log_prob and prior.sample), or the likelihood is far off: train "
                "it longer."
            )
    linear = bounds.get("linear")
    capped = reported.cap is not None and reported.value > reported.cap - 1.0
    if linear is not None and not capped and _exceeds(linear, reported):
        doubts.append(
            f"A linear regression knows more than the networks ({linear.value:.2f} "
            f"against {reported.value:.2f} nats): they have hardly learned. Use more "
            "steps or simulations, or check the scales of theta, x and the design."
        )
    return doubts


def _doubts_of_policy(
    arrival: Arrival | None, reported: EIGEstimate, never_moved: bool
) -> list[str]:
    """Return what says that the policy did not arrive."""
    if never_moved:
        return [
            "The policy took no step: the design is the one that it started from. "
            "Allow for more simulations or time."
        ]
    if arrival is None:
        return []
    doubts = []
    # A slope matters from a twentieth of the information, and from 0.05 nats.
    matters = arrival.gain > max(_SLACK / 2, 0.05 * abs(reported.value))
    if arrival.is_steep and matters:
        doubts.append(
            "The policy stopped on a slope: a move by one standard deviation of its "
            f"draws gains another {arrival.gain:.2f} nats. Allow for more steps, or a "
            "larger design_learning_rate."
        )
    if arrival.last_distance > 1.0:
        doubts.append(
            f"The policy still moved, by {arrival.last_distance:.1f} standard "
            "deviations of its draws in the last tenth of the steps. Allow for more "
            "steps."
        )
    return doubts


def _exceeds(low: EIGEstimate, high: EIGEstimate, slack: float = _SLACK) -> bool:
    """Return whether a lower bound is above a value by more than luck explains."""
    error = math.hypot(low.standard_error, high.standard_error)
    return low.value > high.value + _ERRORS * error + slack
