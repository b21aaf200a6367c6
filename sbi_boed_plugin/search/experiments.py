"""Experiments one after another: what was measured, and what is known from it."""

import math
import warnings
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
from sbi.neural_nets.estimators import ConditionalDensityEstimator
from torch import Tensor
from torch.distributions import Distribution

from sbi_boed_plugin._memory import rows_at_once
from sbi_boed_plugin._prior import to_real_numbers
from sbi_boed_plugin.estimators.design_conditioned import DesignConditionedEstimator
from sbi_boed_plugin.search.belief import SURPRISING, ParticleBelief, predictive_p_value

__all__ = ["Experiments", "Observation"]

# What a belief is restored from, beside its observations.
_OF_BELIEF = ("particles", "log_evidence", "log_evidence_variance", "acceptance_rate")


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
        """Return the log-likelihood of the data for each row of parameters, in nats."""
        condition = torch.cat([theta, self.design.expand(len(theta), -1)], dim=-1)
        x = self.x.unsqueeze(0)
        likelihood = self.likelihood_estimator
        size = rows_at_once(likelihood, x.numel() + condition[:1].numel())
        parts = [
            likelihood.log_prob(x.expand(1, len(part), *x.shape[2:]), part)[0]
            for part in condition.split(size)
        ]
        return torch.cat(parts)


class Experiments:
    """What was observed so far, oldest first, and the belief after it."""

    def __init__(self, prior: Distribution | None, device: str) -> None:
        self._prior: Any = prior  # Where anything was observed, there is one.
        self._device = device
        self.observations: tuple[Observation, ...] = ()
        self.belief: ParticleBelief | None = None

    def __len__(self) -> int:
        return len(self.observations)

    def observe(
        self,
        likelihood: ConditionalDensityEstimator,
        design: Tensor,
        x: Tensor,
        num_particles: int,
    ) -> None:
        """Take an experiment for each row into account, or raise and change nothing."""
        x = _check_observed(x, len(design), likelihood.input_shape)
        kept = self._kept_likelihood(likelihood)
        belief = self.belief
        belief = self._new_belief(num_particles) if belief is None else belief.copy()
        observations = list(self.observations)
        x, design = x.to(belief.particles), design.to(belief.particles)
        for one, data in zip(design, x.unsqueeze(1), strict=True):
            p_value = predictive_p_value(kept, belief.particles, one, data)
            observations.append(Observation(one, data, kept, p_value))
            belief.update(observations[-1].log_likelihood)
            if p_value < SURPRISING:
                warnings.warn(
                    f"x={data[0].tolist()} lies beyond all draws of what the learned "
                    f"likelihood predicts at design={one.tolist()}. If it belongs to "
                    "another design, has other units, or is none of the simulator's, "
                    "forget() takes the last observation back.",
                    stacklevel=4,
                )
        self.observations, self.belief = tuple(observations), belief

    def forget(self, num_observations: int) -> None:
        """Take the last observations back; the belief is made anew from the others."""
        num_left = len(self) - num_observations
        if num_observations < 1 or num_left < 0:
            raise ValueError(
                f"num_observations={num_observations} must be between 1 and the number "
                f"of observations, {len(self)}."
            )
        observations, belief = self.observations[:num_left], None
        if observations and self.belief is not None:
            belief = self._new_belief(self.belief.num_particles)
            for observation in observations:
                belief.update(observation.log_likelihood)
        self.observations, self.belief = observations, belief

    def _new_belief(self, num_particles: int) -> ParticleBelief:
        """Return the belief before any observation."""
        transform = to_real_numbers(self._prior)
        kwargs = {"num_particles": num_particles, "device": self._device}
        return ParticleBelief(self._prior, transform, **kwargs)

    def _kept_likelihood(
        self, likelihood: ConditionalDensityEstimator
    ) -> ConditionalDensityEstimator:
        """Return a copy of the likelihood, the last one if it is the same."""
        state = likelihood.state_dict()
        if self.observations:
            last = self.observations[-1].likelihood_estimator
            kept = last.state_dict()
            if kept.keys() == state.keys() and all(
                torch.equal(value, state[name]) for name, value in kept.items()
            ):
                return last
        return deepcopy(likelihood).eval().requires_grad_(False)

    def likelihood(self) -> tuple[DesignConditionedEstimator, Tensor]:
        """Return the likelihood of all observations together, and their data."""
        estimators = [o.likelihood_estimator for o in self.observations]
        designs = torch.stack([o.design for o in self.observations])
        x = torch.cat([o.x for o in self.observations])
        return DesignConditionedEstimator(estimators, designs), x

    def state_dict(self) -> dict[str, Any]:
        """Return all of it as tensors, numbers, lists and dictionaries."""
        kept = list(dict.fromkeys(o.likelihood_estimator for o in self.observations))
        belief = None
        if self.belief is not None:
            belief = {name: getattr(self.belief, name) for name in _OF_BELIEF}
        return {
            "likelihoods": [dict(network.state_dict()) for network in kept],
            "observations": [
                {
                    "design": o.design,
                    "x": o.x,
                    "likelihood": kept.index(o.likelihood_estimator),
                    "predictive_p_value": o.predictive_p_value,
                }
                for o in self.observations
            ],
            "belief": belief,
        }

    def restored(
        self, state: dict[str, Any], likelihoods: list[ConditionalDensityEstimator]
    ) -> "Experiments":
        """Return experiments of a saved state, with the networks of its weights."""
        other = Experiments(self._prior, self._device)
        other.observations = tuple(
            Observation(
                o["design"].to(self._device),
                o["x"].to(self._device),
                likelihoods[o["likelihood"]],
                o["predictive_p_value"],
            )
            for o in state["observations"]
        )
        if state["belief"] is not None:
            particles = state["belief"]["particles"].to(self._device)
            other.belief = ParticleBelief.restore(
                self._prior,
                to_real_numbers(self._prior),
                [o.log_likelihood for o in other.observations],
                **{**state["belief"], "particles": particles},
            )
        return other


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
