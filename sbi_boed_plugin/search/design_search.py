"""All that is learned and kept between searches for designs and experiments."""

from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from typing import Any

import torch
from sbi.neural_nets.estimators import ConditionalDensityEstimator
from torch import Tensor
from torch.distributions import Distribution

from sbi_boed_plugin._parallel import add_note
from sbi_boed_plugin._rng import isolated_rng
from sbi_boed_plugin._sbi_compat import check_default_dtype
from sbi_boed_plugin.objectives.eig import EIGEstimate
from sbi_boed_plugin.policies.constrained import ConstrainedPolicy
from sbi_boed_plugin.policies.policy import DesignPolicy
from sbi_boed_plugin.search.budget import with_all_numbers
from sbi_boed_plugin.search.checks import check_design, check_gradient
from sbi_boed_plugin.search.config import DesignSearchConfig
from sbi_boed_plugin.search.estimators import (
    DesignEstimators,
    NetworkModels,
    check_posterior_describes,
)
from sbi_boed_plugin.search.information import POLICY_OBJECTIVES
from sbi_boed_plugin.search.measurements import Measurements
from sbi_boed_plugin.search.multi_start import score_design
from sbi_boed_plugin.search.optimizer import DesignOptimizer
from sbi_boed_plugin.search.result import DesignResult
from sbi_boed_plugin.search.rounds import RoundsSearch
from sbi_boed_plugin.search.run import run_search, search_stored
from sbi_boed_plugin.search.simulation_file import SimulationFile
from sbi_boed_plugin.search.state import load_state, state_of
from sbi_boed_plugin.search.store import SimulationStore
from sbi_boed_plugin.search.target import Target
from sbi_boed_plugin.simulation import CheckedSimulator

__all__ = ["DesignSearch"]


