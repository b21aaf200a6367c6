"""Search over designs in rounds, each of which learns from all simulations so far.

A joint search sees each simulation once. Where simulations are few, networks that learn
from all of them many times know far more: any rows of parameters, designs and data
train networks that are conditioned on the design, whatever the designs were drawn from.
Several networks, each of which leaves out other rows, say where they disagree.
"""

import math
import time
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Distribution
from tqdm.auto import tqdm

from sbi_boed_plugin._fit import AveragedSchedule
from sbi_boed_plugin._prior import draw_parameters
from sbi_boed_plugin._rng import get_rng_state, isolated_rng
from sbi_boed_plugin.estimators.ensemble import EnsembleEstimator
from sbi_boed_plugin.estimators.likelihood_with_failures import LikelihoodWithFailures
from sbi_boed_plugin.objectives.eig import EIGEstimate
from sbi_boed_plugin.policies.policy import DesignPolicy
from sbi_boed_plugin.search.batch import Batch, Progress, simulate_batch
from sbi_boed_plugin.search.config import DesignSearchConfig, MultiStartConfig
from sbi_boed_plugin.search.estimators import DesignEstimators, NetworkModels
from sbi_boed_plugin.search.fitting import fit_network, pairs_of
from sbi_boed_plugin.search.information import POLICY_OBJECTIVES, Densities
from sbi_boed_plugin.search.multi_start import (
    LearnedModel,
    climb_designs,
    moves_freely,
    spread_designs,
    uniform_designs,
)
from sbi_boed_plugin.search.result import StopReason
from sbi_boed_plugin.simulation import CheckedSimulator

__all__ = ["RoundsSearch"]

