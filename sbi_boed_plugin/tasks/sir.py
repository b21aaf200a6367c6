r"""A stochastic epidemic, observed by counting the infected.

The model and the prior are those of Kleinegesse and Gutmann, *Gradient-Based Bayesian
Experimental Design for Implicit Models using Mutual Information Lower Bounds*, 2021,
https://arxiv.org/abs/2105.04379, and of Ivanova et al., *Implicit Deep Adaptive
Design*, NeurIPS 2021, https://arxiv.org/abs/2111.02329.
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

from sbi_boed_plugin._numbers import check_integer
from sbi_boed_plugin.tasks.sir_dynamics import infected_at
from sbi_boed_plugin.tasks.task import Task

__all__ = ["SIR"]

HORIZON = 100.0
PRIOR_MEDIAN = (0.5, 0.1)
PRIOR_SCALE = 0.5

# An epidemic with fewer people infected than this, averaged over the horizon, counts
# as died out.
_TAKE_OFF = 1.0


class SIR(Task):
    r"""How many of 500 people are infected at chosen times of an epidemic.

    Two people are infected at first. The infection rate :math:`\beta` and the recovery
    rate :math:`\gamma` are independent and log-normal, with medians 0.5 and 0.1 and
    scale 0.5. A design is one or several times in [0.01, 100] at which the infected of
    *one* epidemic are counted; the data are in the order of the design. The
    likelihood is intractable; `brute_force_eig` has reference values of the expected
    information gain.

    An extinct epidemic has exactly nobody infected: the model's data have a point mass
    at zero, where no density exists. By default the infected are therefore rounded to
    people, and a uniform number from [0, 1) is added. No information is lost or
    gained by that addition, so that the information gain is that of the count, and
    `x.floor()` recovers it.

    Args:
        dim_design: Number of times.
        num_steps: Number of time steps to the latest time of a design. More steps
            refine the discretization. With 200 its bias is below a fifth of a person in
            the mean and 0.003 in the probability of extinction.
        dequantize: Whether data are rounded and made continuous as described. If not,
            they are the real number that the equations hold, with its point mass.
        drop_extinct: Whether to draw the noise of an epidemic anew, up to
            `max_redraws` times, as long as it died out: as long as fewer than one
            person is infected on average over the time from 0 to 100. Epidemics that
            still die out are returned as they are. This is for comparison with
            published results, which discard such epidemics. Those also discard
            their parameters, and with that change the prior; here parameters are
            given, and `x` follows the likelihood conditioned on an outbreak.
        max_redraws: How often the noise is drawn anew for `drop_extinct`.

    Raises:
        ValueError: If a number is out of range.

    Example:
        >>> task = SIR()
        >>> theta = task.prior.sample((3,))
        >>> x = task.simulator(theta, torch.tensor([[1.0], [10.0], [100.0]]))
        >>> x.shape
        torch.Size([3, 1])
        >>> task.has_log_likelihood
        False
    """

    name = "sir"
    parameter_names = ("infection rate β [1/time]", "recovery rate γ [1/time]")
    theta_transform = ExpTransform().inv
    x_transform = ComposeTransform([AffineTransform(1.0, 1.0), ExpTransform().inv])

    def __init__(
        self,
        *,
        dim_design: int = 1,
        num_steps: int = 200,
        dequantize: bool = True,
        drop_extinct: bool = False,
        max_redraws: int = 20,
    ) -> None:
        dim_design = check_integer("dim_design", dim_design, 1)
        num_steps = check_integer("num_steps", num_steps, 1)
        max_redraws = check_integer("max_redraws", max_redraws, 0)
        self.num_steps = num_steps
        self.dequantize = dequantize
        self.drop_extinct = drop_extinct
        self.max_redraws = max_redraws
        self.prior = Independent(
            LogNormal(
                torch.tensor([math.log(median) for median in PRIOR_MEDIAN]),
                torch.full((2,), PRIOR_SCALE),
            ),
            1,
        )
        self.design_low = torch.full((dim_design,), 0.01)
        self.design_high = torch.full((dim_design,), HORIZON)
        self.true_parameters = torch.tensor([[0.8, 0.1]])
        self.dim_x = dim_design
        if dim_design == 1:
            self.design_names, self.x_names = ("time",), ("infected [people]",)
        else:
            labels = range(1, dim_design + 1)
            self.design_names = tuple(f"time {j}" for j in labels)
            self.x_names = tuple(f"infected at time {j} [people]" for j in labels)

    def _simulate(self, theta: Tensor, design: Tensor) -> Tensor:
        if (theta < 0).any():
            raise ValueError(
                f"`theta` holds rates, which are not negative, got {theta.min():g}: "
                "pass natural units, not logarithms."
            )
        if (design < 0).any():
            raise ValueError(
                f"`design` holds times, which are not negative, got {design.min():g}: "
                f"choose them between 0.01 and {HORIZON:g}."
            )
        theta, design = theta.detach(), design.detach()
        if self.drop_extinct:
            infected = self._outbreaks(theta, design)
        else:
            infected, _ = infected_at(theta, design, num_steps=self.num_steps)
        if not self.dequantize:
            return infected
        # A little less than one, so that single precision does not round up to the
        # next person: its numbers are 2^-15 apart below 512.
        return infected.round() + torch.rand_like(infected) * (1.0 - 2.0**-14)

    def _outbreaks(self, theta: Tensor, times: Tensor) -> Tensor:
        """Return infected people of epidemics that took off within the horizon."""
        # Whether an epidemic takes off is a matter of the whole horizon.
        times = torch.cat([times, torch.full_like(times[:, :1], HORIZON)], dim=1)
        infected = theta.new_empty(times.shape)
        rows = torch.arange(theta.shape[0], device=theta.device)
        for _ in range(self.max_redraws + 1):
            infected[rows], averages = infected_at(
                theta[rows], times[rows], num_steps=self.num_steps
            )
            rows = rows[averages < _TAKE_OFF]
            if rows.numel() == 0:
                break
        return infected[:, :-1]
