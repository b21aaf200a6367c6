"""From what a user says of the networks of a search to what builds them."""

from dataclasses import dataclass, replace
from typing import Any, Literal

from torch.distributions import Distribution
from torch.distributions.transforms import Transform, identity_transform

from sbi_boed_plugin._prior import finite_values, to_real_numbers, why_no_density
from sbi_boed_plugin._sbi_compat import if_it_pickles
from sbi_boed_plugin.estimators.coordinates import Coordinates
from sbi_boed_plugin.estimators.transformed import (
    CategoricalPosteriorBuilder,
    coordinates_of,
    transformed_likelihood_nn,
    transformed_posterior_nn,
)
from sbi_boed_plugin.search.estimators import Builder, EstimatorBuilders

__all__ = ["NetworkModels", "check_posterior_describes"]


@dataclass
class NetworkModels:
    """What a user says of the networks of a search.

    A name stands for a network in the coordinates of the likelihood and, for parameters
    of bounded support, over all real numbers, so that no mass lies outside. For
    parameters of finitely many values the posterior is a categorical network.

    Attributes:
        likelihood: Builder of the likelihood.
        posterior: Name of a model of `posterior_nn`, or a builder.
        marginal: Name of a model of `likelihood_nn`, or a builder.
        likelihood_name: Name of the model of the likelihood, if it was given by name.
        coordinates: Those of the likelihood.
    """

    likelihood: Builder | None
    posterior: str | Builder
    marginal: str | Builder
    likelihood_name: str | None = None

    def __post_init__(self) -> None:
        self.coordinates: Coordinates = coordinates_of(self.likelihood)

    @classmethod
    def of(
        cls,
        likelihood: str | Builder,
        posterior: str | Builder,
        marginal: str | Builder,
        x_transform: Transform | Literal["auto"] | None,
    ) -> "NetworkModels":
        """Return models, with a transform of the data for those given by name."""
        if isinstance(likelihood, str):
            build = transformed_likelihood_nn(likelihood, x_transform=x_transform)
            return cls(build, posterior, marginal, likelihood)
        if x_transform != "auto":
            raise ValueError(
                f"x_transform={x_transform!r} is for networks that are given by name, "
                "but density_estimator is a function. Give it the transform: "
                "transformed_likelihood_nn(..., x_transform=...)."
            )
        return cls(likelihood, posterior, marginal)

    def builders(self, prior: Distribution, dim_design: int) -> EstimatorBuilders:
        """Return what builds the three networks."""
        coordinates = self.coordinates
        if coordinates.theta is identity_transform:
            coordinates = replace(coordinates, theta=to_real_numbers(prior))
        transforms: dict[str, Any] = {
            "dim_design": dim_design,
            "theta_transform": coordinates.theta,
            "x_transform": coordinates.x,
            "design_transform": coordinates.design,
        }
        posterior, marginal = self.posterior, self.marginal
        values = finite_values(prior)
        if isinstance(posterior, str) and values is not None:
            transforms["theta_transform"] = identity_transform
            build = CategoricalPosteriorBuilder(values)
            posterior = transformed_posterior_nn(build, **transforms)
        if isinstance(posterior, str):
            posterior = transformed_posterior_nn(posterior, **transforms)
        if isinstance(marginal, str):
            marginal = transformed_likelihood_nn(marginal, **transforms)
        return EstimatorBuilders(self.likelihood, posterior, marginal)

    def __getstate__(self) -> dict[str, Any]:
        """Leave out a builder of the likelihood that cannot be pickled."""
        return {**vars(self), "likelihood": if_it_pickles(self.likelihood)}


def check_posterior_describes(
    prior: Distribution, objective: str, needs: str | None
) -> None:
    """Raise if the posterior network of a search cannot describe the parameters.

    Values that repeat have no density. They do only where all parameters take finitely
    many values and the objective needs nothing but their probabilities.
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
