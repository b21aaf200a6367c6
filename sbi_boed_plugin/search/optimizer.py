r"""The loop that trains a design policy and density estimators together.

Each step draws designs from the policy and parameters from the prior, simulates, and
evaluates the densities of the batch. From them the likelihood takes a step on the
InfoNCE-λ loss, what the objective of the policy needs beside it a step on its own
loss, and the policy a step on the information. No weight :math:`\lambda` of maximum
likelihood enters there: the policy would prefer quiet measurements to informative ones.
"""

import math
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Distribution
from torch.nn.utils.clip_grad import clip_grad_norm_
from torch.optim.adam import Adam
from tqdm.auto import tqdm

from sbi_boed_plugin._atomic import defer_interrupts
from sbi_boed_plugin.estimators.likelihood_with_failures import LikelihoodWithFailures
from sbi_boed_plugin.estimators.vector_field import takes_context
from sbi_boed_plugin.objectives.info_nce import in_batch_contrast
from sbi_boed_plugin.policies.policy import DesignPolicy
from sbi_boed_plugin.search.batch import (
    Batch,
    Progress,
    check_finite,
    simulate_batch,
)
from sbi_boed_plugin.search.config import DesignSearchConfig
from sbi_boed_plugin.search.estimators import DesignEstimators, NetworkModels
from sbi_boed_plugin.search.gradients import DATA_PATHS, score_loss
from sbi_boed_plugin.search.information import (
    POLICY_OBJECTIVES,
    Densities,
    training_losses,
)
from sbi_boed_plugin.search.multi_start import spread_designs
from sbi_boed_plugin.search.result import StopReason
from sbi_boed_plugin.simulation import CheckedSimulator

__all__ = ["DesignOptimizer"]

# Share of the time for training; the rest is for the score.
_TRAINING_TIME = 0.8
# Learning rate of the networks, relative to that of the search, when refinement starts.
_REFINEMENT_RATE = 0.2


