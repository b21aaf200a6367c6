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
from collections.abc import Callable
from copy import copy
from typing import Any, cast

import torch
from sbi.neural_nets.estimators import ConditionalDensityEstimator
from torch import Tensor
from torch.distributions import Distribution
from torch.distributions.transforms import Transform

from sbi_boed_plugin._numbers import check_integer
from sbi_boed_plugin._prior import draw_parameters
from sbi_boed_plugin._rng import isolated_rng
from sbi_boed_plugin.estimators.likelihood_with_failures import LikelihoodWithFailures
from sbi_boed_plugin.objectives.info_nce import log_likelihood_matrix
from sbi_boed_plugin.search.sequential_monte_carlo import (
    Particles,
    effective_share,
    largest_step,
    nan_to_zero_density,
    propose,
    systematic_resample,
)

__all__ = ["SURPRISING", "ParticleBelief", "predictive_p_value"]

LogLikelihood = Callable[[Tensor], Tensor]

# Moves go on until particles have moved this often on average, or for 60 rounds.
_MOVES_WANTED = 5.0
_MAX_MOVES = 60
# Draws that data are compared with, and particles by which their density is judged.
_NUM_DRAWS, _NUM_JUDGES = 1_000, 64
# Data with a p-value below this one lie beyond all draws.
SURPRISING = 1.5 / _NUM_DRAWS
# An update must leave this many different particles, or a quarter of all.
_MIN_DIFFERENT = 64
# Seed of particles that are independent of those that networks were trained with.
_SEED = 7_919


class ParticleBelief(Distribution):
    r"""Particles of the belief about parameters, with prior and observations.

    It serves where a prior does: `sample` draws particles and `log_prob` returns the
    log-density of the belief, normalized by the estimated evidence.

    Particles, of shape `(num_particles, dim_theta)`, move in the coordinates without
    bounds to which `transform` leads. `log_evidence` estimates the log-density of all
    observations under the prior, in nats.
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
        num_particles = check_integer("num_particles", num_particles, 16)
        super().__init__(event_shape=prior.event_shape, validate_args=False)
        self.base_prior = prior
        self._transform = transform
        self._log_likelihoods: list[LogLikelihood] = []
        theta = draw_parameters(prior, num_particles, torch.float32)
        self.particles: Tensor = theta.to(device)
        self.log_evidence = 0.0
        self.log_evidence_variance = 0.0
        self.acceptance_rate = 1.0
        self._independent: ParticleBelief | None = None

    @classmethod
    def restore(
        cls,
        prior: Distribution,
        transform: Transform,
        log_likelihoods: list[LogLikelihood],
        **attributes: Any,
    ) -> "ParticleBelief":
        """Return a belief as it was after some observations, oldest first."""
        particles = attributes["particles"]
        belief = cls(prior, transform, num_particles=len(particles))
        belief._log_likelihoods = log_likelihoods
        for name, value in attributes.items():
            setattr(belief, name, value)
        return belief

    @property
    def support(self) -> Any:
        """Support of the prior: no observation excludes any of it."""
        return self.base_prior.support

    @property
    def num_particles(self) -> int:
        """Number of particles."""
        return len(self.particles)

    def copy(self) -> "ParticleBelief":
        """Return a belief that can be updated alone."""
        other = copy(self)
        other._independent = None
        return other

    def independent_copy(self) -> "ParticleBelief":
        """Return the same belief with particles that are independent of these.

        They judge networks that learned from these particles. They are made once, in as
        much time as all updates took; the evidence is that of both beliefs.
        """
        if self._independent is None:
            with isolated_rng(_SEED):
                other = ParticleBelief(
                    self.base_prior,
                    self._transform,
                    num_particles=self.num_particles,
                    device=str(self.particles.device),
                )
                for log_likelihood in self._log_likelihoods:
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
        state = self._evaluate(self.particles, log_likelihood)
        if not torch.isfinite(state.current).any():
            raise ValueError(
                "x_o has no finite log-likelihood for any of the "
                f"{self.num_particles} particles of the belief. Check that it belongs "
                "to this design and lies near simulations, or train the likelihood "
                "further."
            )
        log_evidence, variance = self.log_evidence, self.log_evidence_variance
        power = num_accepted = num_proposed = 0.0
        while power < 1.0:
            step = largest_step(state.current, 1.0 - power)
            increments = step * state.current
            mean = torch.logsumexp(increments, 0) - math.log(len(increments))
            log_evidence += float(mean)
            variance += (1.0 / effective_share(increments) - 1.0) / len(increments)
            power = min(1.0, power + step)
            state = state.rows(systematic_resample(increments.softmax(dim=0)))
            accepted, proposed = self._move(state, log_likelihood, power)
            num_accepted += accepted
            num_proposed += proposed
        self._refuse_collapse(state.theta)
        self.particles = state.theta
        self.log_evidence = log_evidence
        self.log_evidence_variance = variance
        self.acceptance_rate = num_accepted / max(1.0, num_proposed)
        self._log_likelihoods = [*self._log_likelihoods, log_likelihood]
        self._independent = None

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

    def _evaluate(self, theta: Tensor, log_likelihood: LogLikelihood) -> Particles:
        """Return particles with their log-densities, the new observation's apart."""
        current = nan_to_zero_density(log_likelihood(theta))
        return Particles(theta, self._log_joint(theta), current)

    def _log_joint(self, theta: Tensor) -> Tensor:
        """Return the log-density of parameters and all observations so far."""
        total = self._log_prior(theta)
        for log_likelihood in self._log_likelihoods:
            total = total + log_likelihood(theta)
        return total

    def _log_prior(self, theta: Tensor) -> Tensor:
        values = self.base_prior.log_prob(theta).to(theta)
        try:
            support = self.base_prior.support
        except (NotImplementedError, AttributeError):
            return values  # The prior names no support.
        if support is not None and support.is_discrete:
            # Formulas of discrete distributions also give densities between the values.
            values = torch.where(support.check(theta), values, -torch.inf)
        return values

    def _move(
        self, state: Particles, log_likelihood: LogLikelihood, power: float
    ) -> tuple[float, float]:
        """Move the particles in place; return numbers of accepted and tried moves."""
        accepted = proposed = 0.0
        unbounded = cast(Tensor, self._transform(state.theta)).to(state.theta)
        inverse = cast(Callable[[Tensor], Tensor], self._transform.inv)
        half = len(unbounded) // 2
        halves = (slice(0, half), slice(half, None))
        for move in range(_MAX_MOVES):
            if accepted >= _MOVES_WANTED * len(unbounded):
                break
            for rows, others in (halves, halves[::-1]):
                old, before = unbounded[rows], state.rows(rows)
                new = propose(old, unbounded[others], jump=move % 5 == 4)
                trial = self._evaluate(inverse(new).to(new), log_likelihood)
                difference = trial.log_target(power) - before.log_target(power)
                # Densities are those of theta; moves are symmetric in unbounded ones.
                difference = difference - self._log_det(trial.theta, new)
                difference = difference + self._log_det(before.theta, old)
                uniform = torch.rand_like(difference).log()
                is_accepted = uniform < nan_to_zero_density(difference)
                state.replace(rows, trial, is_accepted)
                unbounded[rows] = torch.where(is_accepted.unsqueeze(1), new, old)
                accepted += float(is_accepted.sum())
                proposed += float(len(is_accepted))
        return accepted, proposed

    def _log_det(self, theta: Tensor, unbounded: Tensor) -> Tensor:
        """Return the log-determinant of the map to unbounded coordinates."""
        log_det = self._transform.log_abs_det_jacobian(theta, unbounded)
        return log_det.sum(dim=-1) if log_det.dim() > 1 else log_det


