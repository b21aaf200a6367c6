"""Tasks whose data are one of a few numbers, with exact information, in nats."""

from typing import Any

import torch
from torch import Tensor
from torch.distributions import (
    Categorical,
    Normal,
    TransformedDistribution,
    Uniform,
    constraints,
)
from torch.distributions.transforms import Transform

from sbi_boed_plugin.tasks._gaussian import (
    GridTask,
    pool,
    sobol_replicates,
    with_pooled,
)

__all__ = ["DiscreteTask", "PositiveNormal"]


class DiscreteTask(GridTask):
    """A task whose datum is one of the numbers 0, 1, …, `num_values` - 1.

    A subclass implements `_log_chance` and `_prior_quantiles`. With `is_dequantised` a
    uniform number from [0, 1) is added to data, so that they have a density: they tell
    as much, and `x.floor()` recovers the number.
    """

    num_values: int
    is_dequantised = False
    dim_x = 1

    def _log_chance(self, number: Tensor, theta: Tensor, design: Tensor) -> Tensor:
        """Return the log-probability of numbers `(...)`, in nats.

        Parameters `(..., dim_theta)` and designs `(..., dim_design)` broadcast.
        """
        raise NotImplementedError

    def _log_probabilities(self, theta: Tensor, design: Tensor) -> Tensor:
        """Return those of all numbers, `(..., num_values)`."""
        numbers = torch.arange(self.num_values).to(theta)
        return self._log_chance(numbers, theta.unsqueeze(-2), design.unsqueeze(-2))

    def _simulate(self, theta: Tensor, design: Tensor) -> Tensor:
        self._check_domain(design, theta)
        # Torch cannot check no rows at all.
        logits = self._log_probabilities(theta, design)
        chance = Categorical(logits=logits, validate_args=False)
        x = chance.sample().unsqueeze(-1).to(theta)
        # A little less than one, so that single precision does not round up.
        return x + torch.rand_like(x) * (1.0 - 2.0**-14) if self.is_dequantised else x

    def log_likelihood(self, x: Tensor, theta: Tensor, design: Tensor) -> Tensor:
        """Return `log p(x | theta, design)` in nats, of probabilities."""
        number = (x.floor() if self.is_dequantised else x).squeeze(-1)
        is_value = (number == number.round()) & (number >= 0.0)
        is_value &= number < self.num_values
        log_chance = self._log_chance(number * is_value, theta, design)
        return torch.where(is_value, log_chance, -torch.inf)

    def _grid_information(
        self, designs: Tensor, num_samples: int, seed: int
    ) -> tuple[Tensor, Tensor]:
        """Entropy of the data less that given the parameters: nothing is nested."""
        marginals, conditional = [], []
        for points in sobol_replicates(self.dim_theta, num_samples, seed):
            theta = self._prior_quantiles(points)
            means, entropies = [], []
            for design in designs:
                log_prob = self._log_probabilities(theta, design)
                means.append(log_prob.exp().mean(dim=0))
                entropies.append(_entropy(log_prob.exp()).mean())
            marginals.append(torch.stack(means))
            conditional.append(torch.stack(entropies))
        of_data = _entropy(with_pooled(marginals))
        return pool(of_data - with_pooled(conditional))


def _entropy(probabilities: Tensor) -> Tensor:
    return -torch.special.xlogy(probabilities, probabilities).sum(dim=-1)


class _NormalToPositive(Transform):
    """From a uniform number to a Normal that is truncated to positive numbers."""

    domain = constraints.unit_interval
    codomain = constraints.nonnegative
    bijective = True

    def __init__(self, loc: float, scale: float) -> None:
        super().__init__()
        self.normal = Normal(loc, scale)
        self.below = float(self.normal.cdf(torch.zeros(())))

    def _call(self, x: Tensor) -> Tensor:
        # In single precision the largest uniform numbers would give infinity.
        share = self.below + (1.0 - self.below) * x.clamp(1e-7, 1.0 - 1e-7)
        return self.normal.icdf(share).clamp_min(0.0)

    def _inverse(self, y: Tensor) -> Tensor:
        return (self.normal.cdf(y) - self.below) / (1.0 - self.below)

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        return torch.tensor(1.0 - self.below).log() - self.normal.log_prob(y)


class PositiveNormal(TransformedDistribution):
    """A Normal truncated to positive numbers, of event shape `(1,)`."""

    def __init__(self, loc: float, scale: float) -> None:
        base = Uniform(torch.zeros(1), torch.ones(1), validate_args=False)
        self.transform: Any = _NormalToPositive(loc, scale)
        super().__init__(base, [self.transform], validate_args=False)
        self._event_shape, self._batch_shape = torch.Size((1,)), torch.Size()

    @property
    def support(self) -> Any:
        return constraints.independent(constraints.nonnegative, 1)

    def log_prob(self, value: Tensor) -> Tensor:
        inside = (value >= 0.0).all(dim=-1)
        total = -self.transform.log_abs_det_jacobian(value, value).sum(dim=-1)
        return torch.where(inside, total, -torch.inf)

    def icdf(self, value: Tensor) -> Tensor:
        """Return quantiles."""
        return self.transform(value)

    def sample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:
        return self.transform(torch.rand(*sample_shape, 1))
