r"""The loop that trains a design policy and a likelihood estimator together.

Each step draws designs from the policy and parameters from the prior, simulates, and
evaluates one matrix of log-likelihoods. From it the estimator takes a step on the
InfoNCE-λ loss and the policy a step on the information at :math:`\lambda = 0`: with a
weight on maximum likelihood the policy would prefer quiet measurements to informative
ones.
"""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from sbi.neural_nets.estimators import ConditionalDensityEstimator
from torch import Tensor
from torch.distributions import Distribution
from torch.nn.utils.clip_grad import clip_grad_norm_
from torch.optim.adam import Adam
from tqdm.auto import tqdm

from sbi_boed_plugin._interrupts import defer_interrupts
from sbi_boed_plugin._rng import get_rng_state, isolated_rng
from sbi_boed_plugin.design.batch import Batch, simulate_batch
from sbi_boed_plugin.design.config import DesignOptimizerConfig, StopReason
from sbi_boed_plugin.design.gradients import POLICY_GRADIENTS
from sbi_boed_plugin.design.policy import DesignPolicy
from sbi_boed_plugin.objectives.info_nce import (
    choose_negligible,
    contrastive_bound,
    in_batch_contrast,
    info_nce_loss,
    log_likelihood_matrix,
)

__all__ = ["DesignOptimizer"]


@dataclass
class _Progress:
    """How far the loop has come; all that changes beside weights and optimisers."""

    step: int = 0
    num_simulations: int = 0
    num_invalid_simulations: int = 0
    seconds: float = 0.0
    history: dict[str, list[Any]] = field(default_factory=dict)

    def record(self, **values: Any) -> None:
        for name, value in values.items():
            self.history.setdefault(name, []).append(value)


