r"""Search over designs with estimators that are trained for all of them.

Hundreds of designs climb the information of the learned model in parallel. No
simulation is needed for that: data are drawn from the learned likelihood and follow the
design (the surrogate gradient). Because a climb also finds the errors of the
estimators, the best designs are then scored with simulations of their own.

References:
    Klein et al., *Supercharging Simulation-Based Inference for Bayesian Optimal
    Experimental Design*, 2026, https://arxiv.org/abs/2602.06900.
"""

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from sbi.utils import BoxUniform
from torch import Tensor
from torch.distributions import Distribution
from torch.distributions.constraints import independent, interval, real
from torch.optim.adam import Adam
from torch.utils.checkpoint import checkpoint
from tqdm.auto import tqdm

from sbi_boed_plugin._memory import rows_at_once
from sbi_boed_plugin._numbers import (
    MOST_LEARNING_RATE,
    check_fields,
    check_integer,
    check_real,
)
from sbi_boed_plugin._prior import draw_parameters
from sbi_boed_plugin.estimators.failures import LikelihoodWithFailures
from sbi_boed_plugin.estimators.noise import reparameterize
from sbi_boed_plugin.objectives.eig import EIGEstimate, NoEstimateError
from sbi_boed_plugin.policies.policy import DesignPolicy
from sbi_boed_plugin.search.estimators import DesignEstimators
from sbi_boed_plugin.search.information import POLICY_OBJECTIVES, Densities
from sbi_boed_plugin.search.scoring import score_design

# Contrastive parameters of a climb, at most. Their logarithm caps its estimates.
MAX_CONTRASTIVE = 4_096
# Starts that tell how many contrastive parameters there must be.
_NUM_TO_SET_CONTRASTIVE = 64

__all__ = [
    "MultiStartConfig",
    "MultiStartOutcome",
    "model_information",
    "multi_start_search",
    "uniform_designs",
]


@dataclass(frozen=True)
class MultiStartConfig:
    """Settings of a multi-start search.

    Attributes:
        num_starts: Number of designs to start from.
        num_samples: Number of parameters, with data from the learned likelihood, by
            which each design is judged while all climb. Twice as many for the best
            quarter, which goes on after a third of the steps, four times for its best
            quarter, and sixteen times to rank what that arrives at. For the
            contrastive bound each is contrasted with all others, and with as many
            more parameters as keep estimates a nat below their cap, at most 4,096.
        num_climb_steps: Number of gradient steps.
        learning_rate: Step size of Adam in units of the design space.
        num_candidates: Number of designs that are scored with simulations.
        num_candidate_samples: Number of simulations of each of them.
    """

    num_starts: int = 256
    num_samples: int = 16
    num_climb_steps: int = 60
    learning_rate: float = 0.02
    num_candidates: int = 5
    num_candidate_samples: int = 1_000

    def __post_init__(self) -> None:
        check_fields(self, check_integer, ["num_starts", "num_candidates"], 1)
        draws = ["num_samples", "num_candidate_samples"]
        check_fields(self, check_integer, draws, 2)
        check_fields(self, check_integer, ["num_climb_steps"], 0)
        rates = ["learning_rate"]
        check_fields(self, check_real, rates, most=MOST_LEARNING_RATE, above=0.0)


def uniform_designs(policy: DesignPolicy) -> BoxUniform | None:
    """Return the uniform distribution over the policy's support, if it is a box."""
    support = policy.support
    if isinstance(support, independent):
        support = support.base_constraint
    if not isinstance(support, type(interval(0.0, 1.0))):
        return None
    low, high = (
        torch.as_tensor(bound).to(policy.mode).expand_as(policy.mode)
        for bound in (support.lower_bound, support.upper_bound)
    )
    return BoxUniform(low, high, device=str(low.device))


def _is_real(policy: DesignPolicy) -> bool:
    """Whether the policy's support is all real numbers."""
    support = policy.support
    base = support.base_constraint if isinstance(support, independent) else support
    return isinstance(base, type(real))


