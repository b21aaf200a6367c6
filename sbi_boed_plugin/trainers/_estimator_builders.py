"""How a trainer builds the networks of a design search beside its likelihood."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from torch import Tensor
from torch.distributions import Distribution, biject_to
from torch.distributions.transforms import Transform, identity_transform

from sbi_boed_plugin.design.estimators import EstimatorBuilders
from sbi_boed_plugin.estimators.transformed import (
    Coordinates,
    coordinates_of,
    transformed_likelihood_nn,
    transformed_posterior_nn,
)

__all__ = ["estimator_builders", "to_real_numbers"]


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
    bounded support, over all real numbers, so that no mass lies outside.

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
    if isinstance(posterior, str):
        posterior = transformed_posterior_nn(posterior, **transforms)
    if isinstance(marginal, str):
        marginal = transformed_likelihood_nn(marginal, **transforms)
    return EstimatorBuilders(likelihood, posterior, marginal)


def to_real_numbers(prior: Distribution) -> Transform:
    """Return the transform from the prior's support to all real numbers."""
    try:
        transform = biject_to(prior.support).inv
        same_shape = transform.forward_shape(prior.event_shape) == prior.event_shape
    except (NotImplementedError, AttributeError):
        # torch knows no transform of this support, or the prior names none.
        return identity_transform
    # The one of a simplex changes the number of values, and with it the density.
    return transform if same_shape and transform.bijective else identity_transform
