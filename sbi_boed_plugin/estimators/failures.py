r"""Likelihoods of simulators that fail, with a chance that depends on the parameters.

An outcome is either a finite :math:`x` or a failure. A finite one says that the
simulation did not fail: its density is :math:`q(x \mid \theta, \xi) \, p_{ok}(\theta,
\xi)`, where :math:`q` is learned from finite outcomes and :math:`p_{ok}`, the
probability of one, by a classifier from all outcomes.
"""

import math
from copy import deepcopy
from typing import cast

import torch
from sbi.neural_nets.estimators import ConditionalDensityEstimator
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, logsigmoid
from torch.optim.adamw import AdamW
from zuko.nn import MLP

from sbi_boed_plugin._rng import isolated_rng
from sbi_boed_plugin.estimators.noise import EstimatorView
from sbi_boed_plugin.estimators.transformed import TransformedEstimator

__all__ = ["LikelihoodWithFailures", "without_failures"]

_HIDDEN_FEATURES = [32, 32]
_LEARNING_RATE = 1e-2
# Networks of which the mean is taken; each leaves out another part of the rows.
_NUM_FOLDS = 5
# Passes over the rows without a gain on those left out, and passes in all.
_PATIENCE, _MAX_EPOCHS = 10, 100
# Splitting of the rows and order of the batches: the same whenever rows are the same.
_SEED = 5_003


class LikelihoodWithFailures(EstimatorView):
    r"""A likelihood times the probability that the simulation does not fail.

    `log_prob` is :math:`\log q(x \mid \theta, \xi) + \log p_{ok}(\theta, \xi)`: as a
    density of :math:`x` it integrates to :math:`p_{ok}`, and the rest is the
    probability of a failure. Samples, losses and noise are those of :math:`q`. At first
    nothing fails.
    """

    def __init__(self, estimator: ConditionalDensityEstimator) -> None:
        super().__init__(estimator, estimator.input_shape, estimator.condition_shape)
        self.success_net = _SuccessNetwork(self.condition_shape.numel())
        self.success_net.to(next(estimator.parameters())).requires_grad_(False)

    def log_success(self, condition: Tensor) -> Tensor:
        r"""Return :math:`\log p_{ok}(\theta, \xi)`, of shape `(*batch_shape,)`."""
        return logsigmoid(self.success_net(self._features(condition)))

    def log_prob(self, input: Tensor, condition: Tensor, **kwargs) -> Tensor:
        """Return the log-density of finite outcomes among all outcomes."""
        values = self.net.log_prob(input, condition, **kwargs)
        return values + self.log_success(condition)

    def learn(
        self,
        condition: Tensor,
        valid: Tensor,
        start: "LikelihoodWithFailures | None" = None,
    ) -> "LikelihoodWithFailures":
        """Learn from conditions when simulations fail, and return this likelihood.

        The classifier starts from that of `start`, or from the same probability for all
        parameters, and stays there unless rows that were left out gain two standard
        errors.
        """
        features = self._features(condition).detach()
        network = self.success_net if start is None else deepcopy(start.success_net)
        if start is None:
            network.standardize(features, valid)
        with isolated_rng(_SEED):
            self.success_net = _train(network, features, valid.to(features))
        self.success_net.requires_grad_(False)
        return self

    def _features(self, condition: Tensor) -> Tensor:
        """Return the condition in the coordinates of the likelihood."""
        network = self.net
        while isinstance(network, TransformedEstimator):
            condition = network.condition_of_net(condition)
            network = network.net
        return condition


class _SuccessNetwork(nn.Module):
    """Log-odds that a simulation does not fail: the mean of several networks."""

    mean: Tensor
    scale: Tensor

    def __init__(self, dim_condition: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(dim_condition))
        self.register_buffer("scale", torch.ones(dim_condition))
        with isolated_rng(_SEED):
            self.networks = nn.ModuleList(
                MLP(dim_condition, 1, _HIDDEN_FEATURES, nn.SiLU)
                for _ in range(_NUM_FOLDS)
            )

    def forward(self, condition: Tensor, fold: int | None = None) -> Tensor:
        """Return log-odds of shape `batch_shape`, of all networks or of one."""
        networks = self.networks if fold is None else [self.networks[fold]]
        inputs = (condition - self.mean) / self.scale
        return (
            torch.stack([network(inputs) for network in networks]).mean(0).squeeze(-1)
        )

    @torch.no_grad()
    def standardize(self, condition: Tensor, valid: Tensor) -> None:
        """Take the scales of the rows, and their share of successes for all."""
        self.mean.copy_(condition.mean(dim=0))
        scale = condition.std(dim=0)
        # Rounding alone gives equal values a spread.
        varies = scale > 1e-5 * self.mean.abs()
        self.scale.copy_(torch.where(varies, scale, self.mean.abs().clamp_min(1.0)))
        share = (valid.sum() + 0.5) / (len(valid) + 1)
        for network in self.networks:
            last = cast(MLP, network)[-1]
            last.weight.zero_()
            last.bias.fill_(torch.logit(share).item())


def _train(
    network: _SuccessNetwork, features: Tensor, valid: Tensor
) -> _SuccessNetwork:
    """Train until rows that were left out gain no more, and return the best state.

    That is the first one if no other is better by two standard errors.
    """

    def losses(rows: Tensor, fold: int) -> Tensor:
        log_odds = network(features[rows], fold)
        return binary_cross_entropy_with_logits(log_odds, valid[rows], reduction="none")

    @torch.no_grad()
    def losses_left_out() -> Tensor:
        return torch.cat([losses(rows, fold) for fold, rows in enumerate(folds)])

    start = deepcopy(network)
    network.requires_grad_(True)
    optimizer = AdamW(network.parameters(), lr=_LEARNING_RATE, weight_decay=1e-2)
    folds = torch.randperm(len(valid)).to(valid.device).tensor_split(_NUM_FOLDS)
    batch_size = min(1_024, max(32, len(valid) // 25))
    at_start = losses_left_out()
    best, best_gain, waited = start, torch.zeros_like(at_start), 0
    for _ in range(_MAX_EPOCHS):
        for fold in range(_NUM_FOLDS):
            used = torch.cat([*folds[:fold], *folds[fold + 1 :]])
            for rows in used[torch.randperm(len(used))].split(batch_size):
                optimizer.zero_grad()
                losses(rows, fold).mean().backward()
                optimizer.step()
        gain = at_start - losses_left_out()
        waited += 1
        if gain.mean() > best_gain.mean():
            best, best_gain, waited = deepcopy(network), gain, 0
        if waited == _PATIENCE:
            break
    standard_error = best_gain.std() / math.sqrt(len(best_gain))
    return best if best_gain.mean() > 2.0 * standard_error else start


def without_failures(
    likelihood: ConditionalDensityEstimator,
) -> ConditionalDensityEstimator:
    """Return the likelihood of finite outcomes, which is the one that is trained."""
    is_joint = isinstance(likelihood, LikelihoodWithFailures)
    return likelihood.net if is_joint else likelihood
