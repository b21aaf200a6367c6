"""One call that trains a policy: simulate, learn the model, train inside it, score."""

import math
import time
import warnings
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from sbi_boed_plugin._prior import draw_parameters, log_normalization
from sbi_boed_plugin._sbi_compat import check_default_dtype
from sbi_boed_plugin.adaptive.config import (
    NUM_FOR_UNITS,
    OF_ONE_CALL,
    PolicyResult,
    PolicySearchConfig,
    share_done,
)
from sbi_boed_plugin.adaptive.networks import fit_likelihood, make_training
from sbi_boed_plugin.adaptive.rollout import LearnedExperiment, Rollouts, roll_out
from sbi_boed_plugin.adaptive.saving import load_training, save_training
from sbi_boed_plugin.adaptive.scoring import (
    policy_bounds,
    policy_doubts,
    posterior_doubts,
    training_doubts,
)
from sbi_boed_plugin.adaptive.training import PolicyTraining
from sbi_boed_plugin.search.batch import Batch, simulate_batch
from sbi_boed_plugin.search.belief import unseen
from sbi_boed_plugin.search.design_search import DesignSearch
from sbi_boed_plugin.search.estimators import check_posterior_describes
from sbi_boed_plugin.search.target import Target
from sbi_boed_plugin.simulation import CheckedSimulator, Simulations, run_simulator

__all__ = ["PolicySearch"]

# Of the simulations for training, those of the first round.
_FIRST_SHARE = 0.4
# Steps of the posterior before the policy starts, at least and at most, and the share
# of a limited time for them.
_LEAST_START, _MOST_START, _START_SHARE = 50, 400, 0.1


