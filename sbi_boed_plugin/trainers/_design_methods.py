"""The methods of a trainer that concern designs, experiments and what is known."""

from collections.abc import Callable
from typing import Any

from torch import Tensor
from typing_extensions import Self

from sbi_boed_plugin.adaptive.config import PolicyResult, PolicySearchConfig
from sbi_boed_plugin.adaptive.search import PolicySearch
from sbi_boed_plugin.objectives.eig import EIGEstimate
from sbi_boed_plugin.policies.policy import DesignPolicy
from sbi_boed_plugin.search.belief import ParticleBelief
from sbi_boed_plugin.search.config import DesignSearchConfig
from sbi_boed_plugin.search.design_search import DesignSearch
from sbi_boed_plugin.search.measurements import Observation
from sbi_boed_plugin.search.result import DesignResult
from sbi_boed_plugin.simulation import CheckedSimulator

__all__ = ["DesignMethods"]


class DesignMethods:
    """What a trainer with a `search` does with designs, most of which that does."""

    search: DesignSearch
    _device: str
    _tracker: Any
    _show_progress_bars: bool
    # The last training of a policy, which may go on.
    _policy_search: PolicySearch | None = None

    def _store(self, batches: list[tuple[Tensor, Tensor, int]]) -> None:
        """Let the trainer learn from simulations of a search, too."""
        raise NotImplementedError

    @property
    def design_policy(self) -> DesignPolicy | None:
        """Distribution over designs."""
        return self.search.policy

    @property
    def observations(self) -> tuple[Observation, ...]:
        """What was observed so far, oldest first."""
        return self.search.measurements.observations

    @property
    def belief(self) -> ParticleBelief | None:
        """Belief about the parameters after all observations, `None` before."""
        return self.search.measurements.belief

    @property
    def simulations(self) -> tuple[Tensor, Tensor, Tensor]:
        """All `theta`, `design` and `x`, also of searches; NaN where they failed."""
        return self.search.simulations.tensors

    def optimize_design(
        self,
        simulator: Callable[[Tensor, Tensor], Tensor] | None,
        *,
        max_num_simulations: int | None = None,
        resume_training: bool = False,
        **settings: Any,
    ) -> DesignResult:
        """Learn the most informative design and the likelihood together, and score it.

        Designs are drawn from the policy or where networks think best, parameters from
        the prior or, after `observe`, the belief. Simulations that are NaN or infinite
        tell nothing. All are kept in `simulations`, and `train` learns from them. A
        search in rounds learns from all that are stored; with `simulator=None` from
        these alone. A further joint search trains policy and networks on.

        `simulator` is a function from `theta` `(batch_dim, dim_theta)` and `design`
        `(batch_dim, dim_design)` to `x` `(batch_dim, *x_shape)`. With `resume_training`
        the previous call, which Ctrl-C, an error or a budget has ended, goes on from
        its last completed step, with the budgets, scoring and `multi_start` of this
        call. All other arguments are those of
        :class:`~sbi_boed_plugin.DesignSearchConfig`, by name.

        The tracker gets `design_loss` and `design_eig` of each step or round, and at
        the number of the experiment `best_design_eig` and `best_design_1`, ….

        Raises:
            ValueError: If there is no policy or prior, an argument is out of range, or
                the simulator returns wrong shapes or too few finite values.
            RuntimeError: If there is nothing to resume.
        """
        settings["max_num_simulations"] = max_num_simulations
        num_stored = len(self.search.simulations.batches)
        try:
            result = self.search.run(
                simulator,
                DesignSearchConfig(**settings),
                resume=resume_training,
                tracker=self._tracker,
                show_progress_bar=self._show_progress_bars,
            )
        finally:
            self._store(self.search.simulations.since(num_stored))
        self._log_found("design", result.eig, result.design)
        return result

    def optimize_policy(
        self,
        simulator: Callable[[Tensor, Tensor], Tensor] | None,
        num_experiments: int,
        *,
        max_num_simulations: int | None = None,
        resume_training: bool = False,
        **settings: Any,
    ) -> PolicyResult:
        r"""Learn a policy that proposes each design from what was measured before.

        The likelihood is learned from simulations at designs all over the space and
        along the policy; inside it rollouts cost no simulation. There the policy learns
        from the information of all experiments together, or with `looks_ahead=False` to
        propose the experiment that tells most, given what is known by then. The former
        is what is reported, :math:`I(\theta; h_T)`. With `simulator=None` it is the
        likelihood that there is, or learned from the stored simulations. After
        `observe` the policy is for the experiments that follow.
        `build_posterior(history=...)` then takes milliseconds, too.

        `simulator` is that of `optimize_design`. With `resume_training` the previous
        call, which Ctrl-C or an error has ended, goes on from its last step. All other
        arguments are those of :class:`~sbi_boed_plugin.PolicySearchConfig`, by name.
        The tracker gets `policy_eig` of each step, and `best_policy_eig`.

        Raises:
            ValueError: If there is no policy or prior, an argument is out of range, or
                there is nothing to learn from.
            RuntimeError: If there is nothing to resume.
        """
        settings["max_num_simulations"] = max_num_simulations
        config = PolicySearchConfig(num_experiments, **settings)
        num_stored = len(self.search.simulations.batches)
        if not resume_training:
            self._policy_search = PolicySearch(self.search, config, self._device)
        if self._policy_search is None:
            raise RuntimeError(
                "There is no training of a policy to resume. Call optimize_policy "
                "without resume_training first."
            )
        if resume_training:
            self._policy_search.check_resumed(config)
        stored, checked = self.search.simulations, None
        if simulator is not None:
            checked = CheckedSimulator(simulator, x_shape=stored.x_shape)
        try:
            result = self._policy_search.run(
                checked, self._tracker, self._show_progress_bars
            )
        finally:
            if checked is not None:
                stored.x_shape = checked.x_shape
            self._store(stored.since(num_stored))
        self._log_found("policy", result.eig)
        return result

    def _log_found(
        self, kind: str, eig: EIGEstimate, design: Tensor | None = None
    ) -> None:
        """Log what was found for the next experiment, as sbi logs each of its rounds.

        Each value of a design has a name, from `best_design_1` on: trackers take
        numbers alone.
        """
        found = {"eig": eig.value, "eig_standard_error": eig.standard_error}
        values = [] if design is None else design.tolist()
        found |= {str(i): value for i, value in enumerate(values, 1)}
        metrics = {f"best_{kind}_{name}": value for name, value in found.items()}
        self._tracker.log_metrics(metrics, step=len(self.observations) + 1)
        self._tracker.flush()

    def observe(self, design: Tensor, x: Tensor, *, num_particles: int = 4_096) -> Self:
        """Take experiments into account, or raise and change nothing.

        The next search starts from what is known then, with the policy as it was at
        first. With `design` and `x` of shapes `(dim_design,)` and `x_shape`, or a row
        for each of several experiments. There is a warning if `x` lies beyond all of
        1,000 draws of the learned predictive distribution; `predictive_p_value` of the
        observation says how surprising it was. `num_particles` of the belief are fixed
        by the first call.

        Raises:
            RuntimeError: If there is no likelihood with designs yet.
            ValueError: If a shape or value is wrong, the design lies outside the
                support of the policy, or the belief would collapse.
        """
        self.search.observe(design, x, num_particles)
        return self

    def forget(self, num_observations: int = 1) -> Self:
        """Take the last observations back, and networks that know of them.

        The belief is made anew from those that are left, in as much time as observing
        them took. The likelihood knows nothing of observations, and stays.
        """
        self.search.forget(num_observations)
        return self

    def estimate_eig(
        self,
        simulator: Callable[[Tensor, Tensor], Tensor],
        design: Tensor,
        *,
        objective: str | None = None,
        **kwargs: Any,
    ) -> EIGEstimate:
        """Return the information of a design beyond what is known, in nats.

        By the networks as they are, which must be those of the objective: if `None`,
        `"info_nce"`, or without a likelihood `"barber_agakov"`. Further
        arguments are those of :func:`~sbi_boed_plugin.estimate_eig`.
        """
        return self.search.estimate_eig(simulator, design, objective, **kwargs)
