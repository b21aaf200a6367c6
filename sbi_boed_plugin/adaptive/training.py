"""How a policy over histories learns, inside the learned model or from a simulator."""

import math
import time
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Distribution
from torch.nn.utils.clip_grad import clip_grad_norm_

from sbi_boed_plugin._prior import draw_parameters, finite_values
from sbi_boed_plugin.adaptive.beliefs import (
    Beliefs,
    expected_gains,
    roll_out_beliefs,
    sizes_for,
)
from sbi_boed_plugin.adaptive.objective import log_posterior, training_terms
from sbi_boed_plugin.adaptive.policy import HistoryPolicy
from sbi_boed_plugin.adaptive.posterior import AmortizedPosterior
from sbi_boed_plugin.adaptive.rollout import (
    LearnedExperiment,
    Measure,
    Rollouts,
    roll_out,
)
from sbi_boed_plugin.search.target import Target
from sbi_boed_plugin.search.utility import Utility

__all__ = ["PolicyTraining"]

_POLICY_CLIP, _POSTERIOR_CLIP = 1.0, 5.0
# Rollouts of a step and designs before the start, simulations that judge each, and
# rollouts that judge the policy at the end.
_START_BATCH, _NUM_STARTS, _NUM_FOR_START, _NUM_INSIDE = 128, 256, 256, 512
# Histories whose beliefs are kept at the most, and how many new ones there are, and
# after how many steps.
_MOST_BELIEFS, _NUM_RENEWED, _RENEWED_EVERY = 512, 64, 16
# Draws of each history that the posterior learns from.
_NUM_LEARNED = 8
# Last scale of the exploring noise: with a gradient that follows it, and without. Where
# answers are yes or no, a policy needs noise for long to learn to bisect.
_LAST_SCALE = {True: 0.01, False: 0.1}


