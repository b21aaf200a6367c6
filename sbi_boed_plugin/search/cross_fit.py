"""Networks that each leave out other simulations, and what these tell by them."""

import math
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import Distribution

from sbi_boed_plugin._fit import AveragedSchedule
from sbi_boed_plugin.estimators.ensemble import EnsembleEstimator
from sbi_boed_plugin.estimators.likelihood_with_failures import LikelihoodWithFailures
from sbi_boed_plugin.estimators.vector_field import is_slow
from sbi_boed_plugin.objectives.eig import EIGEstimate
from sbi_boed_plugin.search.batch import Batch
from sbi_boed_plugin.search.estimators import DesignEstimators, NetworkModels
from sbi_boed_plugin.search.fitting import Fitted, fit_network, pairs_of
from sbi_boed_plugin.search.information import POLICY_OBJECTIVES, Densities
from sbi_boed_plugin.search.learned_model import LearnedModel
from sbi_boed_plugin.search.regressed_model import RegressedModel, regress
from sbi_boed_plugin.search.utility import Utility

__all__ = ["CrossFit", "cross_fit", "enough_rows"]

_SCHEDULE = AveragedSchedule()
# Rows that networks need, at least, to learn from and to be validated with.
_LEAST_ROWS = 20
# Simulations left out by which objectives are compared.
_NUM_COMPARED = 1_000
# Rows that are evaluated at once.
_AT_ONCE = 1_024
# Share by which the likelihood has to know more.
_LEAST_GAIN = 0.1
# Simulations nearest to a design that tell its information, and draws of the model at
# their designs and there, each of several times.
_NEAR_SHARE, _LEAST_NEAR, _MOST_NEAR = 0.1, 50, 500
_NUM_DRAWS_NEAR, _NUM_DRAWS_THERE, _NUM_REPETITIONS = 64, 512, 5


@dataclass
class CrossFit:
    """Networks of which each leaves out the rows of its fold.

    `rows` are all simulations, `folds` the network that leaves each out, `weights` how
    often each counts for what is known of the parameters, about one on average, and
    `joined` the mean densities of all networks.
    """

    members: list[DesignEstimators]
    joined: DesignEstimators
    prior: Distribution
    rows: Batch
    folds: Tensor
    weights: Tensor
    fitted: dict[str, Fitted] = field(default_factory=dict)
    clip_max_norm: float | None = None
    _regressions: list[nn.Module] = field(default_factory=list)

    @property
    def regresses(self) -> bool:
        """Whether information is a regression of what single simulations tell."""
        networks = self.joined.all()
        return self.joined.likelihood is None or any(map(is_slow, networks))

    def models(
        self, objective: str, utility: Utility | None = None
    ) -> list[LearnedModel | RegressedModel]:
        """Return the information of designs by each of the networks, and by all.

        Without a likelihood that draws data with a gradient at once, what a network
        knows of the rows that it left out is regressed on their designs.
        """
        utility = utility or Utility()
        if not self.regresses:
            networks = [*self.members, self.joined]
            given = self.prior, objective, utility
            return [LearnedModel(each, *given) for each in networks]
        if not self._regressions:
            for fold in range(len(self.members)):
                rows = (self.folds == fold).nonzero()[:, 0]
                weights = self.weights[rows.to(self.weights.device)]
                parts = self._terms(rows, objective), self.rows.design[rows], weights
                self._regressions.append(regress(*parts, self.clip_max_norm))
        groups = [[each] for each in self._regressions] + [self._regressions]
        return [RegressedModel(each, objective, utility) for each in groups]

    @torch.no_grad()
    def better_objective(self) -> str:
        """Return the objective that tells more of rows left out.

        That of the posterior network, whose values vary less, unless the likelihood
        corrects it by a tenth and more than luck explains.
        """
        if self.regresses:
            return "barber_agakov"
        order = torch.randperm(len(self.folds))[:_NUM_COMPARED]
        posterior, likelihood = (
            self._terms(order, name) for name in ("barber_agakov", "lace")
        )
        gain, error = self._mean(order, likelihood - posterior)
        least = max(2.0 * error, _LEAST_GAIN * self._mean(order, posterior)[0])
        return "lace" if gain > least else "barber_agakov"

    @torch.no_grad()
    def estimate_near(self, design: Tensor, objective: str) -> EIGEstimate:
        """Return the information of a design by simulations that were left out.

        The value of the learned model there, and by how much simulations at the designs
        nearest to it, judged by networks that left them out, differ from the model's
        values for their own designs.
        """
        designs = self.rows.design
        width = designs.std(dim=0).clamp_min(torch.finfo(designs.dtype).tiny)
        distances = ((designs - design) / width).square().sum(dim=1)
        num_near = max(_LEAST_NEAR, math.ceil(_NEAR_SHARE * len(distances)))
        near = distances.argsort()[: min(num_near, _MOST_NEAR)].cpu()
        model = self.models(objective)[-1]
        expected, of_model = [], []
        # The model's values are means over draws, too, and differ between repetitions.
        for _ in range(_NUM_REPETITIONS):
            at_theirs = model.information(designs[near], _NUM_DRAWS_NEAR).cpu().double()
            there = float(model.information(design.unsqueeze(0), _NUM_DRAWS_THERE))
            expected.append(at_theirs)
            of_model.append(there - self._mean(near, at_theirs)[0])
        terms, rises = self._terms(near, objective), torch.tensor(of_model)
        _, error = self._mean(near, terms - torch.stack(expected).mean(dim=0))
        value = self._mean(near, terms)[0] + float(rises.mean())
        error = math.hypot(error, float(rises.std()) / math.sqrt(len(rises)))
        return EIGEstimate(value, error, POLICY_OBJECTIVES[objective].bound)

    @property
    def effective_sample_size(self) -> float:
        """Number of simulations of equal weight that would tell as much."""
        return _effective(self.weights[self.rows.valid])

    def _mean(self, chosen: Tensor, values: Tensor) -> tuple[float, float]:
        """Return the weighted mean of values of some rows, and its standard error.

        Both are NaN if no row counts.
        """
        weights = self.weights[chosen].cpu().double()
        weights = weights / weights.sum()
        mean = float((weights * values).sum())
        return mean, float((weights * (values - mean)).square().sum().sqrt())

    @torch.no_grad()
    def _terms(self, chosen: Tensor, objective: str) -> Tensor:
        """Return the terms of a bound for some rows, by networks that left them out.

        A failed simulation tells nothing.
        """
        parts = [self._some_terms(some, objective) for some in chosen.split(_AT_ONCE)]
        return torch.cat(parts)

    def _some_terms(self, chosen: Tensor, objective: str) -> Tensor:
        terms = torch.zeros(len(chosen)).double()
        valid = self.rows.valid.cpu()[chosen]
        for fold, member in enumerate(self.members):
            is_left_out = (self.folds[chosen] == fold) & valid
            some = chosen[is_left_out]
            if not len(some):  # Embeddings and priors take no empty batch.
                continue
            theta, x, design = (
                part[some] for part in (self.rows.theta, self.rows.x, self.rows.design)
            )
            args = (member.trained, self.prior, theta, x, design, theta[None, :0])
            values = POLICY_OBJECTIVES[objective].terms(Densities(*args))
            terms[is_left_out] = values.cpu().double()
        return terms


