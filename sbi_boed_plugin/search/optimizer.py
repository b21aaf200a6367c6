r"""The loop that trains a design policy and density estimators together.

Each step draws designs from the policy and parameters from the prior, simulates, and
evaluates the densities of the batch. From them the likelihood takes a step on the
InfoNCE-λ loss, what the objective of the policy needs beside it a step on its own
loss, and the policy a step on the information. No weight :math:`\lambda` of maximum
likelihood enters there: the policy would prefer quiet measurements to informative ones.
"""

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Distribution
from torch.nn.utils.clip_grad import clip_grad_norm_
from torch.optim.adam import Adam
from tqdm.auto import tqdm

from sbi_boed_plugin._atomic import defer_interrupts
from sbi_boed_plugin._rng import get_rng_state, isolated_rng
from sbi_boed_plugin.estimators.failures import LikelihoodWithFailures
from sbi_boed_plugin.objectives.info_nce import (
    choose_negligible,
    in_batch_contrast,
)
from sbi_boed_plugin.policies.policy import DesignPolicy
from sbi_boed_plugin.search.batch import (
    Batch,
    Designs,
    DesignsAtMode,
    simulate_batch,
)
from sbi_boed_plugin.search.config import DesignOptimizerConfig, StopReason
from sbi_boed_plugin.search.estimators import DesignEstimators, EstimatorBuilders
from sbi_boed_plugin.search.gradients import DATA_PATHS, score_loss
from sbi_boed_plugin.search.information import (
    POLICY_OBJECTIVES,
    Densities,
    PolicyObjective,
    training_losses,
)
from sbi_boed_plugin.search.multi_start import uniform_designs
from sbi_boed_plugin.search.progress import Progress
from sbi_boed_plugin.search.rehearsal import rehearse
from sbi_boed_plugin.simulation import CheckedSimulator

__all__ = ["DesignOptimizer"]

# Learning rate of the networks, relative to that of the search, when refinement starts.
_REFINEMENT_RATE = 0.2
# Simulations, the last ones, that are kept: they tell when one fails, whether the
# policy arrived, and are learned from again.
_MAX_STORED = 16_384
# Rows that networks learn from, new ones or again.
_NUM_ROWS_WANTED = 256_000
_REHEARSAL_SEED = 20_261_129


