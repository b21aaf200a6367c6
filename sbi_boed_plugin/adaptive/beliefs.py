r"""What is known during sequences of experiments, by particles in the learned model.

Sequential Monte Carlo: particles of the prior are reweighed by the likelihood of each
experiment. When few of them are left with weight, they are resampled, and move in steps
of the distance of two others, which fits posteriors of any shape and several modes (ter
Braak, *A Markov Chain Monte Carlo version of the genetic algorithm Differential
Evolution*, Statistics and Computing 2006).
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Distribution

from sbi_boed_plugin._prior import (
    draw_parameters,
    log_det_of_rows,
    to_real_numbers,
)
from sbi_boed_plugin.adaptive.policy import HistoryPolicy
from sbi_boed_plugin.adaptive.rollout import LearnedExperiment, Rollouts
from sbi_boed_plugin.objectives._eig_terms import contrasted

__all__ = ["Beliefs", "expected_gains", "roll_out_beliefs", "sizes_for"]

# Particles of a history, how many of them are kept, and their moves.
_NUM_PARTICLES, _NUM_KEPT, _NUM_MOVES = 128, 32, 2
# Least share of effective particles, shares of a distance that they move by, and noise
# of a move in units of the spread of the prior.
_LEAST_EFFECTIVE, _SHARES, _JITTER = 0.5, (1.0, 0.6, 0.3, 0.1), 0.01
# Data that stand for all that an experiment may yield, and histories of a step for each
# rollout of one that looks ahead: where many data cost little, and where each costs as
# much as the first. Pairs of data and parameters at once.
_MANY, _FEW, _MOST_PAIRS = (16, 4), (8, 1), 2**16


@dataclass(frozen=True)
class Beliefs:
    """Histories, and parameters that are drawn from the posterior at each of them.

    Parameters `(batch_dim, dim)`, designs `(num_experiments, batch_dim, dim_design)`,
    data likewise, and draws `(num_experiments + 1, num, batch_dim, dim)`, of the prior
    first.
    """

    theta: Tensor
    design: Tensor
    x: Tensor
    draws: Tensor

    def rows(self, chosen: Tensor) -> "Beliefs":
        """Return some of the histories, by their indices."""
        parts = self.design[:, chosen], self.x[:, chosen], self.draws[:, :, chosen]
        return Beliefs(self.theta[chosen], *parts)

    def renewed(self, new: "Beliefs") -> "Beliefs":
        """Return these with new histories in the place of the oldest, the first."""
        num = len(new.theta)
        pairs = zip(vars(self).items(), vars(new).values(), strict=True)
        dims = {"theta": 0, "design": 1, "x": 1, "draws": 2}
        return Beliefs(
            **{
                name: torch.cat(
                    [old.narrow(dims[name], num, len(self.theta) - num), added],
                    dim=dims[name],
                )
                for (name, old), added in pairs
            }
        )


@torch.no_grad()
def roll_out_beliefs(
    policy: HistoryPolicy,
    experiment: LearnedExperiment,
    prior: Distribution,
    theta: Tensor,
) -> Beliefs:
    """Return histories of a policy that chooses and explores, and what is known."""
    particles = _Particles(prior, theta)
    pairs = policy.start(len(theta))
    designs, data, draws = [], [], [particles.draws()]
    for _ in range(policy.num_experiments):
        design, _ = policy(pairs, chooses=True, explores=True)
        x = experiment(theta, design)
        pairs = policy.update(pairs, design, x)
        designs.append(design)
        data.append(x)
        so_far = torch.stack(designs), torch.stack(data)
        nothing = so_far[0].new_zeros(so_far[0].shape[:2])
        particles.learn(experiment, Rollouts(theta, *so_far, nothing))
        draws.append(particles.draws())
    return Beliefs(theta, *so_far, torch.stack(draws))


class _Particles:
    """Weighted particles of the posterior, of several histories at once."""

    def __init__(self, prior: Distribution, theta: Tensor) -> None:
        self.prior, self.inside = prior, theta
        self.to_real: Any = to_real_numbers(prior)
        num = _NUM_PARTICLES * len(theta)
        flat = draw_parameters(prior, num).to(theta)
        self.theta = flat.reshape(_NUM_PARTICLES, *theta.shape)
        # Draws next to the bound of a support are far out, and tell no spread.
        ordered = self.to_real(self.theta).flatten(0, 1).sort(dim=0).values
        self.jitter = _JITTER * (ordered[3 * num // 4] - ordered[num // 4])
        self.log_likelihood = theta.new_zeros(self.theta.shape[:2])
        self.log_weights = torch.zeros_like(self.log_likelihood)

    def draws(self) -> Tensor:
        """Return particles drawn by their weights, `(num, batch_dim, dim)`."""
        return _taken(self.theta, self._indices(_NUM_KEPT))

    def learn(self, experiment: LearnedExperiment, rollouts: Rollouts) -> None:
        """Take the last experiment into account."""
        last = Rollouts(
            rollouts.theta, rollouts.design[-1:], rollouts.x[-1:], rollouts.log_prob
        )
        values = _finite(experiment.log_likelihoods(self.theta, last)[0])
        self.log_likelihood = self.log_likelihood + values
        self.log_weights = self.log_weights + values
        weights = torch.softmax(self.log_weights, dim=0)
        num_effective = 1.0 / weights.square().sum(dim=0)
        if float(num_effective.mean()) > _LEAST_EFFECTIVE * len(weights):
            return
        indices = self._indices(len(weights))
        self.theta = _taken(self.theta, indices)
        self.log_likelihood = self.log_likelihood.gather(0, indices)
        self.log_weights = torch.zeros_like(self.log_weights)
        log_density, real = self._log_density(self.theta), self.to_real(self.theta)
        for _ in range(_NUM_MOVES):
            moved = self.to_real.inv(self._moved(real))
            new_density = self._log_density(moved)
            new_likelihood = _finite(
                experiment.log_likelihoods(moved, rollouts).sum(dim=0)
            )
            gain = new_likelihood + new_density - self.log_likelihood - log_density
            accepted = torch.rand_like(gain).log() < gain
            self.theta = torch.where(accepted.unsqueeze(-1), moved, self.theta)
            self.log_likelihood = torch.where(
                accepted, new_likelihood, self.log_likelihood
            )
            log_density = torch.where(accepted, new_density, log_density)
            real = self.to_real(self.theta)

    def _moved(self, real: Tensor) -> Tensor:
        """Return proposals, from real numbers to real numbers."""
        one, other = (
            torch.randint(len(real), real.shape[:2], device=real.device)
            for _ in range(2)
        )
        shares = torch.tensor(_SHARES, device=real.device, dtype=real.dtype)
        share = shares[torch.randint(len(_SHARES), real.shape[:2])].unsqueeze(-1)
        noise = self.jitter * torch.randn_like(real)
        return real + share * (_taken(real, one) - _taken(real, other)) + noise

    def _log_density(self, theta: Tensor) -> Tensor:
        """Return the prior's log-density over real numbers, `(num, batch_dim)`."""
        rows, values = contrasted(self.prior, self.inside, theta)
        rows, values = rows[1:], values[1:].to(theta)
        return _finite(values - log_det_of_rows(self.to_real, rows, self.to_real(rows)))

    def _indices(self, num: int) -> Tensor:
        """Return which particles are drawn by their weights, `(num, batch_dim)`."""
        weights = torch.softmax(self.log_weights, dim=0).T
        return torch.multinomial(weights, num, replacement=True).T


