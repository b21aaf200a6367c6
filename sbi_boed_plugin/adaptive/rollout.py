"""Whole sequences of experiments by a policy, in the learned model or for real."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from sbi.neural_nets.estimators import ConditionalDensityEstimator
from torch import Tensor

from sbi_boed_plugin._memory import rows_at_once
from sbi_boed_plugin.adaptive.policy import HistoryPolicy
from sbi_boed_plugin.estimators.likelihood_with_failures import (
    LikelihoodWithFailures,
    without_failures,
)
from sbi_boed_plugin.search.gradients import draw_data

__all__ = ["LearnedExperiment", "Rollouts", "roll_out"]

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

    @property
    def rows(self) -> Tensor:
        """The histories as rows `(designs, data)`, of shape `(batch_dim, dim)`."""
        parts = [part.transpose(0, 1).flatten(1) for part in (self.design, self.x)]
        return torch.cat(parts, dim=1)


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

    def log_likelihoods(self, theta: Tensor, rollouts: Rollouts) -> Tensor:
        """Return those of each experiment, for parameters `(num, batch_dim, dim)`.

        Of shape `(num_experiments, num, batch_dim)`, in nats; an experiment that failed
        tells nothing.
        """
        return torch.stack(
            [
                self._log_likelihood(theta, design, x)
                for design, x in zip(rollouts.design, rollouts.x, strict=True)
            ]
        )

    def _log_likelihood(self, theta: Tensor, design: Tensor, x: Tensor) -> Tensor:
        net: Any = without_failures(self.likelihood)
        valid = x.isfinite().all(dim=-1)
        if not valid.all():
            x = torch.where(valid.unsqueeze(1), x, 0.0)
        num_values = net.input_shape.numel() + net.condition_shape.numel()
        size = max(1, rows_at_once(net, num_values) // theta.shape[1])
        values = []
        for some in theta.split(size):
            shape = some.shape[:2]
            condition = torch.cat([some, design.expand(*shape, -1)], dim=-1)
            data = x.expand(*shape, -1).flatten(0, 1).unsqueeze(0)
            log_prob = net.log_prob(data, condition.flatten(0, 1))[0]
            values.append(log_prob.reshape(shape))
        return torch.cat(values).where(valid, 0.0)


def roll_out(
    policy: HistoryPolicy, theta: Tensor, measure: Measure, **draws: bool
) -> Rollouts:
    """Return histories of all experiments, one for each row of parameters.

    `draws` is what the policy draws, `chooses` and `explores`.
    """
    features = policy.start(len(theta))
    designs, data, log_probs = [], [], []
    for step in range(policy.num_experiments):
        design, log_prob = policy(features, step, **draws)
        x = measure(theta, design)
        features = policy.update(features, design, x)
        designs.append(design)
        data.append(x)
        log_probs.append(log_prob)
    return Rollouts(theta, *map(torch.stack, (designs, data, log_probs)))
