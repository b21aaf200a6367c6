"""Experiments with known likelihoods, as estimators of sbi, and small policies."""

import torch
from sbi.neural_nets.estimators import ConditionalDensityEstimator
from sbi.utils import BoxUniform
from torch import Tensor
from torch.distributions import Independent, Normal
from torch.nn.functional import logsigmoid

from sbi_boed_plugin import HistoryPolicy, TruncatedNormalPolicy
from sbi_boed_plugin.adaptive.posterior import AmortizedPosterior
from sbi_boed_plugin.adaptive.training import PolicyTraining
from sbi_boed_plugin.search.utility import Utility

BOX = TruncatedNormalPolicy(torch.zeros(1), torch.ones(1))
FLAT = BoxUniform(torch.zeros(1), torch.ones(1))
NORMAL = Independent(Normal(torch.zeros(1), 1.0), 1)


class _Known(ConditionalDensityEstimator):
    """A density of one value, given a parameter and a design."""

    def __init__(self) -> None:
        super().__init__(torch.nn.Identity(), torch.Size((1,)), torch.Size((2,)))
        self.unused = torch.nn.Parameter(torch.zeros(1))

    def loss(self, input: Tensor, condition: Tensor, **kwargs) -> Tensor:
        return -self.log_prob(input.unsqueeze(0), condition)[0]


class IsAbove(_Known):
    """Yes or no: is the parameter above the design, up to a logistic error?"""

    def __init__(self, width: float = 0.01) -> None:
        super().__init__()
        self.width = width

    def log_prob(self, input: Tensor, condition: Tensor, **kwargs) -> Tensor:
        z = (condition[:, 0] - condition[:, 1]) / self.width
        return logsigmoid(torch.where(input[..., 0] > 0.5, z, -z))

    def sample(self, sample_shape: torch.Size, condition: Tensor, **kwargs) -> Tensor:
        chance = ((condition[:, 0] - condition[:, 1]) / self.width).sigmoid()
        drawn = torch.rand(*sample_shape, len(condition)) < chance
        return drawn.float().unsqueeze(-1)


class Scaled(_Known):
    """x = theta * design + N(0, 1): the designs of most information are the largest."""

    def log_prob(self, input: Tensor, condition: Tensor, **kwargs) -> Tensor:
        mean = condition[:, :1] * condition[:, 1:]
        return Normal(mean, 1.0).log_prob(input).sum(dim=-1)

    def sample(self, sample_shape: torch.Size, condition: Tensor, **kwargs) -> Tensor:
        mean = condition[:, :1] * condition[:, 1:]
        return mean + torch.randn(*sample_shape, len(condition), 1)

    def to_noise(self, input: Tensor, condition: Tensor) -> Tensor:
        return input - condition[:, :1] * condition[:, 1:]


def scaled_simulator(theta: Tensor, design: Tensor) -> Tensor:
    """Return the data of `Scaled`."""
    return theta * design + torch.randn_like(theta)


def make_training(
    prior,
    num_experiments,
    space=BOX,
    *,
    adapts=True,
    looks_ahead=False,
    utility=None,
    target=None,
) -> PolicyTraining:
    """Return a training of small networks in units around one."""
    small = {"hidden_features": 64, "num_features": 32}
    policy = HistoryPolicy(space, num_experiments, adapts=adapts, **small)
    known = prior if target is None else target.distribution
    posterior = AmortizedPosterior(known, policy.encoder)
    policy.encoder.standardize(space.spread(500), torch.rand(500, 1).round())
    utility, ahead = utility or Utility(), {"looks_ahead": looks_ahead}
    return PolicyTraining(policy, posterior, prior, utility, target, **ahead)


def mean_of_last(training: PolicyTraining, name: str, num: int = 50) -> float:
    """Return the mean of what was recorded at the last steps."""
    return sum(training.history[name][-num:]) / num
