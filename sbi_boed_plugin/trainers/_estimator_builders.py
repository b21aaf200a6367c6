"""How a trainer builds the networks of a design search beside its likelihood."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from torch import Tensor
from torch.distributions import Distribution
from torch.distributions.transforms import identity_transform

from sbi_boed_plugin._prior import finite_values, to_real_numbers, why_no_density
from sbi_boed_plugin.estimators.coordinates import Coordinates
from sbi_boed_plugin.estimators.transformed import (
    CategoricalPosteriorBuilder,
    coordinates_of,
    transformed_likelihood_nn,
    transformed_posterior_nn,
)
from sbi_boed_plugin.search.estimators import EstimatorBuilders

__all__ = ["check_posterior_describes", "estimator_builders"]


def check_posterior_describes(
    prior: Distribution, objective: str, needs: str | None
) -> None:
    """Raise if the posterior network of a search cannot describe the parameters.

    Args:
        prior: Distribution of the parameters.
        objective: Name of the objective.
        needs: Which network it needs beside the likelihood.

    Raises:
        ValueError: If parameters take values that repeat, unless all of them take
            finitely many and the objective needs nothing but their probabilities.
    """
    if needs not in ("posterior", "hybrid"):
        return
    fault = why_no_density(prior)
    if fault is None or (needs == "posterior" and finite_values(prior) is not None):
        return
    raise ValueError(
        f"objective='{objective}' needs a posterior network, but {fault}, so that no "
        "density gives the information. Use objective='info_nce', or, if all "
        "parameters take finitely many values, a prior whose support says so (torch's "
        "boolean or integer_interval) and objective='barber_agakov'."
    )


def estimator_builders(
    likelihood: Callable[[Tensor, Tensor], Any],
    posterior: str | Callable[[Tensor, Tensor], Any],
    marginal: str | Callable[[Tensor, Tensor], Any],
    prior: Distribution,
    dim_design: int,
    coordinates: Coordinates | None = None,
) -> EstimatorBuilders:
    """Return builders in which names stand for networks in suitable coordinates.

    A name gives a network in the coordinates of the likelihood and, for parameters of
    bounded support, over all real numbers, so that no mass lies outside. For parameters
    of finitely many values the posterior is a categorical network.

    Args:
        likelihood: Builder of the likelihood.
        posterior: Name of a model of `posterior_nn`, or a builder.
        marginal: Name of a model of `likelihood_nn`, or a builder.
        prior: Distribution of the parameters.
        dim_design: Number of values of a design.
        coordinates: Those of the likelihood, where its builder is no longer there to
            be asked (a trainer that was pickled).

    Returns:
        Builders of the three networks.
    """
    coordinates = coordinates or coordinates_of(likelihood)
    if coordinates.theta is identity_transform:
        coordinates = replace(coordinates, theta=to_real_numbers(prior))
    transforms = {
        "dim_design": dim_design,
        "theta_transform": coordinates.theta,
        "x_transform": coordinates.x,
        "design_transform": coordinates.design,
    }
    values = finite_values(prior)
    if isinstance(posterior, str) and values is not None:
        transforms["theta_transform"] = identity_transform
        build = CategoricalPosteriorBuilder(values)
        posterior = transformed_posterior_nn(build, **transforms)
    if isinstance(posterior, str):
        posterior = transformed_posterior_nn(posterior, **transforms)
    if isinstance(marginal, str):
        marginal = transformed_likelihood_nn(marginal, **transforms)
    return EstimatorBuilders(likelihood, posterior, marginal)
