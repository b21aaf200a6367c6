"""Experiments one after another, for trainers that learn designs."""

import math
import warnings
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
from sbi.inference.posteriors import DirectPosterior
from sbi.inference.posteriors.base_posterior import NeuralPosterior
from sbi.neural_nets.estimators import ConditionalDensityEstimator
from torch import Tensor
from torch.distributions import Distribution
from typing_extensions import Self

from sbi_boed_plugin._memory import rows_at_once
from sbi_boed_plugin.estimators.design_conditioned import (
    DesignConditionedEstimator,
    posterior_at_design,
)
from sbi_boed_plugin.objectives.eig import EIGEstimate
from sbi_boed_plugin.search.belief import (
    SURPRISING,
    ParticleBelief,
    predictive_p_value,
)
from sbi_boed_plugin.search.information import POLICY_OBJECTIVES
from sbi_boed_plugin.search.scoring import score_design
from sbi_boed_plugin.trainers._checks import check_design
from sbi_boed_plugin.trainers._design_optimization import DesignOptimizationMixin
from sbi_boed_plugin.trainers._estimator_builders import to_real_numbers

__all__ = ["Observation", "SequentialMixin"]


@dataclass(frozen=True)
class Observation:
    """What was measured in an experiment, with the likelihood of that time.

    Attributes:
        design: Design of shape `(dim_design,)`.
        x: Data of shape `(1, dim_x)`.
        likelihood_estimator: Likelihood, conditioned on `(theta, design)` in one row,
            as it was when the data were observed.
        predictive_p_value: How much of what was predicted before is as surprising as
            `x`, see :func:`~sbi_boed_plugin.search.belief.predictive_p_value`.
    """

    design: Tensor
    x: Tensor
    likelihood_estimator: ConditionalDensityEstimator
    predictive_p_value: float = math.nan

    @torch.no_grad()
    def log_likelihood(self, theta: Tensor) -> Tensor:
        """Return the log-likelihood of the data.

        Args:
            theta: Parameters of shape `(batch_dim, dim_theta)`.

        Returns:
            Log-likelihoods of shape `(batch_dim,)`, in nats.
        """
        condition = torch.cat([theta, self.design.expand(len(theta), -1)], dim=-1)
        x = self.x.unsqueeze(0)
        likelihood = self.likelihood_estimator
        size = rows_at_once(likelihood, x.numel() + condition[:1].numel())
        parts = [
            likelihood.log_prob(x.expand(1, len(part), *x.shape[2:]), part)[0]
            for part in condition.split(size)
        ]
        return torch.cat(parts)


