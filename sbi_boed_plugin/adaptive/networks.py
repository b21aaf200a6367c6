"""The networks that train a policy: the likelihood, the policy and its posterior."""

from copy import deepcopy

import torch
from torch.distributions import Distribution

from sbi_boed_plugin._fit import AveragedSchedule
from sbi_boed_plugin.adaptive.config import PolicySearchConfig
from sbi_boed_plugin.adaptive.policy import HistoryPolicy
from sbi_boed_plugin.adaptive.posterior import AmortizedPosterior
from sbi_boed_plugin.adaptive.training import PolicyTraining
from sbi_boed_plugin.estimators.likelihood_with_failures import (
    LikelihoodWithFailures,
    without_failures,
)
from sbi_boed_plugin.estimators.transformed import as_transform
from sbi_boed_plugin.search.batch import Batch
from sbi_boed_plugin.search.design_search import DesignSearch
from sbi_boed_plugin.search.fitting import fit_network, pairs_of
from sbi_boed_plugin.search.target import Target

__all__ = ["fit_likelihood", "make_training"]

# Share of the simulations that is left out, to judge by, and sizes of batches.
_LEFT_OUT = 0.1
_BATCH_SIZES = (128, 1_024)
# Gain of the likelihood that is worth more steps, in nats of one experiment. Errors
# add up over a sequence.
_LEAST_GAIN = 1e-3


def fit_likelihood(
    search: DesignSearch, prior: Distribution, device: str, show_progress_bar: bool
) -> None:
    """Let the likelihood learn from all simulations, on from where it is."""
    rows = search.simulations.rows()
    if rows is None:
        raise ValueError(
            "simulator=None, but there is no likelihood and no stored simulation: "
            "call append_simulations(theta, x, design=design) first."
        )
    finite = rows.finite()
    start = finite.theta, finite.x, finite.design
    networks = search.models.complete(
        None if search.likelihood is None else deepcopy(search.networks),
        None,
        prior,
        start,
        device,
    )
    network = without_failures(networks.likelihood).requires_grad_(True)
    num = len(finite.theta)
    order = torch.randperm(num)
    num_left_out = max(1, int(_LEFT_OUT * num))
    least, most = _BATCH_SIZES
    fit_network(
        network,
        pairs_of(finite)["likelihood"],
        order[num_left_out:],
        order[:num_left_out],
        AveragedSchedule(min_gain=_LEAST_GAIN),
        batch_size=min(max(num // 200, least), most),
        description="Training likelihood",
        show_progress_bar=show_progress_bar,
    )
    if not rows.valid.all():
        condition = torch.cat([rows.theta, rows.design], dim=-1)
        network = LikelihoodWithFailures(network).learn(condition, rows.valid)
    search.likelihood = network
    assert search.policy is not None
    search.dim_design = search.policy.dim_design


def make_training(
    search: DesignSearch,
    config: PolicySearchConfig,
    prior: Distribution,
    target: Target | None,
    rows: Batch,
    device: str,
) -> PolicyTraining:
    """Return a new policy and posterior, in the units of some simulations."""
    assert search.policy is not None
    coordinates = {
        name: as_transform(search.models.coordinates[name])
        for name in ("x_transform", "design_transform")
    }
    policy = HistoryPolicy(
        search.policy,
        config.num_experiments,
        rows.x.shape[1],
        adapts=config.adapts,
        num_before=len(search.measurements),
        **coordinates,
    )
    posterior = AmortizedPosterior(
        prior if target is None else target.distribution, policy.encoder
    )
    policy.encoder.standardize(search.policy.spread(len(rows.x)).to(rows.x), rows.x)
    return PolicyTraining(
        policy.to(device),
        posterior.to(device),
        prior,
        config.utility,
        target,
        config.learning_rate,
        config.posterior_learning_rate,
        config.looks_ahead,
    )
