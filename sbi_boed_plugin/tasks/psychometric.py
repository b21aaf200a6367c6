r"""How loud must a tone be to be heard?

The function is that of Watson, *QUEST+: A General Multidimensional Bayesian Adaptive
Psychometric Method*, Journal of Vision 2017, with a logistic curve.
"""

import torch
from torch import Tensor
from torch.distributions import Independent, Normal

from sbi_boed_plugin.tasks._discrete import DiscreteTask

__all__ = ["Psychometric"]

GUESS, LAPSE = 0.5, 0.02
MEANS, SCALES = (0.0, 1.0), (2.0, 0.5)


class Psychometric(DiscreteTask):
    r"""Which intensity to present in a choice between two intervals.

    .. math:: P(x = 1) = \gamma + (1 - \gamma - \lambda)
        \frac{1}{1 + e^{-s (\xi - m)}}, \quad \gamma = 0.5, \quad \lambda = 0.02,

    with the threshold :math:`m \sim N(0, 2^2)` and the slope :math:`\log s \sim N(1,
    0.5^2)`; parameters are :math:`(m, \log s)` and :math:`\xi \in [-6, 6]`. The datum
    is 1 if the answer is right.

    Example:
        >>> value, standard_error = Psychometric().exact_eig(torch.tensor([0.5]))
        >>> f"{value:.2f} nats"
        '0.12 nats'
    """

    name = "psychometric"
    num_values = 2
    parameter_names = ("threshold m", "log slope log s")
    design_names = ("intensity ξ",)
    x_names = ("right answer x",)

    def __init__(self) -> None:
        self.prior = Independent(Normal(torch.tensor(MEANS), torch.tensor(SCALES)), 1)
        self.design_low = torch.full((1,), -6.0)
        self.design_high = torch.full((1,), 6.0)
        self.true_parameters = torch.tensor([[0.5, 1.0]])

    def _log_chance(self, number: Tensor, theta: Tensor, design: Tensor) -> Tensor:
        rise = theta[..., 1].exp() * (design[..., 0] - theta[..., 0])
        right = GUESS + (1.0 - GUESS - LAPSE) * rise.sigmoid()
        return torch.where(number > 0.5, right, 1.0 - right).log()

    def _prior_quantiles(self, points: Tensor) -> Tensor:
        means, scales = (points.new_tensor(values) for values in (MEANS, SCALES))
        return means + scales * torch.special.ndtri(points)
