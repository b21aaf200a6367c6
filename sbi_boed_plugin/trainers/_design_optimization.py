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

from sbi_boed_plugin._numbers import check_integer, check_real
from sbi_boed_plugin._parallel import check_num_workers
from sbi_boed_plugin._sbi_compat import check_default_dtype
from sbi_boed_plugin.estimators.transformed import coordinates_of
from sbi_boed_plugin.policies.policy import DesignPolicy
from sbi_boed_plugin.search.assessment import assess_design
from sbi_boed_plugin.search.budget import plan_spending
from sbi_boed_plugin.search.config import DesignOptimizerConfig, DesignResult
from sbi_boed_plugin.search.estimators import DesignEstimators, EstimatorBuilders
from sbi_boed_plugin.search.information import POLICY_OBJECTIVES
from sbi_boed_plugin.search.multi_start import MultiStartConfig, multi_start_search
from sbi_boed_plugin.search.optimizer import DesignOptimizer
from sbi_boed_plugin.simulation import CheckedSimulator
from sbi_boed_plugin.trainers._checks import check_gradient, warn_if_capped
from sbi_boed_plugin.trainers._estimator_builders import (
    check_posterior_describes,
    estimator_builders,
)

__all__ = ["DesignOptimizationMixin"]

# Contrastive samples of the likelihood's loss, by whether they also drive the policy.
NUM_CONTRASTIVE = {True: 31, False: 3}
# Simulations that score a design, whatever time is left.
_MIN_SCORING = 100
# Share of the time that is kept free for that.
_SCORING_TIME = 0.2


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

    def _set_design_search(
        self,
        design_policy: DesignPolicy | None,
        posterior_estimator: str | Callable,
        marginal_estimator: str | Callable,
        search_likelihood: Callable | None = None,
    ) -> None:
        """Check and store what a search needs beside the trainer's own.

        Args:
            design_policy: Distribution over designs.
            posterior_estimator: Name or builder of the posterior.
            marginal_estimator: Name or builder of the marginal.
            search_likelihood: Builder of the likelihood with designs, if that is not
                the one of the likelihood without.
        """
        if design_policy is not None:
            if not isinstance(design_policy, DesignPolicy):
                raise TypeError(
                    "design_policy must be a DesignPolicy, got "
                    f"{type(design_policy).__name__}."
                )
            design_policy.to(self._device)
        self._design_policy = design_policy
        self._design_optimizer: DesignOptimizer | None = None
        self._posterior_model = posterior_estimator
        self._marginal_model = marginal_estimator
        self._posterior_net: ConditionalDensityEstimator | None = None
        self._marginal_net: ConditionalDensityEstimator | None = None
        self._search_likelihood = search_likelihood
        self._search_coordinates = coordinates_of(
            search_likelihood or self._build_neural_net
        )
        # What the last search trained on: the method, and the number of observations
        # behind the belief that its parameters came from.
        self._trained_by: tuple[str, int] | None = None

    @property
    def _num_observations(self) -> int:
        return 0

    @property
    def design_policy(self) -> DesignPolicy | None:
        """Distribution over designs."""
        return self._design_policy

    @property
    def _belief_or_prior(self) -> Distribution | None:
        """What is known about the parameters before the next experiment."""
        return self._prior

    def optimize_design(
        self,
        simulator: Callable[[Tensor, Tensor], Tensor],
        *,
        method: Literal["joint", "multi_start"] = "joint",
        objective: Literal["barber_agakov", "gkl", "info_nce", "marginal"]
        | None = None,
        gradient: Literal[
            "score", "surrogate", "implicit", "pathwise", "partial"
        ] = "score",
        num_steps: int | None = None,
        num_warmup_steps: int | None = None,
        num_refinement_steps: int = 0,
        training_batch_size: int | None = None,
        num_simulations_per_design: int = 1,
        num_contrastive: int | None = None,
        regularization_strength: float = 0.1,
        learning_rate: float = 5e-3,
        design_learning_rate: float = 3e-2,
        clip_max_norm: float | None = 5.0,
        stop_after_steps: int | None = None,
        max_num_simulations: int | None = None,
        max_seconds: float | None = None,
        num_workers: int | None = 1,
        resume_training: bool = False,
        num_eig_samples: int | None = None,
        num_eig_contrastive: int = 511,
        multi_start: MultiStartConfig | None = None,
    ) -> DesignResult:
        r"""Learn the most informative design and the likelihood together.

        Every step simulates anew: designs from the policy, parameters from what is
        known about them (the prior or, after `observe`, the belief). With
        `method="joint"` the policy moves at every step and narrows around its mode,
        which is the design that is returned, scored with simulations of its own. With
        `method="multi_start"` the policy stays as it is and the estimators are trained
        over all designs of its support alike (if that is a box; else over draws of the
        policy); then hundreds of designs climb the information of the learned model at
        once, and the best are scored with simulations. Once trained, estimators serve
        every later search of that kind without new training.

        Simulations with NaN or infinite values count as experiments that tell nothing.
        If there are any, the likelihood of a finite outcome contains the probability
        that the simulation does not fail, learned beside it. A further call without
        `resume_training` trains the same policy and likelihood on: for an independent
        search make a new trainer and policy.

        If the run is interrupted (by Ctrl-C, an error in the simulator, a budget, or
        after pickling the trainer), `resume_training=True` goes on from the last
        completed step as if it had not been.

        Args:
            simulator: Function from `theta` of shape `(batch_dim, dim_theta)` and
                `design` of shape `(batch_dim, dim_design)` to `x` of shape
                `(batch_dim, dim_x)`.
            method: How to search, see above.
            objective: Bound of the information that the policy climbs:
                `"barber_agakov"`, from a posterior that is trained beside the
                likelihood, a lower bound without a cap; `"gkl"`, the same tightened
                by an energy ratio; `"info_nce"`, the contrastive bound of the
                likelihood (SBI-BOED), at most :math:`\log(L + 1)`; `"marginal"`, the
                likelihood against a learned density of the data, which is no bound.
                If `None`, `"barber_agakov"`, and `"info_nce"` for a multi-start
                search after an observation, which the posterior does not know of.
            gradient: Gradient of the policy in a joint search: `"score"`, unbiased for
                any simulator; `"surrogate"` and `"implicit"`, through the learned
                likelihood, at its own draws or at the simulated data; `"pathwise"`,
                through a differentiable simulator; `"partial"`, which holds the data
                fixed, for comparison with the paper's code only.
            num_steps: Number of training steps. If `None`, 1,000 or as many as
                `max_num_simulations` allows, and none for a multi-start search with
                trained estimators.
            num_warmup_steps: Number of steps in which the policy stays as it is:
                untrained networks would lead it astray. If `None`, a twentieth of
                `num_steps`.
            num_refinement_steps: Number of further steps of a joint search, after the
                policy has stopped, in which half of the simulations are at the design
                found. They make the information that is reported there a tighter
                bound. The learning rate starts anew from a fifth.
            training_batch_size: Number of simulations of one step. If `None`, 256, or
                what gives about 200 steps within `max_num_simulations`, at least 16.
            num_simulations_per_design: How many of them share a design.
            num_contrastive: Number :math:`L` of contrastive parameters of each
                simulation, other rows of the batch. If `None`, 31 where they drive
                the policy and 3 where they are for the likelihood's loss alone.
            regularization_strength: Weight :math:`\lambda` of maximum likelihood in
                the likelihood's loss. The policy sees :math:`\lambda = 0`.
            learning_rate: Learning rate of Adam for the networks; falls to a
                hundredth along half a cosine.
            design_learning_rate: Learning rate of Adam for the policy; likewise.
            clip_max_norm: Value at which to clip the gradient norm of each network.
            stop_after_steps: End the search when the information, averaged over this
                many steps, is a standard error lower than over as many before. Never
                if `None`.
            max_num_simulations: Largest number of simulations, those that score the
                design and those of a call that is resumed included. What is not given
                otherwise is a share of it: a fifth scores the design, and a fifth of
                the rest ranks the candidates of a multi-start search. With a budget
                the networks also learn again from the simulations of the search,
                until they have seen 256,000 rows or gain no more on rows left out.
            max_seconds: Time in seconds of training and scoring, that of a call that is
                resumed included. No step but the first is started that would end later,
                at the pace of those before.
            num_workers: Number of processes that simulate, through joblib. With
                `gradient="pathwise"` only what scores designs: gradients do not come
                back from other processes.
            resume_training: Continue the previous call, with its settings. Budgets,
                what scores the design and `multi_start` are those of this call.
            num_eig_samples: Number of simulations that score the design found. If
                `None`, 4,000, or what `max_num_simulations` and `max_seconds` leave.
            num_eig_contrastive: Number of contrastive parameters of each of them.
            multi_start: Settings of the search with `method="multi_start"`.

        Returns:
            The design with its expected information gain, what speaks against either
            (also as warnings), the policy, and the history.

        Raises:
            ValueError: If there is no policy or prior, an argument is out of range, or
                the simulator returns wrong shapes or too few finite values.
            RuntimeError: If there is nothing to resume.
        """
        stop_after_steps = check_integer(
            "stop_after_steps", stop_after_steps, 2, or_none=True
        )
        max_num_simulations = check_integer(
            "max_num_simulations", max_num_simulations, 1, or_none=True
        )
        max_seconds = check_real(
            "max_seconds", max_seconds, 0.0, or_infinite=True, or_none=True
        )
        num_workers = check_num_workers(num_workers)
        num_eig_samples = check_integer(
            "num_eig_samples", num_eig_samples, 2, or_none=True
        )
        num_eig_contrastive = check_integer(
            "num_eig_contrastive", num_eig_contrastive, 1
        )
        # Other defaults depend on these.
        num_steps = check_integer("num_steps", num_steps, 0, or_none=True)
        training_batch_size = check_integer(
            "training_batch_size", training_batch_size, 1, or_none=True
        )
        num_simulations_per_design = check_integer(
            "num_simulations_per_design", num_simulations_per_design, 1
        )
        if method not in ("joint", "multi_start"):
            raise ValueError(
                f"method='{method}' is unknown. Use 'joint' or 'multi_start'."
            )
        settings = {
            "method": method,
            "objective": objective,
            "gradient": gradient,
            "num_steps": num_steps,
            "num_warmup_steps": num_warmup_steps,
            "num_refinement_steps": num_refinement_steps,
            "training_batch_size": training_batch_size,
            "num_simulations_per_design": num_simulations_per_design,
            "num_contrastive": num_contrastive,
            "regularization_strength": regularization_strength,
            "learning_rate": learning_rate,
            "design_learning_rate": design_learning_rate,
            "clip_max_norm": clip_max_norm,
        }
        if multi_start is not None and method == "joint" and not resume_training:
            raise ValueError(
                "multi_start=... is for a search with method='multi_start', but "
                "method='joint'. Pass that method, or leave multi_start out."
            )
        if resume_training:
            optimizer = self._resume_design_optimizer(settings)
            known = optimizer.config
            search = known.method
            num_steps, training_batch_size = known.num_steps, known.training_batch_size
        else:
            search = method
        checked = CheckedSimulator(simulator)
        has_networks = search == "multi_start" and self._serves_all_designs(objective)
        spending = plan_spending(
            max_num_simulations,
            method=search,
            has_networks=has_networks,
            num_check_calls=checked.num_check_calls,
            num_simulations_per_design=num_simulations_per_design,
            num_steps=num_steps,
            num_refinement_steps=num_refinement_steps,
            training_batch_size=training_batch_size,
            num_eig_samples=num_eig_samples,
            multi_start=multi_start,
        )
        if not resume_training:
            settings["num_steps"] = spending.num_steps
            settings["training_batch_size"] = spending.training_batch_size
            optimizer = self._start_design_optimizer(settings)
        num_scoring = spending.num_scoring(search)
        # A search that goes on has had its simulator checked.
        if optimizer.progress.step:
            checked.is_checked = True
        if not optimizer.config.num_steps:
            num_scoring += checked.num_check_calls
        spent = optimizer.progress.num_spent
        needed = spent + num_scoring
        if spent and max_num_simulations is not None and needed > max_num_simulations:
            raise ValueError(
                f"max_num_simulations={max_num_simulations} is too few: the search to "
                f"resume has had {spent}, and {num_scoring} score the design. Raise "
                "it, or lower num_eig_samples."
            )
        # What is not asked for may score with less where time is short.
        scoring_seconds = math.inf
        if num_eig_samples is None and max_seconds is not None:
            scoring_seconds = _SCORING_TIME * max_seconds
        prior = self._belief_or_prior
        assert prior is not None
        try:
            with optimizer.random_state():
                stop_reason = optimizer.run(
                    checked,
                    stop_after_steps=stop_after_steps,
                    max_num_simulations=(
                        None
                        if max_num_simulations is None
                        else max_num_simulations - num_scoring
                    ),
                    max_seconds=max_seconds,
                    num_scoring=num_scoring,
                    max_scoring_seconds=scoring_seconds,
                    num_workers=num_workers,
                    tracker=self._tracker,
                    show_progress_bar=self._show_progress_bars,
                )
                idle = optimizer.config.num_steps > 0 and not optimizer.progress.step
                if optimizer.estimators is None or idle:
                    raise ValueError(
                        f"No step was taken: max_num_simulations={max_num_simulations} "
                        f"and max_seconds={max_seconds} must allow for at least one "
                        f"batch of {optimizer.config.training_batch_size} simulations "
                        f"and {num_scoring} that score the design."
                    )
                if max_num_simulations is not None:
                    optimizer.rehearse(
                        max_seconds=None
                        if max_seconds is None
                        else max_seconds - min(scoring_seconds, max_seconds / 2),
                        show_progress_bar=self._show_progress_bars,
                    )
                if max_num_simulations is not None:
                    spent = optimizer.progress.num_spent
                    checked.max_calls = max_num_simulations - spent
                found = None
                design = optimizer.policy.mode.clone()
                if search == "multi_start":
                    checked.set_aside(spending.num_eig_samples)
                    found = multi_start_search(
                        optimizer.networks,
                        prior,
                        optimizer.policy,
                        checked,
                        objective=optimizer.config.objective,
                        config=spending.multi_start,
                        num_workers=num_workers,
                        show_progress_bar=self._show_progress_bars,
                    )
                    checked.set_aside(-spending.num_eig_samples)
                    design = found.candidates[0][0]
                num_samples = spending.num_eig_samples
                if num_eig_samples is None and max_seconds is not None:
                    left = max_seconds - optimizer.progress.seconds
                    fitting = left / max(optimizer.progress.pace, 1e-9)
                    num_samples = int(min(num_samples, max(fitting, _MIN_SCORING)))
                assessed = assess_design(
                    optimizer,
                    checked,
                    prior=prior,
                    design=design,
                    num_samples=num_samples,
                    num_contrastive=num_eig_contrastive,
                    num_workers=num_workers,
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
            self._keep_networks(optimizer)
        config, progress = optimizer.config, optimizer.progress
        if config.objective == "info_nce" and config.method == "joint":
            warn_if_capped(progress.history["eig"], config.num_contrastive)
        for doubt in assessed.doubts:
            warnings.warn(doubt, stacklevel=2)
        kept = deepcopy(optimizer.networks)
        assert kept is not None
        parts = [assessed, *([] if found is None else [found])]
        progress.num_scored += sum(part.num_simulations for part in parts)
        return DesignResult(
            design=design,
            eig=assessed.eig,
            bounds=assessed.bounds,
            arrival=assessed.arrival,
            doubts=tuple(assessed.doubts),
            policy=deepcopy(optimizer.policy),
            likelihood_estimator=kept.likelihood,
            posterior_estimator=kept.posterior,
            marginal_estimator=kept.marginal,
            config=config,
            history=deepcopy(progress.history),
            candidates=() if found is None else tuple(found.candidates),
            num_simulations=progress.num_spent,
            num_invalid_simulations=progress.num_invalid_simulations
            + sum(part.num_invalid_simulations for part in parts),
            seconds=progress.seconds,
            stop_reason=stop_reason,
        )

    def _keep_networks(self, optimizer: DesignOptimizer) -> None:
        """Take over the networks of a search, however it ended."""
        if optimizer.progress.step:
            # Networks that only began to learn do not serve all designs yet.
            kind = optimizer.config.method if optimizer.finished else "unfinished"
            self._trained_by = (kind, self._num_observations)
        networks = optimizer.networks
        if networks is not None:
            self._neural_net = networks.likelihood
            self._posterior_net = networks.posterior
            self._marginal_net = networks.marginal
            self._dim_design = optimizer.policy.dim_design

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

    def _start_design_optimizer(self, settings: dict[str, Any]) -> DesignOptimizer:
        """Return a new design optimizer that continues from the current networks."""
        check_default_dtype()
        if self._design_policy is None:
            raise ValueError(
                "design_policy=None: pass a design policy to optimize, for instance "
                "NLE_INCE(prior, design_policy=TruncatedNormalPolicy(low, high))."
            )
        prior = self._belief_or_prior
        if prior is None or self._prior is None:
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
        if settings["method"] == "joint":
            check_gradient(settings["gradient"], self._design_policy)
        config = self._design_optimizer_config(settings)
        needs = POLICY_OBJECTIVES[config.objective].needs
        check_posterior_describes(self._prior, config.objective, needs)
        self._design_optimizer = DesignOptimizer(
            self._design_policy,
            prior,
            config,
            builders=self._estimator_builders(),
            estimators=self._trained_estimators(),
            device=self._device,
        )
        return self._design_optimizer

    def _estimator_builders(self) -> EstimatorBuilders:
        """Return what builds the networks of a search."""
        assert self._prior is not None and self._design_policy is not None
        return estimator_builders(
            self._search_likelihood or self._build_neural_net,
            self._posterior_model,
            self._marginal_model,
            self._prior,
            self._design_policy.dim_design,
            self._search_coordinates,
        )

    def _serves_all_designs(self, objective: str | None) -> bool:
        """Whether a multi-start search can use the networks as they are."""
        objective = objective or self._default_objective("multi_start")
        trained = self._trained_estimators()
        if trained is None or objective not in POLICY_OBJECTIVES:
            return False
        needs = POLICY_OBJECTIVES[objective].needs
        if not trained.serve(needs):
            return False
        if self._trained_by is None:
            return needs is None  # A likelihood of simulations that the user stored.
        method, num_observations = self._trained_by
        current = needs is None or num_observations == self._num_observations
        return method == "multi_start" and current

    def _default_objective(self, method: str) -> str:
        has_belief = self._belief_or_prior is not self._prior
        if method == "multi_start" and has_belief:
            return "info_nce"
        return "barber_agakov"

    def _trained_estimators(self) -> DesignEstimators | None:
        """Return the networks that there are."""
        if self._neural_net is None:
            return None
        return DesignEstimators(
            self._neural_net, self._posterior_net, self._marginal_net
        )

    def _design_optimizer_config(
        self, settings: dict[str, Any]
    ) -> DesignOptimizerConfig:
        """Return the settings with what depends on the state of the trainer."""
        settings = dict(settings)
        method = settings["method"]
        if settings["objective"] is None:
            settings["objective"] = self._default_objective(method)
        if settings["num_contrastive"] is None:
            settings["num_contrastive"] = min(
                NUM_CONTRASTIVE[settings["objective"] == "info_nce"],
                settings["training_batch_size"] - 1,
            )
        if settings["num_warmup_steps"] is None:
            settings["num_warmup_steps"] = settings["num_steps"] // 20
        return DesignOptimizerConfig(**settings)
