"""Steps of sequential Monte Carlo: how far, which particles, where they move."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

__all__ = [
    "Particles",
    "effective_share",
    "largest_step",
    "nan_to_zero_density",
    "propose",
    "systematic_resample",
]

# Effective share of the particles that a step of the likelihood leaves.
_EFFECTIVE_SHARE = 0.5


def nan_to_zero_density(values: Tensor) -> Tensor:
    """Return log-densities in which what is undefined is impossible."""
    return torch.where(values.isnan(), -torch.inf, values)


class Particles(NamedTuple):
    """Particles, their log-density before an observation, and its log-likelihood."""

    theta: Tensor
    before: Tensor
    current: Tensor

    def rows(self, rows: Tensor | slice) -> "Particles":
        """Return some of the particles."""
        return Particles(*(part[rows] for part in self))

    def log_target(self, power: float) -> Tensor:
        """Return the log-density with the new likelihood raised to `power`."""
        return self.before + power * self.current

    def replace(self, rows: slice, other: "Particles", where: Tensor) -> None:
        """Take over particles of another state, in place."""
        for old, new in zip(self, other, strict=True):
            mask = where.unsqueeze(1) if new.dim() > 1 else where
            old[rows] = torch.where(mask, new, old[rows])


def propose(old: Tensor, pool: Tensor, *, jump: bool) -> Tensor:
    """Return differential-evolution moves along differences of the other half.

    Symmetric, and scaled to the belief whatever its shape; full differences jump
    between separate modes.
    """
    first, second = (
        pool[torch.randint(len(pool), (len(old),), device=old.device)] for _ in range(2)
    )
    if jump:
        scale = old.new_ones(len(old), 1)
    else:
        # From zero to the best scale for a Normal: some fit a belief of any shape.
        best = 2.38 / math.sqrt(2.0 * old.shape[1])
        scale = best * torch.rand(len(old), 1, device=old.device, dtype=old.dtype)
    noise = 1e-3 * pool.std(dim=0) * torch.randn_like(old)
    return old + scale * (first - second) + noise


def effective_share(log_weights: Tensor) -> float:
    """Return the effective sample size of weights, as a share of their number."""
    log_weights = torch.log_softmax(log_weights.cpu().double(), dim=0)
    return math.exp(-float(torch.logsumexp(2.0 * log_weights, 0))) / len(log_weights)


def largest_step(log_likelihood: Tensor, most: float) -> float:
    """Return the step of the likelihood's power that keeps enough particles alive."""
    log_likelihood = log_likelihood.cpu()
    if effective_share(most * log_likelihood) >= _EFFECTIVE_SHARE:
        return most
    low, high = 0.0, most
    for _ in range(50):
        middle = 0.5 * (low + high)
        if effective_share(middle * log_likelihood) >= _EFFECTIVE_SHARE:
            low = middle
        else:
            high = middle
    # No step is small enough where too many particles have no density at all.
    return low or 1e-6 * most


def systematic_resample(weights: Tensor) -> Tensor:
    """Return rows, each as often as its weight says, up to rounding."""
    num_rows = len(weights)
    steps = torch.arange(num_rows, dtype=torch.float64)
    positions = (steps + torch.rand((), dtype=torch.float64).item()) / num_rows
    rows = torch.searchsorted(weights.cpu().double().cumsum(0), positions)
    return rows.clamp_max(num_rows - 1).to(weights.device)
