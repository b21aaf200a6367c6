"""What speaks against the result of a search, from simulations of its own.

A learned bound can be wrong without looking wrong. Bounds that fail in different ways
see the same simulations: Barber-Agakov (or its tightening by an energy) depends on the
posterior network, PCE on the likelihood and draws of the prior, LACE on both and on the
prior's density. With the true likelihood, `[pce, snmc]` and `[lace, lace_upper]`
enclose the information; where they do not meet, density and draws of the prior do not
belong together, or the likelihood is far off. A parabola that is fitted to half of the
simulations and scored on the others knows at most what a trained network knows.
"""

import math

import torch
from torch import Tensor

from sbi_boed_plugin.objectives.eig import EIGEstimate
from sbi_boed_plugin.search.batch import Progress

__all__ = ["find_doubts", "find_slope", "find_unsettled", "is_steep", "tightest"]

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


def find_slope(progress: Progress, at_edge: Tensor) -> tuple[Tensor, Tensor] | None:
    """Return the slope of the information where a policy stopped, and its error.

    In nats for a move by one standard deviation of the last designs that the policy
    drew, for each value of the design: a regression of the terms of the objective on
    these designs; `None` if they did not vary or were too few. `at_edge` is -1 or 1 for
    values at the lower or upper edge of a box, else 0: no slope leads out of it.
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
    return slope, variance.clamp_min(1e-24).sqrt()


def is_steep(slope: Tensor, standard_error: Tensor) -> bool:
    """Whether the information rises by more than luck explains."""
    # Without a slope, this is a sum of squares of mean one, one for each value.
    score, dim = float((slope / standard_error).square().sum()), len(slope)
    return score > dim + _ERRORS * math.sqrt(2.0 * dim) + _ERRORS**2


def tightest(bounds: dict[str, EIGEstimate]) -> EIGEstimate:
    """Return the estimate to report: the larger of the objective's bound and LACE."""
    own = next(iter(bounds.values()))
    lace = bounds.get("lace", own)
    return lace if lace.value > own.value else own


def find_doubts(
    bounds: dict[str, EIGEstimate],
    slope: tuple[Tensor, Tensor] | None = None,
    *,
    never_moved: bool = False,
    num_learned_from: int | None = None,
    overfit: tuple[float, float] = (0.0, 0.0),
    mismatch: float = 0.0,
    unit: str = "nats",
) -> list[str]:
    """Return sentences that say what speaks against a result, and what to do.

    `overfit` is by how many nats the network that drives the search knows more of the
    simulations that it learned from than of others, and the standard error of that;
    `mismatch` is a `likelihood_mismatch`, and `slope` comes from `find_slope`.
    """
    reported = tightest(bounds)
    doubts = _contradictions(bounds, reported)
    if reported.value < 2.0 * reported.standard_error:
        doubts.append(
            f"No information was found ({reported.value:.3f} ± "
            f"{reported.standard_error:.3f} nats): either the designs tell nothing, or "
            "less than the networks can learn from these simulations. Allow for more."
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
    # By chance, 1,000 rows exceed the limit once in 10,000 times, and so do fewer.
    own = next(iter(bounds.values()))  # Of all simulations.
    num_valid = own.num_simulations - own.num_invalid_simulations
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
            f"The likelihood knows less than the posterior network ({upper.value:.2f} "
            f"against {own.value:.2f} nats): what observe() and MCMC learn from it "
            "will be too wide. Train it longer, or use another density_estimator."
        )
    if never_moved:
        doubts.append(
            "The policy took no step: the design is the one that it started from. "
            "Allow for more simulations or time."
        )
    elif slope is not None and unit == "nats":
        gain = float(slope[0].norm())
        # A slope matters from a twentieth of the information, and from 0.05 nats.
        if is_steep(*slope) and gain > max(_SLACK / 2, 0.05 * abs(reported.value)):
            doubts.append(
                "The policy stopped on a slope: a move by one standard deviation of "
                f"its draws gains another {gain:.2f} nats. Allow for more steps, or a "
                "larger design_learning_rate."
            )
    return doubts


def find_unsettled(
    best: Tensor,
    designs: Tensor,
    values: Tensor,
    *,
    num_simulations: int,
    unit: str = "nats",
) -> list[str]:
    """Return which other designs are as good as far as several networks tell.

    `best` are the information (or utility, in its `unit`) of the design found by each
    of them, `(num_networks,)`, and `values`, `(num_networks, num_designs)`, that of
    `designs` all over the space. A
    design is as good whose difference is within two standard errors, that of the better
    half of designs in the mean: few networks tell little of a single one's. Nothing is
    said where another design gains at most a tenth, or 0.05 nats.
    """
    differences = (values - best.unsqueeze(1)).cpu().double()
    num_networks = len(differences)
    if num_networks < 2:
        return []
    means, variances = differences.mean(dim=0), differences.var(dim=0)
    is_known = means.isfinite()
    means = means.where(is_known, -torch.inf)
    variances = variances.where(is_known, 0.0)
    better = means.argsort(descending=True)[: math.ceil(len(means) / 2)]
    most = means + 2.0 * (variances[better].mean() / num_networks).sqrt()
    gain, is_good = float(most.max()), most > 0.0
    least = _SHARE / 2 * abs(float(best.mean()))
    if gain < (max(_SLACK / 2, least) if unit == "nats" else least):
        return []
    if designs.shape[1] == 1:
        which = f"Designs {_ranges(designs[:, 0].cpu(), is_good)} are"
    else:
        which = f"{is_good.double().mean():.0%} of {len(designs)} designs compared are"
    return [
        f"{which} as good as far as {num_simulations:,} simulations tell: one of them "
        f"may have {gain:.2f} {unit} more. Allow for more simulations."
    ]


def _ranges(designs: Tensor, is_good: Tensor) -> str:
    """Say between which of some numbers are those that are good."""
    order = designs.argsort()
    runs = [[]]
    for value, good in zip(
        designs[order].tolist(), is_good[order].tolist(), strict=True
    ):
        if good:
            runs[-1].append(value)
        elif runs[-1]:
            runs.append([])
    told = [
        f"from {run[0]:.4g} to {run[-1]:.4g}" if len(run) > 1 else f"at {run[0]:.4g}"
        for run in runs
        if run
    ]
    return " and ".join(told)


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


def _exceeds(low: EIGEstimate, high: EIGEstimate, slack: float = _SLACK) -> bool:
    """Return whether a lower bound is above a value by more than luck explains."""
    error = math.hypot(low.standard_error, high.standard_error)
    return low.value > high.value + _ERRORS * error + slack