@torch.no_grad()
def predictive_p_value(
    likelihood: ConditionalDensityEstimator, theta: Tensor, design: Tensor, x: Tensor
) -> float:
    """Return how much of what is predicted is as surprising as data `(1, dim_x)`.

    The smaller of two shares of 1,000 draws from the predictive distribution of a
    likelihood and draws of the belief, at least 1/1,001: of those whose predictive
    density is no higher, and of those of which a value lies as far from its median. The
    second asks for no density far from all that the likelihood was trained with.
    """
    conditions = torch.cat([theta, design.expand(len(theta), -1)], dim=-1)
    weights = theta.new_ones(len(theta))
    if isinstance(likelihood, LikelihoodWithFailures):
        weights = likelihood.log_success(conditions).exp()
    with isolated_rng(_SEED):
        rows = torch.multinomial(weights, _NUM_DRAWS, replacement=True)
        draws = likelihood.sample(torch.Size((1,)), conditions[rows])[0]
        judges = torch.randint(len(theta), (_NUM_JUDGES, 1), device=theta.device)
    x = torch.cat([x, draws])
    log_density = log_likelihood_matrix(
        likelihood.log_prob, x, conditions[judges].expand(-1, len(x), -1)
    ).logsumexp(dim=0)
    log_density = nan_to_zero_density(log_density)
    offsets = (x - draws.median(dim=0).values).abs().flatten(1)
    width = offsets[1:].quantile(0.9, dim=0)
    # Where draws do not vary, any other value is infinitely far away.
    distance = (offsets / width.clamp_min(torch.finfo(x.dtype).tiny)).amax(dim=1)
    shares = [
        (values[1:] >= values[0]).float().mean() for values in (-log_density, distance)
    ]
    return (1.0 + _NUM_DRAWS * float(min(shares))) / (1.0 + _NUM_DRAWS)
