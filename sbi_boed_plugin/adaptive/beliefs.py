r"""What is known during sequences of experiments, by particles in the learned model.

Sequential Monte Carlo: particles of the prior are reweighed by the likelihood of each
experiment. Before few of them are left with weight, they are resampled, and move by
the distance of two others, which fits posteriors of any shape and several modes (ter
Braak, *A Markov Chain Monte Carlo version of the genetic algorithm Differential
Evolution*, Statistics and Computing 2006).
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Distribution

from sbi_boed_plugin._memory import rows_at_once
from sbi_boed_plugin._prior import (
    draw_parameters,
    log_det_of_rows,
    to_real_numbers,
)
from sbi_boed_plugin.adaptive.policy import HistoryPolicy
from sbi_boed_plugin.adaptive.rollout import LearnedExperiment, Rollouts
from sbi_boed_plugin.objectives._eig_terms import contrasted

__all__ = ["Beliefs", "expected_gains", "roll_out_beliefs", "sizes_for"]

# Particles of a history, how many of them are kept, and their moves; parts of which an
# experiment is learned at the most, and halvings that find them.
_NUM_PARTICLES, _NUM_KEPT, _NUM_MOVES, _MOST_PARTS, _NUM_HALVINGS = 128, 32, 2, 8, 12
# Least share of effective particles, shares of a distance that they move by, and noise
# of a move in units of the spread of the prior.
_LEAST_EFFECTIVE, _SHARES, _JITTER = 0.5, (1.0, 0.6, 0.3, 0.1), 0.01
# Data that are drawn for a history, and histories of a step for each of a batch: where
# many data cost little, and else. Pairs of data and parameters at once, where many data
# cost little, and values of data up to which all of them are looked at.
_MANY, _FEW, _MOST_PAIRS, _MOST_VALUES = (16, 4), (8, 1), 2**16, 8


# Where histories are counted, in the parts of `Beliefs`.
_BATCH_DIMS = 0, 1, 1, 2


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

    def renewed(self, new: "Beliefs", most: int) -> "Beliefs":
        """Return these and new ones, without the oldest where they are too many."""
        pairs = zip(vars(self).values(), vars(new).values(), strict=True)
        both = [
            torch.cat(pair, dim=dim)
            for pair, dim in zip(pairs, _BATCH_DIMS, strict=True)
        ]
        num = both[0].shape[0]
        first = max(0, num - most)
        parts = zip(both, _BATCH_DIMS, strict=True)
        return Beliefs(*(part.narrow(dim, first, num - first) for part, dim in parts))

    def to(self, like: Tensor) -> "Beliefs":
        """Return them on the device of a tensor."""
        return Beliefs(*(part.to(like.device) for part in vars(self).values()))


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
        self.log_weights = theta.new_zeros(self.theta.shape[:2])
        # Log-likelihoods of all experiments but the one that is being learned.
        self.log_before = torch.zeros_like(self.log_weights)

    def draws(self) -> Tensor:
        """Return particles drawn by their weights, `(num, batch_dim, dim)`."""
        rows = torch.arange(self.theta.shape[1], device=self.theta.device)
        return _taken(self.theta, self._indices(_NUM_KEPT, rows))

    def learn(self, experiment: LearnedExperiment, rollouts: Rollouts) -> None:
        """Take the last experiment into account.

        In parts, so that enough particles keep weight: where few would, the likelihood
        is raised to a power, and they are resampled and move, before the next part.
        """
        others = [
            part[-1:] for part in (rollouts.design, rollouts.x, rollouts.log_prob)
        ]
        last = Rollouts(rollouts.theta, *others)
        values = _finite(experiment.log_likelihoods(self.theta, last)[0])
        power = self.log_weights.new_zeros(values.shape[1])
        for part in range(_MOST_PARTS):
            left = 1.0 - power
            step = left if part == _MOST_PARTS - 1 else self._largest_step(values, left)
            self.log_weights = self.log_weights + step * values
            power = power + step
            (rows,) = (self._effective(self.log_weights) < _LEAST_EFFECTIVE).nonzero(
                as_tuple=True
            )
            if len(rows):
                given = rollouts.rows(rows), rows, power[rows], values[:, rows]
                values[:, rows] = self._refresh(experiment, *given)
            if float(power.min()) > 1.0 - 1e-6:
                break
        self.log_before = self.log_before + values

    def _largest_step(self, values: Tensor, most: Tensor) -> Tensor:
        """Return steps of a power, `(batch_dim,)`, after which particles have to move.

        Or the largest steps that there are, where they do not have to.
        """
        low, high = torch.zeros_like(most), most
        for _ in range(_NUM_HALVINGS):
            middle = 0.5 * (low + high)
            is_enough = self._effective(self.log_weights + middle * values)
            is_enough = is_enough >= _LEAST_EFFECTIVE
            low = torch.where(is_enough, middle, low)
            high = torch.where(is_enough, high, middle)
        is_enough = (
            self._effective(self.log_weights + most * values) >= _LEAST_EFFECTIVE
        )
        return torch.where(is_enough, most, high)

    def _effective(self, log_weights: Tensor) -> Tensor:
        """Return the effective share of the particles, `(batch_dim,)`."""
        squares = log_weights.softmax(dim=0).square().sum(dim=0)
        return 1.0 / (len(log_weights) * squares)

    def _refresh(
        self,
        experiment: LearnedExperiment,
        rollouts: Rollouts,
        rows: Tensor,
        power: Tensor,
        last: Tensor,
    ) -> Tensor:
        """Resample and move the particles of some histories.

        Takes their log-likelihoods of the last experiment, which count by its power,
        and returns them as they are then.
        """
        indices = self._indices(_NUM_PARTICLES, rows)
        theta = _taken(self.theta[:, rows], indices)
        before, last = (
            self.log_before[:, rows].gather(0, indices),
            last.gather(0, indices),
        )
        log_density = self._log_density(theta, rows)
        for _ in range(_NUM_MOVES):
            moved = self.to_real.inv(self._moved(self.to_real(theta)))
            each = _finite(experiment.log_likelihoods(moved, rollouts))
            new = each[:-1].sum(dim=0), each[-1], self._log_density(moved, rows)
            gain = new[0] - before + power * (new[1] - last) + new[2] - log_density
            accepted = torch.rand_like(gain).log() < gain
            theta = torch.where(accepted.unsqueeze(-1), moved, theta)
            old = before, last, log_density
            before, last, log_density = (
                torch.where(accepted, *pair) for pair in zip(new, old, strict=True)
            )
        self.theta[:, rows], self.log_before[:, rows] = theta, before
        self.log_weights[:, rows] = 0.0
        return last

    def _moved(self, real: Tensor) -> Tensor:
        """Return proposals, from real numbers to real numbers."""
        # Distances to itself would not be those of the way back.
        num, shape = len(real), real.shape[:2]
        own = torch.arange(num, device=real.device).unsqueeze(1)
        steps = torch.randint(1, num, (2, *shape), device=real.device)
        one, other = (own + steps) % num
        shares = torch.tensor(_SHARES, device=real.device, dtype=real.dtype)
        share = shares[torch.randint(len(_SHARES), shape)].unsqueeze(-1)
        noise = self.jitter * torch.randn_like(real)
        return real + share * (_taken(real, one) - _taken(real, other)) + noise

    def _log_density(self, theta: Tensor, rows: Tensor) -> Tensor:
        """Return the prior's log-density over real numbers, `(num, len(rows))`."""
        rows, values = contrasted(self.prior, self.inside[rows], theta)
        rows, values = rows[1:], values[1:].to(theta)
        return _finite(values - log_det_of_rows(self.to_real, rows, self.to_real(rows)))

    def _indices(self, num: int, rows: Tensor) -> Tensor:
        """Return which particles are drawn by their weights, `(num, len(rows))`."""
        weights = self.log_weights[:, rows].softmax(dim=0).T
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
    few values only, all of these are summed over.
    """
    most = _MOST_PAIRS
    if not experiment.is_quick_with_many_data:
        net: Any = experiment.likelihood
        num_values = net.input_shape.numel() + net.condition_shape.numel()
        most = rows_at_once(net, num_values)
    size = max(1, most // (len(draws) * sizes_for(experiment)[0]))
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
    rows, of_each = draws.shape[1], experiment.log_likelihoods_of_many
    values = experiment.possible_data(_MOST_VALUES)
    if values is not None:
        data = values.unsqueeze(1).expand(-1, rows, -1)
        log_likelihoods = _finite(of_each(draws, design, data))
        gains = log_likelihoods.exp().mean(dim=1) * _information(log_likelihoods)
        gains = gains.sum(dim=0)
        return gains.detach(), torch.autograd.grad(gains.sum(), design)[0]
    theta = draws[: sizes_for(experiment)[0]]
    shape = len(theta), rows
    designs = design.repeat(len(theta), 1)
    x = experiment(theta.flatten(0, 1), designs)
    gains = _information(_finite(of_each(draws, design, x.unflatten(0, shape))))
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