def model_information(
    estimators: DesignEstimators,
    prior: Distribution,
    designs: Tensor,
    *,
    objective: str,
    num_samples: int,
    num_contrastive: int = 0,
) -> Tensor:
    """Return the information of designs under the learned model, differentiably.

    The same parameters serve all designs: differences are more accurate than values.

    Args:
        estimators: The networks.
        prior: Distribution of the parameters.
        designs: Designs of shape `(num_designs, dim_design)`.
        objective: Name of the objective.
        num_samples: Number of parameters.
        num_contrastive: Number of parameters that the contrastive bound has in its
            mean, if that is more; its estimates are at most the logarithm of it.

    Returns:
        Estimates of shape `(num_designs,)`, in nats.
    """
    theta = _draw_for(objective, prior, num_samples, num_contrastive).to(designs)
    return torch.cat(
        [
            _information(estimators, prior, theta, chunk, objective, num_samples)
            for chunk in designs.split(
                max(1, _pairs_at_once(estimators) // (len(theta) * num_samples))
            )
        ]
    )


def _draw_for(
    objective: str, prior: Distribution, num_samples: int, num_contrastive: int
) -> Tensor:
    """Draw the parameters of data and, behind them, further contrastive ones."""
    if objective == "info_nce":
        num_samples = max(num_samples, num_contrastive)
    return draw_parameters(prior, num_samples)


def _pairs_at_once(estimators: DesignEstimators) -> int:
    """Return how many pairs of parameters and data fit into one evaluation."""
    likelihood = estimators.likelihood
    num_values = likelihood.input_shape.numel() + likelihood.condition_shape.numel()
    return min(rows_at_once(network, num_values) for network in estimators.all())


def _information(
    estimators: DesignEstimators,
    prior: Distribution,
    theta: Tensor,
    designs: Tensor,
    objective: str,
    num_samples: int,
) -> Tensor:
    num_designs = len(designs)
    # Rows: all designs for the first parameters, then for the second, and so on.
    theta_rows = theta.repeat_interleave(num_designs, dim=0)
    design_rows = designs.repeat(len(theta), 1)
    conditions = torch.cat([theta_rows, design_rows], dim=-1)
    own = slice(num_samples * num_designs)
    condition, theta_rows, design_rows = (
        rows[own] for rows in (conditions, theta_rows, design_rows)
    )
    with torch.no_grad():
        x = estimators.likelihood.sample(torch.Size((1,)), condition)[0]
    if designs.requires_grad:
        x = reparameterize(estimators.likelihood, x, condition)
    if objective == "info_nce":
        # Every datum under all parameters at its own design: networks that compute
        # their condition apart from their input do so once per pair of parameters
        # and design, whatever the number of contrastive samples.
        x_by_design = x.reshape(num_samples, 1, num_designs, *x.shape[1:])
        log_prob = estimators.likelihood.log_prob
        size = max(1, _pairs_at_once(estimators) // len(x))
        parts = []
        for part in conditions.split(size * num_designs):
            x_all = x_by_design.expand(
                -1, len(part) // num_designs, *x_by_design.shape[2:]
            )
            # What does not fit at once is evaluated again for its gradient.
            if size < len(theta) and designs.requires_grad:
                evaluate = partial(checkpoint, log_prob, use_reentrant=False)
            else:
                evaluate = log_prob
            parts.append(evaluate(x_all.flatten(1, 2), part))
        matrix = torch.cat(parts, dim=1).reshape(num_samples, len(theta), num_designs)
        own = matrix.diagonal(dim1=0, dim2=1)  # (designs, samples)
        mean = torch.logsumexp(matrix, dim=1).T - math.log(len(theta))
        terms = (own - mean).T
    else:
        no_contrast = theta_rows[:0].unsqueeze(0)
        densities = Densities(
            estimators.trained, prior, theta_rows, x, design_rows, no_contrast
        )
        terms = POLICY_OBJECTIVES[objective].terms(densities)
        terms = terms.reshape(num_samples, num_designs)
    if isinstance(estimators.likelihood, LikelihoodWithFailures):
        # Data that failed would have told nothing.
        log_success = estimators.likelihood.log_success(condition)
        terms = terms * log_success.exp().reshape(num_samples, num_designs)
    return terms.mean(dim=0)


@dataclass(frozen=True)
class MultiStartOutcome:
    """What a multi-start search found, and what it cost.

    Attributes:
        candidates: Designs of shape `(dim_design,)` with their estimates, best first.
        num_simulations: Number of simulations that scored designs, also those of
            designs that could not be scored.
        num_invalid_simulations: How many of them failed.
    """

    candidates: list[tuple[Tensor, EIGEstimate]]
    num_simulations: int
    num_invalid_simulations: int


def multi_start_search(
    estimators: DesignEstimators,
    prior: Distribution,
    policy: DesignPolicy,
    simulator: Callable[[Tensor, Tensor], Tensor],
    *,
    objective: str,
    config: MultiStartConfig,
    num_workers: int = 1,
    show_progress_bar: bool = True,
) -> MultiStartOutcome:
    """Climb from many designs and score the best with simulations.

    Args:
        estimators: Networks trained over the designs.
        prior: Distribution of the parameters.
        policy: Its support is searched: all of a box from a uniform start, otherwise
            from draws of the policy. Candidates of a categorical policy do not climb.
        simulator: Function from `theta` and `design` to `x`.
        objective: Name of the objective to climb.
        config: Settings.
        num_workers: Number of processes that simulate.
        show_progress_bar: Whether to show a progress bar.

    Returns:
        The best designs and what they cost.

    Raises:
        ValueError: If none of the designs can be scored.
    """
    for network in estimators.all():
        network.eval()
    designs = _climb(estimators, prior, policy, objective, config, show_progress_bar)
    # The same random numbers for all: differences are more accurate than values.
    seed = int(torch.randint(2**31, (1,)))
    candidates, errors = [], []
    num_simulations, num_invalid = 0, 0
    for design in designs:
        try:
            estimate = score_design(
                estimators,
                simulator,
                prior=prior,
                design=design,
                objective=objective,
                num_samples=config.num_candidate_samples,
                num_workers=num_workers,
                seed=seed,
            )
        except NoEstimateError as error:
            # Networks know nothing of designs at which every simulation fails.
            errors.append(f"{design.tolist()}: {error}")
            num_simulations += error.num_simulations
            num_invalid += error.num_invalid_simulations
            continue
        candidates.append((design, estimate))
        num_simulations += estimate.num_simulations
        num_invalid += estimate.num_invalid_simulations
    if not candidates:
        raise ValueError(
            "None of the designs that the search arrived at can be scored with "
            f"simulations. {errors[0]}"
        )
    if errors:
        warnings.warn(
            f"{len(errors)} of {len(designs)} designs that the search arrived at "
            f"cannot be scored with simulations and are left out. {errors[0]}",
            stacklevel=4,
        )
    ranked = sorted(candidates, key=lambda candidate: -candidate[1].value)
    return MultiStartOutcome(ranked, num_simulations, num_invalid)


def _climb(
    estimators: DesignEstimators,
    prior: Distribution,
    policy: DesignPolicy,
    objective: str,
    config: MultiStartConfig,
    show_progress_bar: bool,
) -> list[Tensor]:
    """Return the best different designs after a climb that fewer and fewer finish."""
    box = uniform_designs(policy)
    if box is not None:
        low, high = box.base_dist.low, box.base_dist.high
        unit = torch.quasirandom.SobolEngine(
            policy.dim_design, scramble=True, seed=int(torch.randint(2**31, (1,)))
        ).draw(config.num_starts)
        designs = low + unit.to(low) * (high - low)
        width = high - low
    else:
        designs = policy.sample(torch.Size((config.num_starts,)))
        # The networks of sbi are in single precision, whatever the policy is.
        designs = torch.unique(designs, dim=0).float()
        width = designs.std(dim=0, correction=0) * math.sqrt(12.0)
        # Equal values have no width to go by: they are searched at their own scale.
        width = torch.where(width > 0, width, designs[0].abs().clamp_min(1.0))
    origin = designs.new_zeros(policy.dim_design)
    # Without a box only where every step stays inside.
    climbs = box is not None or policy.support.event_dim == 1 and _is_real(policy)
    num_steps = config.num_climb_steps if policy.has_rsample and climbs else 0

    num_contrastive = 0

    def judge(designs: Tensor, num_samples: int) -> Tensor:
        nonlocal num_contrastive
        while True:
            with torch.no_grad():
                values = model_information(
                    estimators,
                    prior,
                    designs,
                    objective=objective,
                    num_samples=num_samples,
                    num_contrastive=num_contrastive,
                ).nan_to_num(nan=-torch.inf)
            num_terms = max(num_samples, num_contrastive)
            capped = objective == "info_nce" and values.max() > math.log(num_terms) - 1
            if not capped or num_terms >= MAX_CONTRASTIVE:
                return values
            num_contrastive = min(4 * num_terms, MAX_CONTRASTIVE)

    judge(designs[:_NUM_TO_SET_CONTRASTIVE], config.num_samples)
    bar = tqdm(total=num_steps, disable=not show_progress_bar, desc="Climbing designs")
    with bar:
        # As designs become fewer, each gets more: a step costs the same throughout.
        for stage in range(3):
            num_samples = config.num_samples * 2**stage
            designs = _ascend(
                estimators,
                prior,
                designs,
                origin,
                width,
                box,
                objective,
                num_samples,
                num_contrastive,
                num_steps // 3,
                config.learning_rate,
                bar,
            )
            last = stage == 2
            values = judge(designs, num_samples * (4 if last else 2))
            ordered = designs[values.argsort(descending=True)]
            keep = config.num_candidates if last else len(designs) // 4
            keep = max(config.num_candidates, keep)
            # Different ones, or all would climb the same hill.
            if num_steps:
                designs = torch.stack(_different(ordered, width, keep))
            else:
                designs = ordered[:keep]
    cap = math.log(max(16 * config.num_samples, num_contrastive))
    if objective == "info_nce" and values.max() > cap - 1.0:
        warnings.warn(
            f"The information of the learned model, {float(values.max()):.2f} nats at "
            f"the best design, is within a nat of its cap {cap:.2f} with "
            f"{MAX_CONTRASTIVE:,} contrastive parameters: the search cannot tell the "
            "best designs apart. Use objective='barber_agakov', which has no cap.",
            stacklevel=5,
        )
    return list(designs)


def _ascend(
    estimators: DesignEstimators,
    prior: Distribution,
    designs: Tensor,
    origin: Tensor,
    width: Tensor,
    box: BoxUniform | None,
    objective: str,
    num_samples: int,
    num_contrastive: int,
    num_steps: int,
    learning_rate: float,
    bar: tqdm,
) -> Tensor:
    """Return designs after gradient steps, in units of the width of the space."""
    if not num_steps:
        return designs  # to the last bit: they may be all that there are.
    unit = ((designs - origin) / width).detach().requires_grad_()
    optimizer = Adam([unit], lr=learning_rate)
    for _ in range(num_steps):
        theta = _draw_for(objective, prior, num_samples, num_contrastive).to(designs)
        gradients = []
        # Each chunk's graph is gone before the next: memory is that of one chunk.
        size = max(1, _pairs_at_once(estimators) // (len(theta) * num_samples))
        for rows in unit.detach().split(size):
            rows.requires_grad_()
            information = _information(
                estimators, prior, theta, origin + rows * width, objective, num_samples
            )
            gradients += torch.autograd.grad(-information.sum(), [rows])
        unit.grad = torch.cat(gradients)
        optimizer.step()
        with torch.no_grad():
            if box is not None:
                low, high = box.base_dist.low, box.base_dist.high
                unit.clamp_((low - origin) / width, (high - origin) / width)
        bar.update()
    designs = (origin + unit * width).detach()
    if box is not None:  # Rounding may leave it again.
        designs = designs.clamp(box.base_dist.low, box.base_dist.high)
    return designs


def _different(designs: Tensor, width: Tensor, num_designs: int) -> list[Tensor]:
    """Return the first designs that are not within a fiftieth of one before."""
    chosen: list[Tensor] = []
    for design in designs:
        distances = [((design - other) / width).abs().max() for other in chosen]
        if all(distance > 0.02 for distance in distances):
            chosen.append(design)
    return chosen[:num_designs]
