"""What the posterior of a trainer with designs is made of."""

from collections.abc import Sequence
from copy import deepcopy
from typing import Any

import torch
from sbi.inference.posteriors import DirectPosterior
from sbi.inference.posteriors.base_posterior import NeuralPosterior
from sbi.neural_nets.estimators import ConditionalDensityEstimator
from torch import Tensor, nn
from torch.distributions import Distribution

from sbi_boed_plugin.adaptive.policy import check_history
from sbi_boed_plugin.adaptive.posterior import HistoryLikelihood, HistoryPosterior
from sbi_boed_plugin.adaptive.search import PolicySearch
from sbi_boed_plugin.estimators.design_conditioned import (
    DataShapedEstimator,
    DesignConditionedEstimator,
    posterior_at_design,
)
from sbi_boed_plugin.estimators.likelihood_hybrid import LikelihoodHybrid
from sbi_boed_plugin.posteriors.hybrid_posterior import HybridPosterior
from sbi_boed_plugin.posteriors.parameters import HybridPosteriorParameters
from sbi_boed_plugin.search.design_search import DesignSearch
from sbi_boed_plugin.search.measurements import Observation
from sbi_boed_plugin.trainers._checks import check_designs_given

__all__ = [
    "default_sampler",
    "direct_posterior",
    "history_posterior",
    "hybrid_posterior",
    "likelihood_at",
]


def likelihood_at(
    search: DesignSearch,
    estimator: ConditionalDensityEstimator | None,
    design: Tensor | None,
) -> tuple[ConditionalDensityEstimator | None, Tensor | None]:
    """Return a likelihood at a design or of all observations, and their data.

    `None` stands for the trainer's own likelihood, and for no data.
    """
    if design is None and estimator is None and len(search.measurements):
        of_all, x = search.measurements.likelihood()
        return _of_data(search, of_all), _as_data(search, x)
    if not isinstance(estimator, DesignConditionedEstimator):
        check_designs_given(design, search.dim_design)
    if design is None:
        return estimator, None
    estimator = estimator or search.likelihood
    _check_likelihood(search, estimator)
    if estimator is None:
        raise RuntimeError(
            "There is no likelihood yet: call optimize_design() or train() before "
            "build_posterior()."
        )
    at_design = DesignConditionedEstimator(estimator, search.check(design))
    return _of_data(search, at_design), None


def _check_likelihood(search: DesignSearch, estimator: Any) -> None:
    """Raise if there is no likelihood, and never will be one."""
    if estimator is None and not search.models.has_likelihood:
        raise ValueError(
            "density_estimator=None: there is no likelihood for this sample_with. Use "
            "sample_with='direct'."
        )


def _of_data(
    search: DesignSearch, likelihood: ConditionalDensityEstimator
) -> ConditionalDensityEstimator:
    """Return a likelihood of data in the shape that the simulator gives them."""
    shape = search.simulations.x_shape
    is_row = shape is None or len(shape) < 2 or not search.dim_design
    return likelihood if is_row else DataShapedEstimator(likelihood, shape)


def _as_data(search: DesignSearch, x: Tensor) -> Tensor:
    """Return rows of numbers in the shape that the simulator gives them."""
    return x.reshape(-1, *(search.simulations.x_shape or x.shape[1:]))


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
            "objective='barber_agakov', 'gkl' or 'lace') trains. Call it first, or use "
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
    shape = search.simulations.x_shape
    at_design = posterior_at_design(deepcopy(estimator).eval(), design, shape)
    posterior = DirectPosterior(at_design, prior, device=device)
    return posterior if x_o is None else posterior.set_default_x(_as_data(search, x_o))


def default_sampler(search: DesignSearch, given: dict[str, Any]) -> str:
    """Return "hybrid" after a search that trained a network, and "mcmc" otherwise.

    Without a likelihood, or before it has learned, it is "direct". It is "mcmc" also
    where the arguments of `build_posterior` ask for another estimator or prior, for
    several designs at once, or have settings of another sampler.
    """
    if not search.models.has_likelihood:
        return "direct"
    missing = search.networks is not None and search.networks.likelihood is None
    if missing and given["density_estimator"] is None:
        return "direct"
    if isinstance(given["posterior_parameters"], HybridPosteriorParameters):
        return "hybrid"
    networks, design = search.networks, given["design"]
    has_network = networks is not None and networks.posterior is not None
    is_one = design is None or len(torch.atleast_2d(torch.as_tensor(design))) == 1
    is_asked = [value for name, value in given.items() if name.endswith("_parameters")]
    is_asked += [given["mcmc_method"] != "slice_np_vectorized"]
    is_asked += [given["vi_method"] != "rKL", given["density_estimator"]]
    is_asked += [given["prior"] not in (None, search.prior)]
    return "hybrid" if has_network and is_one and not any(is_asked) else "mcmc"


