"""Search over designs in rounds, each of which learns from all simulations so far.

A joint search sees each simulation once. Where simulations are few, networks that learn
from all of them many times know far more: any rows of parameters, designs and data
train networks that are conditioned on the design, whatever the designs were drawn from.
Several networks, each of which leaves out other rows, say where they disagree.
"""

import itertools
import math
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Distribution
from tqdm.auto import tqdm

from sbi_boed_plugin._rng import get_rng_state, isolated_rng
from sbi_boed_plugin.objectives.eig import EIGEstimate
from sbi_boed_plugin.policies.policy import DesignPolicy
from sbi_boed_plugin.search.batch import Batch, Progress, simulate_batch
from sbi_boed_plugin.search.config import DesignSearchConfig, MultiStartConfig
from sbi_boed_plugin.search.cross_fit import CrossFit, cross_fit, enough_rows
from sbi_boed_plugin.search.doubts import find_unsettled
from sbi_boed_plugin.search.estimators import DesignEstimators, NetworkModels
from sbi_boed_plugin.search.information import POLICY_OBJECTIVES, network_of
from sbi_boed_plugin.search.multi_start import (
    climb_designs,
    spread_designs,
)
from sbi_boed_plugin.search.result import StopReason
from sbi_boed_plugin.simulation import CheckedSimulator

__all__ = ["RoundsSearch"]

# Of the simulations for training, those of the first round, and of later rounds, those
# at designs that are spread all over; steps around the best, in widths of the space.
_FIRST_SHARE, _SPREAD_SHARE, _STEP = 0.4, 0.33, 0.1
# Of a limited time, the largest share that scores the design.
_SCORING_SHARE = 0.2
# Exponentials of more are not finite in single precision.
_MOST_LOG_RATIO = 80.0
# The climbs of single networks, and from there on that of all together; draws that
# rank their designs.
_PROPOSAL = MultiStartConfig(num_starts=64, num_climb_steps=45, num_candidates=3)
_LAST, _NUM_RANKING = MultiStartConfig(num_samples=64), 256
# Designs all over the space that the best one is compared with.
_NUM_COMPARED = 64


