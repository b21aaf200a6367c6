r"""Brute-force expected information gain of counting the infected at one time.

The likelihood of the stochastic SIR model is intractable, but counts are discrete:
many trajectories at the same parameters give a histogram of
:math:`p(x \mid \theta, t)`, and those of many parameters one of
:math:`p(x \mid t)`. Then

.. math:: EIG(t) = H[x \mid t] - E_\theta H[x \mid \theta, t].

No estimator is trained, so that trained ones can be judged by it.
"""

import math
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor
from torch.quasirandom import SobolEngine

from sbi_boed_plugin._numbers import check_integer
from sbi_boed_plugin.tasks.sir import POPULATION, SIR, infected_at

__all__ = ["BruteForceEIG", "brute_force_eig", "unbiased_entropy"]

_CHUNK_TRAJECTORIES = 32_768


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
