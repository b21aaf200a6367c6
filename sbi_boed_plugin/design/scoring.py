"""How good a design is, and how well the likelihood that says so fits."""

from collections.abc import Callable
from typing import Any

import torch
from sbi.neural_nets.estimators import ConditionalDensityEstimator
from scipy.stats import ks_2samp
from torch import Tensor
from torch.distributions import Distribution

from sbi_boed_plugin.design.belief import ParticleBelief
from sbi_boed_plugin.design.estimators import DesignEstimators
from sbi_boed_plugin.design.information import POLICY_OBJECTIVES
from sbi_boed_plugin.objectives.eig import EIGEstimate, estimate_eig

__all__ = ["likelihood_mismatch", "score_design"]


def score_design(
    estimators: DesignEstimators,
    simulator: Callable[[Tensor, Tensor], Tensor],
    *,
    prior: Distribution,
    design: Tensor,
    objective: str,
    **kwargs: Any,
) -> EIGEstimate:
    """Estimate the information of a design from simulations.

    Args:
        estimators: The networks.
        simulator: Function from `theta` and `design` to `x`.
        prior: Distribution of the parameters.
        design: Design of shape `(dim_design,)`.
        objective: Name of the objective.
        **kwargs: Passed to :func:`~sbi_boed_plugin.estimate_eig`.

    Returns:
        The estimate.
    """
    bound = POLICY_OBJECTIVES[objective].bound
    for network in estimators.all():
        network.eval()
    by_likelihood = bound == "pce"
    if by_likelihood:
        estimator = estimators.likelihood
    else:
        estimator = estimators.hybrid if bound == "gkl" else estimators.posterior_base
    if not by_likelihood and isinstance(prior, ParticleBelief):
        # A posterior that was trained with its particles knows them.
        prior = prior.anew()
    return estimate_eig(
        estimator, simulator, prior=prior, design=design, bound=bound, **kwargs
    )


@torch.no_grad()
def likelihood_mismatch(
    likelihood: ConditionalDensityEstimator, theta: Tensor, design: Tensor, x: Tensor
) -> float:
    r"""Return how simulations differ from what the likelihood itself would draw.

    The Kolmogorov-Smirnov statistic of :math:`\log q(x \mid \theta, \xi)` at simulated
    data and at draws of :math:`q` for the same parameters and designs. For one value, a
    likelihood that is a quarter too wide, or misses the mean by two thirds of its
    width, gives 0.1; with 1,000 rows the true one gives more once in 10,000 times. A
    small value is necessary, not sufficient: a likelihood that ignores the parameters
    may fit the data of all parameters together.

    Args:
        likelihood: Likelihood, conditioned on `(theta, design)` in one row.
        theta: Parameters of shape `(batch_dim, dim_theta)`.
        design: Designs of shape `(batch_dim, dim_design)`.
        x: Finite data simulated with them, of shape `(batch_dim, *x_event_shape)`.

    Returns:
        Largest difference of the two distribution functions, between 0 and 1.
    """
    condition = torch.cat([theta, design], dim=-1)
    draws = likelihood.sample(torch.Size((1,)), condition)
    values = likelihood.log_prob(torch.cat([x.unsqueeze(0), draws]), condition)
    simulated, drawn = values.nan_to_num(nan=-torch.inf).cpu().numpy()
    statistic, _ = ks_2samp(simulated, drawn)
    return float(statistic)
