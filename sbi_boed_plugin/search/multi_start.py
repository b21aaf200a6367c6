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
from sbi_boed_plugin._prior import draw_parameters
from sbi_boed_plugin.estimators.likelihood_with_failures import LikelihoodWithFailures
from sbi_boed_plugin.estimators.noise import reparameterize
from sbi_boed_plugin.objectives.eig import EIGEstimate, NoEstimateError
from sbi_boed_plugin.policies.policy import DesignPolicy
from sbi_boed_plugin.search.config import MultiStartConfig as MultiStartConfig
from sbi_boed_plugin.search.estimators import DesignEstimators
from sbi_boed_plugin.search.information import POLICY_OBJECTIVES, Densities
from sbi_boed_plugin.search.scoring import score_design

__all__ = [
    "model_information",
    "multi_start_search",
    "spread_designs",
    "uniform_designs",
]

# Contrastive parameters of a climb, at most. Their logarithm caps its estimates.
MAX_CONTRASTIVE = 4_096
# Starts that tell how many contrastive parameters there must be.
_NUM_TO_SET_CONTRASTIVE = 64
# Share of the width of the space within which two designs count as the same.
_SAME = 0.02


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


def spread_designs(design: Tensor, policy: DesignPolicy) -> Tensor:
    """Return designs that differ, for networks to take a standardization from.

    With those of a point, any other design would be infinitely far away.
    """
    same = (design == design[0]).all(dim=0)
    if not same.any():
        return design
    box = uniform_designs(policy)
    if box is None:
        spread = design + design.abs().clamp_min(1.0) * torch.randn_like(design)
    else:
        spread = box.sample(torch.Size((len(design),))).to(design)
    return torch.where(same, spread, design)


