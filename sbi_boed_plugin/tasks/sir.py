r"""A stochastic epidemic, observed by counting the infected.

The model and the prior are those of Kleinegesse and Gutmann, *Gradient-Based Bayesian
Experimental Design for Implicit Models using Mutual Information Lower Bounds*, 2021,
https://arxiv.org/abs/2105.04379, and of Ivanova et al., *Implicit Deep Adaptive
Design*, NeurIPS 2021, https://arxiv.org/abs/2111.02329.

The likelihood is intractable, but counts are discrete: `brute_force_eig` is the
difference of the entropies of :math:`x \mid t` and :math:`x \mid \theta, t`, from
histograms.
"""

import math
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor
from torch.distributions import Independent, LogNormal
from torch.distributions.transforms import (
    AffineTransform,
    ComposeTransform,
    ExpTransform,
)
from torch.quasirandom import SobolEngine

from sbi_boed_plugin._numbers import check_integer
from sbi_boed_plugin.tasks.task import Task

__all__ = ["SIR", "BruteForceEIG", "brute_force_eig", "unbiased_entropy"]

POPULATION = 500
INITIALLY_INFECTED = 2
# Their bias is below a fifth of a person in the mean and 0.003 in the probability of
# extinction.
NUM_STEPS = 200

# These limit memory and keep the working set of a step in the processor's cache.
_CHUNK_ROWS = 4096
_NOISE_STEPS = 64
_CHUNK_TRAJECTORIES = 32_768


class SIR(Task):
    r"""How many of 500 people are infected at chosen times of an epidemic.

    Two people are infected at first. The infection rate :math:`\beta` and the recovery
    rate :math:`\gamma` are independent and log-normal, with medians 0.5 and 0.1 and
    scale 0.5. A design is one or several times in [0.01, 100] at which the infected of
    *one* epidemic are counted; the data are in the order of the design.

    An extinct epidemic has exactly nobody infected: the model's data have a point mass
    at zero, where no density exists. The infected are therefore rounded to people, and
    a uniform number from [0, 1) is added: the information gain is that of the count,
    and `x.floor()` recovers it.
    """

    name = "sir"
    parameter_names = ("infection rate β [1/time]", "recovery rate γ [1/time]")
    theta_transform = ExpTransform().inv
    x_transform = ComposeTransform([AffineTransform(1.0, 1.0), ExpTransform().inv])

    def __init__(self, *, dim_design: int = 1) -> None:
        log_median = torch.tensor([math.log(0.5), math.log(0.1)])
        self.prior = Independent(LogNormal(log_median, 0.5), 1)
        self.true_parameters = torch.tensor([[0.8, 0.1]])
        self._measure(dim_design, 0.01, 100.0, "time{}", "infected{} [people]")

    def _simulate(self, theta: Tensor, design: Tensor) -> Tensor:
        self._check_domain(design, theta)
        infected = infected_at(theta.detach(), design.detach(), num_steps=NUM_STEPS)
        # A little less than one, so that single precision does not round up to the
        # next person: its numbers are 2^-15 apart below 512.
        return infected.round() + torch.rand_like(infected) * (1.0 - 2.0**-14)


def time_grid(times: Tensor, num_steps: int) -> tuple[Tensor, Tensor]:
    r"""Return steps `(num_total, rows)` and after which of them each time is reached.

    The `num_steps` steps run to the latest time :math:`T` of a row at
    :math:`T (k / K)^2`: short at first, where the epidemic is small and grows fast,
    and long in the slow decline. Every further time is met exactly.
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

    with both held in :math:`[0, N]`. Given the rate :math:`f = \beta S / N`, from the
    middle of a step, the infected follow Feller's branching diffusion, whose mean and
    variance over a step are known. Milstein's term :math:`(D^2 - \operatorname{Var} D)
    / (4 I)` of their noise :math:`D` keeps small epidemics from dying out too often.

    Steps have shape `(num_steps, rows)`, or `(num_steps, 1)` for all rows; the infected
    have shape `(num_steps, rows)` and are real numbers.
    """
    beta, gamma = theta.T.contiguous()
    contact = beta / POPULATION
    susceptible = torch.full_like(beta, POPULATION - INITIALLY_INFECTED)
    infected = torch.full_like(beta, INITIALLY_INFECTED)
    history = []
    for block in steps.split(_NOISE_STEPS):
        shape = (len(block), 2, len(theta))
        like = {"dtype": theta.dtype, "device": theta.device}
        normals = torch.randn(shape, generator=generator, **like)
        for step, normal in zip(block, normals, strict=True):
            # f = beta S / N / (1 + beta I dt / 2N): its value mid-step, never negative.
            rate = contact * susceptible / (1.0 + step * (contact / 2) * infected)
            # The offset, far below rounding, spares a case for 0 / 0.
            exponent = (rate - gamma) * step + 1e-20
            growth = torch.expm1(exponent)
            person_time = infected * step * growth / exponent
            infections, recoveries = rate * person_time, gamma * person_time
            growth = growth + 1.0
            variances = infections * growth, recoveries * growth
            noise = variances[0].sqrt() * normal[0]
            change = noise - variances[1].sqrt() * normal[1]
            milstein = (change.square() - sum(variances)) / (4.0 * infected + 1e-12)
            susceptible = (susceptible - infections - noise).clamp(0, POPULATION)
            infected = infected + infections - recoveries + change + milstein
            infected = infected.clamp(0, POPULATION)
            history.append(infected)
    return torch.stack(history)


