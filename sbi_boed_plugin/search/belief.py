r"""What is known about the parameters between experiments, as particles.

The belief after observations :math:`(\xi_t, x_t)` is proportional to :math:`p(\theta)
\prod_t q_t(x_t \mid \theta, \xi_t)`, with each observation's own likelihood. It is
carried from experiment to experiment by sequential Monte Carlo: the new likelihood
enters in steps small enough for the particles to follow; after each they are resampled
and moved by Markov chains that leave the belief as it is.

References:
    Del Moral, Doucet and Jasra, *Sequential Monte Carlo Samplers*, JRSS B 2006. Chopin,
    *A Sequential Particle Filter Method for Static Models*, Biometrika 2002. ter Braak,
    *A Markov Chain Monte Carlo version of the genetic algorithm Differential
    Evolution*, Statistics and Computing 2006 (the moves).
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Distribution

from sbi_boed_plugin._numbers import check_integer
from sbi_boed_plugin._prior import (
    discrete_columns,
    draw_parameters,
    log_det_of_rows,
    to_real_numbers,
)
from sbi_boed_plugin._rng import isolated_rng
from sbi_boed_plugin.objectives.info_nce import nan_to_zero_density

__all__ = ["ParticleBelief", "unseen"]

LogLikelihood = Callable[[Tensor], Tensor]

# Effective share of the particles that a step of the likelihood leaves.
_EFFECTIVE_SHARE = 0.5
# Moves go on until particles have moved this often on average, or for 60 rounds.
_MOVES_WANTED = 5.0
_MAX_MOVES = 60
# An update must leave this many different particles, or a quarter of all.
_MIN_DIFFERENT = 64
# Seed of particles that are independent of those that networks were trained with.
_SEED = 7_919


class ParticleBelief(Distribution):
    r"""Particles of the belief about parameters, with prior and observations.

    It serves where a prior does: `sample` draws particles and `log_prob` returns the
    log-density of the belief, normalized by the estimated evidence. `particles` have
    the shape `(num_particles, dim_theta)`; `log_evidence` estimates the log-density of
    all observations under the prior, in nats.
    """

    has_finite_draws = True

    def __init__(
        self, prior: Distribution, *, num_particles: int = 4_096, device: str = "cpu"
    ) -> None:
        num_particles = check_integer("num_particles", num_particles, 16)
        super().__init__(event_shape=prior.event_shape, validate_args=False)
        self.base_prior = prior
        theta = draw_parameters(prior, num_particles, torch.float32)
        self.particles: Tensor = theta.to(device)
        self.log_evidence = 0.0
        self.log_evidence_variance = 0.0
        self.log_likelihoods: tuple[LogLikelihood, ...] = ()
        self._to_real: Any = to_real_numbers(prior)
        discrete = discrete_columns(prior) if theta.dim() == 2 else torch.zeros(1)
        self._is_smooth = (~discrete.bool()).to(theta)
        self._independent: ParticleBelief | None = None

    @property
    def num_particles(self) -> int:
        """Number of particles, which limits what draws of the belief can tell."""
        return len(self.particles)

    @property
    def support(self) -> Any:
        """Support of the prior: no observation excludes any of it."""
        return self.base_prior.support

    def independent_copy(self) -> "ParticleBelief":
        """Return the same belief with particles that are independent of these.

        They judge networks that learned from these particles. They are made once, in as
        much time as all updates took; the evidence is that of both beliefs.
        """
        if self._independent is None:
            num_particles, device = len(self.particles), str(self.particles.device)
            with isolated_rng(_SEED):
                other = ParticleBelief(
                    self.base_prior, num_particles=num_particles, device=device
                )
                for log_likelihood in self.log_likelihoods:
                    other.update(log_likelihood)
            both = torch.tensor([self.log_evidence, other.log_evidence]).double()
            other.log_evidence = float(torch.logsumexp(both, 0)) - math.log(2.0)
            variances = self.log_evidence_variance + other.log_evidence_variance
            other.log_evidence_variance = 0.25 * variances
            self._independent = other
        return self._independent

    def sample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:
        """Draw particles with replacement, of shape `(*sample_shape, dim_theta)`."""
        rows = torch.randint(
            len(self.particles), tuple(sample_shape), device=self.particles.device
        )
        return self.particles[rows]

    def log_prob(self, value: Tensor) -> Tensor:
        """Return log-densities `(batch_dim,)` in nats, `-inf` outside the prior."""
        return self._log_joint(value) - self.log_evidence

    def update(self, log_likelihood: LogLikelihood) -> None:
        """Take an observation into account, given its log-likelihood of parameters.

        The belief stays as it was if no particle gives the observation a density, or
        hardly any different particles are left, which is a `ValueError`.
        """
        theta, num_particles = self.particles, len(self.particles)
        densities = self._densities(theta, log_likelihood)
        if not torch.isfinite(densities[1]).any():
            raise ValueError(
                f"x_o has no finite log-likelihood for any of the {num_particles} "
                "particles of the belief. Check that it belongs to this design and "
                "lies near simulations, or train the likelihood further."
            )
        log_evidence, variance = self.log_evidence, self.log_evidence_variance
        power = 0.0
        while power < 1.0:
            step = _largest_step(densities[1], 1.0 - power)
            increments = step * densities[1]
            log_evidence += float(torch.logsumexp(increments, 0))
            log_evidence -= math.log(num_particles)
            variance += (1.0 / _effective_share(increments) - 1.0) / num_particles
            power = min(1.0, power + step)
            rows = _systematic_resample(increments.softmax(dim=0))
            theta, densities = theta[rows], densities[:, rows]
            self._move(theta, densities, log_likelihood, power)
        self._refuse_collapse(theta)
        self.particles, self._independent = theta, None
        self.log_evidence, self.log_evidence_variance = log_evidence, variance
        self.log_likelihoods = (*self.log_likelihoods, log_likelihood)

    def _refuse_collapse(self, theta: Tensor) -> None:
        """Raise if hardly any particles differ, unless parameters are discrete."""
        num_different = len(theta.unique(dim=0))
        if num_different >= min(_MIN_DIFFERENT, len(theta) // 4):
            return
        with isolated_rng(_SEED):
            draws = draw_parameters(self.base_prior, len(theta))
        if len(draws.unique(dim=0)) < 0.9 * len(draws):
            return
        raise ValueError(
            f"x_o would leave {num_different} different particles of {len(theta)}; the "
            "belief stays as it was. Check that x_o belongs to this design and has the "
            "units of the simulations. If it does, use more num_particles, or scale "
            "parameters so that single precision suffices for them."
        )

    def _densities(self, theta: Tensor, log_likelihood: LogLikelihood) -> Tensor:
        """Return log-densities before an observation, and its log-likelihoods."""
        new = nan_to_zero_density(log_likelihood(theta))
        return torch.stack([self._log_joint(theta), new])

    def _log_joint(self, theta: Tensor) -> Tensor:
        """Return the log-density of parameters and all observations so far."""
        try:
            support: Any = self.base_prior.support
        except (NotImplementedError, AttributeError):
            support = None
        if support is None or not support.is_discrete:
            total = self.base_prior.log_prob(theta).to(theta)
        else:
            # Formulas of discrete distributions also give densities between the values,
            # or refuse to be asked there.
            inside = support.check(theta)
            allowed = torch.where(inside.unsqueeze(-1), theta, self.particles[0])
            total = self.base_prior.log_prob(allowed).to(theta)
            total = torch.where(inside, total, -torch.inf)
        for log_likelihood in self.log_likelihoods:
            total = total + log_likelihood(theta)
        return total

    def _move(
        self,
        theta: Tensor,
        densities: Tensor,
        log_likelihood: LogLikelihood,
        power: float,
    ) -> None:
        """Move particles in place, with the new likelihood raised to `power`."""
        num_accepted = 0.0
        unbounded = self._to_real(theta).to(theta)
        halves = (slice(0, len(theta) // 2), slice(len(theta) // 2, None))
        for move in range(_MAX_MOVES):
            if num_accepted >= _MOVES_WANTED * len(theta):
                break
            for rows, others in (halves, halves[::-1]):
                old, before = unbounded[rows], densities[:, rows]
                jump, smooth = move % 5 == 4, self._is_smooth
                new = _propose(old, unbounded[others], smooth, jump=jump)
                new_theta = self._to_real.inv(new).to(new)
                trial = self._densities(new_theta, log_likelihood)
                difference = trial[0] + power * trial[1]
                difference = difference - (before[0] + power * before[1])
                # Densities are those of theta; moves are symmetric in unbounded ones.
                difference = difference - log_det_of_rows(self._to_real, new_theta, new)
                difference = difference + log_det_of_rows(
                    self._to_real, theta[rows], old
                )
                uniform = torch.rand_like(difference).log()
                accepted = uniform < nan_to_zero_density(difference)
                column = accepted.unsqueeze(1)
                theta[rows] = torch.where(column, new_theta, theta[rows])
                unbounded[rows] = torch.where(column, new, old)
                densities[:, rows] = torch.where(accepted, trial, before)
                num_accepted += float(accepted.sum())


def unseen(prior: Distribution) -> Distribution:
    """Return a prior, or a belief with particles that no network has learned from.

    A posterior that was trained with the particles of a belief fits them too well.
    """
    return prior.independent_copy() if isinstance(prior, ParticleBelief) else prior


def _propose(old: Tensor, pool: Tensor, smooth: Tensor, *, jump: bool) -> Tensor:
    """Return differential-evolution moves along differences of the other half.

    Symmetric, and scaled to the belief whatever its shape; full differences jump
    between separate modes. Where values repeat, `smooth` is 0 and there is no noise:
    pairs that agree there move the others, and full differences lead to other values.
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
    noise = 1e-3 * smooth.to(pool) * pool.std(dim=0) * torch.randn_like(old)
    return old + scale * (first - second) + noise