def multi_start_search(
    estimators: DesignEstimators,
    prior: Distribution,
    policy: DesignPolicy,
    simulator: Callable[[Tensor, Tensor], Tensor],
    *,
    objective: str,
    config: MultiStartConfig,
    num_workers: int | None = 1,
    show_progress_bar: bool = True,
) -> tuple[list[tuple[Tensor, EIGEstimate]], int, int]:
    """Climb from many designs and score the best with simulations.

    All of a box is searched from a uniform start, any other support from draws of the
    policy. Candidates of a categorical policy do not climb. Returned are the designs
    with their estimates, best first, and how many simulations scored designs and
    failed, those of designs that could not be scored included.
    """
    estimators.train(False)
    model = _LearnedModel(estimators, prior, objective)
    designs = _Climb(model, policy, config).run(show_progress_bar)
    # The same random numbers for all: differences are more accurate than values.
    seed = int(torch.randint(2**31, (1,)))
    candidates, errors, costs = [], [], []
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
            costs.append(error)
            continue
        candidates.append((design, estimate))
        costs.append(estimate)
    if not candidates:
        raise ValueError(
            "None of the designs that the search arrived at can be scored with "
            f"simulations. {errors[0]}"
        )
    if errors:
        warnings.warn(
            f"{len(errors)} of {len(designs)} designs that the search arrived at "
            f"cannot be scored with simulations and are left out. {errors[0]}",
            stacklevel=5,
        )
    return (
        sorted(candidates, key=lambda candidate: -candidate[1].value),
        sum(cost.num_simulations for cost in costs),
        sum(cost.num_invalid_simulations for cost in costs),
    )


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

    In nats, from `num_samples` parameters. The same serve all designs: differences are
    more accurate than values. The contrastive bound has `num_contrastive` parameters in
    its mean, if that is more; its estimates are at most the logarithm of it.
    """
    model = _LearnedModel(estimators, prior, objective)
    return model.information(designs, num_samples, num_contrastive)


@dataclass(frozen=True)
class _LearnedModel:
    """The information of designs where data come from the learned likelihood."""

    estimators: DesignEstimators
    prior: Distribution
    objective: str

    def information(
        self, designs: Tensor, num_samples: int, num_contrastive: int
    ) -> Tensor:
        """Return estimates of shape `(num_designs,)`, in nats."""
        theta, size = self._parameters(designs, num_samples, num_contrastive)
        parts = [self._estimates(theta, d, num_samples) for d in designs.split(size)]
        return torch.cat(parts)

    def slopes(self, designs: Tensor, num_samples: int, num_contrastive: int) -> Tensor:
        """Return the gradient of the information at each design."""
        theta, size = self._parameters(designs, num_samples, num_contrastive)
        gradients = []
        # Each chunk's graph is gone before the next: memory is that of one chunk.
        for rows in designs.split(size):
            rows = rows.detach().requires_grad_()
            values = self._estimates(theta, rows, num_samples)
            gradients += torch.autograd.grad(values.sum(), [rows])
        return torch.cat(gradients)

    def _parameters(
        self, designs: Tensor, num_samples: int, num_contrastive: int
    ) -> tuple[Tensor, int]:
        """Draw parameters of data and behind them further contrastive ones.

        Beside them, the number of designs that fit into one evaluation.
        """
        num_theta = num_samples
        if self.objective == "info_nce":
            num_theta = max(num_samples, num_contrastive)
        theta = draw_parameters(self.prior, num_theta).to(designs)
        return theta, max(1, self._pairs_at_once() // (num_theta * num_samples))

    def _pairs_at_once(self) -> int:
        """Return how many pairs of parameters and data fit into one evaluation."""
        net = self.estimators.likelihood
        num_values = net.input_shape.numel() + net.condition_shape.numel()
        return min(rows_at_once(each, num_values) for each in self.estimators.all())

    def _estimates(self, theta: Tensor, designs: Tensor, num_samples: int) -> Tensor:
        """Return estimates for designs that fit into one evaluation.

        The first `num_samples` parameters have data; all of them are contrasts.
        """
        likelihood, num_designs = self.estimators.likelihood, len(designs)
        # Rows: all designs for the first parameters, then for the second, and so on.
        theta_rows = theta.repeat_interleave(num_designs, dim=0)
        design_rows = designs.repeat(len(theta), 1)
        conditions = torch.cat([theta_rows, design_rows], dim=-1)
        own = slice(num_samples * num_designs)
        condition = conditions[own]
        with torch.no_grad():
            x = likelihood.sample(torch.Size((1,)), condition)[0]
        if designs.requires_grad:
            x = reparameterize(likelihood, x, condition)
        if self.objective == "info_nce":
            terms = self._contrastive_terms(x, conditions, len(theta), num_designs)
        else:
            theta_rows = theta_rows[own]
            no_contrast = theta_rows.unsqueeze(0)[:0]
            densities = Densities(
                self.estimators.trained,
                self.prior,
                theta_rows,
                x,
                design_rows[own],
                no_contrast,
            )
            terms = POLICY_OBJECTIVES[self.objective].terms(densities)
            terms = terms.reshape(num_samples, num_designs)
        if isinstance(likelihood, LikelihoodWithFailures):
            # Data that failed would have told nothing.
            success = likelihood.log_success(condition).exp()
            terms = terms * success.reshape(num_samples, num_designs)
        return terms.mean(dim=0)

    def _contrastive_terms(
        self, x: Tensor, conditions: Tensor, num_theta: int, num_designs: int
    ) -> Tensor:
        """Return terms of the contrastive bound, `(num_samples, num_designs)`.

        Every datum under all parameters at its own design: networks that compute
        their condition apart from their input do so once per pair of parameters and
        design, whatever the number of contrastive samples.
        """
        num_samples = len(x) // num_designs
        x_by_design = x.reshape(num_samples, 1, num_designs, *x.shape[1:])
        evaluate = self.estimators.likelihood.log_prob
        size = max(1, self._pairs_at_once() // len(x))
        # What does not fit at once is evaluated again for its gradient.
        if size < num_theta and conditions.requires_grad:
            evaluate = partial(checkpoint, evaluate, use_reentrant=False)
        parts = []
        for part in conditions.split(size * num_designs):
            shape = (-1, len(part) // num_designs, *x_by_design.shape[2:])
            parts.append(evaluate(x_by_design.expand(shape).flatten(1, 2), part))
        matrix = torch.cat(parts, dim=1).reshape(num_samples, num_theta, num_designs)
        own = matrix.diagonal(dim1=0, dim2=1)  # (designs, samples)
        mean = torch.logsumexp(matrix, dim=1).T - math.log(num_theta)
        return (own - mean).T


class _Climb:
    """A climb of many designs, in units of the width of the space."""

    def __init__(
        self, model: _LearnedModel, policy: DesignPolicy, config: MultiStartConfig
    ) -> None:
        self.model, self.config = model, config
        self.box = uniform_designs(policy)
        self.designs, self.width = _starts(policy, self.box, config.num_starts)
        # Without a box only where every step stays inside.
        support = policy.support
        base = support.base_constraint if isinstance(support, independent) else support
        is_real = support.event_dim == 1 and isinstance(base, type(real))
        climbs = self.box is not None or is_real
        self.num_steps = config.num_climb_steps if climbs else 0
        self.num_contrastive = 0

    def run(self, show_progress_bar: bool) -> list[Tensor]:
        """Return the best designs after a climb that fewer and fewer finish."""
        config, designs = self.config, self.designs
        self._judge(designs[:_NUM_TO_SET_CONTRASTIVE], config.num_samples)
        bar = tqdm(
            total=self.num_steps,
            disable=not show_progress_bar,
            desc="Climbing designs",
        )
        with bar:
            # As designs become fewer, each gets more: a step costs the same throughout.
            for stage in range(3):
                num_samples = config.num_samples * 2**stage
                designs = self._ascend(designs, num_samples, bar)
                last = stage == 2
                values = self._judge(designs, num_samples * (4 if last else 2))
                designs = designs[values.argsort(descending=True)]
                keep = config.num_candidates if last else len(designs) // 4
                keep = max(config.num_candidates, keep)
                # Different ones, or all would climb the same hill.
                if self.num_steps:
                    designs = torch.stack(_different(designs, self.width, keep))
                designs = designs[:keep]
        cap = math.log(max(16 * config.num_samples, self.num_contrastive))
        if self.model.objective == "info_nce" and values.max() > cap - 1.0:
            warnings.warn(
                f"The information of the learned model, {float(values.max()):.2f} nats "
                f"at the best design, is within a nat of its cap {cap:.2f}: the search "
                "cannot tell the best designs apart. Use objective='barber_agakov', "
                "which has no cap.",
                stacklevel=6,
            )
        return list(designs)

    def _judge(self, designs: Tensor, num_samples: int) -> Tensor:
        """Return the information, with as many contrasts as keep it below its cap."""
        while True:
            with torch.no_grad():
                values = self.model.information(
                    designs, num_samples, self.num_contrastive
                ).nan_to_num(nan=-torch.inf)
            num_terms = max(num_samples, self.num_contrastive)
            is_contrastive = self.model.objective == "info_nce"
            capped = is_contrastive and values.max() > math.log(num_terms) - 1
            if not capped or num_terms >= MAX_CONTRASTIVE:
                return values
            self.num_contrastive = min(4 * num_terms, MAX_CONTRASTIVE)

    def _ascend(self, designs: Tensor, num_samples: int, bar: tqdm) -> Tensor:
        """Return the designs after a third of the steps, unchanged without any."""
        num_steps = self.num_steps // 3
        if not num_steps:
            return designs
        unit = (designs / self.width).detach().requires_grad_()
        optimizer = Adam([unit], lr=self.config.learning_rate)
        for _ in range(num_steps):
            slopes = self.model.slopes(
                unit.detach() * self.width, num_samples, self.num_contrastive
            )
            unit.grad = -slopes * self.width
            optimizer.step()
            with torch.no_grad():
                self._clamp(unit, self.width)
            bar.update()
        # Rounding may leave the box again.
        return self._clamp(unit.detach() * self.width)

    def _clamp(self, designs: Tensor, unit: Tensor | float = 1.0) -> Tensor:
        """Move designs of some unit into the box, if there is one, in place."""
        if self.box is not None:
            base = self.box.base_dist
            designs.clamp_(base.low / unit, base.high / unit)
        return designs


def _starts(
    policy: DesignPolicy, box: BoxUniform | None, num_starts: int
) -> tuple[Tensor, Tensor]:
    """Return designs to climb from, and the width of the space for each value."""
    if box is not None:
        low, high = box.base_dist.low, box.base_dist.high
        unit = torch.quasirandom.SobolEngine(
            policy.dim_design, scramble=True, seed=int(torch.randint(2**31, (1,)))
        ).draw(num_starts)
        return low + unit.to(low) * (high - low), high - low
    designs = policy.sample(torch.Size((num_starts,)))
    # The networks of sbi are in single precision, whatever the policy is.
    designs = torch.unique(designs, dim=0).float()
    width = designs.std(dim=0, correction=0) * math.sqrt(12.0)
    # Equal values have no width to go by: they are searched at their own scale.
    return designs, torch.where(width > 0, width, designs[0].abs().clamp_min(1.0))


def _different(designs: Tensor, width: Tensor, num_designs: int) -> list[Tensor]:
    """Return the first designs that are not the same as one before."""
    chosen: list[Tensor] = []
    for design in designs:
        distances = [((design - other) / width).abs().max() for other in chosen]
        if all(distance > _SAME for distance in distances):
            chosen.append(design)
        if len(chosen) == num_designs:
            break
    return chosen
