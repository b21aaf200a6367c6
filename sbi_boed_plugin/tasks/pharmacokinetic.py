r"""A drug in the blood: one compartment, with absorption and elimination.

The model is that of Ryan et al., *Towards Bayesian Experimental Design for Nonlinear
Models That Require a Large Number of Sampling Times*, CSDA 2014, as in Kleinegesse and
Gutmann, *Bayesian Experimental Design for Implicit Models by Mutual Information Neural
Estimation*, ICML 2020, https://arxiv.org/abs/2002.08129.
"""

import math

import torch
from torch import Tensor
from torch.distributions import Independent, LogNormal
from torch.distributions.transforms import (
    AffineTransform,
    ComposeTransform,
    ExpTransform,
)

from sbi_boed_plugin.tasks._gaussian import GaussianTask

__all__ = ["Pharmacokinetic", "concentration"]

DOSE = 400.0


def concentration(theta: Tensor, times: Tensor) -> Tensor:
    r"""Return the concentration of a drug in the blood, without noise.

    .. math:: m(t) = \frac{400}{V} \frac{k_a}{k_a - k_e}
        \big(e^{-k_e t} - e^{-k_a t}\big),

    and its limit where the rates are equal, for parameters `(..., 3)`, the rates of
    absorption and elimination and the volume, and times `(..., dim_design)`.
    """
    absorption, elimination, volume = theta.unbind(dim=-1)
    slower = torch.minimum(absorption, elimination).unsqueeze(-1)
    difference = (absorption - elimination).abs().unsqueeze(-1)
    # (exp(-a t) - exp(-b t)) / (b - a) with the slower rate taken out: no difference of
    # nearly equal numbers, and no overflow. The ratio is one where both are tiny.
    y = (difference * times).clamp(min=1e-30)
    remaining = times * torch.exp(-slower * times) * (-torch.expm1(-y) / y)
    return (DOSE * absorption / volume).unsqueeze(-1) * remaining


class Pharmacokinetic(GaussianTask):
    r"""When to take blood after a patient swallowed a drug.

    .. math:: x_j \sim N\big(m(t_j),\; 0.01\, m(t_j)^2 + 0.1\big), \quad
        \log (k_a, k_e, V) \sim N\big(\log (1, 0.1, 20),\; 0.05\, I\big), \quad
        t_j \in [0, 24],

    with the concentration :math:`m` of `concentration`, times in hours, rates per hour
    and the volume in litres. The `dim_design` samples may be in any order. The prior is
    log-normal: parameters are positive, and logarithms for a network.

    Example:
        >>> value, standard_error = Pharmacokinetic().exact_eig(torch.tensor([12.0]))
        >>> f"{value:.2f} nats"
        '1.14 nats'
    """

    name = "pharmacokinetic"
    parameter_names = (
        "absorption rate kₐ [1/h]",
        "elimination rate kₑ [1/h]",
        "volume V [l]",
    )
    theta_transform = ExpTransform().inv
    # Absorption takes minutes, elimination hours: early times need the resolution.
    design_transform = ComposeTransform(
        [AffineTransform(0.25, 1.0), ExpTransform().inv]
    )

    def __init__(self, *, dim_design: int = 1) -> None:
        log_median = torch.tensor([1.0, 0.1, 20.0]).log()
        self.prior = Independent(LogNormal(log_median, math.sqrt(0.05)), 1)
        # Within two standard deviations of the prior: neither special nor rare.
        self.true_parameters = torch.tensor([[1.5, 0.15, 15.0]])
        names = "time{} [h]", "concentration{} [mg/l]"
        self._measure(dim_design, 0.0, 24.0, *names)

    def _mean(self, theta: Tensor, design: Tensor) -> Tensor:
        return concentration(theta, design)

    def _scale(self, mean: Tensor) -> Tensor:
        return torch.sqrt(0.01 * mean.square() + 0.1)

    def _mean_range(self, theta: Tensor) -> tuple[float, float]:
        # The blood never holds more than the whole dose.
        return 0.0, DOSE / float(theta[:, 2].min())
