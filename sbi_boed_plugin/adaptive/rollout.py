"""Whole sequences of experiments by a policy, in the learned model or for real."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from sbi.neural_nets.estimators import ConditionalDensityEstimator
from sbi.neural_nets.estimators.mixture_density_estimator import MixtureDensityEstimator
from torch import Tensor

from sbi_boed_plugin._memory import rows_at_once
from sbi_boed_plugin.adaptive.policy import HistoryPolicy
from sbi_boed_plugin.estimators.likelihood_with_failures import (
    LikelihoodWithFailures,
    without_failures,
)
from sbi_boed_plugin.estimators.noise import EstimatorView
from sbi_boed_plugin.search.gradients import draw_data

__all__ = ["LearnedExperiment", "Rollouts", "roll_out"]

# Values of data up to which a mixture is quick with many of them.
_MOST_QUICK = 3

Measure = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Rollouts:
    """Histories of the same number of experiments.

    Designs `(num_experiments, batch_dim, dim_design)`, data likewise, and the
    log-probabilities `(num_experiments, batch_dim)` of what the policy drew.
    """

    theta: Tensor
    design: Tensor
    x: Tensor
    log_prob: Tensor

    def rows(self, chosen: Tensor) -> "Rollouts":
        """Return some of the histories, by their indices or a mask."""
        parts = self.design, self.x, self.log_prob
        return Rollouts(self.theta[chosen], *(part[:, chosen] for part in parts))


class LearnedExperiment:
    """An experiment whose data come from a likelihood network.

    `moves_data` says whether data follow designs with a gradient.
    """

    def __init__(self, likelihood: ConditionalDensityEstimator) -> None:
        self.likelihood = likelihood.eval().requires_grad_(False)
        self.moves_data = True

    def __call__(self, theta: Tensor, design: Tensor) -> Tensor:
        """Return data of designs, NaN where the experiment failed."""
        condition = torch.cat([theta, design], dim=-1)
        net = without_failures(self.likelihood)
        try:
            x = draw_data(net, condition if self.moves_data else condition.detach())
        except NotImplementedError:  # Such as whole numbers.
            self.moves_data = False
            x = draw_data(net, condition.detach())
        if isinstance(self.likelihood, LikelihoodWithFailures):
            success = self.likelihood.log_success(condition.detach()).exp()
            failed = torch.rand_like(success) > success
            x = x.masked_fill(failed.unsqueeze(1), torch.nan)
        return x

    def log_drawn(self, rollouts: Rollouts) -> Tensor | None:
        """Return the log-probability of what was drawn without a gradient, if anything.

        Of shape `(num_experiments, batch_dim)`: whether experiments failed, and data
        that do not move with their designs.
        """
        may_fail = isinstance(self.likelihood, LikelihoodWithFailures)
        total = None
        if not self.moves_data:
            columns = torch.arange(len(rollouts.theta), device=rollouts.theta.device)
            total = self.log_likelihoods_of(rollouts.theta, columns, rollouts)
        if may_fail:
            theta = rollouts.theta.expand(len(rollouts.design), -1, -1)
            condition = torch.cat([theta, rollouts.design], dim=-1)
            log_success = self.likelihood.log_success(condition)  # type: ignore[operator]
            failed = ~rollouts.x.isfinite().all(dim=-1)
            log_failure = torch.log1p(-log_success.exp().clamp(max=1.0 - 1e-6))
            if total is None:
                total = log_success.where(~failed, 0.0)
            total = total + log_failure.where(failed, 0.0)
        return total

    def log_likelihoods(self, theta: Tensor, rollouts: Rollouts) -> Tensor:
        """Return those of each experiment, for parameters `(num, batch_dim, dim)`.

        Of shape `(num_experiments, num, batch_dim)`, in nats; an experiment that failed
        tells nothing.
        """
        num, rows = theta.shape[:2]
        columns = torch.arange(rows, device=theta.device).repeat(num)
        each = self.log_likelihoods_of(theta.flatten(0, 1), columns, rollouts)
        return each.reshape(-1, num, rows)

    @property
    def is_quick_with_many_data(self) -> bool:
        """Whether many data at one condition cost little more than one."""
        net: Any = self.likelihood
        if net.input_shape.numel() > _MOST_QUICK:
            return False
        while isinstance(net, EstimatorView):
            net = net.net
        return isinstance(net, MixtureDensityEstimator)

    def possible_data(self, most: int) -> Tensor | None:
        """Return all data that there can be, `(num, dim_x)`, if they are so few."""
        for module in self.likelihood.modules():
            lists: Any = getattr(module, "categorical_values_per_var", None)
            if lists is None or len(lists) != self.likelihood.input_shape.numel():
                continue
            if math.prod(map(len, lists)) <= most:
                values = torch.cartesian_prod(*lists).reshape(-1, len(lists))
                return values.to(next(self.likelihood.parameters()))
        return None

    def log_likelihoods_of_many(
        self, theta: Tensor, design: Tensor, x: Tensor
    ) -> Tensor:
        """Return those of data `(num_data, batch_dim, dim_x)` of one experiment each.

        For parameters `(num, batch_dim, dim)` and a design for each of the histories;
        of shape `(num_data, num, batch_dim)`, zero where the experiment failed.
        """
        num, rows = theta.shape[:2]
        designs = design.expand(num, rows, -1)
        condition = torch.cat([theta, designs], dim=-1).flatten(0, 1)
        x, valid = _filled(x)
        data = x.unsqueeze(1).expand(-1, num, -1, -1)
        values = self.likelihood.log_prob(data.flatten(1, 2), condition)
        return values.unflatten(1, (num, rows)).where(valid.unsqueeze(1), 0.0)

    def log_likelihoods_of(
        self, theta: Tensor, columns: Tensor, rollouts: Rollouts
    ) -> Tensor:
        """Return those of rollouts `columns`, for as many parameters `(num, dim)`.

        Of shape `(num_experiments, num)`.
        """
        net: Any = self.likelihood
        num_values = net.input_shape.numel() + net.condition_shape.numel()
        size = rows_at_once(net, num_values)
        return torch.stack(
            [
                torch.cat(
                    [
                        _log_likelihood(net, some, design[of_some], x[of_some])
                        for some, of_some in zip(
                            theta.split(size), columns.split(size), strict=True
                        )
                    ]
                )
                for design, x in zip(rollouts.design, rollouts.x, strict=True)
            ]
        )


def _log_likelihood(net: Any, theta: Tensor, design: Tensor, x: Tensor) -> Tensor:
    """Return the log-likelihood of each row, zero where an experiment failed."""
    x, valid = _filled(x)
    condition = torch.cat([theta, design], dim=-1)
    return net.log_prob(x.unsqueeze(0), condition)[0].where(valid, 0.0)


def _filled(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return data, others in the place of those that failed, and which did not."""
    valid = x.isfinite().all(dim=-1)
    if valid.all() or not valid.any():
        return torch.where(valid.unsqueeze(-1), x, 0.0), valid
    return torch.where(valid.unsqueeze(-1), x, x.detach()[valid][0]), valid


def roll_out(
    policy: HistoryPolicy, theta: Tensor, measure: Measure, **draws: bool
) -> Rollouts:
    """Return histories of all experiments, one for each row of parameters.

    `draws` is what the policy draws, `chooses` and `explores`.
    """
    pairs = policy.start(len(theta))
    designs, data, log_probs = [], [], []
    for _ in range(policy.num_experiments):
        design, log_prob = policy(pairs, **draws)
        x = measure(theta, design)
        pairs = policy.update(pairs, design, x)
        designs.append(design)
        data.append(x)
        log_probs.append(log_prob)
    return Rollouts(theta, *map(torch.stack, (designs, data, log_probs)))
