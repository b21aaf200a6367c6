r"""Hidden sources, found by measuring their signal.

The model is that of Foster et al., *Deep Adaptive Design: Amortizing Sequential
Bayesian Experimental Design*, ICML 2021, https://arxiv.org/abs/2103.02438.
"""

import math

import torch
from torch import Tensor
from torch.distributions import Independent, Normal

from sbi_boed_plugin._numbers import check_integer
from sbi_boed_plugin.tasks._gaussian import GaussianTask

__all__ = ["LocationFinding"]

BACKGROUND = 0.1
MAX_SIGNAL = 1e-4


class LocationFinding(GaussianTask):
    r"""Where to measure the signal of hidden sources.

    .. math:: x \sim N\Big(\log\Big(b + \sum_k
        \frac{1}{m + \lVert\theta_k - \xi\rVert^2}\Big), 0.5^2\Big), \quad
        \theta_k \sim N(0, I), \quad \xi \in [-4, 4]^d,

    with :math:`b = 0.1` and :math:`m = 10^{-4}`. The data are the logarithm of the
    signal. A row of parameters holds the coordinates of the first source, then those
    of the second, and so on. No data tell which source is the first. The information
    gain of one measurement depends on its distance from the origin alone.

    Args:
        num_sources: Number of sources.
        dim_space: Number of coordinates of a source and of a design.

    Example:
        >>> value, standard_error = LocationFinding().exact_eig(torch.zeros(2))
        >>> f"{value:.2f} nats"
        '0.83 nats'
    """

    name = "location_finding"
    noise = 0.5
    x_names = ("log signal x",)

    def __init__(self, *, num_sources: int = 2, dim_space: int = 2) -> None:
        num_sources = check_integer("num_sources", num_sources, 1)
        dim_space = check_integer("dim_space", dim_space, 1)
        self.num_sources = num_sources
        self.dim_space = dim_space
        dim_theta = num_sources * dim_space
        self.prior = Independent(Normal(torch.zeros(dim_theta), 1.0), 1)
        self.design_low = torch.full((dim_space,), -4.0)
        self.design_high = torch.full((dim_space,), 4.0)
        # Within one standard deviation of the prior, and the sources apart.
        self.true_parameters = torch.linspace(-1.0, 1.0, dim_theta).unsqueeze(0)
        self.dim_x = 1
        axes = range(1, dim_space + 1)
        self.design_names = tuple(f"coordinate ξ{j}" for j in axes)
        self.parameter_names = tuple(
            f"coordinate {j} of source {k}"
            for k in range(1, num_sources + 1)
            for j in axes
        )

    def _mean(self, theta: Tensor, design: Tensor) -> Tensor:
        sources = theta.unflatten(-1, (self.num_sources, self.dim_space))
        squared = (sources - design.unsqueeze(-2)).square().sum(dim=-1)
        signal = (MAX_SIGNAL + squared).reciprocal().sum(dim=-1, keepdim=True)
        return torch.log(BACKGROUND + signal)

    def _mean_range(self, theta: Tensor) -> tuple[float, float]:
        loudest = BACKGROUND + self.num_sources / MAX_SIGNAL
        return math.log(BACKGROUND), math.log(loudest)
