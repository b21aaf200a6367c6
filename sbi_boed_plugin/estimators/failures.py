r"""Likelihoods of simulators that fail, with a chance that depends on the parameters.

An outcome is either a finite :math:`x` or a failure. A finite one says that the
simulation did not fail: its density is :math:`q(x \mid \theta, \xi) \, p_{ok}(\theta,
\xi)`, where :math:`q` is learned from finite outcomes and :math:`p_{ok}`, the
probability of one, by a classifier from all outcomes.
"""

import math
from copy import deepcopy
from itertools import pairwise
from typing import cast

import torch
from sbi.neural_nets.estimators import ConditionalDensityEstimator
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, logsigmoid, silu
from torch.optim.adamw import AdamW

from sbi_boed_plugin._rng import isolated_rng
from sbi_boed_plugin.estimators.noise import to_noise
from sbi_boed_plugin.estimators.transformed import TransformedEstimator

__all__ = ["LikelihoodWithFailures", "without_failures"]

_HIDDEN_FEATURES = 32
_LEARNING_RATE = 1e-2
_NUM_FOLDS = 5
# Passes over the rows without a gain on those left out, and passes in all.
_PATIENCE, _MAX_EPOCHS = 10, 100
# Splitting of the rows and order of the batches: the same whenever rows are the same.
_SEED = 5_003


