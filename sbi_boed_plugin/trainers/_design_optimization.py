"""Learning the design of an experiment, for trainers that estimate likelihoods."""

import inspect
import math
import warnings
from collections.abc import Callable
from copy import deepcopy
from typing import Any, Literal

from sbi.neural_nets.estimators import ConditionalDensityEstimator
from torch import Tensor
from torch.distributions import Distribution

from sbi_boed_plugin.design.config import DesignOptimizerConfig, DesignResult
from sbi_boed_plugin.design.optimizer import DesignOptimizer
from sbi_boed_plugin.design.policy import DesignPolicy
from sbi_boed_plugin.objectives.eig import estimate_eig

__all__ = ["DesignOptimizationMixin"]


class DesignOptimizationMixin:
    """Adds `optimize_design` to a trainer of a likelihood conditioned on designs.

    Uses the trainer's prior, network builder, device, tracker and progress bars, and
    leaves the trained network where the trainer keeps its own.
    """

    _prior: Distribution | None
    _neural_net: ConditionalDensityEstimator | None
    _build_neural_net: Callable
    _device: str
    _tracker: Any
    _show_progress_bars: bool
    _dim_design: int | None

    def _set_design_policy(self, design_policy: DesignPolicy | None) -> None:
        """Check and store the policy."""
        if design_policy is not None:
            if not isinstance(design_policy, DesignPolicy):
                raise TypeError(
                    "design_policy must be a DesignPolicy, got "
                    f"{type(design_policy).__name__}."
                )
            design_policy.to(self._device)
        self._design_policy = design_policy
        self._design_optimizer: DesignOptimizer | None = None

    @property
    def design_policy(self) -> DesignPolicy | None:
        """Distribution over designs."""
        return self._design_policy

    def optimize_design(
        self,
        simulator: Callable[[Tensor, Tensor], Tensor],
        *,
        num_steps: int = 1_000,
        num_warmup_steps: int | None = None,
        training_batch_size: int = 256,
        num_simulations_per_design: int = 1,
        num_contrastive: int = 31,
        regularization_strength: float = 0.1,
        learning_rate: float = 5e-3,
        design_learning_rate: float = 1e-2,
        clip_max_norm: float | None = 5.0,
        gradient: Literal["score", "partial"] = "score",
        stop_after_steps: int | None = None,
        max_num_simulations: int | None = None,
        max_seconds: float | None = None,
        resume_training: bool = False,
        num_eig_samples: int = 4_000,
        num_eig_contrastive: int = 511,
    ) -> DesignResult:
        r"""Learn the most informative design and the likelihood together.

        Every step simulates anew: designs from the policy, parameters from the prior.
        The policy narrows over `num_steps` steps around its mode, which is the design
        that is returned, scored with simulations of its own.

        Simulations with NaN or infinite values count as experiments that tell nothing;
        the likelihood is that of the finite outcomes. A further call without
        `resume_training` trains the same policy and likelihood on: for an independent
        search make a new trainer and policy.

        If the run is interrupted (by Ctrl-C, an error in the simulator, a budget, or
        after pickling the trainer), `resume_training=True` goes on from the last
        completed step as if it had not been.

        Args:
            simulator: Function from `theta` of shape `(batch_dim, dim_theta)` and
                `design` of shape `(batch_dim, dim_design)` to `x` of shape
                `(batch_dim, dim_x)`.
            num_steps: Number of steps.
            num_warmup_steps: Number of steps in which the policy stays as it is: an
                untrained likelihood would lead it astray. If `None`, a twentieth of
                `num_steps`.
            training_batch_size: Number of simulations of one step.
            num_simulations_per_design: How many of them share a design.
            num_contrastive: Number :math:`L` of contrastive parameters of each
                simulation, other rows of the batch. It caps the information that the
                policy can tell apart at :math:`\log(L + 1)` nats.
            regularization_strength: Weight :math:`\lambda` of maximum likelihood in
                the estimator's loss. The policy sees :math:`\lambda = 0`.
            learning_rate: Learning rate of Adam for the estimator; falls to a
                hundredth along half a cosine.
            design_learning_rate: Learning rate of Adam for the policy; likewise.
            clip_max_norm: Value at which to clip the gradient norm of the estimator.
            gradient: Gradient of the policy: `"score"`, unbiased for any simulator, or
                `"partial"`, which holds the data fixed, for comparison with the
                paper's code only.
            stop_after_steps: Stop when the lower bound, averaged over this many steps,
                is a standard error lower than over as many before. Never if `None`.
            max_num_simulations: Largest number of simulations, those that score the
                design and those of a call that is resumed included.
            max_seconds: Training time in seconds, that of a call that is resumed
                included, after which no further step is started.
            resume_training: Continue the previous call, with its settings.
            num_eig_samples: Number of simulations that score the design found.
            num_eig_contrastive: Number of contrastive parameters of each of them.

        Returns:
            The design with its expected information gain, the policy, and the history.

        Raises:
            ValueError: If there is no policy or prior, an argument is out of range, or
                the simulator returns wrong shapes or too few finite values.
            RuntimeError: If there is nothing to resume.
        """
        if stop_after_steps is not None and stop_after_steps < 2:
            raise ValueError(
                f"stop_after_steps={stop_after_steps} must be at least 2, or None to "
                "never stop early."
            )
        for name, value, least in (
            ("num_eig_samples", num_eig_samples, 2),
            ("num_eig_contrastive", num_eig_contrastive, 1),
        ):
            if value < least:
                raise ValueError(f"{name}={value} must be at least {least}.")
        settings = {
            "num_steps": num_steps,
            "num_warmup_steps": num_warmup_steps,
            "training_batch_size": training_batch_size,
            "num_simulations_per_design": num_simulations_per_design,
            "num_contrastive": num_contrastive,
            "regularization_strength": regularization_strength,
            "learning_rate": learning_rate,
            "design_learning_rate": design_learning_rate,
            "clip_max_norm": clip_max_norm,
            "gradient": gradient,
        }
        if resume_training:
            optimizer = self._resume_design_optimizer(settings)
        else:
            if num_warmup_steps is None:
                settings["num_warmup_steps"] = num_steps // 20
            optimizer = self._start_design_optimizer(DesignOptimizerConfig(**settings))

        try:
            with optimizer.random_state():
                stop_reason = optimizer.run(
                    simulator,
                    stop_after_steps=stop_after_steps,
                    max_num_simulations=(
                        None
                        if max_num_simulations is None
                        else max_num_simulations - num_eig_samples
                    ),
                    max_seconds=max_seconds,
                    tracker=self._tracker,
                    show_progress_bar=self._show_progress_bars,
                )
                if optimizer.estimator is None:
                    raise ValueError(
                        f"No step was taken: max_num_simulations={max_num_simulations} "
                        f"and max_seconds={max_seconds} must allow for at least one "
                        f"batch of {optimizer.config.training_batch_size} simulations "
                        f"and {num_eig_samples} that score the design."
                    )
                design = optimizer.policy.mode
                eig = estimate_eig(
                    optimizer.estimator.eval(),
                    simulator,
                    prior=self._prior,
                    design=design,
                    num_samples=num_eig_samples,
                    num_contrastive=num_eig_contrastive,
                )
        except BaseException as error:
            note = (
                "completed steps are kept: optimize_design(..., resume_training=True)"
            )
            add_note = getattr(error, "add_note", None)  # Python 3.11
            if optimizer.progress.step and add_note is not None:
                add_note(f"{optimizer.progress.step} {note} goes on from there.")
            raise
        finally:
            if optimizer.estimator is not None:
                self._neural_net = optimizer.estimator
                self._dim_design = optimizer.policy.dim_design

        progress = optimizer.progress
        _warn_if_capped(
            progress.history["eig_lower_bound"], optimizer.config.num_contrastive
        )
        return DesignResult(
            design=design,
            eig=eig,
            policy=deepcopy(optimizer.policy),
            likelihood_estimator=deepcopy(optimizer.estimator),
            config=optimizer.config,
            history=deepcopy(progress.history),
            num_simulations=progress.num_simulations + eig.num_simulations,
            num_invalid_simulations=(
                progress.num_invalid_simulations + eig.num_invalid_simulations
            ),
            seconds=progress.seconds,
            stop_reason=stop_reason,
        )

    def _resume_design_optimizer(self, settings: dict[str, Any]) -> DesignOptimizer:
        """Return the design optimizer of the previous call, if nothing changed."""
        optimizer = self._design_optimizer
        if optimizer is None:
            raise RuntimeError(
                "There is no design optimization to resume. Call optimize_design "
                "without resume_training first."
            )
        parameters = inspect.signature(self.optimize_design).parameters
        for name, value in settings.items():
            before = getattr(optimizer.config, name)
            if value not in (before, parameters[name].default):
                raise ValueError(
                    f"{name}={value} with resume_training=True, but the search to "
                    f"resume has {name}={before}, on which its schedules depend. "
                    "Leave it out, or start a new search."
                )
        return optimizer

    def _start_design_optimizer(self, config: DesignOptimizerConfig) -> DesignOptimizer:
        """Return a new design optimizer that continues from the current network."""
        if self._design_policy is None:
            raise ValueError(
                "design_policy=None: pass a design policy to optimize, for instance "
                "NLE_INCE(prior, design_policy=TruncatedNormalPolicy(low, high))."
            )
        if self._prior is None:
            raise ValueError(
                "prior=None: optimizing a design simulates from the prior. Pass it as "
                "NLE_INCE(prior, ...)."
            )
        if self._dim_design == 0:
            raise ValueError(
                "The simulations of this trainer were stored without designs, so its "
                "likelihood cannot tell designs apart. Use a new NLE_INCE for "
                "optimize_design."
            )
        self._design_optimizer = DesignOptimizer(
            self._design_policy,
            self._prior,
            config,
            build_estimator=self._build_neural_net,
            estimator=self._neural_net,
            device=self._device,
        )
        return self._design_optimizer


def _warn_if_capped(bounds: list[float], num_contrastive: int) -> None:
    """Warn if the bound was too close to its cap to tell good designs apart."""
    last = bounds[-max(1, len(bounds) // 10) :]
    mean, cap = sum(last) / len(last), math.log(num_contrastive + 1)
    if mean > cap - 0.5:
        warnings.warn(
            f"At the end of the search the bound of {mean:.2f} nats was within half a "
            f"nat of log(num_contrastive + 1) = {cap:.2f}, the most that it can tell. "
            "Increase num_contrastive to tell good designs apart.",
            stacklevel=3,
        )