class SequentialMixin(DesignOptimizationMixin):
    """Adds `observe` to a trainer that learns designs.

    The parameters and contrastive parameters of later searches come from the belief
    after all observations. Only the new measurement's likelihood enters their bounds:
    no datum is counted twice.
    """

    def _set_design_search(self, *args: Any) -> None:
        super()._set_design_search(*args)
        self._observations: list[Observation] = []
        self._belief: ParticleBelief | None = None
        self._policy_start = (
            None
            if self._design_policy is None
            else deepcopy(self._design_policy.state_dict())
        )

    @property
    def observations(self) -> tuple[Observation, ...]:
        """What was observed so far, oldest first."""
        return tuple(self._observations)

    @property
    def belief(self) -> ParticleBelief | None:
        """Belief about the parameters after all observations, `None` before."""
        return self._belief

    @property
    def _num_observations(self) -> int:
        return len(self._observations)

    @property
    def _belief_or_prior(self) -> Distribution | None:
        return self._prior if self._belief is None else self._belief

    def observe(self, design: Tensor, x: Tensor, *, num_particles: int = 4_096) -> Self:
        r"""Take the data of an experiment into account.

        The next `optimize_design` starts from what is known then, with the policy as
        it was at first, and `build_posterior()` without a design returns the posterior
        given all observations, each with the likelihood as it is now.

        Args:
            design: Design of the experiment, of shape `(dim_design,)`, or one row for
                each of several experiments, `(num_experiments, dim_design)`.
            x: Observed data, of shape `(dim_x,)` or `(num_experiments, dim_x)`. There
                is a warning if it lies beyond all of 1,000 draws of the learned
                predictive distribution; `observations[-1].predictive_p_value` says how
                surprising it was.
            num_particles: Number of particles of the belief; fixed by the first call.

        Returns:
            The trainer (returned so that this function is chainable).

        Raises:
            RuntimeError: If there is no likelihood yet, or it has no designs.
            ValueError: If shapes do not match, a value is not finite, the design lies
                outside the support of the policy, the likelihood gives the data no
                density, or the belief would collapse. Nothing has changed then.
        """
        likelihood = self._neural_net
        if likelihood is None or not self._dim_design:
            raise RuntimeError(
                "There is no likelihood with designs yet: call optimize_design() "
                "before observe()."
            )
        if self._prior is None:
            raise ValueError("prior=None: pass the prior as NLE_INCE(prior, ...).")
        design = check_design(design, self._dim_design, self._design_policy)
        x = _check_observed(x, len(design), likelihood.input_shape)
        kept = self._kept_likelihood(likelihood)
        belief = self._belief
        belief = self._new_belief(num_particles) if belief is None else belief.copy()
        observations = []
        pairs = zip(
            design.to(belief.particles),
            x.to(belief.particles).unsqueeze(1),
            strict=True,
        )
        for one, data in pairs:
            p_value = predictive_p_value(kept, belief.particles, one, data)
            observation = Observation(one, data, kept, p_value)
            belief.update(observation.log_likelihood)
            observations.append(observation)
            if p_value < SURPRISING:
                warnings.warn(
                    f"x={data[0].tolist()} lies beyond all draws of what the learned "
                    f"likelihood predicts at design={one.tolist()}. It may belong to "
                    "another design or have other units, or the simulator cannot "
                    "produce it; what follows from it is then worth nothing. forget() "
                    "takes the last observation back.",
                    stacklevel=2,
                )
        # Nothing has changed before this point, if anything was wrong.
        self._set_observations([*self._observations, *observations], belief)
        return self

    def forget(self, num_observations: int = 1) -> Self:
        """Take the last observations back.

        The belief is made anew from those that are left, in as much time as observing
        them took. Later searches start from there, with the policy as it was at first.
        The networks of a posterior and a marginal that were trained after a forgotten
        observation are forgotten too; the likelihood knows nothing of observations.

        Args:
            num_observations: How many of them.

        Returns:
            The trainer (returned so that this function is chainable).

        Raises:
            ValueError: If there are not as many observations.
        """
        num_left = len(self._observations) - num_observations
        if num_observations < 1 or num_left < 0:
            raise ValueError(
                f"num_observations={num_observations} must be between 1 and the number "
                f"of observations, {len(self._observations)}."
            )
        observations, belief = self._observations[:num_left], None
        if observations:
            assert self._belief is not None
            belief = self._new_belief(self._belief.num_particles)
            for observation in observations:
                belief.update(observation.log_likelihood)
        self._set_observations(observations, belief)
        if self._trained_by is not None and self._trained_by[1] > num_left:
            self._posterior_net = self._marginal_net = None
            self._trained_by = (self._trained_by[0], num_left)
        return self

    def _new_belief(self, num_particles: int) -> ParticleBelief:
        """Return the belief before any observation."""
        assert self._prior is not None
        return ParticleBelief(
            self._prior,
            to_real_numbers(self._prior),
            num_particles=num_particles,
            device=self._device,
        )

    def _set_observations(
        self, observations: list[Observation], belief: ParticleBelief | None
    ) -> None:
        """Let searches start from a belief, with the policy as it was at first."""
        self._observations, self._belief = observations, belief
        self._design_optimizer = None
        if self._design_policy is not None and self._policy_start is not None:
            self._design_policy.load_state_dict(self._policy_start)

    def estimate_eig(
        self,
        simulator: Callable[[Tensor, Tensor], Tensor],
        design: Tensor,
        *,
        objective: str = "info_nce",
        **kwargs: Any,
    ) -> EIGEstimate:
        """Estimate the information of a design with the estimators as they are.

        Args:
            simulator: Function from `theta` and `design` to `x`.
            design: Design of shape `(dim_design,)`.
            objective: Which objective's bound, as for `optimize_design`.
            **kwargs: Passed to :func:`~sbi_boed_plugin.estimate_eig`.

        Returns:
            Information beyond what is known after all observations, in nats.

        Raises:
            RuntimeError: If there are no estimators for this objective yet.
        """
        estimators = self._trained_estimators()
        if objective not in POLICY_OBJECTIVES:
            raise ValueError(
                f"objective='{objective}' is unknown. Use one of "
                f"{sorted(POLICY_OBJECTIVES)}."
            )
        needs = POLICY_OBJECTIVES[objective].needs
        if estimators is None or not estimators.serve(needs):
            raise RuntimeError(
                "There are no estimators for this yet: call optimize_design("
                f"simulator, objective='{objective}') first."
            )
        trained_after = self._trained_by[1] if self._trained_by else 0
        if needs is not None and trained_after != self._num_observations:
            raise RuntimeError(
                f"The estimators of objective='{objective}' were trained before the "
                "last observation and do not know of it. Use objective='info_nce', or "
                "call optimize_design() again."
            )
        prior = self._belief_or_prior
        if prior is None:
            raise ValueError("prior=None: pass the prior as NLE_INCE(prior, ...).")
        return score_design(
            estimators,
            simulator,
            prior=prior,
            design=check_design(design, self._dim_design, self._design_policy)[0],
            objective=objective,
            **kwargs,
        )

    def _kept_likelihood(
        self, likelihood: ConditionalDensityEstimator
    ) -> ConditionalDensityEstimator:
        """Return a copy of the likelihood, the last one if it is the same."""
        state = likelihood.state_dict()
        if self._observations:
            last = self._observations[-1].likelihood_estimator
            kept = last.state_dict()
            if kept.keys() == state.keys() and all(
                torch.equal(value, state[name]) for name, value in kept.items()
            ):
                return last
        return deepcopy(likelihood).eval().requires_grad_(False)

    def _build_direct_posterior(
        self,
        density_estimator: ConditionalDensityEstimator | None,
        prior: Distribution | None,
        design: Tensor | None,
    ) -> NeuralPosterior:
        """Return the amortised posterior at a design, by default the last observed."""
        estimator = density_estimator or self._posterior_net
        if estimator is None:
            raise RuntimeError(
                "sample_with='direct' needs the posterior that optimize_design("
                "objective='barber_agakov' or 'gkl') trains beside the likelihood, "
                "and there is none yet. Call it first, or use sample_with='mcmc'."
            )
        prior = prior or self._prior
        if prior is None:
            raise ValueError("prior=None: pass the prior as NLE_INCE(prior, ...).")
        x_o = None
        if design is not None:
            design = check_design(design, self._dim_design, self._design_policy)
        else:
            if not self._observations:
                raise ValueError(
                    "design=None, but the posterior depends on designs of "
                    f"{self._dim_design} values. Pass design=..."
                )
            trained_after = self._trained_by[1] if self._trained_by else 0
            if trained_after != self._num_observations - 1:
                raise ValueError(
                    f"There are {self._num_observations} observations, but "
                    f"sample_with='direct' has a posterior that was trained after "
                    f"{trained_after} and can take one more into account. Use another "
                    "sample_with, or pass design=... for that one alone."
                )
            design, x_o = self._observations[-1].design, self._observations[-1].x
        posterior = DirectPosterior(
            # A copy: later searches train the network on.
            posterior_at_design(deepcopy(estimator).eval(), design),
            prior,
            device=self._device,
        )
        return posterior if x_o is None else posterior.set_default_x(x_o)

    def _observed_likelihood(self) -> tuple[DesignConditionedEstimator, Tensor]:
        """Return the likelihood of all observations together, and their data."""
        estimators = [o.likelihood_estimator for o in self._observations]
        designs = torch.stack([o.design for o in self._observations])
        x = torch.cat([o.x for o in self._observations])
        return DesignConditionedEstimator(estimators, designs), x


def _check_observed(x: Tensor, num_experiments: int, event_shape: torch.Size) -> Tensor:
    """Return the data with one row per experiment, or raise."""
    x = torch.as_tensor(x)
    given = tuple(x.shape)
    if x.shape == event_shape and num_experiments == 1:
        x = x.unsqueeze(0)
    if x.shape != (num_experiments, *event_shape):
        raise ValueError(
            f"x has shape {given}, but {num_experiments} experiment(s) of the "
            f"simulator yield {(num_experiments, *event_shape)}: one row per row of "
            "design."
        )
    if not torch.isfinite(x).all():
        raise ValueError(
            f"x={x.tolist()} must be finite. Leave out experiments that failed."
        )
    return x