class DesignOptimizer:
    """Trains a design policy, in place, and density estimators.

    A step either completes or leaves everything as it was, whatever interrupts it, so
    that a search goes on from its last completed step. `estimators` are the networks
    that later steps train further, `None` before the first.
    """

    def __init__(
        self,
        policy: DesignPolicy,
        prior: Distribution,
        models: NetworkModels,
        config: DesignSearchConfig,
        *,
        estimators: DesignEstimators | None = None,
        device: str = "cpu",
    ) -> None:
        self.policy = policy.to(device)
        self.config: Any = config  # All that could be None has been chosen.
        self.progress = Progress()
        self.estimators = estimators
        self.prior = prior
        self._models = models
        self._device = device
        self._optimizer: Adam | None = None
        self._policy_optimizer: Adam | None = None
        if parameters := list(policy.parameters()):
            self._policy_optimizer = Adam(parameters, lr=config.design_learning_rate)
        self._has_new_networks = estimators is None
        # Copies that learned from the simulations again; a search goes on without.
        self.rehearsed: DesignEstimators | None = None
        # What was known of failures before this search.
        likelihood = None if estimators is None else estimators.likelihood
        known = isinstance(likelihood, LikelihoodWithFailures)
        self._known_failures = likelihood if known else None

    @property
    def networks(self) -> DesignEstimators | None:
        """The networks to use: those that have seen most."""
        return self.rehearsed or self.estimators

    @property
    def num_learned_from(self) -> int | None:
        """Number of simulations behind the networks, if they are of this search."""
        return self.progress.num_simulations if self._has_new_networks else None

    @property
    def finished(self) -> bool:
        """Whether all steps are done."""
        config = self.config
        return self.progress.step >= config.num_steps + config.num_refinement_steps

    @property
    def training_seconds(self) -> float:
        """The time at which training ends, in seconds."""
        limit = self.config.max_seconds
        return math.inf if limit is None else _TRAINING_TIME * limit

    @property
    def _moves_policy(self) -> bool:
        """Whether the policy is trained, not only the estimators."""
        config = self.config
        return config.method == "joint" and self.progress.step < config.num_steps

    def run(
        self,
        simulator: CheckedSimulator,
        num_after: int,
        tracker: Any | None,
        show_progress_bar: bool,
    ) -> StopReason:
        """Take steps until all are done or a budget is used up, and return which.

        The budget of simulations leaves room for `num_after` after the last step. A
        `ValueError` says if the budgets do not allow for a single step.
        """
        config, progress = self.config, self.progress
        budget = config.max_num_simulations
        bar = tqdm(
            total=config.num_steps + config.num_refinement_steps,
            initial=progress.step,
            disable=not show_progress_bar,
            desc="Optimizing design",
        )
        used_up: StopReason | None = None
        try:
            with bar:
                while not self.finished and used_up is None:
                    used_up = self._used_up(simulator, num_after)
                    if used_up is None and self._step(simulator):
                        self._report(bar, tracker)
                    elif used_up is None:
                        used_up = "max_num_simulations"
        finally:
            self._learn_failures()
        if self.estimators is None or (config.num_steps and not progress.step):
            raise ValueError(
                f"No step was taken: max_num_simulations={budget} and max_seconds="
                f"{config.max_seconds} must allow for a batch of "
                f"{config.training_batch_size} simulations and {num_after} that score "
                "the design."
            )
        return used_up or "num_steps"

    def _used_up(
        self, simulator: CheckedSimulator, num_after: int
    ) -> StopReason | None:
        """Return the budget that another step would exceed, if any."""
        config, progress = self.config, self.progress
        size = config.training_batch_size
        if config.max_num_simulations is not None:
            left = config.max_num_simulations - num_after - progress.num_spent
            if size + simulator.num_check_calls > left:
                return "max_num_simulations"
            simulator.max_calls = left
        seconds = progress.seconds - progress.rehearsal_seconds
        seconds_of_step = seconds * size / max(1, progress.num_simulations)
        if progress.seconds + seconds_of_step >= self.training_seconds:
            return "max_seconds"
        return None

    def _learn_failures(self) -> None:
        """Learn when simulations fail, from those kept and what was known before."""
        if self.estimators is None or not self.progress.stored:
            return
        if self.estimators.likelihood is None:
            return
        rows = self.progress.recent()
        if self._known_failures is not None or not rows.valid.all():
            condition = torch.cat([rows.theta, rows.design], dim=-1)
            likelihood = LikelihoodWithFailures(self.estimators.trained.likelihood)
            likelihood.learn(condition, rows.valid, start=self._known_failures)
            self.estimators = replace(self.estimators, likelihood=likelihood)

    def _step(self, simulator: CheckedSimulator) -> bool:
        """Take a step, and return whether the limit of simulations allowed for it."""
        started = time.perf_counter()
        config, moves_policy = self.config, self._moves_policy
        self.rehearsed, self.progress.overfit = None, {}
        if moves_policy:
            self.policy.anneal(self.progress.step / max(1, config.num_steps - 1))
        designs = self._draw_designs()
        batch = simulate_batch(
            simulator,
            self.prior,
            designs,
            keep_gradient=moves_policy and config.gradient == "pathwise",
            device=self._device,
            num_workers=config.num_workers,
            # Once is enough: the result counts them all.
            warn=self.progress.num_invalid_simulations == 0,
        )
        if not batch.is_complete:
            self.progress.num_simulations += batch.num_calls
            return False
        finite = batch.finite()
        networks, optimizer = self._networks_and_optimizer(finite)
        estimators = networks.trained
        estimators.train()
        # All parameters are draws from the prior; those whose simulation is valid are
        # not, so that contrasting with them alone would invent information.
        contrast = in_batch_contrast(batch.theta, config.num_contrastive)
        contrast = contrast[:, batch.valid]
        densities = Densities(
            estimators,
            self.prior,
            finite.theta,
            finite.x.detach(),
            finite.design.detach(),
            contrast,
            sampled=True,
        )
        losses = training_losses(
            densities,
            config.regularization_strength,
            contrastive=bool(batch.valid.all()),
        )
        losses = {name: loss.mean() for name, loss in losses.items()}
        # A failed simulation tells at least nothing.
        objective = POLICY_OBJECTIVES[config.objective]
        # What only the score follows shares no density with the losses.
        with torch.set_grad_enabled(not objective.by_score):
            terms = objective.terms(densities).detach()
        information = terms.new_zeros(len(batch.theta))
        information = information.masked_scatter(batch.valid, terms)
        policy_gradients: Sequence[Tensor | None] = ()
        worth = config.utility(information, designs.detach().to(information))
        if moves_policy:
            of_rows = designs, batch.valid, finite
            loss = self._policy_loss(*of_rows, estimators, contrast, worth)
            policy_gradients = torch.autograd.grad(
                loss, self._policy_parameters(), allow_unused=True
            )
        optimizer.zero_grad(set_to_none=True)
        torch.stack(list(losses.values())).sum().backward()
        gradients: list[Tensor | None] = [*policy_gradients]
        for network in estimators.all():
            if config.clip_max_norm is not None:
                clip_grad_norm_(network.parameters(), config.clip_max_norm)
            gradients += [parameter.grad for parameter in network.parameters()]
        check_finite(self.progress.step, losses, gradients, finite)
        # Nothing is updated before this point; from here on the step counts.
        with defer_interrupts():
            self.estimators, self._optimizer = networks, optimizer
            self._set_learning_rates()
            optimizer.step()
            if moves_policy and self.progress.step >= config.num_warmup_steps:
                self._move_policy(policy_gradients)
            progress = self.progress
            seconds = time.perf_counter() - started
            progress.keep(batch, worth if moves_policy else None, seconds)
            error = information.std() / math.sqrt(len(information))
            if networks.likelihood is not None:
                mean = densities.log_likelihood.mean().item()
                progress.record(log_likelihood=mean)
            progress.record(
                # Of the likelihood, or else of the network that there is.
                loss=next(iter(losses.values())).item(),
                eig=information.mean().item(),
                eig_standard_error=error.item(),
                num_simulations=progress.num_simulations,
                seconds=progress.seconds,
                **{key: v.tolist() for key, v in self.policy.describe().items()},
            )
        return True

    def _draw_designs(self) -> Tensor:
        """Draw the designs of a step."""
        config, policy = self.config, self.policy
        shape = torch.Size((config.training_batch_size,))
        if config.method == "multi_start":
            return policy.spread(*shape, at_random=True).clone()
        if self._moves_policy and config.gradient != "score":
            return policy.rsample(shape).clone()
        # A policy may return a view of what it keeps.
        designs = policy.sample(shape).clone()
        if not self._moves_policy:
            # The networks are to know one design well, not to forget its surroundings.
            designs[::2] = policy.mode.to(designs)
        return designs

    def _networks_and_optimizer(self, batch: Batch) -> tuple[DesignEstimators, Adam]:
        """Return the networks and their optimizer, built from the first batch."""
        if self._optimizer is not None and self.estimators is not None:
            return self.estimators, self._optimizer
        needs = POLICY_OBJECTIVES[self.config.objective].needs
        rows = batch.theta, batch.x, spread_designs(batch.design, self.policy)
        networks = self._models.complete(
            self.estimators, needs, self.prior, rows, self._device
        )
        if any(map(takes_context, networks.all())):
            raise ValueError(
                f"method='{self.config.method}' with a network that learns in context: "
                "it reads all simulations at once. Use method='rounds' with "
                "max_num_simulations=..."
            )
        groups = [{"params": net.parameters()} for net in networks.trained.all()]
        return networks, Adam(groups, lr=self.config.learning_rate)

    def _policy_loss(
        self,
        designs: Tensor,
        valid: Tensor,
        finite: Batch,
        estimators: DesignEstimators,
        contrast: Tensor,
        worth: Tensor,
    ) -> Tensor:
        """Return what the policy minimizes: minus the mean utility of designs."""
        config = self.config
        if config.gradient == "score":
            return score_loss(worth, self.policy.log_prob(designs.detach()))
        x = DATA_PATHS[config.gradient](finite, estimators)
        theta, design = finite.theta, finite.design
        densities = Densities(estimators, self.prior, theta, x, design, contrast)
        terms = POLICY_OBJECTIVES[config.objective].terms(densities)
        # Failed simulations tell nothing, and cost as much.
        terms = worth.new_zeros(len(worth)).masked_scatter(valid, terms)
        return -config.utility(terms, designs.to(terms)).sum() / len(worth)

    def _policy_parameters(self) -> list[torch.nn.Parameter]:
        return [p for p in self.policy.parameters() if p.requires_grad]

    def _move_policy(self, gradients: Sequence[Tensor | None]) -> None:
        """Let the policy take its step."""
        for parameter, gradient in zip(
            self._policy_parameters(), gradients, strict=True
        ):
            parameter.grad = gradient
        assert self._policy_optimizer is not None
        self._policy_optimizer.step()
        self.policy.project()

    def _set_learning_rates(self) -> None:
        """Let learning rates fall to a hundredth along half a cosine.

        That of the networks starts anew, lower, with refinement.
        """
        config, step, start = self.config, self.progress.step, 1.0
        num_steps = config.num_steps
        if step >= num_steps:
            step, start = step - num_steps, _REFINEMENT_RATE
            num_steps = config.num_refinement_steps
        cosine = 0.5 * (1.0 + math.cos(math.pi * step / num_steps))
        factor = 0.01 + (start - 0.01) * cosine
        optimizers = (self._optimizer, self._policy_optimizer)
        rates = (config.learning_rate, config.design_learning_rate)
        for optimizer, rate in zip(optimizers, rates, strict=True):
            for group in [] if optimizer is None else optimizer.param_groups:
                group["lr"] = rate * factor

    def _report(self, bar: Any, tracker: Any | None) -> None:
        """Show the last step on the progress bar and to the tracker."""
        last = {name: values[-1] for name, values in self.progress.history.items()}
        mode = ", ".join(f"{value:.3g}" for value in last["mode"][:4])
        more = ", …" if len(last["mode"]) > 4 else ""
        told = f"design [{mode}{more}], EIG {last['eig']:.2f} nats"
        bar.set_postfix_str(told, refresh=False)
        bar.update()
        if tracker is not None:
            names = {"loss", "eig", "log_likelihood"} & set(last)
            metrics = {f"design_{name}": last[name] for name in names}
            tracker.log_metrics(metrics, step=self.progress.step)
