r"""Likelihoods of simulators that fail, with a chance that depends on the parameters.

An outcome is either a finite :math:`x` or a failure. A finite one says that the
simulation did not fail: its density is :math:`q(x \mid \theta, \xi) \, p_{ok}(\theta,
\xi)`, where :math:`q` is learned from finite outcomes and :math:`p_{ok}`, the
probability of one, by a classifier from all outcomes.
"""

import math
from copy import deepcopy
from functools import partial

import torch
from sbi.neural_nets.estimators import ConditionalDensityEstimator
from sbi.utils.sbiutils import Standardize
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, logsigmoid
from zuko.nn import MLP

from sbi_boed_plugin._fit import AveragedSchedule, Batches, Fit
from sbi_boed_plugin._rng import isolated_rng
from sbi_boed_plugin.estimators.ensemble import EnsembleEstimator
from sbi_boed_plugin.estimators.noise import EstimatorView
from sbi_boed_plugin.estimators.transformed import TransformedEstimator

__all__ = ["LikelihoodWithFailures", "without_failures"]

_HIDDEN_FEATURES = [32, 32]
# Differences of cross-entropies are small, and steps of a small network are cheap.
_SCHEDULE = AveragedSchedule(
    learning_rate=2e-2, min_patience=500, min_gain=5e-4, weight_decay=1e-2
)
# Share of the rows that are left out, to judge by.
_LEFT_OUT = 0.2
_MAX_EPOCHS = 1_000
# First weights, rows left out and batches are the same whenever rows are the same.
_SEED = 5_003


class LikelihoodWithFailures(EstimatorView):
    r"""A likelihood times the probability that the simulation does not fail.

    `log_prob` is :math:`\log q(x \mid \theta, \xi) + \log p_{ok}(\theta, \xi)`: as a
    density of :math:`x` it integrates to :math:`p_{ok}`, and the rest is the
    probability of a failure. Samples, losses and noise are those of :math:`q`.
    """

    def __init__(self, estimator: ConditionalDensityEstimator) -> None:
        super().__init__(estimator, estimator.input_shape, estimator.condition_shape)
        rows = next(estimator.parameters()).new_zeros(2, *estimator.condition_shape)
        self.success_net = _classifier(rows, torch.ones(2, dtype=torch.bool))

    def log_success(self, condition: Tensor) -> Tensor:
        r"""Return :math:`\log p_{ok}(\theta, \xi)`, of shape `(*batch_shape,)`."""
        return logsigmoid(self.success_net(self._features(condition))).squeeze(-1)

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
        if start is None:
            network = _classifier(features, valid)
        else:
            network = deepcopy(start.success_net)
        with isolated_rng(_SEED):
            self.success_net = _train(network, features, valid.to(features))
        return self

    def _features(self, condition: Tensor) -> Tensor:
        """Return the condition in the coordinates of the likelihood."""
        network = self.net
        if isinstance(network, EnsembleEstimator):
            network = network.members[0]
        while isinstance(network, TransformedEstimator):
            condition = network.condition_of_net(condition)
            network = network.net
        return condition


def _classifier(features: Tensor, valid: Tensor) -> nn.Module:
    """Return a network of log-odds, which first says the share of successes of all."""
    mean, scale = features.mean(dim=0), features.std(dim=0)
    # Rounding alone gives equal values a spread.
    varies = scale > 1e-5 * mean.abs()
    scale = torch.where(varies, scale, mean.abs().clamp_min(1.0))
    with isolated_rng(_SEED):
        network = MLP(features.shape[1], 1, _HIDDEN_FEATURES, nn.SiLU).to(features)
    share = (valid.sum() + 0.5) / (len(valid) + 1)
    nn.init.zeros_(network[-1].weight)
    nn.init.constant_(network[-1].bias, torch.logit(share).item())
    return nn.Sequential(Standardize(mean, scale), network).requires_grad_(False)


def _train(network: nn.Module, features: Tensor, valid: Tensor) -> nn.Module:
    """Train until rows that were left out gain no more, and return the best state.

    That is the first one if no other is better by two standard errors.
    """

    def losses(network: nn.Module, batch: tuple[Tensor, ...]) -> Tensor:
        log_odds = network(batch[0]).squeeze(-1)
        return binary_cross_entropy_with_logits(log_odds, batch[1], reduction="none")

    start = deepcopy(network)
    order = torch.randperm(len(valid))
    num_left_out = math.ceil(_LEFT_OUT * len(valid))
    rows = order[:num_left_out].to(valid.device)
    left_out = features[rows], valid[rows]
    batch_size = min(1_024, max(32, len(valid) // 25))
    fit = Fit(network.requires_grad_(True), _SCHEDULE)
    fit.run(
        Batches((features, valid), order[num_left_out:], batch_size),
        partial(losses, network),
        lambda: float(losses(network, left_out).mean()),
        max_num_epochs=_MAX_EPOCHS,
    )
    with torch.no_grad():
        gain = losses(start, left_out) - losses(network, left_out)
    standard_error = gain.std() / math.sqrt(len(gain))
    chosen = network if gain.mean() > 2.0 * standard_error else start
    return chosen.requires_grad_(False)


def without_failures(
    likelihood: ConditionalDensityEstimator,
) -> ConditionalDensityEstimator:
    """Return the likelihood of finite outcomes, which is the one that is trained."""
    is_joint = isinstance(likelihood, LikelihoodWithFailures)
    return likelihood.net if is_joint else likelihood
