"""The information of one design, by the bound that goes with an objective."""

from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.distributions import Distribution

from sbi_boed_plugin.objectives.eig import EIGEstimate, estimate_eig
from sbi_boed_plugin.search.belief import unseen
from sbi_boed_plugin.search.estimators import DesignEstimators
from sbi_boed_plugin.search.information import POLICY_OBJECTIVES

__all__ = ["score_design"]


def score_design(
    estimators: DesignEstimators,
    simulator: Callable[[Tensor, Tensor], Tensor],
    *,
    prior: Distribution,
    objective: str,
    **kwargs: Any,
) -> EIGEstimate:
    """Estimate the information of a design from new simulations.

    `kwargs` are `design` and what else :func:`~sbi_boed_plugin.estimate_eig` takes.
    """
    bound = POLICY_OBJECTIVES[objective].bound
    for network in estimators.all():
        network.eval()
    if bound == "pce":
        estimator = estimators.likelihood
    else:
        estimator = (
            estimators.posterior if bound == "gkl" else estimators.posterior_base
        )
        prior = unseen(prior)
    return estimate_eig(estimator, simulator, prior=prior, bound=bound, **kwargs)