def infected_at(
    theta: Tensor,
    times: Tensor,
    *,
    num_steps: int,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Simulate one epidemic per row and return the infected at given times.

    Times have shape `(rows, num_times)`, or `(1, num_times)` for all rows.
    """
    infected = [theta.new_empty(0, times.shape[1])]
    for start in range(0, theta.shape[0], _CHUNK_ROWS):
        rows = slice(start, start + _CHUNK_ROWS)
        steps, index = time_grid(times if len(times) == 1 else times[rows], num_steps)
        history = integrate_infected(theta[rows], steps, generator)
        infected.append(history.gather(0, index.expand(-1, history.shape[1])).T)
    return torch.cat(infected)


class BruteForceEIG(NamedTuple):
    """Expected information gain of one count of the infected at each time, in nats."""

    eig: Tensor
    standard_error: Tensor


def unbiased_entropy(counts: Tensor) -> Tensor:
    r"""Return entropies in nats of counts `(..., num_bins)`, nearly without bias.

    Grassberger, *Entropy Estimates from Insufficient Samplings*, 2003,
    https://arxiv.org/abs/physics/0307138,

    .. math:: \hat H = \log n - \frac1n \sum_i n_i G(n_i), \quad
        G(k) = \psi(k) + \tfrac12 (-1)^k [\psi(\tfrac{k+1}2) - \psi(\tfrac k2)].
    """
    counts = counts.cpu().double()
    total = counts.sum(dim=-1)
    k = counts.clamp(min=1.0)
    sign = 1.0 - 2.0 * torch.remainder(k, 2.0)
    g = torch.digamma(k) + 0.5 * sign * (
        torch.digamma((k + 1.0) / 2.0) - torch.digamma(k / 2.0)
    )
    return total.log() - (counts * g).sum(dim=-1) / total


def brute_force_eig(
    times: Tensor,
    *,
    num_parameters: int = 2048,
    num_trajectories: int = 2048,
    num_replicates: int = 16,
    num_steps: int = 800,
    seed: int = 0,
) -> BruteForceEIG:
    """Estimate the expected information gain of one count, at several times at once.

    All times `(num_times,)`, between 0 and 100, are read off the same trajectories,
    `num_trajectories` for each of `num_parameters` draws from the prior. These come
    from `num_replicates` scrambled Sobol sequences, whose jackknife gives the standard
    error. Too few trajectories leave a bias: up to 0.01 nats with 1024 and 0.003 with
    2048. Global random state is neither used nor changed.
    """
    if times.dim() != 1 or not bool((times >= 0).all()):
        raise ValueError(
            "`times` must be a vector of times that are not negative, got "
            f"{times.tolist()}."
        )
    num_replicates = check_integer(
        "num_replicates", num_replicates, 2, remedy="One has no standard error."
    )
    generator = torch.Generator().manual_seed(seed)
    num_trajectories += num_trajectories % 2
    base_prior = cast(Any, SIR().prior).base_dist
    marginals, conditionals = [], []
    for replicate in range(num_replicates):
        engine = SobolEngine(2, scramble=True, seed=seed * num_replicates + replicate)
        points = engine.draw(
            math.ceil(num_parameters / num_replicates), dtype=torch.float64
        )
        # The first point of a scrambled sequence may be 0, whose quantile is infinite.
        theta = base_prior.icdf(points.clamp(1e-9, 1.0 - 1e-9)).float()
        marginal, conditional = _replicate(
            theta, times, num_trajectories, num_steps, generator
        )
        marginals.append(marginal)
        conditionals.append(conditional)
    marginal, conditional = torch.stack(marginals), torch.stack(conditionals)

    whole = _entropy(marginal.sum(0)) - conditional.mean(0)
    others = (conditional.sum(0) - conditional) / (num_replicates - 1)
    left_out = _entropy(marginal.sum(0) - marginal) - others
    # Jackknife: the estimate without its bias of first order, and its standard error.
    eig = num_replicates * whole - (num_replicates - 1) * left_out.mean(0)
    variance = (num_replicates - 1) * left_out.var(0, correction=0)
    return BruteForceEIG(eig, variance.sqrt())


def _replicate(
    theta: Tensor,
    times: Tensor,
    num_trajectories: int,
    num_steps: int,
    generator: torch.Generator,
) -> tuple[Tensor, Tensor]:
    """Return the pooled histogram (time, count) and the mean entropy given theta."""
    num_times, num_bins = len(times), POPULATION + 1
    pooled = torch.zeros(num_times, num_bins, dtype=torch.float64)
    entropy = torch.zeros(num_times, dtype=torch.float64)
    for chunk in theta.split(max(1, _CHUNK_TRAJECTORIES // num_trajectories)):
        infected = infected_at(
            chunk.repeat_interleave(num_trajectories, dim=0),
            times.float().unsqueeze(0),
            num_steps=num_steps,
            generator=generator,
        )
        # Two histograms of each time for each row of parameters.
        counts = infected.round().long().view(2 * len(chunk), -1, num_times)
        cells = torch.arange(2 * len(chunk) * num_times).view(-1, 1, num_times)
        cells = (cells * num_bins + counts).flatten()
        halves = torch.bincount(cells, minlength=2 * len(chunk) * num_times * num_bins)
        halves = halves.view(len(chunk), 2, num_times, num_bins)
        pooled += halves.sum(dim=(0, 1))
        # Bins that few trajectories reach leave a bias, which falls about as one over
        # their number: extrapolate from half of them.
        whole = unbiased_entropy(halves.sum(dim=1))
        entropy += (2.0 * whole - unbiased_entropy(halves).mean(dim=1)).sum(dim=0)
    return pooled, entropy / len(theta)


def _entropy(counts: Tensor) -> Tensor:
    """Return the entropies of the histograms themselves, which are too low."""
    probabilities = counts / counts.sum(dim=-1, keepdim=True)
    return -torch.xlogy(probabilities, probabilities).sum(dim=-1)