@dataclass
class PolicyTraining:
    """Policy and amortised posterior, which learn from the same rollouts.

    The posterior's encoder is the policy's, and learns with the posterior.

    With a `LearnedExperiment` gradients go through its data; with any other function of
    parameters and designs, a simulator, they are those of the score.
    """

    policy: HistoryPolicy
    posterior: AmortizedPosterior
    prior: Distribution
    utility: Utility
    target: Target | None = None
    learning_rate: float = 1e-3
    posterior_learning_rate: float = 3e-3
    looks_ahead: bool = True
    step: int = 0
    history: dict[str, list[float]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Make the optimizers."""
        self.num_skipped = 0
        # Information at designs all over the space, and its standard error, in nats.
        self.at_random: tuple[float, float] | None = None
        self.first_scale = self.policy.scale.clone()
        # Particles are of parameters that are not discrete, and do not give the
        # information about a target.
        self.is_greedy = (
            not self.looks_ahead
            and self.policy.adapts
            and self.target is None
            and finite_values(self.prior) is None
        )
        self.beliefs: Beliefs | None = None
        others = {*self.policy.space.parameters(), *self.posterior.parameters()}
        trained = [p for p in self.policy.parameters() if p not in others]
        adam = torch.optim.Adam
        self.optimizers = [
            adam(trained, self.learning_rate),
            adam(self.posterior.parameters(), self.posterior_learning_rate),
        ]

    def find_start(
        self, experiment: LearnedExperiment, num_steps: int, max_seconds: float
    ) -> None:
        """Let the posterior learn from designs all over the space, and start at one.

        That is the one that tells most by itself. A policy moves in small steps, and
        does not find another peak of the information.
        """
        space: Any = self.policy.space
        started = time.perf_counter()
        for _ in range(num_steps):
            if time.perf_counter() > started + max_seconds:
                break
            target, rollouts = self._at_random(experiment, _START_BATCH)
            values = self._posterior_values(target, rollouts)
            self._update(1, -values.mean(), _POSTERIOR_CLIP)
        with torch.no_grad():
            target, rollouts = self._at_random(experiment, _NUM_INSIDE)
            log_prior = self.log_prior(rollouts.theta, target)
            terms = self._terms(experiment, target, rollouts, log_prior)
            error = float(terms.std()) / math.sqrt(len(terms))
            self.at_random = float(terms.mean()), error
            designs = space.spread(_NUM_STARTS).to(rollouts.theta)
            values = [self._information(experiment, each) for each in designs]
        self.policy.start_at(designs[torch.stack(values).argmax()])
        self.num_skipped = 0  # Only steps of the policy count.

    @torch.no_grad()
    def _at_random(
        self, experiment: LearnedExperiment, num: int
    ) -> tuple[Tensor, Rollouts]:
        """Return rollouts at designs all over the space, and their targets."""
        space: Any = self.policy.space
        shape = self.policy.num_experiments, num
        theta = self._draw(num)
        design = space.spread(shape[0] * shape[1], at_random=True).to(theta)
        design = design.reshape(*shape, -1)
        x = torch.stack([experiment(theta, each) for each in design])
        rollouts = Rollouts(theta, design, x, design.new_zeros(shape))
        return self.target_of(theta), rollouts

    @torch.no_grad()
    def information_inside(self, experiment: LearnedExperiment) -> float:
        """Return what the policy tells inside the model, in nats."""
        theta = self._draw(_NUM_INSIDE)
        target = self.target_of(theta)
        rollouts = roll_out(self.policy, theta, experiment)
        log_prior = self.log_prior(theta, target)
        return float(self._terms(experiment, target, rollouts, log_prior).mean())

    def _terms(
        self,
        experiment: LearnedExperiment,
        target: Tensor,
        rollouts: Rollouts,
        log_prior: Tensor,
    ) -> Tensor:
        """Return what sequences inside the model tell, `(batch_dim,)`, in nats."""
        if self.target is None:
            networks = experiment, self.posterior, self.prior
            return training_terms(*networks, rollouts)
        return log_posterior(self.posterior, target, rollouts)[-1] - log_prior

    def _information(self, experiment: LearnedExperiment, design: Tensor) -> Tensor:
        """Return what one experiment tells, less its cost, by the posterior alone."""
        theta = self._draw(_NUM_FOR_START)
        designs = design.expand(1, len(theta), -1)
        x = experiment(theta, designs[0]).unsqueeze(0)
        rollouts = Rollouts(theta, designs, x, designs.new_zeros(1, len(theta)))
        target = self.target_of(theta)
        known = log_posterior(self.posterior, target, rollouts)[0]
        known = known - self.log_prior(theta, target) - self._costs(rollouts)[0]
        return known.mean()

    def _draw(self, num: int) -> Tensor:
        theta = draw_parameters(self.prior, num).float()
        return theta.to(self.policy.scale.device)

    def target_of(self, theta: Tensor) -> Tensor:
        """Return what is asked for: all parameters, or the target of them."""
        return theta if self.target is None else self.target(theta)

    def state_dict(self) -> dict[str, Any]:
        """Return weights, optimizers and what was recorded, as plain values."""
        return {
            "policy": dict(self.policy.state_dict()),
            "posterior": dict(self.posterior.state_dict()),
            "optimizers": [each.state_dict() for each in self.optimizers],
            "step": self.step,
            "num_skipped": self.num_skipped,
            "at_random": self.at_random,
            "beliefs": None if self.beliefs is None else dict(vars(self.beliefs)),
            "history": self.history,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up a state of a training with the same networks."""
        self.policy.load_state_dict(state["policy"])
        self.posterior.load_state_dict(state["posterior"])
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(deepcopy(saved))
        for name in ("step", "num_skipped", "at_random"):
            setattr(self, name, state[name])
        self.history = deepcopy(state["history"])
        saved = state["beliefs"]
        self.beliefs = None if saved is None else Beliefs(**saved).to(self.policy.scale)

    def take_step(
        self, experiment: LearnedExperiment | Measure, batch_size: int, share: float
    ) -> None:
        """Take a step, at the share of the training that is done by then."""
        decay = 0.5 * (1.0 + math.cos(math.pi * min(share, 1.0)))
        rates = self.learning_rate, self.posterior_learning_rate
        for optimizer, rate in zip(self.optimizers, rates, strict=True):
            for group in optimizer.param_groups:
                group["lr"] = rate * max(decay, 1e-3)
        in_model = isinstance(experiment, LearnedExperiment)
        ratio = _LAST_SCALE[in_model] / float(self.first_scale)
        self.policy.scale.copy_(self.first_scale * ratio**share)
        if isinstance(experiment, LearnedExperiment) and self.is_greedy:
            self._take_greedy_step(experiment, batch_size)
        else:
            self._take_total_step(experiment, batch_size)
        self.step += 1

    def _take_total_step(
        self, experiment: LearnedExperiment | Measure, batch_size: int
    ) -> None:
        """Take a step towards more information of all experiments together."""
        in_model = isinstance(experiment, LearnedExperiment)
        theta = self._draw(batch_size)
        # Without noise, a design in a region that tells nothing would never leave it.
        draws = {"chooses": True, "explores": True, "follows_noise": in_model}
        rollouts = roll_out(self.policy, theta, experiment, **draws)
        target = self.target_of(theta)
        log_prior = self.log_prior(theta, target)
        values = self._posterior_values(target, rollouts)
        known = values.detach() - log_prior
        if isinstance(experiment, LearnedExperiment):
            terms = self._terms(experiment, target, rollouts, log_prior)
        else:
            terms = known[-1]
        costs, log_actions = self._costs(rollouts), rollouts.log_prob
        if isinstance(experiment, LearnedExperiment):
            log_drawn = experiment.log_drawn(rollouts)
            log_actions = log_actions if log_drawn is None else log_actions + log_drawn
        worth = terms - costs.sum(dim=0)
        loss = -worth.mean() + _score_loss(worth, known, costs, log_actions)
        self._update(0, loss, _POLICY_CLIP)
        self._update(1, -values.mean(), _POSTERIOR_CLIP)
        self._record(terms, known, costs)

    def _take_greedy_step(self, experiment: LearnedExperiment, num: int) -> None:
        """Take a step towards more information of each experiment by itself.

        Particles tell what is known before it. Their histories are those of the policy
        as it was of late, and new ones join them every few steps.
        """
        made = self.policy, experiment, self.prior
        if self.beliefs is None or self.step % _RENEWED_EVERY == 0:
            new = roll_out_beliefs(*made, self._draw(_NUM_RENEWED))
            kept = self.beliefs
            self.beliefs = new if kept is None else kept.renewed(new, _MOST_BELIEFS)
        length = self.policy.num_experiments
        num_rows = max(2, num * sizes_for(experiment)[1] // length)
        chosen = torch.randperm(len(self.beliefs.theta))[:num_rows]
        beliefs = self.beliefs.rows(chosen)
        with torch.no_grad():
            pairs = self.policy.encoder.pairs(beliefs.design, beliefs.x)
        draws = {"chooses": True, "explores": True, "follows_noise": True}
        proposed = [self.policy(pairs[:step], **draws) for step in range(length)]
        design, log_prob = (torch.stack(part) for part in zip(*proposed, strict=True))
        before = beliefs.draws[:-1].transpose(0, 1).flatten(1, 2)
        found = expected_gains(experiment, before, design.flatten(0, 1))
        gains, gradients = (part.unflatten(0, log_prob.shape) for part in found)
        costs = self._costs(Rollouts(beliefs.theta, design, beliefs.x, log_prob))
        # Its gradient by what the policy proposed is that of the gains.
        surrogate = (gradients * design).sum(dim=-1)
        if log_prob.requires_grad:
            worth = gains - costs.detach()
            others = (worth.sum(dim=1, keepdim=True) - worth) / (len(chosen) - 1)
            surrogate = surrogate + (worth - others) * log_prob
        self._update(0, (costs - surrogate).mean(dim=1).sum(), _POLICY_CLIP)
        theta = self._draw(num)
        with torch.no_grad():
            seen = roll_out(self.policy, theta, experiment, chooses=True, explores=True)
        values = self._posterior_values(theta, seen)
        of_draws = self._posterior_values_of(beliefs)
        loss = 0.5 * (values.mean() + of_draws.mean())
        self._update(1, -loss, _POSTERIOR_CLIP)
        known = values.detach() - self.log_prior(theta, theta)
        self._record(gains.sum(dim=0), known, costs)

    def _posterior_values_of(self, beliefs: Beliefs) -> Tensor:
        """Return log-densities of draws after each experiment, to learn from."""
        draws = beliefs.draws[1:, :_NUM_LEARNED].transpose(0, 1).flatten(1, 2)
        conditions = self.posterior.conditions(beliefs.design, beliefs.x)
        return self.posterior.net.log_prob(draws, conditions.flatten(0, 1))

    def log_prior(self, theta: Tensor, target: Tensor) -> Tensor:
        """Return the log-densities of targets before any experiment, in nats."""
        if self.target is not None:
            return self.target.log_prior(target)
        return self.prior.log_prob(theta).to(theta).detach()

    def _posterior_values(self, target: Tensor, rollouts: Rollouts) -> Tensor:
        """Return log-densities of rollouts that count as given, to learn from."""
        given = Rollouts(*(part.detach() for part in vars(rollouts).values()))
        return log_posterior(self.posterior, target, given)

    def _update(self, number: int, loss: Tensor, max_norm: float) -> None:
        optimizer = self.optimizers[number]
        parameters = optimizer.param_groups[0]["params"]
        gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient
        # A step whose gradient is not finite would end the training.
        if clip_grad_norm_(parameters, max_norm).isfinite():
            optimizer.step()
        else:
            self.num_skipped += 1

    def _costs(self, rollouts: Rollouts) -> Tensor:
        """Return the costs of designs, `(num_experiments, batch_dim)`."""
        design = rollouts.design
        if self.utility.cost is None or self.utility.maximize == "eig":
            return design.new_zeros(design.shape[:2])
        costs = self.utility.costs(design.flatten(0, 1))
        return costs.to(design).reshape(design.shape[:2])

    def _record(self, terms: Tensor, known: Tensor, costs: Tensor) -> None:
        values = {
            "eig": terms.detach().mean(),
            "barber_agakov": known[-1].mean(),
            "cost": costs.detach().sum(dim=0).mean(),
        }
        for name, value in values.items():
            self.history.setdefault(name, []).append(float(value))


def _score_loss(
    worth: Tensor, known: Tensor, costs: Tensor, log_actions: Tensor
) -> Tensor:
    """Return the part of the loss for what was drawn without a gradient.

    An action is judged by what came after it: what was known and spent before is the
    baseline, and so is the mean of the other rollouts.
    """
    if not log_actions.requires_grad:
        return worth.new_zeros(())
    with torch.no_grad():
        before = known - costs.cumsum(dim=0)
        before = torch.cat([torch.zeros_like(before[:1]), before[:-1]])
        later = worth - before
        number = later.shape[1]
        others = (later.sum(dim=1, keepdim=True) - later) / (number - 1)
    return -((later - others) * log_actions).sum(dim=0).mean()
