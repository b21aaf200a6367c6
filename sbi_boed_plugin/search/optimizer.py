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
from sbi_boed_plugin.objectives.info_nce import choose_negligible, in_batch_contrast
from sbi_boed_plugin.policies.policy import DesignPolicy
from sbi_boed_plugin.search.batch import (
    Batch,
    Designs,
    DesignsAtMode,
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
from sbi_boed_plugin.search.multi_start import spread_designs, uniform_designs
from sbi_boed_plugin.search.progress import Progress
from sbi_boed_plugin.search.result import StopReason
from sbi_boed_plugin.simulation import CheckedSimulator

__all__ = ["DesignOptimizer"]


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
        self.progress = Progress(search_ended=None if config.num_steps else 0)
        self.estimators = estimators
        self.prior = prior
        self._models = models
        self._device = device
        self._optimizer: Adam | None = None
        self._policy_optimizer: Adam | None = None
        if parameters := list(policy.parameters()):
            self._policy_optimizer = Adam(parameters, lr=config.design_learning_rate)
        self._has_new_networks = estimators is None
        self._negligible = 0.0
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
        ended, refinement = self.progress.search_ended, self.config.num_refinement_steps
        return ended is not None and self.progress.step >= ended + refinement

    @property
    def _moves_policy(self) -> bool:
        """Whether the policy is trained, not only the estimators."""
        return self.config.method == "joint" and self.progress.search_ended is None

    def run(
        self,
        simulator: CheckedSimulator,
        num_scoring: int,
        max_scoring_seconds: float,
        *,
        tracker: Any | None,
        show_progress_bar: bool,
    ) -> StopReason:
        """Take steps until all are done or a budget of the settings is used up.

        Both budgets leave room for `num_scoring` simulations after the last step, the
        time at most `max_scoring_seconds` for them. Returned is the budget that is used
        up, or else what ended the search.
        """
        config, ended = self.config, self.progress.search_ended
        stopped_early = ended is not None and ended < config.num_steps
        if stopped_early and not config.num_refinement_steps:
            self.progress.search_ended = None  # A resumed search leaves its plateau.
        bar = tqdm(
            total=config.num_steps + config.num_refinement_steps,
            initial=self.progress.step,
            disable=not show_progress_bar,
            desc="Optimizing design",
        )
        try:
            with bar:
                while not self.finished:
                    reason = self._used_up(simulator, num_scoring, max_scoring_seconds)
                    if reason is None and not self._step(simulator):
                        reason = "max_num_simulations"
                    if reason is not None:
                        return reason
                    self._report(bar, tracker)
        finally:
            self._learn_failures()
        is_early = self.progress.search_ended != config.num_steps
        return "plateau" if is_early else "num_steps"

    def _used_up(
        self, simulator: CheckedSimulator, num_scoring: int, max_scoring_seconds: float
    ) -> StopReason | None:
        """Return the budget that another step would exceed, if any."""
        config, progress = self.config, self.progress
        if config.max_num_simulations is not None:
            left = config.max_num_simulations - num_scoring - progress.num_spent
            if config.training_batch_size + simulator.num_check_calls > left:
                return "max_num_simulations"
            simulator.max_calls = left
        if config.max_seconds is not None:
            ends = progress.seconds + progress.pace * config.training_batch_size
            ends += min(progress.pace * num_scoring, max_scoring_seconds)
            if ends > config.max_seconds or not config.max_seconds:
                return "max_seconds"
        return None

    def _learn_failures(self) -> None:
        """Learn when simulations fail, from those kept and what was known before."""
        if self.estimators is None or not self.progress.stored:
            return
        rows = Batch.join(self.progress.stored)
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
        batch = self._simulate(simulator)
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
            negligible=self._negligible,
        )
        losses = training_losses(
            densities,
            config.regularization_strength,
            contrastive=bool(batch.valid.all()),
        )
        losses = {name: loss.mean() for name, loss in losses.items()}
        # A failed simulation tells at least nothing.
        terms = POLICY_OBJECTIVES[config.objective].terms(densities).detach()
        information = terms.new_zeros(len(batch.theta))
        information = information.masked_scatter(batch.valid, terms)
        policy_gradients: Sequence[Tensor | None] = ()
        if moves_policy:
            policy_gradients = self._policy_gradients(
                batch, estimators, contrast, information
            )
        optimizer.zero_grad(set_to_none=True)
        torch.stack(list(losses.values())).sum().backward()
        gradients: list[Tensor | None] = [*policy_gradients]
        for network in estimators.all():
            if config.clip_max_norm is not None:
                clip_grad_norm_(network.parameters(), config.clip_max_norm)
            gradients += [parameter.grad for parameter in network.parameters()]
        check_finite(self.progress.step, losses, gradients, finite, self.prior)
        # Nothing is updated before this point; from here on the step counts.
        with defer_interrupts():
            self.estimators, self._optimizer = networks, optimizer
            self._set_learning_rates()
            optimizer.step()
            if moves_policy:
                self._move_policy(policy_gradients)
            self._negligible = choose_negligible(densities.log_likelihoods)
            seconds = time.perf_counter() - started
            self._record(losses["likelihood"], information, densities, batch, seconds)
        return True

    def _simulate(self, simulator: CheckedSimulator) -> Batch:
        """Simulate the batch of a step."""
        config = self.config
        designs: Designs = self.policy
        if config.method == "multi_start":
            designs = uniform_designs(self.policy) or self.policy
        elif self.progress.search_ended is not None:
            designs = DesignsAtMode(self.policy)
        return simulate_batch(
            simulator,
            designs,
            self.prior,
            num_simulations=config.training_batch_size,
            num_simulations_per_design=config.num_simulations_per_design,
            gradient=config.gradient if self._moves_policy else "score",
            device=self._device,
            num_workers=config.num_workers,
            # Once is enough: the result counts them all.
            warn=self.progress.num_invalid_simulations == 0,
        )

    def _networks_and_optimizer(self, batch: Batch) -> tuple[DesignEstimators, Adam]:
        """Return the networks and their optimizer, built from the first batch."""
        if self._optimizer is not None and self.estimators is not None:
            return self.estimators, self._optimizer
        needs = POLICY_OBJECTIVES[self.config.objective].needs
        rows = batch.theta, batch.x, spread_designs(batch.design, self.policy)
        networks = self._models.complete(
            self.estimators, needs, self.prior, rows, self._device
        )
        return networks, self._new_optimizer(networks)

    def _new_optimizer(self, networks: DesignEstimators) -> Adam:
        groups = [{"params": net.parameters()} for net in networks.trained.all()]
        return Adam(groups, lr=self.config.learning_rate)

    def _policy_gradients(
        self,
        batch: Batch,
        estimators: DesignEstimators,
        contrast: Tensor,
        information: Tensor,
    ) -> Sequence[Tensor | None]:
        """Return the gradient of the policy's loss for each parameter to train."""
        config = self.config
        if config.gradient == "score":
            per_design = information.reshape(len(batch.designs), -1).mean(dim=1)
            log_prob = self.policy.log_prob(batch.designs.detach())
            loss = score_loss(per_design, log_prob)
        else:
            finite = batch.finite()
            x = DATA_PATHS[config.gradient](finite, estimators)
            densities = Densities(
                estimators, self.prior, finite.theta, x, finite.design, contrast
            )
            terms = POLICY_OBJECTIVES[config.objective].terms(densities)
            loss = -terms.sum() / len(batch.theta)
        parameters = [p for p in self.policy.parameters() if p.requires_grad]
        return torch.autograd.grad(loss, parameters, allow_unused=True)

    def _move_policy(self, gradients: Sequence[Tensor | None]) -> None:
        """Let the policy take its step, after those of the warm-up."""
        parameters = [p for p in self.policy.parameters() if p.requires_grad]
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient
        if self.progress.step >= self.config.num_warmup_steps:
            assert self._policy_optimizer is not None
            self._policy_optimizer.step()
            self.policy.project()

    def _set_learning_rates(self) -> None:
        """Let learning rates fall with the steps."""
        config = self.config
        factor = self.progress.learning_rate_factor(
            config.num_steps, config.num_refinement_steps
        )
        optimizers = (self._optimizer, self._policy_optimizer)
        rates = (config.learning_rate, config.design_learning_rate)
        for optimizer, rate in zip(optimizers, rates, strict=True):
            for group in [] if optimizer is None else optimizer.param_groups:
                group["lr"] = rate * factor

    def _record(
        self,
        loss: Tensor,
        information: Tensor,
        densities: Densities,
        batch: Batch,
        seconds: float,
    ) -> None:
        """Keep the simulations of a step and what they told."""
        progress, config = self.progress, self.config
        progress.keep(batch, information if self._moves_policy else None, seconds)
        error = information.std() / math.sqrt(len(information))
        progress.record(
            loss=loss.item(),
            eig=information.mean().item(),
            eig_standard_error=error.item(),
            log_likelihood=densities.log_likelihood.mean().item(),
            num_simulations=progress.num_simulations,
            seconds=progress.seconds,
            **{key: v.tolist() for key, v in self.policy.describe().items()},
        )
        window = config.stop_after_steps
        if progress.search_ended is None and (
            progress.step >= config.num_steps
            or (window and progress.on_plateau(window, config.num_warmup_steps))
        ):
            progress.search_ended = progress.step

    def _report(self, bar: Any, tracker: Any | None) -> None:
        """Show the last step on the progress bar and to the tracker."""
        last = {name: values[-1] for name, values in self.progress.history.items()}
        mode = ", ".join(f"{value:.3g}" for value in last["mode"][:4])
        if len(last["mode"]) > 4:
            mode += ", …"
        described = f"design [{mode}], EIG {last['eig']:.2f} nats"
        bar.set_postfix_str(described, refresh=False)
        bar.update()
        if tracker is not None:
            names = ("loss", "eig", "log_likelihood")
            metrics = {f"design_{name}": last[name] for name in names}
            tracker.log_metrics(metrics, step=self.progress.step)
