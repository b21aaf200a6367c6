"""What was measured in experiments, and the belief that follows from it."""

import math
import warnings
from collections.abc import Callable
from copy import copy, deepcopy
from dataclasses import dataclass
from typing import Any

import torch
from sbi.neural_nets.estimators import ConditionalDensityEstimator
from torch import Tensor
from torch.distributions import Distribution

from sbi_boed_plugin._memory import rows_at_once
from sbi_boed_plugin._rng import isolated_rng
from sbi_boed_plugin.estimators.design_conditioned import DesignConditionedEstimator
from sbi_boed_plugin.estimators.discrete import check_values
from sbi_boed_plugin.estimators.likelihood_with_failures import LikelihoodWithFailures
from sbi_boed_plugin.objectives.info_nce import (
    log_likelihood_matrix,
    nan_to_zero_density,
)
from sbi_boed_plugin.search.belief import ParticleBelief

__all__ = ["SURPRISING", "Measurements", "Observation", "predictive_p_value"]

# What a belief is restored from, beside its observations.
_OF_BELIEF = ("particles", "log_evidence", "log_evidence_variance")
# Draws that data are compared with, and particles by which their density is judged.
_NUM_DRAWS, _NUM_JUDGES = 1_000, 64
_SEED = 7_919
# Data with a p-value below this one lie beyond all draws.
SURPRISING = 1.5 / _NUM_DRAWS


@dataclass(frozen=True)
class Observation:
    """What was measured in an experiment, with the likelihood of that time.

    Attributes:
        design: Design of shape `(dim_design,)`.
        x: Data of shape `(1, dim_x)`.
        likelihood_estimator: Likelihood, conditioned on `(theta, design)` in one row,
            as it was when the data were observed.
        predictive_p_value: Share of what was predicted before that is as surprising as
            `x`, from 1,000 draws.
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


class Measurements:
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
        check_values(likelihood, x)
        kept = self._kept_likelihood(likelihood)
        belief = copy(self.belief) or self._new_belief(num_particles)
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
            belief = self._new_belief(len(self.belief.particles))
            for observation in observations:
                belief.update(observation.log_likelihood)
        self.observations, self.belief = observations, belief

    def _new_belief(self, num_particles: int) -> ParticleBelief:
        """Return the belief before any observation."""
        settings = {"num_particles": num_particles, "device": self._device}
        return ParticleBelief(self._prior, **settings)

    def _kept_likelihood(
        self, likelihood: ConditionalDensityEstimator
    ) -> ConditionalDensityEstimator:
        """Return a copy of the likelihood, the last one if it is the same."""
        for last in self.observations[-1:]:
            kept, new = last.likelihood_estimator.state_dict(), likelihood.state_dict()
            same = kept.keys() == new.keys()
            if same and all(torch.equal(kept[name], new[name]) for name in kept):
                return last.likelihood_estimator
        return deepcopy(likelihood).eval().requires_grad_(False)

    def likelihood(self) -> tuple[DesignConditionedEstimator, Tensor]:
        """Return the likelihood of all observations together, and their data."""
        estimators = [o.likelihood_estimator for o in self.observations]
        designs = torch.stack([o.design for o in self.observations])
        x = torch.cat([o.x for o in self.observations])
        return DesignConditionedEstimator(estimators, designs), x

    def state_dict(self) -> dict[str, Any]:
        """Return all of it as tensors, numbers, lists and dictionaries."""
        rows = []
        for observation in self.observations:
            weights = dict(observation.likelihood_estimator.state_dict())
            networks = {"likelihood": weights}
            rows.append({**vars(observation), "likelihood_estimator": networks})
        belief = None
        if self.belief is not None:
            belief = {name: getattr(self.belief, name) for name in _OF_BELIEF}
        return {"observations": rows, "belief": belief}

    def restored(
        self,
        state: dict[str, Any],
        build: Callable[[dict[str, Any]], ConditionalDensityEstimator],
    ) -> "Measurements":
        """Return those of a saved state, with networks that are built from weights."""
        other = Measurements(self._prior, self._device)
        for row in state["observations"]:
            moved = {name: row[name].to(self._device) for name in ("design", "x")}
            likelihood = other._kept_likelihood(build(row["likelihood_estimator"]))
            row = {**row, **moved, "likelihood_estimator": likelihood}
            other.observations = (*other.observations, Observation(**row))
        if state["belief"] is not None:
            belief = self._new_belief(len(state["belief"]["particles"]))
            for name in _OF_BELIEF:
                setattr(belief, name, state["belief"][name])
            belief.particles = belief.particles.to(self._device)
            belief.log_likelihoods = tuple(o.log_likelihood for o in other.observations)
            other.belief = belief
        return other


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