def hybrid_posterior(
    search: DesignSearch,
    posterior: ConditionalDensityEstimator | None,
    given: dict[str, Any],
    device: str,
) -> HybridPosterior:
    """Return the likelihood's posterior, which a posterior network proposes.

    At a design, without any, or given all observations; `given` are the arguments of
    `build_posterior`.
    """
    likelihood, design = search.likelihood, given["design"]
    _check_likelihood(search, likelihood)
    prior = search.prior or given["prior"]
    if given["density_estimator"] is not None or given["prior"] not in (None, prior):
        raise ValueError(
            "sample_with='hybrid' takes the trainer's own likelihood and prior. For "
            "others use sample_with='mcmc', or HybridPosterior.from_estimators()."
        )
    parameters = given["posterior_parameters"] or HybridPosteriorParameters()
    if not isinstance(parameters, HybridPosteriorParameters):
        raise TypeError(
            "posterior_parameters must be HybridPosteriorParameters with sample_with="
            f"'hybrid', got {type(parameters).__name__}."
        )
    if prior is None:
        raise ValueError("prior=None: pass the prior as NLE_INCE(prior, ...).")
    if posterior is None or likelihood is None:
        raise RuntimeError(
            "sample_with='hybrid' needs a likelihood and a posterior network: call "
            "train(), or optimize_design() with objective='barber_agakov', 'gkl' or "
            "'lace', or use sample_with='mcmc'."
        )
    x_o, earlier, observations = None, None, search.measurements.observations
    if design is None and observations:
        last = observations[-1]
        design, x_o, likelihood = last.design, last.x, last.likelihood_estimator
        earlier = EarlierLikelihood(observations[:-1]) if observations[1:] else None
    networks = deepcopy(posterior).eval(), deepcopy(likelihood).eval()
    if search.dim_design:
        check_designs_given(design, search.dim_design)
        design = search.check(design)
        networks = (
            posterior_at_design(networks[0], design, search.simulations.x_shape),
            _of_data(search, DesignConditionedEstimator(networks[1], design)),
        )
    hybrid = LikelihoodHybrid(*networks, prior, earlier)
    result = HybridPosterior(hybrid, prior, device=device, **vars(parameters))
    if x_o is not None:
        result.set_default_x(_as_data(search, x_o))
    return result


def history_posterior(
    policy_search: PolicySearch | None,
    history: tuple[Tensor, Tensor],
    given: dict[str, Any],
) -> NeuralPosterior:
    """Return the posterior of a history: amortised, and corrected by the likelihood.

    `given` are the arguments of `build_posterior`; with `sample_with="direct"`, the
    network alone.
    """
    training = None if policy_search is None else policy_search.training
    if policy_search is None or training is None or training.target is not None:
        raise RuntimeError(
            "history=... needs the amortised posterior that optimize_policy() trains, "
            "of all parameters: call it first."
        )
    search, policy = policy_search.search, training.policy
    sample_with = given["sample_with"] or "hybrid"
    asked = [given["density_estimator"], given["prior"], given["design"]]
    if sample_with not in ("hybrid", "direct") or any(v is not None for v in asked):
        raise ValueError(
            "history=... goes with sample_with='hybrid' or 'direct', and without "
            "density_estimator, prior and design."
        )
    design, x = check_history(*history, policy.dim_design, policy.dim_x)
    if design.dim() == 2:
        valid = x.isfinite().all(dim=1)
        design, x = design[valid], x[valid]
    num = design.shape[-2]
    if not 1 <= num <= policy.num_experiments:
        raise ValueError(
            f"history has {num} experiments that did not fail, but the posterior is "
            f"of 1 to {policy.num_experiments}."
        )
    network = deepcopy(training.posterior).eval()
    base = HistoryPosterior(network, num, policy.dim_design, policy.dim_x)
    rows = torch.cat([design.flatten(-2), x.flatten(-2)], dim=-1).float()
    prior, device = policy_search.prior, policy_search.device
    rows = torch.atleast_2d(rows).to(device)
    if sample_with == "direct":
        posterior: Any = DirectPosterior(base, prior, device=device)
        return posterior.set_default_x(rows)
    if search.likelihood is None:
        raise RuntimeError(
            "There is no likelihood to correct the posterior by: use "
            "sample_with='direct'."
        )
    likelihood = deepcopy(search.likelihood).eval()
    likelihood = HistoryLikelihood(likelihood, num, policy.dim_design)
    hybrid = LikelihoodHybrid(base, likelihood, prior)
    parameters = given["posterior_parameters"] or HybridPosteriorParameters()
    posterior = HybridPosterior(hybrid, prior, device=device, **vars(parameters))
    return posterior.set_default_x(rows)


class EarlierLikelihood(nn.Module):
    """The log-likelihood of observations together, in nats."""

    x: Tensor

    def __init__(self, observations: Sequence[Observation]) -> None:
        super().__init__()
        self.likelihood = DesignConditionedEstimator(
            [o.likelihood_estimator for o in observations],
            torch.stack([o.design for o in observations]),
        )
        self.register_buffer("x", torch.cat([o.x for o in observations]))

    def forward(self, theta: Tensor) -> Tensor:
        """Return one value for each row of parameters."""
        x = self.x.unsqueeze(1).expand(-1, len(theta), *self.x.shape[1:])
        return self.likelihood.log_prob(x, theta).sum(dim=0)