_SCHEDULE = AveragedSchedule()
# Rows that a network needs, at least, to learn from and to be validated with.
_LEAST_ROWS = 20
# Of the simulations for training, those of the first round, and of later rounds, those
# at designs that are spread all over; steps around the best, in widths of the space.
_FIRST_SHARE, _SPREAD_SHARE, _STEP = 0.4, 0.33, 0.1
_NUM_FOR_WIDTH = 256
# The climbs of single networks, and that of all together; draws that rank its designs.
_PROPOSAL = MultiStartConfig(num_starts=64, num_climb_steps=45, num_candidates=3)
_LAST, _NUM_RANKING = MultiStartConfig(num_starts=128), 256
# Simulations left out by which likelihood and posterior are compared, and contrasts.
_NUM_COMPARED, _NUM_CONTRASTIVE = 1_000, 255


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
        self._models, self._device, self._stored = models, device, stored
        self._members: list[DesignEstimators] = []
        # The network that leaves a row out.
        self._folds = torch.zeros(0, dtype=torch.long)

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
        simulator: CheckedSimulator,
        num_after: int,
        tracker: Any | None,
        show_progress_bar: bool,
    ) -> StopReason:
        """Take all rounds, with room in the budget for `num_after` simulations."""
        bar = tqdm(
            total=self.config.num_rounds,
            initial=self.progress.step,
            disable=not show_progress_bar,
            desc="Rounds of simulations",
        )
        with bar:
            while True:
                # Also what was simulated before an interrupt.
                if self.num_learned_from > len(self._folds):
                    self._learn(show_progress_bar)
                    self._report(bar, tracker)
                if self.finished:
                    return "num_rounds"
                self._simulate(simulator, num_after)
                bar.update()

    def _simulate(self, simulator: CheckedSimulator, num_after: int) -> None:
        """Simulate what the budget has for the next round."""
        config, progress = self.config, self.progress
        started = time.perf_counter()
        left = config.max_num_simulations - num_after - progress.num_spent
        num_new = left - simulator.num_check_calls
        num_left = config.num_rounds - progress.step
        if num_left > 1:
            first = self.networks is None
            num_new = int(num_new * (_FIRST_SHARE if first else 1.0 / num_left))
        simulator.max_calls = left
        batch = simulate_batch(
            simulator,
            self.prior,
            self._proposed_designs(max(1, num_new)),
            device=self._device,
            num_workers=config.num_workers,
            warn=progress.num_invalid_simulations == 0,
        )
        progress.keep(batch, None, time.perf_counter() - started)

    def _proposed_designs(self, num_designs: int) -> Tensor:
        """Return designs to simulate at, `(num_designs, dim_design)`."""
        num_spread = num_designs
        if self._members:
            num_spread = math.ceil(_SPREAD_SHARE * num_designs)
        spread = _spread(self.policy, num_spread)
        if num_spread == num_designs:
            return spread
        best = torch.stack([design for design, _ in self.candidates])
        rows = torch.randint(len(best), (num_designs - num_spread,))
        return torch.cat([spread, _around(self.policy, best[rows])])

    def _model(self, estimators: DesignEstimators) -> LearnedModel:
        """Return the information of designs by some of the networks."""
        return LearnedModel(estimators, self.prior, self.config.objective)

    def _learn(self, show_progress_bar: bool) -> None:
        """Train networks on all simulations so far, and find the best designs."""
        config, progress = self.config, self.progress
        started = time.perf_counter()
        rows = Batch.join(self._batches())
        num_members, num_new = config.num_networks, len(rows.theta) - len(self._folds)
        # Rows are left out evenly, but designs that were proposed by turns are not.
        folds = torch.arange(num_new) % num_members
        self._folds = torch.cat([self._folds, folds[torch.randperm(num_new)]])
        folds, finite = self._folds[rows.valid.cpu()], rows.finite()
        if len(finite.theta) < _LEAST_ROWS:
            raise ValueError(
                f"{len(finite.theta)} finite simulations are too few to learn from: "
                f"there must be {_LEAST_ROWS}. Allow for more simulations."
            )
        of_all = finite.theta, finite.x, spread_designs(finite.design, self.policy)
        pairs, members, overfit = pairs_of(finite), [], []
        for fold in range(num_members):
            networks = self._models.complete(
                None, "posterior", self.prior, of_all, self._device
            )
            left_out, used = folds == fold, folds != fold
            for name, network in networks.named().items():
                gap = fit_network(
                    network,
                    pairs[name],
                    used.nonzero()[:, 0],
                    left_out.nonzero()[:, 0],
                    _SCHEDULE,
                    clip_max_norm=config.clip_max_norm,
                    description=f"Training {name} {fold + 1} of {num_members}",
                    show_progress_bar=show_progress_bar,
                )
                overfit.append((name, gap))
            members.append(networks)
        self._members = self._with_failures(members, rows)
        self.networks = _joined(self._members)
        for name in self.networks.named():
            gaps = [gap for other, gap in overfit if other == name]
            mean, error = torch.tensor(gaps).mean(dim=0).tolist()
            progress.overfit[name] = mean, error
        self._choose_objective(finite, folds)
        self._rank()
        progress.seconds += time.perf_counter() - started

    @torch.no_grad()
    def _choose_objective(self, rows: Batch, folds: Tensor) -> None:
        """Climb by the network that knows more of simulations that were left out.

        By the likelihood only where its bound is not near its cap.
        """
        if self._asked is not None:
            return
        order = torch.randperm(len(rows.theta))[:_NUM_COMPARED]
        values: dict[str, list[Tensor]] = {"barber_agakov": [], "info_nce": []}
        for fold, member in enumerate(self._members):
            chosen = order[folds[order] == fold]
            theta, x, design = rows.theta[chosen], rows.x[chosen], rows.design[chosen]
            contrast = draw_parameters(self.prior, _NUM_CONTRASTIVE * len(chosen))
            contrast = contrast.to(theta).reshape(_NUM_CONTRASTIVE, *theta.shape)
            args = (member.trained, self.prior, theta, x, design, contrast)
            for name, terms in values.items():
                terms.append(POLICY_OBJECTIVES[name].terms(Densities(*args)))
        means = {name: float(torch.cat(terms).mean()) for name, terms in values.items()}
        if means["info_nce"] > math.log(_NUM_CONTRASTIVE + 1) - 1.0:
            means["info_nce"] = -math.inf
        objective = max(means, key=lambda name: means[name])
        self.config = replace(self.config, objective=objective)
        self.heldout = means

    def _with_failures(
        self, members: list[DesignEstimators], rows: Batch
    ) -> list[DesignEstimators]:
        """Return the networks, whose likelihoods know when simulations fail."""
        if rows.valid.all():
            return members
        condition = torch.cat([rows.theta, rows.design], dim=-1)
        known = LikelihoodWithFailures(members[0].likelihood)
        known.learn(condition, rows.valid)
        others = [LikelihoodWithFailures(each.likelihood) for each in members]
        for other in others:
            other.success_net = known.success_net
        return [
            replace(each, likelihood=other)
            for each, other in zip(members, others, strict=True)
        ]

    def _rank(self) -> None:
        """Find the designs that each of the networks thinks best, or all together."""
        assert self.networks is not None
        climbs = [(each, _PROPOSAL) for each in self._members]
        if self.finished:
            climbs.append((self.networks, _LAST))
        designs = [
            design
            for networks, climb in climbs
            for design in climb_designs(self._model(networks), self.policy, climb)
        ]
        stacked, state = torch.stack(designs), get_rng_state()
        values = []
        for member in self._members:
            # The same random numbers for all: differences are those of the networks.
            with isolated_rng(state), torch.no_grad():
                values.append(self._model(member).information(stacked, _NUM_RANKING))
        of_members = torch.stack(values)
        means = of_members.mean(dim=0)
        errors = of_members.std(dim=0) / math.sqrt(len(values))
        bound = POLICY_OBJECTIVES[self.config.objective].bound
        self.candidates = [
            (designs[i], EIGEstimate(float(means[i]), float(errors[i]), bound))
            for i in means.argsort(descending=True).tolist()
        ]

    def _report(self, bar: Any, tracker: Any | None) -> None:
        """Record what a round has found, and show it."""
        design, eig = self.candidates[0]
        self.progress.record(
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
            metrics = {"design_eig": eig.value}
            tracker.log_metrics(metrics, step=self.progress.step)


def _joined(members: list[DesignEstimators]) -> DesignEstimators:
    """Return the mean densities of several networks."""
    parts = {
        name: EnsembleEstimator([getattr(each.trained, name) for each in members])
        for name in members[0].named()
    }
    first = members[0].likelihood
    joined: Any = parts
    if isinstance(first, LikelihoodWithFailures):
        joined["likelihood"] = LikelihoodWithFailures(parts["likelihood"])
        joined["likelihood"].success_net = first.success_net
    networks = DesignEstimators(**joined)
    networks.train(False)
    return networks


def _spread(policy: DesignPolicy, num_designs: int) -> Tensor:
    """Return designs all over the space, or draws of the policy if it is no box."""
    box = uniform_designs(policy)
    if box is None:
        return policy.sample(torch.Size((num_designs,))).float()
    low, high = box.base_dist.low, box.base_dist.high
    seed = int(torch.randint(2**31, ()))
    engine = torch.quasirandom.SobolEngine(policy.dim_design, scramble=True, seed=seed)
    return low + engine.draw(num_designs).to(low) * (high - low)


def _around(policy: DesignPolicy, designs: Tensor) -> Tensor:
    """Return designs moved by a share of the space, where a step stays inside."""
    box = uniform_designs(policy)
    if box is not None:
        low, high = box.base_dist.low, box.base_dist.high
        moved = designs + _STEP * (high - low) * torch.randn_like(designs)
        return moved.clamp(low, high)
    if not moves_freely(policy):
        return designs
    width = _spread(policy, _NUM_FOR_WIDTH).std(dim=0)
    return designs + _STEP * math.sqrt(12.0) * width * torch.randn_like(designs)
