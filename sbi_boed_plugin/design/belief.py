r"""What is known about the parameters between experiments, as weighted particles.

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
import warnings
from collections.abc import Callable
from copy import copy
from typing import Any, cast

import torch
from torch import Tensor
from torch.distributions import Distribution
from torch.distributions.transforms import Transform

from sbi_boed_plugin._prior import draw_parameters
from sbi_boed_plugin._rng import isolated_rng
from sbi_boed_plugin.design.sequential_monte_carlo import (
    MovedParticles,
    effective_share,
    largest_step,
    nan_to_zero_density,
    propose,
    systematic_resample,
)

__all__ = ["ParticleBelief"]

LogLikelihood = Callable[[Tensor], Tensor]

# Moves go on until particles have moved this often on average, within limits.
_MOVES_WANTED = 5.0
_MAX_MOVES = 60
# Particles that explain an observation, below which there is a warning.
_MIN_EXPLAINING = 16
# Of particles that are independent of those that networks were trained with.
_SEED = 7_919


class ParticleBelief(Distribution):
    r"""Particles of the belief about parameters, with prior and observations.

    It serves where a prior does: `sample` draws particles and `log_prob` returns the
    log-density of the belief, normalized by the estimated evidence.

    Attributes:
        particles: Draws from the belief, of shape `(num_particles, dim_theta)`.
        log_evidence: Estimate of the log-density of all observations under the prior,
            in nats.
        log_evidence_variance: Its variance, from the weights of every step.
        acceptance_rate: Share of accepted moves in the last update, 1 before.
    """

    has_finite_draws = True

    def __init__(
        self,
        prior: Distribution,
        transform: Transform,
        *,
        num_particles: int = 4_096,
        device: str = "cpu",
    ) -> None:
        """Initialize with draws from the prior.

        Args:
            prior: Distribution of the parameters before any experiment.
            transform: From the parameters to coordinates without bounds, in which
                particles move.
            num_particles: Number of particles.
            device: Device of the particles.
        """
        if num_particles < 16:
            raise ValueError(f"num_particles={num_particles} must be at least 16.")
        super().__init__(event_shape=prior.event_shape, validate_args=False)
        self._prior = prior
        self._transform = transform
        self._log_likelihoods: list[LogLikelihood] = []
        theta = draw_parameters(prior, num_particles, torch.float32)
        self.particles: Tensor = theta.to(device)
        self.log_evidence = 0.0
        self.log_evidence_variance = 0.0
        self.acceptance_rate = 1.0
        self._anew: ParticleBelief | None = None

    @classmethod
    def restore(
        cls,
        prior: Distribution,
        transform: Transform,
        log_likelihoods: list[LogLikelihood],
        *,
        particles: Tensor,
        log_evidence: float,
        log_evidence_variance: float,
        acceptance_rate: float,
    ) -> "ParticleBelief":
        """Return a belief as it was after some observations.

        Args:
            prior: As for the constructor.
            transform: As for the constructor.
            log_likelihoods: Those of the observations, oldest first.
            particles: Particles of shape `(num_particles, dim_theta)`.
            log_evidence: Log-density of the observations, in nats.
            log_evidence_variance: Variance of that estimate.
            acceptance_rate: Share of accepted moves in the last update.

        Returns:
            The belief.
        """
        belief = cls(prior, transform, num_particles=len(particles))
        belief._log_likelihoods = list(log_likelihoods)
        belief.particles = particles
        belief.log_evidence = log_evidence
        belief.log_evidence_variance = log_evidence_variance
        belief.acceptance_rate = acceptance_rate
        return belief

    @property
    def base_prior(self) -> Distribution:
        """Distribution of the parameters before any observation."""
        return self._prior

    @property
    def support(self) -> Any:
        """Support of the prior: no observation excludes any of it."""
        return self._prior.support

    @property
    def num_particles(self) -> int:
        """Number of particles."""
        return len(self.particles)

    def copy(self) -> "ParticleBelief":
        """Return a belief to update without changing this one."""
        other = copy(self)
        other._log_likelihoods = list(self._log_likelihoods)
        other._anew = None
        return other

    def anew(self) -> "ParticleBelief":
        """Return the same belief with particles that are independent of these.

        Networks that learn from particles fit these particles: what they tell of the
        parameters is to be judged by others. They are made once, in as much time as all
        updates took, from a seed of their own. The evidence is that of both beliefs.

        Returns:
            The belief.
        """
        if self._anew is None:
            with isolated_rng(_SEED):
                other = ParticleBelief(
                    self._prior,
                    self._transform,
                    num_particles=self.num_particles,
                    device=str(self.particles.device),
                )
                for log_likelihood in self._log_likelihoods:
                    other._update(log_likelihood)
            both = torch.tensor([self.log_evidence, other.log_evidence]).double()
            other.log_evidence = float(torch.logsumexp(both, 0)) - math.log(2.0)
            variances = self.log_evidence_variance + other.log_evidence_variance
            other.log_evidence_variance = 0.25 * variances
            self._anew = other
        return self._anew

    def sample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:
        """Draw particles with replacement.

        Args:
            sample_shape: Shape of the draw.

        Returns:
            Parameters of shape `(*sample_shape, dim_theta)`.
        """
        rows = torch.randint(
            len(self.particles), tuple(sample_shape), device=self.particles.device
        )
        return self.particles[rows]

    def log_prob(self, value: Tensor) -> Tensor:
        """Return the log-density of the belief.

        Args:
            value: Parameters of shape `(batch_dim, dim_theta)`.

        Returns:
            Log-densities of shape `(batch_dim,)`, in nats, `-inf` outside the prior.
        """
        total = self._log_prior(value)
        for log_likelihood in self._log_likelihoods:
            total = total + log_likelihood(value)
        return total - self.log_evidence

    def update(self, log_likelihood: LogLikelihood) -> None:
        """Take an observation into account.

        Args:
            log_likelihood: Function from parameters of shape `(batch_dim, dim_theta)`
                to the log-likelihood of the observation, of shape `(batch_dim,)`.

        Raises:
            ValueError: If no particle gives the observation a density.
        """
        num_explaining = self._update(log_likelihood)
        if num_explaining < _MIN_EXPLAINING:
            warnings.warn(
                f"Only {num_explaining} of {self.num_particles} particles of the "
                "belief come near to explaining x_o: the belief may have collapsed "
                "onto few parameters. Use more num_particles, or check that x_o "
                "belongs to this design.",
                stacklevel=3,
            )

    def _update(self, log_likelihood: LogLikelihood) -> int:
        """Update, and return how many particles came near to explaining the data."""
        theta = self.particles
        current = log_likelihood(theta)
        if not torch.isfinite(current).any():
            raise ValueError(
                "x_o has no finite log-likelihood for any of the "
                f"{len(theta)} particles of the belief: it lies far outside of all "
                "simulations, or does not belong to this design. Check both, or train "
                "the likelihood further."
            )
        current = torch.where(current.isnan(), -torch.inf, current)
        num_explaining = int((current > current.max() - 20.0).sum())
        history = self._log_history(theta)
        log_evidence, variance = self.log_evidence, self.log_evidence_variance
        power = 0.0
        num_accepted = num_proposed = 0.0
        while power < 1.0:
            step = largest_step(current, 1.0 - power)
            increments = step * current
            log_evidence += float(
                torch.logsumexp(increments, 0) - math.log(len(increments))
            )
            variance += (1.0 / effective_share(increments) - 1.0) / len(increments)
            power = min(1.0, power + step)
            rows = systematic_resample(torch.softmax(increments, dim=0))
            theta, current = theta[rows], current[rows]
            history = history[rows]
            state = MovedParticles(theta, current, history, self._log_prior(theta))
            accepted, proposed = self._move(state, log_likelihood, power)
            num_accepted, num_proposed = (
                num_accepted + accepted,
                num_proposed + proposed,
            )
            theta, current, history = state.theta, state.current, state.history
        self.particles = theta
        self.log_evidence = log_evidence
        self.log_evidence_variance = variance
        self.acceptance_rate = num_accepted / max(1.0, num_proposed)
        self._log_likelihoods.append(log_likelihood)
        self._anew = None
        return num_explaining

    def _log_history(self, theta: Tensor) -> Tensor:
        """Return the log-likelihood of all observations so far."""
        return sum(
            (f(theta) for f in self._log_likelihoods), theta.new_zeros(len(theta))
        )

    def _log_prior(self, theta: Tensor) -> Tensor:
        return self._prior.log_prob(theta).to(theta)

    def _move(
        self, state: MovedParticles, log_likelihood: LogLikelihood, power: float
    ) -> tuple[float, float]:
        """Move the particles in place; return numbers of accepted and tried moves."""
        accepted = proposed = 0.0
        unbounded = self._to_unbounded(state.theta)
        num_particles, dim = unbounded.shape
        half = num_particles // 2
        halves = (slice(0, half), slice(half, None))
        for move in range(_MAX_MOVES):
            if accepted >= _MOVES_WANTED * num_particles:
                break
            for rows, others in (halves, halves[::-1]):
                old, pool = unbounded[rows], unbounded[others]
                new = propose(old, pool, dim, jump=move % 5 == 4)
                theta = self._inverse(new)
                trial = MovedParticles(
                    theta,
                    nan_to_zero_density(log_likelihood(theta)),
                    self._log_history(theta),
                    self._log_prior(theta),
                )
                difference = trial.log_target(power) - state.log_target(power, rows)
                # Densities are of natural units, moves symmetric in unbounded ones.
                difference = difference + self._log_det(theta, new).neg()
                difference = difference + self._log_det(state.theta[rows], old)
                uniform = torch.rand_like(difference).log()
                is_accepted = uniform < nan_to_zero_density(difference)
                state.replace(rows, trial, is_accepted)
                unbounded[rows] = torch.where(is_accepted.unsqueeze(1), new, old)
                accepted += float(is_accepted.sum())
                proposed += float(len(is_accepted))
        return accepted, proposed

    def _to_unbounded(self, theta: Tensor) -> Tensor:
        return cast(Tensor, self._transform(theta)).to(theta)

    def _inverse(self, unbounded: Tensor) -> Tensor:
        inverse = cast(Callable[[Tensor], Tensor], self._transform.inv)
        return inverse(unbounded).to(unbounded)

    def _log_det(self, theta: Tensor, unbounded: Tensor) -> Tensor:
        """Return the log-determinant of the map to unbounded coordinates."""
        log_det = self._transform.log_abs_det_jacobian(theta, unbounded)
        return log_det.sum(dim=-1) if log_det.dim() > 1 else log_det