def _taken(values: Tensor, indices: Tensor) -> Tensor:
    """Return particles `(num, batch_dim, dim)` by indices `(num, batch_dim)`."""
    return values.gather(
        0, indices.unsqueeze(-1).expand(*indices.shape, values.size(-1))
    )


def _finite(values: Tensor) -> Tensor:
    """Return log-densities in which what is undefined is next to impossible."""
    least = -1e6
    return values.nan_to_num(nan=least, neginf=least, posinf=least).clamp(min=least)


def expected_gains(
    experiment: LearnedExperiment, draws: Tensor, design: Tensor
) -> tuple[Tensor, Tensor]:
    r"""Return what one experiment is expected to tell, and its gradient by the design.

    With draws `(num, batch_dim, dim)` of what is known, and a design for each,

    .. math:: E_x\Big[\log M + \sum_m w_m \log w_m\Big], \quad
        w_m \propto q(x \mid \theta_m, \xi),

    the mean information of data about which of the draws they come from, `(batch_dim,)`
    in nats, and gradients `(batch_dim, dim_design)`. Data are drawn; where they take a
    few values only, those are all that there are.
    """
    size = max(1, _MOST_PAIRS // (len(draws) * sizes_for(experiment)[0]))
    parts = [
        _gains_and_gradients(experiment, *part)
        for part in zip(draws.split(size, dim=1), design.split(size), strict=True)
    ]
    gains, gradients = map(torch.cat, zip(*parts, strict=True))
    return gains, gradients


def sizes_for(experiment: LearnedExperiment) -> tuple[int, int]:
    """Return how many data, and histories for each rollout, a step looks at."""
    return _MANY if experiment.is_quick_with_many_data else _FEW


@torch.enable_grad()
def _gains_and_gradients(
    experiment: LearnedExperiment, draws: Tensor, design: Tensor
) -> tuple[Tensor, Tensor]:
    design = design.detach().requires_grad_()
    rows = draws.shape[1]
    theta = draws[: sizes_for(experiment)[0]]
    shape = len(theta), rows
    designs = design.repeat(len(theta), 1)
    x = experiment(theta.flatten(0, 1), designs)
    if not experiment.moves_data:
        values = x[x.isfinite().all(dim=1)].unique(dim=0)
        if 0 < len(values) <= _FEW[0]:
            given = draws, design, values.unsqueeze(1).expand(-1, rows, -1)
            log_likelihoods = experiment.log_likelihoods_of_many(*given)
            gains = _information(log_likelihoods)
            gains = (log_likelihoods.exp().mean(dim=1) * gains).sum(dim=0)
            return gains.detach(), torch.autograd.grad(gains.sum(), design)[0]
    given = draws, design, x.unflatten(0, shape)
    gains = _information(experiment.log_likelihoods_of_many(*given))
    total = gains.mean(dim=0).sum()
    nothing = x.new_zeros(1, len(x))
    rollouts = Rollouts(theta.flatten(0, 1), designs[None], x[None], nothing)
    log_drawn = experiment.log_drawn(rollouts)
    if log_drawn is not None:
        judged = gains.detach()
        others = (judged.sum(dim=0) - judged) / (len(judged) - 1)
        scores = (judged - others) * log_drawn.reshape(shape)
        total = total + scores.mean(dim=0).sum()
    (gradient,) = torch.autograd.grad(total, design)
    return gains.detach().mean(dim=0), gradient


def _information(log_likelihoods: Tensor) -> Tensor:
    """Return what data tell, `(num_data, batch_dim)`, of those for each of the draws.

    Of shape `(num_data, num, batch_dim)`.
    """
    log_weights = log_likelihoods.log_softmax(dim=1)
    terms = (log_weights.exp() * log_weights).sum(dim=1)
    return terms + math.log(log_likelihoods.shape[1])
