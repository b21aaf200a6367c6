"""Time steps of the stochastic SIR model, for many epidemics at once."""

import torch
from torch import Tensor

__all__ = ["infected_at", "integrate_infected", "time_grid"]

POPULATION = 500
INITIALLY_INFECTED = 2

# Both bound memory and keep the working set of a step in the processor's cache.
_CHUNK_ROWS = 4096
_NOISE_STEPS = 64


def time_grid(times: Tensor, num_steps: int) -> tuple[Tensor, Tensor]:
    r"""Return the steps that lead through given times, and where the times are met.

    The `num_steps` steps run to the latest time :math:`T` of a row at
    :math:`T (k / K)^2`: short at first, where the epidemic is small and grows fast,
    and long in the slow decline. Every further time is met exactly.

    Args:
        times: Times of shape `(rows, num_times)`, not negative, in any order.
        num_steps: Number of steps :math:`K`.

    Returns:
        Steps of shape `(num_total, rows)`, and indices of shape `(num_times, rows)`:
        after which of the steps each time is reached.

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

    Args:
        theta: Rates (beta, gamma) of shape `(rows, 2)`, per unit of time.
        steps: Lengths of the steps, of shape `(num_steps, rows)` or `(num_steps, 1)`.
        generator: Source of the noise; torch's global generator if `None`.

    Returns:
        Infected people of shape `(num_steps, rows)`, as real numbers.
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

    Args:
        theta: Rates (beta, gamma) of shape `(rows, 2)`, per unit of time.
        times: Times of shape `(rows, num_times)`, or `(1, num_times)` for all rows.
        num_steps: Number of steps to the latest time of each row.
        generator: Source of the noise; torch's global generator if `None`.

    Returns:
        Infected people of shape `(rows, num_times)`, as real numbers, and their
        average over the time up to the latest one, of shape `(rows,)`.
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