def _effective_share(log_weights: Tensor) -> float:
    """Return the effective sample size of weights, as a share of their number."""
    log_weights = torch.log_softmax(log_weights.cpu().double(), dim=0)
    return math.exp(-float(torch.logsumexp(2.0 * log_weights, 0))) / len(log_weights)


def _largest_step(log_likelihood: Tensor, most: float) -> float:
    """Return the step of the likelihood's power that keeps enough particles alive."""
    log_likelihood = log_likelihood.cpu()
    if _effective_share(most * log_likelihood) >= _EFFECTIVE_SHARE:
        return most
    low, high = 0.0, most
    for _ in range(50):
        middle = 0.5 * (low + high)
        if _effective_share(middle * log_likelihood) >= _EFFECTIVE_SHARE:
            low = middle
        else:
            high = middle
    # No step is small enough where too many particles have no density at all.
    return low or 1e-6 * most


def _systematic_resample(weights: Tensor) -> Tensor:
    """Return rows, each as often as its weight says, up to rounding."""
    num_rows = len(weights)
    steps = torch.arange(num_rows, dtype=torch.float64)
    positions = (steps + torch.rand((), dtype=torch.float64).item()) / num_rows
    rows = torch.searchsorted(weights.cpu().double().cumsum(0), positions)
    return rows.clamp_max(num_rows - 1).to(weights.device)