def enough_rows(rows: Batch, weights: Tensor) -> bool:
    """Return whether there are simulations enough for networks to learn from."""
    weights = weights[rows.valid]
    return min(len(weights), _effective(weights)) >= _LEAST_ROWS


def _effective(weights: Tensor) -> float:
    """Return the number of rows of equal weight that would tell as much."""
    return float(weights.sum() ** 2 / weights.square().sum().clamp_min(1e-30))


def cross_fit(
    models: NetworkModels,
    prior: Distribution,
    rows: Batch,
    folds: Tensor,
    weights: Tensor,
    spread: Tensor,
    *,
    needs: str,
    clip_max_norm: float | None,
    device: str,
    show_progress_bar: bool,
) -> CrossFit:
    """Train networks from scratch, each on all simulations but those of its fold.

    `weights` are how often a simulation counts for the network that `needs` names, and
    `spread` designs to take a standardization from.
    """
    finite, weights_of_finite = rows.finite(), weights[rows.valid]
    all_folds, folds = folds, folds[rows.valid.cpu()]
    if not enough_rows(rows, weights):
        raise ValueError(
            f"{len(folds)} finite simulations are too few to learn from, or too few of "
            f"them have parameters that are still likely: there must be {_LEAST_ROWS}. "
            "Allow for more simulations."
        )
    start = finite.theta, finite.x, spread[rows.valid]
    pairs, num_members = pairs_of(finite), int(folds.max()) + 1
    members: list[DesignEstimators] = []
    fits: dict[str, list[Fitted]] = {}
    for fold in range(num_members):
        networks = models.complete(None, needs, prior, start, device)
        for name, network in networks.named().items():
            fitted = fit_network(
                network,
                pairs[name],
                (folds != fold).nonzero()[:, 0],
                (folds == fold).nonzero()[:, 0],
                _SCHEDULE,
                weights=None if name == "likelihood" else weights_of_finite,
                clip_max_norm=clip_max_norm,
                description=f"Training {name} {fold + 1} of {num_members}",
                show_progress_bar=show_progress_bar,
            )
            fits.setdefault(name, []).append(fitted)
        networks.train(False)
        members.append(networks)
    means = {name: torch.tensor(some).mean(dim=0) for name, some in fits.items()}
    members = _with_failures(members, rows)
    return CrossFit(
        members,
        _joined(members),
        prior,
        rows,
        all_folds,
        weights,
        {name: Fitted(*mean.tolist()) for name, mean in means.items()},
        clip_max_norm,
    )


def _with_failures(
    members: list[DesignEstimators], rows: Batch
) -> list[DesignEstimators]:
    """Return the networks, whose likelihoods know when simulations fail."""
    if rows.valid.all() or members[0].likelihood is None:
        return members
    condition = torch.cat([rows.theta, rows.design], dim=-1)
    known = LikelihoodWithFailures(members[0].likelihood)
    known.learn(condition, rows.valid)
    return [_knowing_failures(member, known) for member in members]


def _knowing_failures(
    networks: DesignEstimators, known: LikelihoodWithFailures
) -> DesignEstimators:
    likelihood = LikelihoodWithFailures(networks.likelihood)
    likelihood.success_net = known.success_net
    return replace(networks, likelihood=likelihood)


def _joined(members: list[DesignEstimators]) -> DesignEstimators:
    """Return the mean densities of several networks."""
    networks: dict[str, Any] = {
        name: EnsembleEstimator([getattr(each.trained, name) for each in members])
        for name in members[0].named()
    }
    joined, first = DesignEstimators(**networks), members[0].likelihood
    if isinstance(first, LikelihoodWithFailures):
        joined = _knowing_failures(joined, first)
    joined.train(False)
    return joined