class PolicySearch:
    """The training of a policy that can be resumed, beside the search of a trainer.

    `search` holds prior, design space, likelihood and simulations.
    """

    def __init__(
        self, search: DesignSearch, config: PolicySearchConfig, device: str
    ) -> None:
        check_default_dtype()
        if search.policy is None or search.dim_design == 0:
            raise ValueError(
                "design_policy=None, or simulations without designs: policies over "
                "histories need NLE_INCE(prior, design_policy=...) with designs."
            )
        if not search.models.has_likelihood:
            raise ValueError(
                "density_estimator=None: policies learn inside a likelihood, or are "
                "scored by one. Make the trainer with a likelihood."
            )
        if search.models.likelihood_flows:
            raise ValueError(
                "density_estimator is a flow matching or score model, which is too "
                "slow for policies: they draw data from it at each step. Make the "
                "trainer with a flow or a mixture, such as 'maf' or 'mdn'."
            )
        self.search, self.config, self.device = search, config, device
        self.prior = search.known()
        assert search.prior is not None
        config.utility.check(search.policy)
        if config.target is None:
            check_posterior_describes(search.prior, "barber_agakov", "posterior")
        self.target = (
            None if config.target is None else Target(config.target, self.prior)
        )
        self.training: PolicyTraining | None = None
        # Rounds, of which the last may have its simulations only.
        self.round = self.num_simulated = 0
        self.num_simulations = self.num_invalid = 0
        self.seconds = self._saved_at = 0.0

    @property
    def _rounds(self) -> int:
        return self.config.num_rounds if self.config.method == "model" else 1

    def run(
        self,
        simulator: CheckedSimulator | None,
        tracker: Any | None,
        show_progress_bar: bool,
    ) -> PolicyResult:
        """Train within the budgets, and score the policy."""
        config, saved = self.config, self.config.checkpoint
        if saved is not None and self.training is None and Path(saved).exists():
            load_training(self, Path(saved))
            self._saved_at = self.seconds
        started, before = time.perf_counter(), self.seconds
        self._check_budget(simulator)
        stop_reason, experiment = "num_steps", None
        bar = tqdm(
            total=config.steps,
            initial=0 if self.training is None else self.training.step,
            disable=not show_progress_bar,
            desc="Training policy",
        )
        with bar:
            while True:
                self.seconds = before + time.perf_counter() - started
                step = 0 if self.training is None else self.training.step
                share = share_done(step, config.steps, self.seconds, config.max_seconds)
                self._save_if_due()
                due = self.round == 0 or share >= self.round / self._rounds
                if due and self.round < self._rounds and share < 1.0:
                    self._begin_round(simulator, show_progress_bar)
                    experiment = None
                if share >= 1.0:
                    stop_reason = "num_steps" if step >= config.steps else "max_seconds"
                    break
                assert self.training is not None
                if self._is_spent(simulator):
                    stop_reason = "max_num_simulations"
                    break
                if experiment is None:
                    experiment = self._experiment(simulator)
                self.training.take_step(experiment, config.training_batch_size, share)
                self._report(bar, tracker)
        self._save_if_due(is_end=True)
        return self._result(simulator, stop_reason)

    def _check_budget(self, simulator: CheckedSimulator | None) -> None:
        """Set aside what scores the policy, or raise if there is too little."""
        config = self.config
        if simulator is None:
            if config.method == "simulator" or config.max_num_simulations is not None:
                raise ValueError(
                    "simulator=None trains inside the likelihood that there is: leave "
                    "out max_num_simulations, and method or use method='model'."
                )
            return
        config.check_budget()
        left = config.num_training - self.num_simulations
        if left < 0:
            raise ValueError(
                f"max_num_simulations={config.budget} is too few: there have been "
                f"{self.num_simulations} simulations, and {config.num_reserved} score "
                "the policy. Raise it, or lower num_eig_samples."
            )
        simulator.is_checked |= self.num_simulations > 0
        simulator.max_calls = left

    def _is_spent(self, simulator: CheckedSimulator | None) -> bool:
        """Whether no simulations are left for another step that needs them."""
        config = self.config
        if simulator is None or config.method == "model":
            return False
        return simulator.max_calls < config.training_batch_size * config.num_experiments

    def check_resumed(self, config: PolicySearchConfig) -> None:
        """Raise if a call cannot go on with other settings or another belief."""
        for name, value in vars(config).items():
            before = getattr(self.config, name)
            if name not in OF_ONE_CALL and value != before:
                raise ValueError(
                    f"{name}={value!r} with resume_training=True, but the training to "
                    f"resume has {name}={before!r}. Pass the same, or start anew."
                )
        if self.search.known() is not self.prior:
            raise RuntimeError(
                "There were observations since the training that is to be resumed: "
                "start anew, without resume_training."
            )
        self.config = config

    def _save_if_due(self, *, is_end: bool = False) -> None:
        """Save the training now and then, and at its end."""
        path = self.config.checkpoint
        if path is None or self.training is None:
            return
        if is_end or self.seconds - self._saved_at >= self.config.checkpoint_seconds:
            save_training(self, Path(path))
            self._saved_at = self.seconds

    def _begin_round(
        self, simulator: CheckedSimulator | None, show_progress_bar: bool
    ) -> None:
        """Simulate, let the likelihood learn from all simulations, make networks."""
        config = self.config
        if config.method == "simulator":
            assert simulator is not None
            num = NUM_FOR_UNITS - simulator.num_check_calls
            batch = self._spread_simulations(simulator, num)
            self.make_networks(batch)
        else:
            if simulator is not None and self.num_simulated == self.round:
                self._simulate(simulator, show_progress_bar)
                self.num_simulated += 1
            if simulator is not None or self.search.likelihood is None:
                given = self.search, self.prior, self.device
                fit_likelihood(*given, show_progress_bar)
            rows = self.search.simulations.rows()
            assert rows is not None
            if self.training is not None:
                self.training.beliefs = None  # They were those of the model before.
            else:
                self.make_networks(rows)
                assert self.training is not None
                self.training.find_start(
                    self._experiment(simulator),
                    min(max(_LEAST_START, config.steps // 10), _MOST_START),
                    _START_SHARE * (config.max_seconds or math.inf),
                )
        self.round += 1

    def _simulate(self, simulator: CheckedSimulator, show_progress_bar: bool) -> None:
        """Simulate all over the space first, and then as the policy does."""
        config = self.config
        if self.round == 0:
            share = _FIRST_SHARE if config.num_rounds > 1 else 1.0
            num = int(share * config.num_training) - simulator.num_check_calls
            self._spread_simulations(
                simulator, num, show_progress_bar=show_progress_bar
            )
            return
        assert self.training is not None
        later = (1.0 - _FIRST_SHARE) * config.num_training / (config.num_rounds - 1)
        num_rollouts = int(min(later, simulator.max_calls) / config.num_experiments)
        if num_rollouts < 2:  # Calls that were repeated have used them up.
            return
        for explores in (False, True):
            theta = draw_parameters(self.prior, num_rollouts // 2).float()
            self._roll_out(simulator, theta, explores=explores, keep=True)

    def _spread_simulations(
        self, simulator: CheckedSimulator, num: int, show_progress_bar: bool = False
    ) -> Batch:
        """Simulate at designs all over the space."""
        policy = self.search.policy
        assert policy is not None
        batch = simulate_batch(
            simulator,
            self.prior,
            policy.spread(num).to(self.device),
            device=self.device,
            num_workers=self.config.num_workers,
            show_progress_bar=show_progress_bar,
        )
        self._count(batch.num_calls, batch.valid)
        self.search.simulations.add(batch.theta, batch.x, batch.design, self.prior)
        return batch

    def _count(self, num_calls: int, valid: Tensor) -> None:
        self.num_simulations += num_calls
        self.num_invalid += int((~valid).sum())

    @torch.no_grad()
    def _roll_out(
        self,
        simulator: CheckedSimulator,
        theta: Tensor,
        *,
        explores: bool = False,
        keep: bool = False,
    ) -> Rollouts:
        """Let the policy experiment with the simulator, and keep what it saw."""
        assert self.training is not None
        draws = {"chooses": explores, "explores": explores}
        policy, theta = self.training.policy, theta.to(self.device)
        tried = torch.ones(len(theta), dtype=torch.bool)

        def measure(theta: Tensor, design: Tensor) -> Tensor:
            made = self._run(simulator, theta, design)
            tried.logical_and_(made.tried.cpu())
            return _data_of(made, theta)

        rollouts = roll_out(policy, theta, measure, **draws)
        if not tried.all():
            # Simulations that raised were repeated, which the others paid for.
            rollouts = rollouts.rows(tried)
        if keep:
            # Designs followed data: these rows are none of the prior's.
            rows = rollouts.theta.repeat(len(rollouts.x), 1)
            designs, x = rollouts.design.flatten(0, 1), rollouts.x.flatten(0, 1)
            self.search.simulations.add(rows, x, designs, None, is_adaptive=True)
        return rollouts

    def make_networks(self, rows: Batch) -> None:
        """Make policy and posterior, in the units of some simulations."""
        given = self.search, self.config, self.prior, self.target, rows
        self.training = make_training(*given, self.device)

    def _experiment(self, simulator: CheckedSimulator | None) -> Any:
        """Return what rollouts of the training get their data from."""
        if self.config.method == "model":
            assert self.search.likelihood is not None
            return LearnedExperiment(deepcopy(self.search.likelihood))
        assert simulator is not None
        return lambda theta, design: _data_of(
            self._run(simulator, theta, design), theta
        )

    def _run(
        self, simulator: CheckedSimulator, theta: Tensor, design: Tensor
    ) -> Simulations:
        made = run_simulator(
            simulator,
            theta,
            design.detach(),
            num_workers=self.config.num_workers,
            warn=self.num_invalid == 0,
        )
        self._count(made.num_calls, made.valid | ~made.tried)
        return made

    def _report(self, bar: Any, tracker: Any | None) -> None:
        assert self.training is not None
        last = {name: values[-1] for name, values in self.training.history.items()}
        bar.set_postfix_str(f"EIG {last['eig']:.2f} nats", refresh=False)
        bar.update()
        if tracker is not None:
            metrics = {f"policy_{name}": value for name, value in last.items()}
            tracker.log_metrics(metrics, step=self.training.step)

    def _result(
        self, simulator: CheckedSimulator | None, stop_reason: str
    ) -> PolicyResult:
        """Score the policy by rollouts that nothing was trained on."""
        config, training = self.config, self.training
        assert training is not None
        seconds, likelihood = self.seconds, None
        experiment = None
        if config.method == "model":
            likelihood = deepcopy(self.search.likelihood)
            experiment = LearnedExperiment(deepcopy(self.search.likelihood))
        theta = draw_parameters(unseen(self.prior), config.num_scoring).float()
        theta = theta.to(self.device)
        if simulator is None:
            with torch.no_grad():
                rollouts = roll_out(training.policy, theta, experiment)
        else:
            simulator.max_calls = config.budget - self.num_simulations
            rollouts = self._roll_out(simulator, theta)
        if len(rollouts.theta) < 2:
            raise ValueError(
                "No simulations are left to score the policy, since some that raised "
                "were repeated. Call optimize_policy(..., resume_training=True) with a "
                "larger max_num_simulations."
            )
        num_simulations = 0 if simulator is None else rollouts.x.shape[:2].numel()
        prior = getattr(self.prior, "base_prior", self.prior)
        constant = log_normalization(prior)
        given = training, experiment, rollouts, num_simulations, config
        bounds = policy_bounds(*given, constant)
        eig = max(bounds.values(), key=lambda bound: bound.value)
        cost = None
        if config.cost is not None:
            costs = config.utility.costs(rollouts.design.flatten(0, 1))
            cost = float(costs.sum()) / len(rollouts.theta)
        history = deepcopy(training.history)
        inside, lacking = None, ["eig", "barber_agakov"]
        if experiment is not None:
            inside = training.information_inside(experiment) + constant[0]
            # Sums of what particles tell need no density of the prior.
            lacking = lacking[1:] if training.is_greedy else lacking
        for name in lacking:
            history[name] = [value + constant[0] for value in history[name]]
        at_random = training.at_random if config.maximize == "eig" else None
        doubts = policy_doubts(eig, inside, at_random, constant[0])
        doubts += posterior_doubts(training, rollouts) if num_simulations else []
        doubts += training_doubts(training, self.round, self._rounds)
        for doubt in doubts:
            warnings.warn(doubt, stacklevel=5)
        return PolicyResult(
            policy=deepcopy(training.policy),
            eig=eig,
            bounds=bounds,
            doubts=tuple(doubts),
            posterior=deepcopy(training.posterior),
            likelihood_estimator=likelihood,
            config=config,
            history=history,
            cost=cost,
            num_simulations=self.num_simulations,
            num_invalid_simulations=self.num_invalid,
            seconds=seconds,
            stop_reason=stop_reason,
        )


def _data_of(made: Simulations, theta: Tensor) -> Tensor:
    """Return simulated data, NaN where they failed."""
    x = made.x.to(theta)
    return x.masked_fill(~made.valid.to(x.device).unsqueeze(1), torch.nan)
