"""What the posterior of a trainer with designs is made of."""

from copy import deepcopy

from sbi.inference.posteriors import DirectPosterior
from sbi.inference.posteriors.base_posterior import NeuralPosterior
from sbi.neural_nets.estimators import ConditionalDensityEstimator
from torch import Tensor
from torch.distributions import Distribution

from sbi_boed_plugin.estimators.design_conditioned import (
    DesignConditionedEstimator,
    posterior_at_design,
)
from sbi_boed_plugin.search.design_search import DesignSearch
from sbi_boed_plugin.trainers._checks import check_designs_given

__all__ = ["direct_posterior", "likelihood_at"]


def likelihood_at(
    search: DesignSearch,
    estimator: ConditionalDensityEstimator | None,
    design: Tensor | None,
) -> tuple[ConditionalDensityEstimator | None, Tensor | None]:
    """Return a likelihood at a design or of all observations, and their data.

    `None` stands for the trainer's own likelihood, and for no data.
    """
    if design is None and estimator is None and len(search.measurements):
        return search.measurements.likelihood()
    if not isinstance(estimator, DesignConditionedEstimator):
        check_designs_given(design, search.dim_design)
    if design is None:
        return estimator, None
    estimator = estimator or search.likelihood
    if estimator is None:
        raise RuntimeError(
            "There is no likelihood yet: call optimize_design() or train() before "
            "build_posterior()."
        )
    return DesignConditionedEstimator(estimator, search.check(design)), None


def direct_posterior(
    search: DesignSearch,
    estimator: ConditionalDensityEstimator | None,
    design: Tensor | None,
    prior: Distribution | None,
    device: str,
) -> NeuralPosterior:
    """Return the amortised posterior at a design, by default the last observed."""
    if estimator is None and search.networks is not None:
        estimator = search.networks.posterior
    if estimator is None:
        raise RuntimeError(
            "sample_with='direct' needs the posterior that optimize_design("
            "objective='barber_agakov' or 'gkl') trains. Call it first, or use "
            "sample_with='mcmc'."
        )
    prior = prior or search.prior
    if prior is None:
        raise ValueError("prior=None: pass the prior as NLE_INCE(prior, ...).")
    x_o, num_observations = None, len(search.measurements)
    if design is not None:
        design = search.check(design)
    elif not num_observations:
        raise ValueError(
            "design=None, and there are no observations: pass design=... to say at "
            "which design the posterior is asked for."
        )
    elif search.trained_after != num_observations - 1:
        raise ValueError(
            f"There are {num_observations} observations, but the posterior of "
            f"sample_with='direct' was trained after {search.trained_after} and takes "
            "one more. Use another sample_with, or pass design=... for that one alone."
        )
    else:
        last = search.measurements.observations[-1]
        design, x_o = last.design, last.x
    # A copy: later searches train the network on.
    at_design = posterior_at_design(deepcopy(estimator).eval(), design)
    posterior = DirectPosterior(at_design, prior, device=device)
    return posterior if x_o is None else posterior.set_default_x(x_o)
