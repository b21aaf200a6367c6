r"""What can drive a policy: bounds of the information from the densities of a batch.

A policy objective is one function from :class:`Densities` to terms whose mean estimates
the information in nats. To add one, write the function and enter it in
`POLICY_OBJECTIVES`, with the network that it needs beside the likelihood: its training,
every gradient and the search loops follow from there.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor
from torch.distributions import Distribution

from sbi_boed_plugin.estimators.hybrid import HybridEstimator
from sbi_boed_plugin.objectives._eig_terms import proposed_contrast
from sbi_boed_plugin.objectives.generalized_kl import hybrid_loss
from sbi_boed_plugin.objectives.info_nce import (
    contrastive_bound,
    info_nce_loss,
    log_likelihood_matrix,
)
from sbi_boed_plugin.search.estimators import DesignEstimators

__all__ = [
    "POLICY_OBJECTIVES",
    "Densities",
    "PolicyObjective",
    "network_of",
    "training_losses",
]

# Draws of the posterior network for each simulation.
_NUM_PROPOSED = 15


@dataclass(eq=False)
class Densities:
    """Log-densities `(batch_dim,)` of simulations, evaluated when first asked for.

    Differentiable in data and designs where these carry a gradient. `contrast` are
    contrastive parameters of shape `(num_contrastive, batch_dim, dim_theta)`, and
    `sampled` is that of `log_likelihood_matrix`.
    """

    estimators: DesignEstimators
    prior: Distribution
    theta: Tensor
    x: Tensor
    design: Tensor
    contrast: Tensor
    sampled: bool = False

    @cached_property
    def log_likelihoods(self) -> Tensor:
        """Matrix of shape `(num_contrastive + 1, batch_dim)`, simulated pairs first."""
        theta = torch.cat([self.theta.unsqueeze(0), self.contrast])
        design = self.design.expand(len(theta), *self.design.shape)
        return log_likelihood_matrix(
            self.estimators.likelihood.log_prob,
            self.x,
            torch.cat([theta, design], dim=-1),
            sampled=self.sampled,
        )

    @property
    def log_likelihood(self) -> Tensor:
        """Log-likelihood of the simulated pairs."""
        return self.log_likelihoods[0]

    @cached_property
    def log_prior(self) -> Tensor:
        """Log-density of the parameters."""
        return self.prior.log_prob(self.theta).to(self.theta).detach()

    @cached_property
    def data(self) -> Tensor:
        """What a posterior is conditioned on, `(x, design)` in one row."""
        return torch.cat([self.x, self.design], dim=-1)

    @cached_property
    def log_posterior(self) -> Tensor:
        """Log-density of the learned posterior or its base."""
        base = self.estimators.posterior_base
        return base.log_prob(self.theta.unsqueeze(0), self.data)[0]

    @cached_property
    def log_ratio(self) -> Tensor:
        """Energy ratio of the hybrid posterior."""
        hybrid = self.estimators.posterior
        return hybrid.log_ratio(self.theta.unsqueeze(0), self.data)[0]

    @cached_property
    def partition(self) -> Tensor:
        """Partition function of the hybrid posterior."""
        return self.estimators.posterior.partition(
            self.data, whole_gradient=self.data.requires_grad
        )

    @cached_property
    def log_target(self) -> Tensor:
        """What the data tell of the target."""
        return self.estimators.target.log_prob(self.theta.unsqueeze(0), self.data)[0]

    @cached_property
    def log_marginal(self) -> Tensor:
        """Learned log-density of the data alone."""
        marginal = self.estimators.marginal
        return marginal.log_prob(self.x.unsqueeze(0), self.design)[0]


def training_losses(
    densities: Densities, regularization_strength: float, *, contrastive: bool = True
) -> dict[str, Tensor]:
    """Return the training loss of each row for each network, in nats, by its name.

    The likelihood's is the InfoNCE-λ loss, without its contrastive term where
    simulations have failed: successes contrasted with the parameters of failures would
    teach it the chance of success.
    """
    losses: dict[str, Tensor] = {}
    estimators = densities.estimators
    if estimators.likelihood is not None and contrastive:
        given = densities.log_likelihoods, regularization_strength
        losses["likelihood"] = info_nce_loss(*given)
    elif estimators.likelihood is not None:
        weight = 1.0 + regularization_strength
        losses["likelihood"] = -weight * densities.log_likelihood
    if isinstance(estimators.posterior, HybridEstimator):
        losses["posterior"] = hybrid_loss(
            densities.log_posterior, densities.log_ratio, densities.partition
        )
    elif estimators.posterior is not None:
        losses["posterior"] = -densities.log_posterior
    if estimators.target is not None:
        losses["target"] = -densities.log_target
    if estimators.marginal is not None:
        losses["marginal"] = -densities.log_marginal
    return losses


def _lace(densities: Densities) -> Tensor:
    """Return the terms of LACE with draws of the posterior network.

    The draws and their densities carry no gradient: the mean of their weights is the
    density of the data whatever they were drawn from, and so is its gradient. That of
    the bound leaves out that the posterior would draw better contrasts elsewhere.
    """
    posterior = densities.estimators.posterior_base
    theta, x, design, data = (
        densities.theta,
        densities.x,
        densities.design,
        densities.data.detach(),
    )
    with torch.no_grad():
        draws = posterior.sample(torch.Size((_NUM_PROPOSED,)), data)

    def log_likelihood(theta_all: Tensor) -> Tensor:
        condition = torch.cat([theta_all, design.expand(*theta_all.shape[:2], -1)], -1)
        evaluate = densities.estimators.likelihood.log_prob
        return log_likelihood_matrix(evaluate, x, condition)

    @torch.no_grad()
    def log_proposal(theta_all: Tensor) -> Tensor:
        return posterior.log_prob(theta_all, data)

    terms = (log_likelihood, log_proposal)
    return proposed_contrast(densities.prior, theta, draws, *terms)[0]


@dataclass(frozen=True)
class PolicyObjective:
    """A bound that can drive a policy.

    `needs` is the estimator that it needs beside the likelihood; `bound` is the bound
    of `estimate_eig` that scores a design which was found with it; `by_score` says that
    in a joint search only the score gradient follows it.
    """

    terms: Callable[[Densities], Tensor]
    needs: Literal["posterior", "hybrid", "marginal", "target"] | None
    bound: Literal["pce", "barber_agakov", "gkl", "lace"]
    by_score: bool = False


POLICY_OBJECTIVES = {
    "barber_agakov": PolicyObjective(
        lambda densities: densities.log_posterior - densities.log_prior,
        "posterior",
        "barber_agakov",
    ),
    "gkl": PolicyObjective(
        lambda densities: (
            1.0
            - densities.log_prior
            - hybrid_loss(
                densities.log_posterior, densities.log_ratio, densities.partition
            )
        ),
        "hybrid",
        "gkl",
    ),
    "info_nce": PolicyObjective(
        lambda densities: contrastive_bound(densities.log_likelihoods), None, "pce"
    ),
    "lace": PolicyObjective(_lace, "posterior", "lace", by_score=True),
    # Chosen by `target`: the posterior of a function of the parameters.
    "target": PolicyObjective(
        lambda densities: densities.log_target, "target", "barber_agakov"
    ),
    # This is not a bound: the bound of the likelihood scores the design found.
    "marginal": PolicyObjective(
        lambda densities: densities.log_likelihood - densities.log_marginal,
        "marginal",
        "pce",
    ),
}


def network_of(objective: str) -> str:
    """Return the name of the network that drives a search."""
    needs = POLICY_OBJECTIVES[objective].needs
    names = {"posterior": "posterior", "hybrid": "posterior", "target": "target"}
    return names.get(needs or "", "likelihood")