class DesignOptimizer:
    """Trains a design policy and density estimators from a black-box simulator.

    All state is on the instance, and the instance pickles: a run that was stopped,
    in this process or another, goes on from its last completed step and reaches what
    it would have reached without the stop.
    """

    def __init__(
        self,
        policy: DesignPolicy,
        prior: Distribution,
        config: DesignOptimizerConfig,
        *,
        builders: EstimatorBuilders,
        estimators: DesignEstimators | None = None,
        device: str = "cpu",
    ) -> None:
        """Initialize the loop.

        Args:
            policy: Policy to train, in place.
            prior: Distribution of the parameters.
            config: Settings.
            builders: What builds the networks from the first batch.
            estimators: Networks to train further, if there are some already.
            device: Device of training.
        """
        self.policy = policy.to(device)
        self.config = config
        self.progress = Progress()
        self.estimators = estimators
        self._prior = prior
        self._device = device
        self._builders: EstimatorBuilders | None = builders
        self._optimizer: Adam | None = None
        parameters = list(policy.parameters())
        self._policy_optimizer = (
            Adam(parameters, lr=config.design_learning_rate) if parameters else None
        )
        self._has_new_networks = estimators is None
        self._rng_state: dict[str, Any] | None = None
        self._negligible = 0.0
        # Copies that learned from the simulations again; a search goes on without.
        self._rehearsed: DesignEstimators | None = None
        likelihood = None if estimators is None else estimators.likelihood
        known = isinstance(likelihood, LikelihoodWithFailures)
        self._known_failures = likelihood if known else None

    @property
    def networks(self) -> DesignEstimators | None:
        """The networks to use: those that have seen most."""
        return self._rehearsed or self.estimators

    @property
    def num_learned_from(self) -> int | None:
        """Number of simulations behind the networks, if they are of this search."""
        return self.progress.num_simulations if self._has_new_networks else None

    @property
    def finished(self) -> bool:
        """Whether all steps are done."""
        ended = self.progress.search_ended
        return ended is not None and (
            self.progress.step >= ended + self.config.num_refinement_steps
        )

    @contextmanager
    def random_state(self) -> Iterator[None]:
        """Continue the random numbers of an earlier run, if there was one.

        The caller's random state is as it was afterwards. The first run simply uses
        and advances it.
        """
        with isolated_rng(self._rng_state):
            yield

    def run(
        self,
        simulator: CheckedSimulator,
        *,
        stop_after_steps: int | None = None,
        max_num_simulations: int | None = None,
        max_seconds: float | None = None,
        num_scoring: int = 0,
        max_scoring_seconds: float = math.inf,
        num_workers: int = 1,
        tracker: Any | None = None,
        show_progress_bar: bool = True,
    ) -> StopReason:
        """Take steps until all are done or a budget is used up.

        Args:
            simulator: Function from `theta` and `design` to `x`.
            stop_after_steps: Stop when the mean bound over this many steps is a
                standard error lower than over as many steps before. Never if `None`.
            max_num_simulations: Stop before the step that would exceed this number,
                earlier runs included, or within it if rows are repeated after errors.
            max_seconds: Stop before the step that would end after this time, at the
                pace of the steps so far, with `num_scoring` simulations after it.
            num_scoring: Number of simulations that follow the last step.
            max_scoring_seconds: Time that is kept free for them, at most.
            num_workers: Number of processes that simulate.
            tracker: sbi's tracker, to log each step to.
            show_progress_bar: Whether to show a progress bar.

        Returns:
            The budget that is used up, or else what ended the search.
        """
        bar = tqdm(
            total=self.config.num_steps + self.config.num_refinement_steps,
            initial=self.progress.step,
            disable=not show_progress_bar,
            desc="Optimizing design",
        )
        with bar, self._failures_learned():
            reopened = self._reopen_search()
            while True:
                # Here rather than after a step: a step that was interrupted at its
                # very end has counted.
                if not reopened:
                    self._end_search_if_due(stop_after_steps)
                reopened = False
                if self.finished:
                    break
                planned = self.progress.num_spent
                planned += self.config.training_batch_size + simulator.num_check_calls
                if max_num_simulations is not None:
                    if planned > max_num_simulations:
                        return "max_num_simulations"
                    simulator.max_calls = max_num_simulations - self.progress.num_spent
                pace = self.progress.pace
                ends = self.progress.seconds + pace * self.config.training_batch_size
                ends += min(pace * num_scoring, max_scoring_seconds)
                if max_seconds is not None and (ends > max_seconds or not max_seconds):
                    return "max_seconds"
                # Whatever interrupts the step, the next attempt starts from here.
                self._rng_state = get_rng_state()
                self._rehearsed, self.progress.overfit = None, {}
                if not self._take_step(simulator, num_workers):
                    return "max_num_simulations"
                self._report(bar, tracker)
        ended = self.progress.search_ended
        early = ended is not None and ended < self.config.num_steps
        return "plateau" if early else "num_steps"

    def rehearse(
        self, *, max_seconds: float | None = None, show_progress_bar: bool = True
    ) -> None:
        """Let the networks learn again from the simulations that are kept.

        So often that they see 256,000 rows in all, as in 1,000 steps of 256.

        Args:
            max_seconds: Time of training after which no further pass begins.
            show_progress_bar: Whether to show a progress bar.
        """
        progress = self.progress
        if self.estimators is None or self._rehearsed or not progress.stored:
            return
        rows = Batch.join(progress.stored).finite()
        missing = _NUM_ROWS_WANTED - progress.num_simulations
        num_passes = missing // max(1, len(rows.theta))
        if num_passes < 1 or len(rows.theta) < 2:
            return
        started = time.perf_counter()
        rehearsed = deepcopy(self.estimators)
        left = None if max_seconds is None else max_seconds - progress.seconds
        # What comes after it is drawn as if it had not been.
        with isolated_rng(_REHEARSAL_SEED):
            progress.overfit = rehearse(
                rehearsed.trained,
                self._prior,
                rows,
                num_passes=num_passes,
                clip_max_norm=self.config.clip_max_norm,
                max_seconds=left,
                show_progress_bar=show_progress_bar,
            )
        self._rehearsed = rehearsed
        seconds = time.perf_counter() - started
        progress.rehearsal_seconds += seconds
        progress.seconds += seconds

    @contextmanager
    def _failures_learned(self) -> Iterator[None]:
        """Learn when simulations fail, however a run ends.

        From the simulations that are kept and what was known before the search, so that
        runs that were interrupted end as others do.
        """
        try:
            yield
        finally:
            known, estimators = self._known_failures, self.estimators
            if estimators is not None and self.progress.stored:
                rows = Batch.join(self.progress.stored)
                condition = torch.cat([rows.theta, rows.design], dim=-1)
                valid = rows.valid
                if known is not None or not valid.all():
                    likelihood = LikelihoodWithFailures(estimators.trained.likelihood)
                    likelihood.learn(condition, valid, start=known)
                    self.estimators = replace(estimators, likelihood=likelihood)

    def _reopen_search(self) -> bool:
        """Let a search that stopped on a plateau go on when it is resumed."""
        progress, config = self.progress, self.config
        ended = progress.search_ended
        if ended is None or ended >= config.num_steps or config.num_refinement_steps:
            return False
        progress.search_ended = None
        return True

    def _end_search_if_due(self, stop_after_steps: int | None) -> None:
        """Let the policy stop where it is, after its last step or on a plateau."""
        progress, config = self.progress, self.config
        if progress.search_ended is not None:
            return
        if progress.step >= config.num_steps or (
            stop_after_steps
            and progress.on_plateau(stop_after_steps, config.num_warmup_steps)
        ):
            progress.search_ended = progress.step

    def _take_step(self, simulator: CheckedSimulator, num_workers: int) -> bool:
        """Take a step; if it fails, forget networks that it has built."""
        estimators, optimizer = self.estimators, self._optimizer
        try:
            return self._step(simulator, num_workers)
        except BaseException:
            self.estimators, self._optimizer = estimators, optimizer
            raise

    def _step(self, simulator: CheckedSimulator, num_workers: int) -> bool:
        """Take a step, and return whether the limit of simulations allowed for it."""
        started = time.perf_counter()
        config = self.config
        if self._moves_policy:
            self.policy.anneal(self.progress.step / max(1, config.num_steps - 1))
        self._set_learning_rates()

        batch = simulate_batch(
            simulator,
            self._designs,
            self._prior,
            num_simulations=config.training_batch_size,
            num_simulations_per_design=config.num_simulations_per_design,
            gradient=config.gradient if self._moves_policy else "score",
            device=self._device,
            num_workers=num_workers,
            # Once is enough: the result counts them all.
            warn=self.progress.num_invalid_simulations == 0,
        )
        if not batch.is_complete:
            self.progress.num_simulations += batch.num_calls
            return False
        finite = batch.finite()
        estimators, optimizer = self._ensure_estimators(finite)
        for network in estimators.all():
            network.train()
        # All parameters are draws from the prior; those whose simulation is valid are
        # not, so that contrasting with them alone would invent information.
        contrast = in_batch_contrast(batch.theta, config.num_contrastive)
        contrast = contrast[:, batch.valid]
        densities = Densities(
            estimators,
            self._prior,
            finite.theta,
            finite.x.detach(),
            finite.design.detach(),
            contrast,
            negligible=self._negligible,
        )
        losses = training_losses(
            estimators,
            densities,
            config.regularization_strength,
            contrastive=bool(batch.valid.all()),
        )
        losses = {name: loss.mean() for name, loss in losses.items()}
        # A failed simulation tells at least nothing.
        terms = self._objective.terms(densities).detach()
        information = terms.new_zeros(len(batch.theta))
        information = information.masked_scatter(batch.valid, terms)
        policy_gradients: tuple[Tensor | None, ...] = ()
        if self._moves_policy:
            policy_gradients = self._policy_gradients(
                batch, estimators, contrast, information
            )

        optimizer.zero_grad(set_to_none=True)
        torch.stack(list(losses.values())).sum().backward()
        gradients: list[Tensor | None] = []
        for network in estimators.all():
            if config.clip_max_norm is not None:
                clip_grad_norm_(network.parameters(), max_norm=config.clip_max_norm)
            gradients += [parameter.grad for parameter in network.parameters()]
        self._check_finite(losses, [*gradients, *policy_gradients], finite)
        if self._moves_policy:
            for parameter, gradient in zip(
                self._policy_parameters(), policy_gradients, strict=True
            ):
                parameter.grad = gradient
        # Nothing is updated before this point; from here on the step counts.
        moved = self._moves_policy
        with defer_interrupts():
            optimizer.step()
            if self._moves_policy and self.progress.step >= config.num_warmup_steps:
                assert self._policy_optimizer is not None
                self._policy_optimizer.step()
                self.policy.project()
            self._negligible = choose_negligible(densities.log_likelihoods)
            seconds = time.perf_counter() - started
            kept = replace(
                batch,
                x=batch.x.detach(),
                designs=batch.designs.detach(),
                design=batch.design.detach(),
                information=information if moved else None,
            )
            self.progress.stored.append(kept)
            del self.progress.stored[: -math.ceil(_MAX_STORED / len(batch.theta))]
            self._record(losses["likelihood"], information, densities, batch, seconds)
            self._rng_state = get_rng_state()
        return True

    @property
    def _objective(self) -> PolicyObjective:
        return POLICY_OBJECTIVES[self.config.objective]

    @property
    def _moves_policy(self) -> bool:
        """Whether the policy is trained, not only the estimators."""
        return self.config.method == "joint" and self.progress.search_ended is None

    @property
    def _designs(self) -> Designs:
        """What designs are drawn from."""
        if self._moves_policy:
            return self.policy
        if self.config.method == "joint":
            return DesignsAtMode(self.policy)
        box = uniform_designs(self.policy)
        return self.policy if box is None else box

    def _policy_parameters(self) -> list[Tensor]:
        return [p for p in self.policy.parameters() if p.requires_grad]

    def _policy_gradients(
        self,
        batch: Batch,
        estimators: DesignEstimators,
        contrast: Tensor,
        information: Tensor,
    ) -> tuple[Tensor | None, ...]:
        """Return the gradient of the policy's loss for each of its parameters."""
        if self.config.gradient == "score":
            per_design = information.reshape(len(batch.designs), -1).mean(dim=1)
            log_prob = self.policy.log_prob(batch.designs.detach())
            loss = score_loss(per_design, log_prob)
        else:
            finite = batch.finite()
            densities = Densities(
                estimators,
                self._prior,
                finite.theta,
                DATA_PATHS[self.config.gradient](finite, estimators),
                finite.design,
                contrast,
            )
            loss = -self._objective.terms(densities).sum() / len(batch.theta)
        return torch.autograd.grad(loss, self._policy_parameters(), allow_unused=True)

    def _check_finite(
        self,
        losses: dict[str, Tensor],
        gradients: list[Tensor | None],
        batch: Batch,
    ) -> None:
        """Raise before anything is updated with what is not finite."""
        values = [*losses.values(), *(g for g in gradients if g is not None)]
        if all(bool(torch.isfinite(value).all()) for value in values):
            return
        described = ", ".join(f"{key} {loss.item()}" for key, loss in losses.items())
        parts = {
            "theta": batch.theta,
            "x": batch.x.detach(),
            "design": batch.design.detach(),
            "log prior": self._prior.log_prob(batch.theta),
        }
        sizes = ", ".join(
            f"{name} {values.abs().max():.3g} ({values.abs().median():.3g})"
            for name, values in parts.items()
        )
        raise ValueError(
            f"A loss at step {self.progress.step} or its gradient is not finite "
            f"({described}). The state before this step is kept. Largest absolute "
            f"values of its batch, and medians: {sizes}. Where theta or the log prior "
            "stands out, draw from a prior with shorter tails or transform it; where x "
            "does, transform it (for instance to logarithms) or check the simulator; "
            "where nothing does, lower learning_rate."
        )

    def _ensure_estimators(self, batch: Batch) -> tuple[DesignEstimators, Adam]:
        """Build what is missing from the first batch, and the optimiser."""
        if self._optimizer is None or self.estimators is None:
            if self._builders is None:
                raise RuntimeError(
                    "The trainer was pickled before the first step, and pickling "
                    "leaves out density_estimator. Start again with a new trainer."
                )
            self.estimators = self._builders.complete(
                self.estimators,
                self._objective.needs,
                batch.theta,
                batch.x,
                self._spread(batch.design),
                self._device,
            )
            trained = self.estimators.trained.all()
            groups = [{"params": network.parameters()} for network in trained]
            self._optimizer = Adam(groups, lr=self.config.learning_rate)
            self._set_learning_rates()
        return self.estimators.trained, self._optimizer

    def _spread(self, design: Tensor) -> Tensor:
        """Return designs that differ, for networks to take a standardization from.

        With those of a point, any other design would be infinitely far away.
        """
        same = (design == design[0]).all(dim=0)
        if not same.any():
            return design
        box = uniform_designs(self.policy)
        if box is None:
            spread = design + design.abs().clamp_min(1.0) * torch.randn_like(design)
        else:
            spread = box.sample(torch.Size((len(design),))).to(design)
        return torch.where(same, spread, design)

    def _set_learning_rates(self) -> None:
        """Let learning rates fall along half a cosine to a hundredth.

        That of the networks starts anew, lower, with refinement.
        """
        step, start, num_steps = self.progress.step, 1.0, self.config.num_steps
        if self.progress.search_ended is not None:
            step -= self.progress.search_ended
            start, num_steps = _REFINEMENT_RATE, self.config.num_refinement_steps
        cosine = 0.5 * (1.0 + math.cos(math.pi * step / num_steps))
        factor = 0.01 + (start - 0.01) * cosine
        rates = [
            (self._optimizer, self.config.learning_rate),
            (self._policy_optimizer, self.config.design_learning_rate),
        ]
        for optimizer, rate in rates:
            if optimizer is not None:
                for group in optimizer.param_groups:
                    group["lr"] = rate * factor

    def _record(
        self,
        loss: Tensor,
        information: Tensor,
        densities: Densities,
        batch: Batch,
        seconds: float,
    ) -> None:
        progress = self.progress
        progress.step += 1
        progress.num_simulations += batch.num_calls
        progress.num_invalid_simulations += int((~batch.valid).sum())
        progress.seconds += seconds
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

    def _report(self, bar: Any, tracker: Any | None) -> None:
        history = self.progress.history
        eig = history["eig"][-1]
        mode = ", ".join(f"{value:.3g}" for value in history["mode"][-1][:4])
        if len(history["mode"][-1]) > 4:
            mode += ", …"
        bar.set_postfix_str(f"design [{mode}], EIG {eig:.2f} nats", refresh=False)
        bar.update()
        if tracker is not None:
            tracker.log_metrics(
                {
                    "design_loss": history["loss"][-1],
                    "design_eig": eig,
                    "design_log_likelihood": history["log_likelihood"][-1],
                },
                step=self.progress.step,
            )

    def __getstate__(self) -> dict[str, Any]:
        """Leave out the builders, which are needed for the first step only."""
        return {**self.__dict__, "_builders": None}