class DesignOptimizer:
    """Trains a design policy and a likelihood estimator from a black-box simulator.

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
        build_estimator: Callable[[Tensor, Tensor], ConditionalDensityEstimator],
        estimator: ConditionalDensityEstimator | None = None,
        device: str = "cpu",
    ) -> None:
        """Initialize the loop.

        Args:
            policy: Policy to train, in place.
            prior: Distribution of the parameters.
            config: Settings.
            build_estimator: Function from the conditions `(theta, design)` and the
                data `x` of the first batch to the estimator to train.
            estimator: Estimator to train further, if there is one already.
            device: Device of training.
        """
        self.policy = policy.to(device)
        self.config = config
        self.progress = _Progress()
        self.estimator = estimator
        self._prior = prior
        self._device = device
        self._build_estimator: Callable | None = build_estimator
        self._optimizer: Adam | None = None
        self._policy_optimizer = Adam(
            policy.parameters(), lr=config.design_learning_rate
        )
        self._rng_state: dict[str, Any] | None = None
        self._negligible = 0.0

    @property
    def finished(self) -> bool:
        """Whether all steps are done."""
        return self.progress.step >= self.config.num_steps

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
        simulator: Callable[[Tensor, Tensor], Tensor],
        *,
        stop_after_steps: int | None = None,
        max_num_simulations: int | None = None,
        max_seconds: float | None = None,
        tracker: Any | None = None,
        show_progress_bar: bool = True,
    ) -> StopReason:
        """Take steps until a budget is used up or the information no longer grows.

        Args:
            simulator: Function from `theta` and `design` to `x`.
            stop_after_steps: Stop when the mean bound over this many steps is a
                standard error lower than over as many steps before. Never if `None`.
            max_num_simulations: Stop before the step that would exceed this number,
                earlier runs included.
            max_seconds: Stop after the step that exceeds this time, likewise.
            tracker: sbi's tracker, to log each step to.
            show_progress_bar: Whether to show a progress bar.

        Returns:
            What ended the loop.
        """
        bar = tqdm(
            total=self.config.num_steps,
            initial=self.progress.step,
            disable=not show_progress_bar,
            desc="Optimizing design",
        )
        with bar:
            while not self.finished:
                planned = self.progress.num_simulations
                planned += self.config.training_batch_size
                if max_num_simulations is not None and planned > max_num_simulations:
                    return "max_num_simulations"
                if max_seconds is not None and self.progress.seconds >= max_seconds:
                    return "max_seconds"
                # Whatever interrupts the step, the next attempt starts from here.
                self._rng_state = get_rng_state()
                self._take_step(simulator)
                self._report(bar, tracker)
                if stop_after_steps and self._on_plateau(stop_after_steps):
                    return "plateau"
        return "num_steps"

    def _take_step(self, simulator: Callable[[Tensor, Tensor], Tensor]) -> None:
        """Take a step; if it fails, forget a network that it has built."""
        estimator, optimizer = self.estimator, self._optimizer
        try:
            self._step(simulator)
        except BaseException:
            self.estimator, self._optimizer = estimator, optimizer
            raise

    def _step(self, simulator: Callable[[Tensor, Tensor], Tensor]) -> None:
        started = time.perf_counter()
        config = self.config
        self.policy.anneal(self.progress.step / max(1, config.num_steps - 1))
        self._set_learning_rates()

        batch = simulate_batch(
            simulator, self.policy, self._prior, config, device=self._device
        )
        self._ensure_estimator(batch)
        estimator, optimizer = self.estimator, self._optimizer
        assert estimator is not None and optimizer is not None

        estimator.train()
        # All parameters are draws from the prior; those whose simulation is valid are
        # not, so that contrasting with them alone would invent information.
        contrast = in_batch_contrast(batch.theta, config.num_contrastive)
        theta = torch.cat([batch.theta.unsqueeze(0), contrast])[:, batch.valid]
        design = batch.design[batch.valid]
        conditions = torch.cat([theta, design.expand(len(theta), *design.shape)], -1)
        matrix = log_likelihood_matrix(
            estimator.log_prob,
            batch.x[batch.valid],
            conditions,
            negligible=self._negligible,
        )
        loss = info_nce_loss(matrix, config.regularization_strength).mean()
        # A failed simulation tells at least nothing.
        information = matrix.new_zeros(len(batch.theta)).masked_scatter(
            batch.valid, contrastive_bound(matrix)
        )
        policy_gradients = self._policy_gradients(batch.designs, information)

        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        if config.clip_max_norm is not None:
            clip_grad_norm_(estimator.parameters(), max_norm=config.clip_max_norm)
        gradients = [parameter.grad for parameter in estimator.parameters()]
        self._check_finite(loss, [*gradients, *policy_gradients])
        for parameter, gradient in zip(
            self._policy_parameters(), policy_gradients, strict=True
        ):
            parameter.grad = gradient
        # Nothing is updated before this point; from here on the step counts.
        with defer_interrupts():
            optimizer.step()
            if self.progress.step >= config.num_warmup_steps:
                self._policy_optimizer.step()
                self.policy.project()
            self._negligible = choose_negligible(matrix)
            seconds = time.perf_counter() - started
            self._record(loss, information, matrix, batch, seconds)
            self._rng_state = get_rng_state()

    def _policy_parameters(self) -> list[Tensor]:
        return [p for p in self.policy.parameters() if p.requires_grad]

    def _policy_gradients(
        self, designs: Tensor, information: Tensor
    ) -> tuple[Tensor | None, ...]:
        """Return the gradient of the policy's loss for each of its parameters."""
        per_design = information.reshape(len(designs), -1).mean(dim=1)
        loss = POLICY_GRADIENTS[self.config.gradient](
            per_design, self.policy.log_prob(designs.detach())
        )
        return torch.autograd.grad(
            loss, self._policy_parameters(), retain_graph=True, allow_unused=True
        )

    def _check_finite(self, loss: Tensor, gradients: list[Tensor | None]) -> None:
        """Raise before anything is updated with what is not finite."""
        finite = torch.isfinite(loss) and all(
            bool(torch.isfinite(gradient).all())
            for gradient in gradients
            if gradient is not None
        )
        if not finite:
            raise ValueError(
                f"The InfoNCE loss is {loss.item()} at step {self.progress.step}, or "
                "its gradient is not finite. The state before this step is kept. Check "
                "the simulator for extreme outputs, transform them (for instance to "
                "logarithms), or lower learning_rate."
            )

    def _ensure_estimator(self, batch: Batch) -> None:
        """Build the estimator from the first batch, and its optimiser."""
        if self.estimator is None:
            if self._build_estimator is None:
                raise RuntimeError(
                    "The trainer was pickled before the first step, and pickling "
                    "leaves out density_estimator. Start again with a new trainer."
                )
            conditions = torch.cat([batch.theta, batch.design], dim=-1)[batch.valid]
            # sbi hands its builders data on the CPU, wherever it trains.
            estimator = self._build_estimator(
                conditions.detach().cpu(), batch.x[batch.valid].cpu()
            )
            self.estimator = estimator.to(self._device)
        if self._optimizer is None:
            self._optimizer = Adam(
                self.estimator.parameters(), lr=self.config.learning_rate
            )
            self._set_learning_rates()

    def _set_learning_rates(self) -> None:
        """Let both learning rates fall along half a cosine to a hundredth."""
        progress = self.progress.step / self.config.num_steps
        factor = 0.01 + 0.99 * 0.5 * (1.0 + math.cos(math.pi * progress))
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
        matrix: Tensor,
        batch: Batch,
        seconds: float,
    ) -> None:
        progress = self.progress
        progress.step += 1
        progress.num_simulations += self.config.training_batch_size
        progress.num_invalid_simulations += int((~batch.valid).sum())
        progress.seconds += seconds
        error = information.std() / math.sqrt(len(information))
        progress.record(
            loss=loss.item(),
            eig_lower_bound=information.mean().item(),
            eig_standard_error=error.item(),
            log_likelihood=matrix[0].mean().item(),
            num_simulations=progress.num_simulations,
            seconds=progress.seconds,
            **{key: v.tolist() for key, v in self.policy.describe().items()},
        )

    def _report(self, bar: Any, tracker: Any | None) -> None:
        history = self.progress.history
        bound = history["eig_lower_bound"][-1]
        mode = ", ".join(f"{value:.3g}" for value in history["mode"][-1][:4])
        if len(history["mode"][-1]) > 4:
            mode += ", …"
        bar.set_postfix_str(f"design [{mode}], EIG ≥ {bound:.2f} nats", refresh=False)
        bar.update()
        if tracker is not None:
            tracker.log_metrics(
                {
                    "design_loss": history["loss"][-1],
                    "design_eig_lower_bound": bound,
                    "design_log_likelihood": history["log_likelihood"][-1],
                },
                step=self.progress.step,
            )

    def _on_plateau(self, window: int) -> bool:
        # Not while the policy waits, and on windows that do not overlap: of many
        # looks at the same noise one would stop the search too soon.
        bounds = self.progress.history["eig_lower_bound"]
        bounds = bounds[self.config.num_warmup_steps :]
        if len(bounds) < 2 * window or len(bounds) % window:
            return False
        recent = torch.tensor(bounds[-window:])
        before = torch.tensor(bounds[-2 * window : -window])
        noise = ((recent.var() + before.var()) / window).sqrt()
        return bool(recent.mean() < before.mean() - noise)

    def __getstate__(self) -> dict[str, Any]:
        """Leave out the builder, which is needed for the first step only."""
        return {**self.__dict__, "_build_estimator": None}
