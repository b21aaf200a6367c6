r"""What a whole sequence of experiments tells about the parameters.

.. math:: I(\theta; h_T) \geq E\Big[\log \frac{p(h_T \mid \theta_0)}
    {\frac{1}{L + 1} \sum_{l=0}^{L} p(h_T \mid \theta_l) \, p(\theta_l) / r(\theta_l
    \mid h_T)}\Big]

with contrastive parameters from an amortised posterior :math:`r`, of which few suffice
where those of the prior would have to be thousands (LACE; Foster et al., *A Unified
Stochastic Gradient Approach to Designing Bayesian-Optimal Experiments*, AISTATS 2020).
The likelihood of a history is the product over its experiments; the policy cancels.
"""

import math

import torch
from torch import Tensor
from torch.distributions import Distribution

from sbi_boed_plugin._prior import draw_parameters
from sbi_boed_plugin.adaptive.posterior import AmortizedPosterior
from sbi_boed_plugin.adaptive.rollout import LearnedExperiment, Rollouts
from sbi_boed_plugin.objectives._eig_terms import contrasted, proposed_contrast

__all__ = ["contrastive_terms", "log_posterior", "training_terms"]

# Contrastive parameters of a step of training, from the posterior and from the prior.
_NUM_OF_POSTERIOR, _NUM_OF_PRIOR = 24, 8
# Weight from which a contrast has a gradient for certain.
_CERTAIN_WEIGHT = 0.5


def log_posterior(
    posterior: AmortizedPosterior, target: Tensor, rollouts: Rollouts
) -> Tensor:
    """Return the log-densities after each experiment, `(num_experiments, batch_dim)`.

    Of targets `(batch_dim, dim_target)`, in nats.
    """
    conditions = posterior.conditions(rollouts.design, rollouts.x)
    num, rows = conditions.shape[:2]
    inputs = target.expand(num, rows, -1).flatten(0, 1).unsqueeze(0)
    values = posterior.net.log_prob(inputs, conditions.flatten(0, 1))
    return values.reshape(num, rows)


def training_terms(
    experiment: LearnedExperiment,
    posterior: AmortizedPosterior,
    prior: Distribution,
    rollouts: Rollouts,
) -> Tensor:
    """Return terms `(batch_dim,)` of an estimate of the information, in nats.

    It is no bound: some of the contrasts come from the prior, so that no mode of the
    posterior is forgotten. All of them count, and each has a gradient with twice its
    weight as probability, by which that is divided. What they are drawn from counts as
    fixed.
    """
    with torch.no_grad():
        theta, log_ratio = _weighted_contrasts(posterior, prior, rollouts)
        matrix = experiment.log_likelihoods(theta, rollouts).sum(dim=0)
        weights = torch.softmax(matrix + log_ratio, dim=0)
        kept = (weights / _CERTAIN_WEIGHT).clamp(max=1.0)
        kept[0] = 1.0
        number, column = (torch.rand_like(kept) < kept).nonzero(as_tuple=True)
    pairs = theta[number, column], column
    again = experiment.log_likelihoods_of(*pairs, rollouts).sum(dim=0)
    gradient = (again - again.detach()) / kept[number, column]
    matrix = matrix.index_put((number, column), matrix[number, column] + gradient)
    log_mean = torch.logsumexp(matrix + log_ratio, dim=0) - math.log(len(matrix))
    return matrix[0] - log_mean


def _weighted_contrasts(
    posterior: AmortizedPosterior, prior: Distribution, rollouts: Rollouts
) -> tuple[Tensor, Tensor]:
    """Return parameters with their contrasts, and log-ratios of prior and proposal."""
    theta = rollouts.theta
    condition = posterior.condition(rollouts.design, rollouts.x)
    of_posterior = posterior.net.sample(torch.Size((_NUM_OF_POSTERIOR,)), condition)
    of_prior = draw_parameters(prior, _NUM_OF_PRIOR * len(theta)).to(theta)
    of_prior = of_prior.reshape(_NUM_OF_PRIOR, *theta.shape)
    draws = torch.cat([of_posterior, of_prior])
    theta_all, log_prior = contrasted(prior, theta, draws)
    log_prior, num = log_prior.to(theta), len(theta_all)
    log_posterior = posterior.net.log_prob(theta_all, condition)
    log_proposal = torch.logaddexp(
        log_posterior + math.log((1 + _NUM_OF_POSTERIOR) / num),
        log_prior + math.log(_NUM_OF_PRIOR / num),
    )
    return theta_all, (log_prior - log_proposal).nan_to_num(nan=-torch.inf)


@torch.no_grad()
def contrastive_terms(
    experiment: LearnedExperiment,
    posterior: AmortizedPosterior,
    prior: Distribution,
    rollouts: Rollouts,
    num_contrastive: int,
) -> Tensor:
    """Return lower and upper terms, caps and effective sample sizes, `(4, batch_dim)`.

    All contrasts come from the posterior: lower terms are those of a bound, whatever
    the networks are.
    """
    condition = posterior.condition(rollouts.design, rollouts.x)
    draws = posterior.net.sample(torch.Size((num_contrastive,)), condition)

    def log_likelihood(rows: Tensor) -> Tensor:
        return experiment.log_likelihoods(rows, rollouts).sum(dim=0)

    def log_proposal(rows: Tensor) -> Tensor:
        return posterior.net.log_prob(rows, condition)

    theta = rollouts.theta
    return proposed_contrast(prior, theta, draws, log_likelihood, log_proposal)
