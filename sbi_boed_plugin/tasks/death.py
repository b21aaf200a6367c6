r"""How fast does a population become infected, one count at a time?

The model is that of Foster et al., *Deep Adaptive Design*, ICML 2021,
https://arxiv.org/abs/2103.02438 (the death process of Cook, Gibson and Gilligan,
*Optimal Observation Times in Experimental Epidemic Processes*, Biometrics 2008).
"""

import torch
from torch import Tensor

from sbi_boed_plugin.tasks._discrete import DiscreteTask, PositiveNormal

__all__ = ["DeathProcess"]

POPULATION = 50


class DeathProcess(DiscreteTask):
    r"""When to count the infected of a population of 50.

    .. math:: x \sim \text{Binomial}(50, 1 - e^{-\theta \xi}), \quad
        \theta \sim N(1, 1) \text{ truncated to } \theta > 0, \quad \xi \in [0, 10].

    Each experiment has a population of its own.

    Example:
        >>> value, standard_error = DeathProcess().exact_eig(torch.tensor([1.5]))
        >>> f"{value:.2f} nats"
        '1.35 nats'
    """

    name = "death_process"
    num_values = POPULATION + 1
    parameter_names = ("rate θ",)
    design_names = ("time ξ",)
    x_names = ("number of infected x",)

    def __init__(self) -> None:
        self.prior = PositiveNormal(1.0, 1.0)
        self.design_low, self.design_high = torch.zeros(1), torch.full((1,), 10.0)
        self.true_parameters = torch.ones(1, 1)

    def _log_chance(self, number: Tensor, theta: Tensor, design: Tensor) -> Tensor:
        exposure = (theta * design)[..., 0]
        total = torch.full_like(exposure, float(POPULATION))
        return log_binomial(number, total, (-torch.expm1(-exposure)).log(), -exposure)

    def _prior_quantiles(self, points: Tensor) -> Tensor:
        prior: PositiveNormal = self.prior  # type: ignore[assignment]
        return prior.icdf(points)


def log_binomial(
    number: Tensor, total: Tensor, log_chance: Tensor, log_other: Tensor
) -> Tensor:
    """Return the log-probability of a number of successes, `-inf` of more than all.

    From the logarithms of the chances of a success and of a failure: differences from
    one would lose their digits.
    """
    left = total - number
    others = left.clamp_min(0.0)
    log_choose = torch.lgamma(total + 1.0) - torch.lgamma(number + 1.0)
    log_choose = log_choose - torch.lgamma(others + 1.0)
    log_tails = torch.where(number > 0.0, number * log_chance, 0.0)
    log_tails = log_tails + torch.where(others > 0.0, others * log_other, 0.0)
    return (log_choose + log_tails).masked_fill(left < 0.0, -torch.inf)
