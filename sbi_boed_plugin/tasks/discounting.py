r"""Money now or more money later?

The model is that of Foster et al., *Deep Adaptive Design*, ICML 2021,
https://arxiv.org/abs/2103.02438, after Vincent, *Hierarchical Bayesian Estimation and
Hypothesis Testing for Delay Discounting Tasks*, Behavior Research Methods 2016.
"""

import torch
from sbi.utils import MultipleIndependent
from torch import Tensor
from torch.distributions import Normal

from sbi_boed_plugin.tasks._discrete import DiscreteTask, PositiveNormal

__all__ = ["HyperbolicDiscounting"]

LAPSE = 0.01
LATER = 100.0
LOG_RATE_MEAN, LOG_RATE_SCALE = -4.25, 1.5


class HyperbolicDiscounting(DiscreteTask):
    r"""Which reward now, and how long a delay, to offer a person against 100 later.

    .. math:: P(x = 1) = \epsilon + (1 - 2 \epsilon)
        \Phi\Big(\frac{V_1 - V_0}{\alpha}\Big), \quad V_0 = R, \quad
        V_1 = \frac{100}{1 + k D},

    with :math:`\epsilon = 0.01`, :math:`\log k \sim N(-4.25, 1.5^2)` and
    :math:`\alpha \sim \text{HalfNormal}(2)`. The datum is 1 if the person waits. A
    design holds the reward now, :math:`R \in [0, 100]`, and the logarithm of the delay
    in days, :math:`\log D \in [0, 10]`; parameters are :math:`(\log k, \alpha)`.

    Example:
        >>> task = HyperbolicDiscounting()
        >>> value, standard_error = task.exact_eig(torch.tensor([50.0, 4.25]))
        >>> f"{value:.2f} nats"
        '0.61 nats'
    """

    name = "hyperbolic_discounting"
    num_values = 2
    parameter_names = ("log discount rate log k", "variability α")
    design_names = ("reward now R", "log delay log D")
    x_names = ("waits x",)

    def __init__(self) -> None:
        rate = Normal(torch.tensor([LOG_RATE_MEAN]), LOG_RATE_SCALE)
        self.prior = MultipleIndependent([rate, PositiveNormal(0.0, 2.0)])
        self.design_low = torch.zeros(2)
        self.design_high = torch.tensor([100.0, 10.0])
        self.true_parameters = torch.tensor([[-4.0, 1.0]])

    def _log_chance(self, number: Tensor, theta: Tensor, design: Tensor) -> Tensor:
        log_rate, variability = theta[..., 0], theta[..., 1]
        later = LATER / (1.0 + (log_rate + design[..., 1]).exp())
        gap = (later - design[..., 0]) / variability.clamp_min(1e-6)
        waits = LAPSE + (1.0 - 2.0 * LAPSE) * torch.special.ndtr(gap)
        return torch.where(number > 0.5, waits, 1.0 - waits).log()

    def _prior_quantiles(self, points: Tensor) -> Tensor:
        rate = LOG_RATE_MEAN + LOG_RATE_SCALE * torch.special.ndtri(points[:, 0])
        variability = 2.0 * torch.special.ndtri(0.5 + 0.5 * points[:, 1])
        return torch.stack([rate, variability], dim=-1)