class DesignSearch:
    """Policy, networks, measurements and belief of a trainer.

    The parameters and contrastive parameters of a search come from the belief after all
    observations. Only the new measurement's likelihood enters its bounds: no datum is
    counted twice.

    `dim_design` is the number of values of a design, 0 where simulations were stored
    without, `None` before any. `covers_all_designs` says whether the networks learned
    from all designs alike, and `trained_after` how many observations are behind the
    belief that the parameters of the last search came from. `simulations` are all that
    have designs, and `optimizer` is the training of the search that can be resumed.
    """

    def __init__(
        self,
        prior: Distribution | None,
        policy: DesignPolicy | None,
        models: NetworkModels,
        device: str,
    ) -> None:
        if policy is not None and not isinstance(policy, DesignPolicy):
            raise TypeError(
                f"design_policy must be a DesignPolicy, got {type(policy).__name__}."
            )
        self.prior = prior
        self.policy = None if policy is None else policy.to(device)
        self.models = models
        self.networks: DesignEstimators | None = None
        self.dim_design: int | None = None
        self.covers_all_designs = True
        self.trained_after = 0
        self.simulations = SimulationStore(device)
        self._files: set[str] = set()
        self.measurements = Measurements(prior, device)
        self.optimizer: DesignOptimizer | RoundsSearch | None = None
        self.policy_start = None if policy is None else deepcopy(policy.state_dict())
        self._device = device

    @property
    def likelihood(self) -> ConditionalDensityEstimator | None:
        """Network of the data, conditioned on `(theta, design)` in one row."""
        return None if self.networks is None else self.networks.likelihood

    @likelihood.setter
    def likelihood(self, network: ConditionalDensityEstimator | None) -> None:
        others = {} if self.networks is None else vars(self.networks)
        networks = DesignEstimators(**{**others, "likelihood": network})
        self.networks = None if network is None else networks

    def known(self) -> Distribution:
        """Return what is known about the parameters, the belief or else the prior."""
        if self.prior is None:
            raise ValueError("prior=None: pass the prior as NLE_INCE(prior, ...).")
        return self.measurements.belief or self.prior

    def check(self, design: Tensor) -> Tensor:
        """Return designs as a batch, or raise if they are none of this search."""
        return check_design(design, self.dim_design, self.policy)

    def run(
        self,
        simulator: Callable[[Tensor, Tensor], Tensor] | None,
        asked: DesignSearchConfig,
        *,
        resume: bool,
        tracker: Any | None,
        show_progress_bar: bool,
    ) -> DesignResult:
        """Search for a design, or go on with the last search.

        A search that goes on does so from its last completed step, with its settings
        but the budgets of this call.
        """
        optimizer = self.optimizer if resume else None
        if resume and optimizer is None:
            raise RuntimeError(
                "There is no design optimization to resume. Call optimize_design "
                "without resume_training first."
            )
        if not (resume or self.models.has_likelihood):
            asked.check_without_likelihood()
        if not resume:
            # A policy does not go along the boundary of what is possible; climbs do.
            is_constrained = isinstance(self.policy, ConstrainedPolicy)
            is_constrained |= asked.feasible is not None
            is_constrained &= self.models.has_likelihood
            if self.models.has_vector_field:
                asked = asked.with_vector_field()
            asked = asked.with_method(simulator is not None, is_constrained)
        if not resume and asked.multi_start is not None and asked.method == "joint":
            raise ValueError(
                "multi_start=... is for a search with method='multi_start', but "
                "method='joint'. Pass that method, or leave multi_start out."
            )
        config = asked.continuing(optimizer.config) if optimizer else asked
        objective = "target" if config.target is not None else config.objective
        if config.method != "rounds":  # Rounds choose it by what was learned.
            objective = self._objective(config.method, objective)
        config = replace(config, objective=objective)
        if simulator is None:
            return self._run_on_stored(config, tracker, show_progress_bar)
        over_all = config.method == "multi_start"
        checked = CheckedSimulator(simulator, x_shape=self.simulations.x_shape)
        config = with_all_numbers(
            config,
            has_networks=over_all and self.serves_all_designs(objective),
            num_check_calls=checked.num_check_calls,
        )
        is_new, optimizer = optimizer is None, optimizer or self._start(config)
        optimizer.config = config
        if config.simulations_file is not None:
            self._use_file(config.simulations_file, checked, optimizer, is_new)
        # A search that goes on has had its simulator checked.
        checked.is_checked |= optimizer.progress.step > 0
        self.optimizer = optimizer
        try:
            return run_search(
                optimizer,
                checked,
                may_score_less=asked.num_eig_samples is None,
                tracker=tracker,
                show_progress_bar=show_progress_bar,
            )
        except BaseException as error:
            if optimizer.progress.step:
                add_note(
                    error,
                    f"{optimizer.progress.step} completed steps are kept: "
                    "optimize_design(..., resume_training=True) with the same budgets "
                    "goes on from there.",
                )
            raise
        finally:
            self._keep_networks(optimizer)
            self.simulations.x_shape = checked.x_shape
            self.simulations.take(optimizer.progress, optimizer.prior)
            if isinstance(optimizer, DesignOptimizer):
                optimizer.progress.drop_old()

    def _use_file(
        self, path: Any, simulator: CheckedSimulator, search: Any, is_new: bool
    ) -> None:
        """Let a search append to a file, and learn from what it has already."""
        file, prior = SimulationFile(path), search.prior
        key = str(file.path.absolute())
        if is_new and key not in self._files:
            with isolated_rng(0):
                dim_theta = prior.sample().numel()
            rows = file.read(dim_theta, search.policy.dim_design)
            if rows is not None:
                self.simulations.batches.append(rows.to(self._device))
                search.start_from(self.simulations.rows(), num_spent=len(rows.theta))
            self._files.add(key)

        def record(theta: Tensor, design: Tensor, x: Tensor) -> None:
            file.append(theta, design, x, prior.log_prob(theta.to(self._device)))

        simulator.record = record

    def _run_on_stored(
        self, config: DesignSearchConfig, tracker: Any | None, show_progress_bar: bool
    ) -> DesignResult:
        """Find a design by stored simulations alone."""
        limits = config.max_num_simulations, config.max_seconds
        if config.method != "rounds" or limits != (None, None):
            raise ValueError(
                "simulator=None finds a design by stored simulations alone: leave out "
                "max_num_simulations and max_seconds, and method or use "
                "method='rounds'."
            )
        if self.simulations.rows() is None:
            raise ValueError(
                "simulator=None, but there are no stored simulations: call "
                "append_simulations(theta, x, design=design) first."
            )
        search = self._start(replace(config, num_rounds=0))
        assert isinstance(search, RoundsSearch)
        result = search_stored(search, tracker, show_progress_bar)
        self._keep_networks(search)
        return result

    def _objective(self, method: str, asked: str | None) -> str:
        """Return the objective of a search, by default one that networks serve."""
        served = method == "multi_start" and self.measurements.belief is not None
        return asked or ("info_nce" if served else "barber_agakov")

    def _start(self, config: DesignSearchConfig) -> DesignOptimizer | RoundsSearch:
        """Return a new training that continues from the current networks."""
        check_default_dtype()
        if self.policy is None:
            raise ValueError(
                "design_policy=None: pass a design policy to optimize, for instance "
                "NLE_INCE(prior, design_policy=TruncatedNormalPolicy(low, high))."
            )
        prior, policy, models = self.known(), self.policy, self.models
        if self.dim_design == 0:
            raise ValueError(
                "The simulations of this trainer were stored without designs, so its "
                "likelihood cannot tell designs apart. Use a new NLE_INCE for "
                "optimize_design."
            )
        if config.feasible is not None:
            policy = ConstrainedPolicy(policy, config.feasible)
        if config.method == "joint":
            check_gradient(config.gradient, policy)
        config.utility.check(policy)
        asked = config.target
        target = None if asked is None else Target(asked, prior)
        objective = config.objective or "barber_agakov"
        needs = POLICY_OBJECTIVES[objective].needs
        if config.method == "rounds" and needs != "target":
            needs = "posterior"
        check_posterior_describes(self.prior, objective, needs)
        if config.method == "rounds":
            stored = self.simulations.rows()
            if stored is None and config.num_rounds == 0:
                raise ValueError(
                    "num_rounds=0, but there are no stored simulations to learn from: "
                    "leave it out."
                )
            models.target = target
            networks = policy, prior, models
            return RoundsSearch(*networks, config, stored=stored, device=self._device)
        models.target = target
        return DesignOptimizer(
            policy,
            prior,
            models,
            config,
            estimators=self.networks,
            device=self._device,
        )

    def _keep_networks(self, optimizer: DesignOptimizer | RoundsSearch) -> None:
        """Take over the networks of a search, however it ended."""
        is_rounds = isinstance(optimizer, RoundsSearch)
        has_learned = optimizer.networks is not None
        if has_learned and (is_rounds or optimizer.progress.step):
            # Networks that only began to learn do not serve all designs yet.
            over_all = optimizer.config.method != "joint"
            self.covers_all_designs = over_all and optimizer.finished
            self.trained_after = len(self.measurements)
        if optimizer.networks is not None:
            # What a target needs is of one search.
            self.networks = replace(optimizer.networks, target=None)
            self.dim_design = optimizer.policy.dim_design

    def serves_all_designs(self, objective: str | None = None) -> bool:
        """Whether a multi-start search can use the networks as they are."""
        needs = POLICY_OBJECTIVES[self._objective("multi_start", objective)].needs
        if self.networks is None or not self.networks.has_networks_for(needs):
            return False
        is_current = needs is None or self.trained_after == len(self.measurements)
        return self.covers_all_designs and is_current

    def estimate_eig(
        self,
        simulator: Callable[[Tensor, Tensor], Tensor],
        design: Tensor,
        objective: str | None,
        **kwargs: Any,
    ) -> EIGEstimate:
        """Estimate the information of a design beyond what is known, in nats.

        With the networks as they are, by the bound of an objective.
        """
        models, has_likelihood = self.models, self.models.has_likelihood
        is_fast = has_likelihood and not models.likelihood_flows
        objective = objective or ("info_nce" if is_fast else "barber_agakov")
        if not has_likelihood and objective not in ("barber_agakov", "gkl"):
            raise ValueError(
                f"objective='{objective}' with density_estimator=None, but it asks a "
                "likelihood. Use objective='barber_agakov', or a trainer with one."
            )
        if objective not in POLICY_OBJECTIVES or objective == "target":
            raise ValueError(
                f"objective='{objective}' is unknown. Use one of "
                f"{sorted(set(POLICY_OBJECTIVES) - {'target'})}."
            )
        needs = POLICY_OBJECTIVES[objective].needs
        if self.networks is None or not self.networks.has_networks_for(needs):
            raise RuntimeError(
                "There are no estimators for this yet: call optimize_design("
                f"simulator, objective='{objective}') first."
            )
        if needs is not None and self.trained_after != len(self.measurements):
            raise RuntimeError(
                f"The estimators of objective='{objective}' were trained before the "
                "last observation and do not know of it. Use objective='info_nce', or "
                "call optimize_design() again."
            )
        return score_design(
            self.networks,
            simulator,
            prior=self.known(),
            design=self.check(design)[0],
            objective=objective,
            **kwargs,
        )

    def observe(self, design: Tensor, x: Tensor, num_particles: int) -> None:
        """Take experiments into account, or raise and change nothing."""
        if not self.models.has_likelihood:
            raise RuntimeError(
                "density_estimator=None: a belief is made with a likelihood. The "
                "posterior of one experiment is build_posterior(design=...); for "
                "several make the trainer with a likelihood."
            )
        if self.likelihood is None or not self.dim_design:
            raise RuntimeError(
                "There is no likelihood with designs yet: call optimize_design() "
                "before observe()."
            )
        self.known()
        design, x = self.check(design), self.simulations.flat(torch.as_tensor(x))
        self.measurements.observe(self.likelihood, design, x, num_particles)
        self._start_anew()

    def forget(self, num_observations: int) -> None:
        """Take the last observations back, and networks that know of them."""
        self.measurements.forget(num_observations)
        self._start_anew()
        if self.networks is not None and self.trained_after > len(self.measurements):
            self.networks = DesignEstimators(self.networks.likelihood)
            self.trained_after = len(self.measurements)

    def _start_anew(self) -> None:
        """Let the next search begin with the policy as it was at first."""
        self.optimizer = None
        if self.policy is not None and self.policy_start is not None:
            self.policy.load_state_dict(self.policy_start)

    def state_dict(self) -> dict[str, Any]:
        """Return all of it as tensors, numbers, lists and dictionaries.

        Not a search that was interrupted: that goes on from the trainer or its pickle.
        """
        return state_of(self, self._device)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up a state of a search with the same prior, policy and networks.

        If there is an error, because it is none of such a search, nothing has changed.
        """
        load_state(self, state, self._device)
