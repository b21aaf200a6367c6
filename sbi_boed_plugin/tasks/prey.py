r"""How many prey to offer a predator, to learn how it hunts.

The model is that of Moffat et al., *Sequential Experimental Design for Predator-Prey
Functional Response Experiments*, Journal of the Royal Society Interface 2020, with the
priors and the time of Blau et al., *Optimizing Sequential Experimental Design with Deep
Reinforcement Learning*, ICML 2022, https://arxiv.org/abs/2202.00821.
"""

import torch
from torch import Tensor
from torch.distributions import Independent, LogNormal
from torch.distributions.transforms import (
    AffineTransform,
    ComposeTransform,
    ExpTransform,
)

from sbi_boed_plugin.tasks._discrete import DiscreteTask
from sbi_boed_plugin.tasks.death import log_binomial

__all__ = ["PreyPopulation"]

HOURS = 24.0
MOST_PREY = 300
LOG_MEAN, LOG_SCALE = -1.4, 1.35


class PreyPopulation(DiscreteTask):
    r"""How many prey to offer a predator for 24 hours.

    Of :math:`\xi` prey, a whole number from 1 to 300, those that are left follow
    Holling's type III response,

    .. math:: \frac{dN}{dt} = -\frac{a N^2}{1 + a T_h N^2}, \quad N(0) = \xi, \quad
        x \sim \text{Binomial}\Big(\xi, 1 - \frac{N(24)}{\xi}\Big),

    with the attack rate :math:`\log a \sim N(-1.4, 1.35^2)` and the handling time
    :math:`\log T_h \sim N(-1.4, 1.35^2)`. The data are the number of prey eaten plus a
    uniform number from [0, 1), as in :class:`SIR`, so that they have a density.
    Designs between whole numbers are rounded.

    Example:
        >>> value, standard_error = PreyPopulation().exact_eig(torch.tensor([50.0]))
        >>> f"{value:.2f} nats"
        '1.19 nats'
    """

    name = "prey_population"
    num_values = MOST_PREY + 1
    is_dequantised = True
    parameter_names = ("attack rate a", "handling time T_h [h]")
    design_names = ("number of prey ξ",)
    x_names = ("number of prey eaten x",)
    theta_transform = ExpTransform().inv
    design_transform = ExpTransform().inv
    x_transform = ComposeTransform([AffineTransform(1.0, 1.0), ExpTransform().inv])

    def __init__(self) -> None:
        loc = torch.full((2,), LOG_MEAN)
        self.prior = Independent(LogNormal(loc, LOG_SCALE), 1)
        self.design_low = torch.ones(1)
        self.design_high = torch.full((1,), float(MOST_PREY))
        self.true_parameters = loc.exp().unsqueeze(0)

    def _log_chance(self, number: Tensor, theta: Tensor, design: Tensor) -> Tensor:
        attack, handling = theta.unbind(dim=-1)
        start = design[..., 0].round().to(theta)
        # The solution in closed form: T_h N² + c N = 1 / a.
        c = HOURS + 1.0 / (attack * start) - handling * start
        root = (c.square() + 4.0 * handling / attack).sqrt()
        rising = 2.0 / (attack * (c + root))
        falling = (root - c) / (2.0 * handling)
        left = torch.where(c > 0.0, rising, falling)
        share = (left / start).clamp(0.0, 1.0)
        return log_binomial(number, start, torch.log1p(-share), share.log())

    def _prior_quantiles(self, points: Tensor) -> Tensor:
        return (LOG_MEAN + LOG_SCALE * torch.special.ndtri(points)).exp()
