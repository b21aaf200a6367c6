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
from sbi_boed_plugin.tasks.task import Task, check_not_negative, numbered

__all__ = ["SIR", "infected_at", "integrate_infected", "time_grid"]

POPULATION = 500
INITIALLY_INFECTED = 2
HORIZON = 100.0
PRIOR_MEDIAN = (0.5, 0.1)
PRIOR_SCALE = 0.5

# An epidemic with fewer people infected than this, averaged over the horizon, counts
# as died out.
_TAKE_OFF = 1.0

# Both limit memory and keep the working set of a step in the processor's cache.
_CHUNK_ROWS = 4096
_NOISE_STEPS = 64


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
        self.design_names = numbered("time", "time {}", dim_design)
        self.x_names = numbered(
            "infected [people]", "infected at time {} [people]", dim_design
        )

    def _simulate(self, theta: Tensor, design: Tensor) -> Tensor:
        check_not_negative(
            "theta", theta, "rates", "pass natural units, not logarithms"
        )
        check_not_negative(
            "design", design, "times", f"choose them between 0.01 and {HORIZON:g}"
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


def time_grid(times: Tensor, num_steps: int) -> tuple[Tensor, Tensor]:
    r"""Return the steps that lead through given times, and where the times are met.

    The `num_steps` steps run to the latest time :math:`T` of a row at
    :math:`T (k / K)^2`: short at first, where the epidemic is small and grows fast,
    and long in the slow decline. Every further time is met exactly.

    Returns the steps, of shape `(num_total, rows)`, and after which of them each time
    is reached, of shape `(num_times, rows)`.

    Example:
        >>> steps, index = time_grid(torch.tensor([[8.0, 2.0]]), num_steps=2)
        >>> steps.cumsum(0).gather(0, index).T
        tensor([[8., 2.]])
    """
    num_rows, num_times = times.shape
    unit = torch.linspace(0.0, 1.0, num_steps + 1, dtype=times.dtype)[1:].square()
    grid = unit.to(times.device)[:, None] * times.amax(dim=1)
    if num_times == 1:
        index = torch.full((1, num_rows), num_steps - 1, device=times.device)
    else:
        grid, order = torch.cat([grid, times.T]).sort(dim=0)
        index = order.argsort(dim=0)[num_steps:]
    return grid.diff(dim=0, prepend=torch.zeros_like(grid[:1])), index


def integrate_infected(
    theta: Tensor, steps: Tensor, generator: torch.Generator | None = None
) -> Tensor:
    r"""Integrate the stochastic SIR model and return the infected after each step.

    With :math:`h = \beta S I / N` the model is

    .. math::
        dS &= -h \, dt - \sqrt{h} \, dW_1 \\
        dI &= (h - \gamma I) \, dt + \sqrt{h} \, dW_1 - \sqrt{\gamma I} \, dW_2

    with both held in :math:`[0, N]`. Given the rate :math:`f = \beta S / N` the
    infected follow a linear equation (Feller's branching diffusion), whose mean and
    variance over a step are known. A step uses them, with :math:`f` from the middle of
    the step, and adds Milstein's term

    .. math:: (D^2 - \operatorname{Var} D) / (4 I)

    to the noise :math:`D` of :math:`I`. The term gives the noise its skewness: without
    it, small epidemics fall below zero, that is die out, too often.

    Steps have shape `(num_steps, rows)`, or `(num_steps, 1)` for all rows; the infected
    after each have shape `(num_steps, rows)` and are real numbers. The noise comes from
    torch's global generator if `generator` is `None`.
    """
    beta, gamma = theta[:, 0].contiguous(), theta[:, 1].contiguous()
    num_steps, num_rows = steps.shape[0], theta.shape[0]
    contact = beta / POPULATION
    susceptible = torch.full_like(beta, POPULATION - INITIALLY_INFECTED)
    infected = torch.full_like(beta, INITIALLY_INFECTED)
    history = theta.new_empty(num_steps, num_rows)

    # Buffers, reused by every step: allocation would cost as much as the arithmetic.
    rates = torch.stack([beta, gamma])
    infection_rate = rates[0]
    ones = torch.ones_like(beta)
    flows, noises = torch.empty_like(rates), torch.empty_like(rates)
    exponent, growth, mass, buffer = torch.empty(4, num_rows).to(theta).unbind(0)

    for start in range(0, num_steps, _NOISE_STEPS):
        block = steps[start : start + _NOISE_STEPS]
        normals = torch.randn(
            (block.shape[0], 2, num_rows),
            dtype=theta.dtype,
            device=theta.device,
            generator=generator,
        )
        half_contacts = block * (contact / 2)
        for offset in range(block.shape[0]):
            step = block[offset]
            # f = beta S / N / (1 + beta I dt / 2N): its value mid-step, never negative.
            torch.addcmul(ones, half_contacts[offset], infected, out=buffer)
            torch.mul(contact, susceptible, out=infection_rate).div_(buffer)
            # The offset, far below rounding, spares a case for 0 / 0.
            torch.sub(infection_rate, gamma, out=exponent).mul_(step).add_(1e-20)
            torch.expm1(exponent, out=growth)
            torch.mul(infected, step, out=mass).mul_(growth).div_(exponent)
            growth.add_(1.0)
            torch.mul(rates, mass, out=flows)
            # Variance of each noise, then the noises themselves.
            torch.mul(flows, growth, out=noises)
            variance = torch.add(noises[0], noises[1], out=exponent)
            noises.sqrt_().mul_(normals[offset])
            change = torch.sub(noises[0], noises[1], out=growth)
            torch.mul(infected, 4.0, out=mass).add_(1e-12)
            torch.mul(change, change, out=buffer).sub_(variance).div_(mass)
            susceptible.sub_(flows[0]).sub_(noises[0]).clamp_(0, POPULATION)
            following = torch.add(infected, flows[0], out=history[start + offset])
            following.sub_(flows[1]).add_(change).add_(buffer).clamp_(0, POPULATION)
            infected = following
    return history


def infected_at(
    theta: Tensor,
    times: Tensor,
    *,
    num_steps: int,
    generator: torch.Generator | None = None,
) -> tuple[Tensor, Tensor]:
    """Simulate one epidemic per row and return the infected at given times.

    Times have shape `(rows, num_times)`, or `(1, num_times)` for all rows. The second
    value is the average of each row over the time up to its latest one.
    """
    infected, averages = [theta.new_empty(0, times.shape[1])], [theta.new_empty(0)]
    for start in range(0, theta.shape[0], _CHUNK_ROWS):
        rows = slice(start, start + _CHUNK_ROWS)
        chunk_times = times if times.shape[0] == 1 else times[rows]
        steps, index = time_grid(chunk_times, num_steps)
        history = integrate_infected(theta[rows], steps, generator)
        infected.append(history.gather(0, index.expand(-1, history.shape[1])).T)
        averages.append((history * steps).sum(dim=0) / steps.sum(dim=0))
    return torch.cat(infected), torch.cat(averages)