class LikelihoodWithFailures(ConditionalDensityEstimator):
    r"""A likelihood times the probability that the simulation does not fail.

    `log_prob` is :math:`\log q(x \mid \theta, \xi) + \log p_{ok}(\theta, \xi)` for
    finite :math:`x`. As a density of :math:`x` it integrates to :math:`p_{ok}`, and the
    rest is the probability of a failure. `sample` and `loss` are those of :math:`q`,
    the density of outcomes that did not fail.
    """

    def __init__(self, estimator: ConditionalDensityEstimator) -> None:
        """Initialize with simulations that never fail.

        Args:
            estimator: Likelihood of finite outcomes, conditioned on `(theta, design)`
                in one row. The module shares it.
        """
        super().__init__(
            net=estimator,
            input_shape=estimator.input_shape,
            condition_shape=estimator.condition_shape,
        )
        self.net: ConditionalDensityEstimator
        self.success_net = _SuccessNetwork(self.condition_shape.numel())
        self.success_net.to(next(estimator.parameters())).requires_grad_(False)

    @property
    def embedding_net(self) -> nn.Module | None:
        """Embedding network of the likelihood of finite outcomes."""
        return self.net.embedding_net

    def log_success(self, condition: Tensor) -> Tensor:
        r"""Return :math:`\log p_{ok}(\theta, \xi)`.

        Args:
            condition: Parameters and designs of shape `(*batch_shape, dim_condition)`.

        Returns:
            Log-probabilities of shape `batch_shape`, in nats.
        """
        return logsigmoid(self.success_net(self._features(condition)))

    def log_prob(self, input: Tensor, condition: Tensor, **kwargs) -> Tensor:
        """Return the log-density of finite outcomes among all outcomes.

        Args:
            input: Data of shape `(sample_dim, batch_dim, *x_event_shape)`.
            condition: Parameters and designs of shape `(batch_dim, dim_condition)`.
            **kwargs: Passed to the estimator.

        Returns:
            Log-densities of shape `(sample_dim, batch_dim)`, in nats.
        """
        values = self.net.log_prob(input, condition, **kwargs)
        return values + self.log_success(condition)

    def loss(self, input: Tensor, condition: Tensor, **kwargs) -> Tensor:
        """Return the loss of the likelihood of finite outcomes.

        Args:
            input: Data of shape `(batch_dim, *x_event_shape)`.
            condition: Parameters and designs of shape `(batch_dim, dim_condition)`.
            **kwargs: Passed to the estimator.

        Returns:
            Losses of shape `(batch_dim,)`, in nats.
        """
        return self.net.loss(input, condition, **kwargs)

    def sample(self, sample_shape: torch.Size, condition: Tensor, **kwargs) -> Tensor:
        """Draw outcomes that did not fail.

        Args:
            sample_shape: Shape of the draw.
            condition: Parameters and designs of shape `(batch_dim, dim_condition)`.
            **kwargs: Passed to the estimator.

        Returns:
            Data of shape `(*sample_shape, batch_dim, *x_event_shape)`.
        """
        return self.net.sample(sample_shape, condition, **kwargs)

    def to_noise(self, input: Tensor, condition: Tensor) -> Tensor:
        """Return the noise that a sample was made of, of shape `(batch_dim, dim_x)`."""
        return to_noise(self.net, input, condition)

    def learn(
        self,
        condition: Tensor,
        valid: Tensor,
        start: "LikelihoodWithFailures | None" = None,
    ) -> "LikelihoodWithFailures":
        """Learn when simulations fail, by five networks that each leave out a fifth.

        A new network starts from the same probability for all parameters, and stays
        there unless rows that were left out gain two standard errors.

        Args:
            condition: Parameters and designs of all simulations, of shape
                `(num_simulations, dim_condition)`.
            valid: Which of them did not fail, of shape `(num_simulations,)`.
            start: Where to start from, if something was learned before.

        Returns:
            This likelihood (returned so that this method is chainable).
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
            condition = cast(Tensor, network.condition_transform(condition))
            network = network.net
        return condition


class _SuccessNetwork(nn.Module):
    """Log-odds that a simulation does not fail: the mean of several networks.

    Each is trained without one part of the rows, by which it is judged.
    """

    mean: Tensor
    scale: Tensor

    def __init__(self, dim_condition: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(dim_condition))
        self.register_buffer("scale", torch.ones(dim_condition))
        sizes = [dim_condition, _HIDDEN_FEATURES, _HIDDEN_FEATURES, 1]
        self.weights, self.biases = nn.ParameterList(), nn.ParameterList()
        with isolated_rng(_SEED):
            for dim_in, dim_out in pairwise(sizes):
                weight = 2.0 * torch.rand(_NUM_FOLDS, dim_in, dim_out) - 1.0
                self.weights.append(nn.Parameter(weight / math.sqrt(dim_in)))
                self.biases.append(nn.Parameter(torch.zeros(_NUM_FOLDS, 1, dim_out)))

    def forward(self, condition: Tensor) -> Tensor:
        return self.all(condition).mean(dim=0)

    def all(self, condition: Tensor) -> Tensor:
        """Return the log-odds of each network, of shape `(num_folds, *batch_shape)`."""
        standard = (condition - self.mean) / self.scale
        hidden = standard.reshape(-1, len(self.mean)).expand(_NUM_FOLDS, -1, -1)
        last = len(self.weights) - 1
        layers = zip(self.weights, self.biases, strict=True)
        for layer, (weight, bias) in enumerate(layers):
            hidden = torch.baddbmm(bias, hidden, weight)
            hidden = hidden if layer == last else silu(hidden)
        return hidden.reshape(_NUM_FOLDS, *condition.shape[:-1])

    @torch.no_grad()
    def standardize(self, condition: Tensor, valid: Tensor) -> None:
        """Take the scales of the rows, and their share of successes for all."""
        self.mean.copy_(condition.mean(dim=0))
        scale = condition.std(dim=0)
        # Rounding alone gives equal values a spread.
        varies = scale > 1e-5 * self.mean.abs()
        self.scale.copy_(torch.where(varies, scale, self.mean.abs().clamp_min(1.0)))
        share = (valid.sum() + 0.5) / (len(valid) + 1)
        self.weights[-1].zero_()
        self.biases[-1].fill_(torch.logit(share).item())


def _train(
    network: _SuccessNetwork, features: Tensor, valid: Tensor
) -> _SuccessNetwork:
    """Train until rows that were left out gain no more, and return the best state.

    That is the first one if no other is better by two standard errors.
    """
    start = deepcopy(network)
    network.requires_grad_(True)
    optimizer = AdamW(network.parameters(), lr=_LEARNING_RATE, weight_decay=1e-2)
    fold_of_row = (torch.randperm(len(features)) % _NUM_FOLDS).to(features.device)
    folds = torch.arange(_NUM_FOLDS, device=features.device).unsqueeze(1)
    batch_size = min(1_024, max(32, len(features) // 25))

    def losses(rows: Tensor | slice) -> Tensor:
        log_odds = network.all(features[rows])
        return binary_cross_entropy_with_logits(
            log_odds, valid[rows].expand_as(log_odds), reduction="none"
        )

    @torch.no_grad()
    def left_out() -> Tensor:
        """Return the loss of each row by the network that has not seen it."""
        return losses(slice(None)).gather(0, fold_of_row.unsqueeze(0))[0]

    at_start, waited = left_out(), 0
    best, best_gain = start, torch.zeros_like(at_start)
    for _ in range(_MAX_EPOCHS):
        for rows in torch.randperm(len(features)).to(features.device).split(batch_size):
            optimizer.zero_grad()
            (losses(rows) * (fold_of_row[rows] != folds)).mean().backward()
            optimizer.step()
        gain = at_start - left_out()
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
    if isinstance(likelihood, LikelihoodWithFailures):
        return likelihood.net
    return likelihood