class RoundsSearch:
    """Simulates, learns from all simulations and climbs, several times.

    A round simulates at designs that are spread over the space, or around those that
    the networks of the round before think best, each by its own: Thompson sampling.
    Then networks are trained anew. `stored` are rows of earlier simulations.
    """

    def __init__(
        self,
        policy: DesignPolicy,
        prior: Distribution,
        models: NetworkModels,
        config: DesignSearchConfig,
        *,
        stored: Batch | None = None,
        device: str = "cpu",
    ) -> None:
        self.policy, self.prior = policy.to(device), prior
        self.config: Any = config  # All that could be None has been chosen.
        self.progress = Progress()
        self._asked = config.objective
        self.networks: DesignEstimators | None = None
        self.candidates: list[tuple[Tensor, EIGEstimate]] = []
        # Designs to simulate around, and what speaks against the best one.
        self._promising, self.unsettled = torch.zeros(0), list[str]()
        self._models, self._device = models, device
        self._stored, self._weights_of_stored = stored, None
        self.fit: CrossFit | None = None
        # Seconds of a simulation, and of learning from a row, in the last round.
        self.pace = 0.0, 0.0
        # The network that leaves a row out.
        self._folds = torch.zeros(0, dtype=torch.long)

    def start_from(self, stored: Batch | None, num_spent: int) -> None:
        """Start from these simulations, some of which count within the budget."""
        self._stored, self._weights_of_stored = stored, None
        self.progress.num_simulations = num_spent

    @property
    def num_learned_from(self) -> int:
        """Number of simulations behind the networks."""
        return sum(len(batch.theta) for batch in self._batches())

    def _batches(self) -> list[Batch]:
        """Return all simulations so far, those of earlier searches first."""
        earlier = [] if self._stored is None else [self._stored]
        return [*earlier, *self.progress.stored]

    @property
    def finished(self) -> bool:
        """Whether all rounds are done."""
        return self.progress.step >= self.config.num_rounds

    def run(
        self,
        simulator: CheckedSimulator | None,
        num_after: int,
        tracker: Any | None,
        show_progress_bar: bool,
    ) -> StopReason:
        """Take all rounds, with room in the budget for `num_after` simulations.

        Without a simulator, learn from the simulations that there are.
        """
        bar = tqdm(
            total=self.config.num_rounds,
            initial=self.progress.step,
            disable=not show_progress_bar,
            desc="Rounds of simulations",
        )
        with bar:
            while True:
                num_left = (
                    0 if simulator is None else self._affordable(simulator, num_after)
                )
                ends = self.finished or num_left < 1
                # Also from what was simulated before an interrupt.
                has_new = self.num_learned_from > len(self._folds)
                # What is too little to learn from grows with the next round.
                if has_new and (ends or self._can_learn()):
                    self._learn(ends, show_progress_bar)
                    self._report(bar, tracker)
                if ends or simulator is None:
                    done = self.finished or simulator is None
                    return "num_rounds" if done else "max_num_simulations"
                num_new = self._size_of_round(num_left)
                if self.fit is not None and self._is_late(num_new, num_after):
                    started = time.perf_counter()
                    self._rank(self.fit, is_last=True)
                    self._doubt_missing_likelihood()
                    self.progress.seconds += time.perf_counter() - started
                    return "max_seconds"
                self._simulate(simulator, num_new, num_left, show_progress_bar)
                bar.update()

    def _affordable(self, simulator: CheckedSimulator, num_after: int) -> int:
        """Return how many simulations the budget has for the next rounds."""
        left = self.config.max_num_simulations - num_after - self.progress.num_spent
        return left - simulator.num_check_calls

    def _size_of_round(self, num_left: int) -> int:
        """Return how many of the simulations that are left the next round has."""
        num_rounds = self.config.num_rounds - self.progress.step
        if num_rounds == 1:
            return num_left
        share = _FIRST_SHARE if self.networks is None else 1.0 / num_rounds
        return max(1, int(num_left * share))

    def _is_late(self, num_new: int, num_after: int) -> bool:
        """Whether another round, at the pace of the last, would take too long.

        A fifth of the time at most is for the simulations after it.
        """
        limit, progress = self.config.max_seconds, self.progress
        if limit is None:
            return False
        per_call, per_row = self.pace
        needed = per_call * num_new + per_row * (self.num_learned_from + num_new)
        after = min(per_call * num_after, _SCORING_SHARE * limit)
        return progress.seconds + needed + after > limit

    def _can_learn(self) -> bool:
        rows = Batch.join(self._batches())
        return enough_rows(rows, self._weights(rows))

    def _simulate(
        self,
        simulator: CheckedSimulator,
        num_new: int,
        num_left: int,
        show_progress_bar: bool,
    ) -> None:
        """Simulate the next round, `num_new` of what the budget has."""
        config, progress = self.config, self.progress
        started = time.perf_counter()
        simulator.max_calls = num_left + simulator.num_check_calls
        batch = simulate_batch(
            simulator,
            self.prior,
            self._proposed_designs(num_new),
            device=self._device,
            num_workers=config.num_workers,
            # Each call is one row anyway: no worker waits for a slow one.
            simulation_batch_size=1 if simulator.one_by_one else None,
            show_progress_bar=show_progress_bar,
            warn=progress.num_invalid_simulations == 0,
        )
        seconds = time.perf_counter() - started
        progress.keep(batch, None, seconds)
        self.pace = seconds / num_new, self.pace[1]

    def _proposed_designs(self, num_designs: int) -> Tensor:
        """Return designs to simulate at, `(num_designs, dim_design)`."""
        num_spread = num_designs
        if len(self._promising):
            num_spread = math.ceil(_SPREAD_SHARE * num_designs)
        spread = self.policy.spread(num_spread)
        if num_spread == num_designs:
            # The policy, too, says where good designs may be.
            half = spread[::2]
            spread[::2] = self.policy.sample(torch.Size((len(half),))).to(half)
            return spread
        rows = torch.randint(len(self._promising), (num_designs - num_spread,))
        return torch.cat([spread, _around(self.policy, self._promising[rows])])

    def _learn(self, is_last: bool, show_progress_bar: bool) -> None:
        """Train networks on all simulations so far, and find the best designs."""
        config, progress = self.config, self.progress
        started = time.perf_counter()
        rows = Batch.join(self._batches())
        num_new = len(rows.theta) - len(self._folds)
        # As many for each network, whatever order the designs have.
        new = torch.arange(num_new) % config.num_networks
        folds = torch.cat([self._folds, new[torch.randperm(num_new)]])
        models = self._models
        if models.likelihood_flows and not is_last:
            models = models.without_likelihood()  # It is slow, and drives nothing.
        fit = cross_fit(
            models,
            self.prior,
            rows,
            folds,
            self._weights(rows),
            spread_designs(rows.design, self.policy),
            needs="posterior" if self._asked != "target" else "target",
            clip_max_norm=config.clip_max_norm,
            device=self._device,
            show_progress_bar=show_progress_bar,
        )
        for name, fitted in fit.fitted.items():
            progress.overfit[name] = fitted.gap, fitted.gap_error
        if self._asked is None:
            self.config = replace(config, objective=fit.better_objective())
        self._rank(fit, is_last)
        self._folds, self.fit, self.networks = folds, fit, fit.joined
        seconds = time.perf_counter() - started
        progress.seconds += seconds
        self.pace = self.pace[0], seconds / len(rows.theta)

    def _weights(self, rows: Batch) -> Tensor:
        """Return how often rows count for the posterior, about one on average.

        What is known of the parameters by now, against what those of stored simulations
        were drawn from. Ratios are cut off at the square root of their number, so that
        no few rows count for all (Ionides, *Truncated Importance Sampling*, 2008).
        """
        weights = rows.theta.new_ones(len(rows.theta))
        stored = self._stored
        if stored is not None and stored.log_proposal is not None:
            if self._weights_of_stored is None:  # Slow, where there were observations.
                log_known = self.prior.log_prob(stored.theta).to(weights).detach()
                log_ratio = log_known - stored.log_proposal
                log_ratio = log_ratio.nan_to_num(nan=-torch.inf)
                ratio = log_ratio.clamp(max=_MOST_LOG_RATIO).exp()
                most = math.sqrt(len(ratio)) * float(ratio.mean())
                self._weights_of_stored = ratio.clamp(max=most)
            weights[: len(self._weights_of_stored)] = self._weights_of_stored
        return weights / weights.mean().clamp_min(torch.finfo(weights.dtype).tiny)

    def _rank(self, fit: CrossFit, is_last: bool) -> None:
        """Find the designs that each of the networks thinks best, or all together."""
        *models, joined = fit.models(self.config.objective, self.config.utility)
        designs = torch.stack(
            [
                design
                for model in models
                for design in climb_designs(model, self.policy, _PROPOSAL)
            ]
        )
        self._promising, compared = designs, designs[:0]
        if is_last:
            best = climb_designs(joined, self.policy, _LAST, starts=designs)
            designs = torch.cat([designs, torch.stack(best)])
            # What else there is, and how well the networks know it.
            compared = torch.unique(self.policy.spread(_NUM_COMPARED), dim=0)
            designs = torch.cat([designs, compared])
        of_members = self._values(models, designs)
        means = of_members.mean(dim=0)
        means = means.where(means.isfinite(), -torch.inf)
        errors = of_members.std(dim=0) / math.sqrt(len(of_members))
        bound = POLICY_OBJECTIVES[self.config.objective].bound
        utility = self.config.utility
        order = utility(means, designs).argsort(descending=True)
        self.candidates = [
            (designs[i], EIGEstimate(float(means[i]), float(errors[i]), bound))
            for i in order.tolist()
        ]
        if is_last:
            worth = torch.stack([utility(values, designs) for values in of_members])
            self.unsettled = find_unsettled(
                worth[:, order[0]],
                compared,
                worth[:, -len(compared) :],
                num_simulations=int(fit.rows.valid.sum()),
                unit=utility.unit,
            )

    @torch.no_grad()
    def _values(self, models: Sequence[Any], designs: Tensor) -> Tensor:
        """Return the information of designs by each of some networks.

        With the same random numbers for all networks and designs: the values of close
        designs are close, and differences are those of networks and designs.
        """
        state, values = get_rng_state(), []
        for model, design in itertools.product(models, designs.split(1)):
            with isolated_rng(state):
                values.append(model.information(design, _NUM_RANKING))
        return torch.cat(values).reshape(len(models), len(designs))

    def _doubt_missing_likelihood(self) -> None:
        """Say so if time was up before the round in which a likelihood learns."""
        assert self.networks is not None
        if self._models.has_likelihood and self.networks.likelihood is None:
            self.unsettled = [
                *self.unsettled,
                "Time was up before the last round, in which a flow matching or score "
                "likelihood learns: there is none yet. train() learns it from the "
                "simulations that there are.",
            ]

    def _report(self, bar: Any, tracker: Any | None) -> None:
        """Record what a round has found, and show it."""
        design, eig = self.candidates[0]
        assert self.fit is not None
        # Of the likelihood, or else of the network that drives the search.
        drives = network_of(self.config.objective)
        name = drives if self.fit.regresses else "likelihood"
        loss = self.fit.fitted[name].loss
        of_likelihood = {} if self.fit.regresses else {"log_likelihood": -loss}
        self.progress.record(
            **of_likelihood,
            loss=loss,
            eig=eig.value,
            eig_standard_error=eig.standard_error,
            mode=design.tolist(),
            num_simulations=self.progress.num_simulations,
            seconds=self.progress.seconds,
        )
        shown = ", ".join(f"{value:.3g}" for value in design[:4].tolist())
        more = ", …" if len(design) > 4 else ""
        bar.set_postfix_str(f"design [{shown}{more}], EIG {eig.value:.2f} nats")
        if tracker is not None:
            last = {"loss": loss, "eig": eig.value, **of_likelihood}
            metrics = {f"design_{name}": value for name, value in last.items()}
            tracker.log_metrics(metrics, step=self.progress.step)


def _around(policy: DesignPolicy, designs: Tensor) -> Tensor:
    """Return designs moved by a share of the space, where a step stays inside."""
    step = _STEP * policy.width.to(designs) * torch.randn_like(designs)
    return policy.moved(designs, designs + step)
