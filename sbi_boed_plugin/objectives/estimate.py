"""An estimate of the expected information gain, and what makes it doubtful."""

import math
import warnings
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from sbi_boed_plugin.objectives._eig_terms import BOUNDS, Bound, Problem

__all__ = ["EIGEstimate", "NoEstimateError", "summarize", "warn_of_doubts"]


class NoEstimateError(ValueError):
    """Simulations of a design from which nothing can be estimated, and their number."""

    # Python makes errors from other processes of the message, then fills in the rest.
    def __init__(
        self, message: str, num_simulations: int = 0, num_invalid_simulations: int = 0
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


def summarize(
    terms: Tensor, problem: Problem, num_invalid: int, constant: tuple[float, float]
) -> EIGEstimate:
    """Return the mean of what `information_terms` returned, with error and cap.

    `constant` is what the log-density of the prior lacks, and its standard error.
    """
    bound, prior, kind = problem.bound, problem.prior, BOUNDS[problem.bound]
    lower, upper, caps = terms
    chosen = {"lower": lower, "upper": upper, "both": 0.5 * (lower + upper)}
    values = chosen[kind.reports].cpu().double()
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
        errors.append(0.5 * (upper - lower).cpu().double().mean().item())
    cap, largest = None, caps.mean().item()
    if kind.reports == "lower" and math.isfinite(largest):
        if not kind.has_prior_density:
            # Contrasts from a belief repeat its particles.
            largest = min(largest, math.log(num_atoms or math.inf))
        cap = (largest + constant[0]) * share_valid
    value = values.mean().item() + constant[0] * share_valid
    error = math.hypot(*errors)
    return EIGEstimate(value, error, bound, cap, num_samples, num_invalid)


def warn_of_doubts(estimate: EIGEstimate, constant: float, spread: float) -> None:
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
            "infinite values. They count as experiments that tell nothing; the "
            "estimate stays a lower bound."
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
