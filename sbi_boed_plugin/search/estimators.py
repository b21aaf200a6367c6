"""The networks that a design search trains, and how they are built."""

from collections.abc import Callable
from copy import copy, deepcopy
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

import torch
from sbi.neural_nets import likelihood_nn, posterior_nn
from sbi.neural_nets.estimators import ConditionalDensityEstimator
from torch import Tensor
from torch.distributions import Distribution
from torch.distributions.transforms import Transform, identity_transform

from sbi_boed_plugin._prior import finite_values, to_real_numbers, why_no_density
from sbi_boed_plugin._sbi_compat import if_it_pickles, unless_config
from sbi_boed_plugin.estimators.coordinates import warn_of_scales
from sbi_boed_plugin.estimators.energy import EnergyRatio
from sbi_boed_plugin.estimators.ensemble import EnsembleEstimator
from sbi_boed_plugin.estimators.hybrid import HybridEstimator
from sbi_boed_plugin.estimators.likelihood_with_failures import (
    LikelihoodWithFailures,
    without_failures,
)
from sbi_boed_plugin.estimators.transformed import (
    build_categorical,
    coordinates_of,
    transformed_likelihood_nn,
    transformed_posterior_nn,
)
from sbi_boed_plugin.estimators.vector_field import VECTOR_FIELDS
from sbi_boed_plugin.search.target import Target, TargetEstimator

__all__ = ["Builder", "DesignEstimators", "NetworkModels", "check_posterior_describes"]

Builder = Callable[[Tensor, Tensor], ConditionalDensityEstimator]


@dataclass
class DesignEstimators:
    """Networks over parameters, data and designs.

    The likelihood of `x` is conditioned on `(theta, design)` in one row, and is a
    `LikelihoodWithFailures` if simulations have failed; the posterior of `theta` on
    `(x, design)`, and is a `HybridEstimator` if it has an energy ratio; the marginal of
    `x` on `design`; `target` a `TargetEstimator`. Any of them may be `None`; those that
    ask for a likelihood know that there is one.
    """

    likelihood: Any = None
    posterior: Any = None
    marginal: Any = None
    target: Any = None

    def named(self) -> dict[str, ConditionalDensityEstimator]:
        """Return the networks that there are, by their names."""
        return {name: net for name, net in vars(self).items() if net is not None}

    def all(self) -> list[ConditionalDensityEstimator]:
        """Return the networks that there are."""
        return list(self.named().values())

    def train(self, mode: bool = True) -> None:
        """Put every network into training mode, or out of it."""
        for network in self.all():
            network.train(mode)

    @property
    def trained(self) -> "DesignEstimators":
        """The networks that learn from finite outcomes."""
        if self.likelihood is None:
            return self
        return replace(self, likelihood=without_failures(self.likelihood))

    def has_networks_for(self, needs: str | None) -> bool:
        """Whether the networks that an objective needs beside the likelihood exist."""
        if needs == "hybrid":
            return isinstance(self.posterior, HybridEstimator)
        return needs is None or getattr(self, needs) is not None

    @property
    def posterior_base(self) -> Any:
        """The posterior, or its normalized base if it has an energy ratio."""
        is_hybrid = isinstance(self.posterior, HybridEstimator)
        return self.posterior.base if is_hybrid else self.posterior

    @torch.no_grad()
    def log_likelihood(self, theta: Tensor, x: Tensor, design: Tensor) -> Tensor:
        """Return the log-likelihood of each row, outside training."""
        condition = torch.cat([theta, design], dim=-1)
        return self.likelihood.eval().log_prob(x.unsqueeze(0), condition)[0]

    def weights(self) -> dict[str, dict[str, Tensor]]:
        """Return the weights of each network by its name.

        Not of a target's: it is of one search.
        """
        networks = replace(self, target=None).named()
        return {name: dict(net.state_dict()) for name, net in networks.items()}


class NetworkModels:
    """What a user says of the networks of a search: names of sbi's models, or builders.

    A name stands for a network in the coordinates of the likelihood and, for parameters
    of bounded support, over all real numbers, so that no mass lies outside. Those of a
    search describe what a linear regression leaves; `likelihood` itself, for `train` on
    stored simulations, is the network that sbi would build. For
    parameters of finitely many values the posterior is a categorical network. Without
    a likelihood (`has_likelihood`) there are posteriors alone; one that is `None` all
    the same was lost when the trainer was pickled.
    """

    def __init__(
        self,
        likelihood: str | Builder | None,
        posterior: str | Builder,
        marginal: str | Builder,
        x_transform: Transform | Literal["auto"] | None = "auto",
    ) -> None:
        self.likelihood_name = likelihood if isinstance(likelihood, str) else None
        self.has_likelihood = likelihood is not None
        if isinstance(likelihood, str):
            likelihood = transformed_likelihood_nn(likelihood, x_transform=x_transform)
        elif x_transform != "auto" and likelihood is not None:
            raise ValueError(
                f"x_transform={x_transform!r} is for networks that are given by name, "
                "but density_estimator is a function. Give it the transform: "
                "transformed_likelihood_nn(..., x_transform=...)."
            )
        self.likelihood: Builder | None = unless_config(likelihood, likelihood_nn)
        self.posterior = unless_config(posterior, posterior_nn)
        self.marginal = unless_config(marginal, likelihood_nn)
        self.coordinates = coordinates_of(likelihood or "mdn")
        # Whether log-densities of either are solutions of a differential equation.
        self.likelihood_flows = _is_named_field(likelihood)
        others = map(_is_named_field, (posterior, marginal))
        self.has_vector_field = self.likelihood_flows or any(others)
        # What a search asks for, if not all parameters.
        self.target: Target | None = None

    def without_likelihood(self) -> "NetworkModels":
        """Return the models of the other networks alone."""
        others = copy(self)
        others.has_likelihood = False
        return others

    def _likelihood_builder(
        self, dim_design: int, linear_start: bool
    ) -> Builder | None:
        """Return what builds the likelihood."""
        if self.likelihood_name is None or not linear_start:
            return self.likelihood
        settings = {**self.coordinates, "dim_design": dim_design, "linear_start": True}
        return transformed_likelihood_nn(self.likelihood_name, **settings)

    def _builders(self, prior: Distribution, dim_design: int) -> tuple[Any, Any]:
        """Return what builds the posterior and the marginal."""
        transforms = {
            **self.coordinates,
            "dim_design": dim_design,
            "linear_start": True,
        }
        posterior: Any = self.posterior
        values = finite_values(prior)
        if isinstance(posterior, str) and values is not None:
            transforms["theta_transform"] = identity_transform
            posterior = partial(build_categorical, values=values)
        elif identity_transform == transforms["theta_transform"]:
            transforms["theta_transform"] = to_real_numbers(prior)
        if isinstance(self.posterior, str):
            posterior = transformed_posterior_nn(posterior, **transforms)
        if isinstance(self.marginal, str):
            return posterior, transformed_likelihood_nn(self.marginal, **transforms)
        return posterior, self.marginal

    def complete(
        self,
        estimators: DesignEstimators | None,
        needs: str | None,
        prior: Distribution,
        rows: tuple[Tensor, Tensor, Tensor],
        device: str,
        *,
        linear_start: bool = True,
    ) -> DesignEstimators:
        """Return networks with what an objective needs and what was there already.

        Networks are built from `rows`, the parameters, data and designs. The likelihood
        starts from a regression with `linear_start`.
        """
        # sbi hands its builders data on the CPU, wherever it trains.
        theta, x, design = (part.detach().cpu() for part in rows)
        data = torch.cat([x, design], dim=-1)
        if estimators is None and not self.has_likelihood:
            estimators = DesignEstimators()
        if estimators is None:
            build = self._likelihood_builder(design.shape[1], linear_start)
            if build is None:
                raise RuntimeError(
                    "The trainer was pickled before the first step, and pickling "
                    "leaves out density_estimator. Start again with a new trainer."
                )
            conditions = torch.cat([theta, design], dim=-1)
            warn_of_scales(build, conditions, x)
            estimators = DesignEstimators(build(conditions, x))
        estimators = replace(estimators)  # A step that fails leaves the old ones.
        build_posterior, build_marginal = self._builders(prior, design.shape[1])
        if needs in ("posterior", "hybrid") and estimators.posterior is None:
            estimators.posterior = build_posterior(theta, data)
        if needs == "hybrid" and not isinstance(estimators.posterior, HybridEstimator):
            energy = EnergyRatio(theta, data)
            estimators.posterior = HybridEstimator(estimators.posterior, energy)
        if needs == "target" and estimators.target is None:
            assert self.target is not None
            of_target, _ = self._builders(self.target.distribution, design.shape[1])
            network = of_target(self.target(theta), data)
            estimators.target = TargetEstimator(network, self.target, theta.shape[1])
        if needs == "marginal" and estimators.marginal is None:
            estimators.marginal = build_marginal(design, x)
        for network in estimators.all():
            network.to(device)
        return estimators

    def restore(
        self,
        weights: dict[str, dict[str, Any]],
        prior: Distribution,
        rows: tuple[Tensor, Tensor, Tensor],
        device: str,
    ) -> DesignEstimators:
        """Return networks with saved weights, built from any rows of the right shape.

        A `ValueError` says if these are other networks than those that were saved.
        """
        networks, of_likelihood = None, weights.get("likelihood", {})
        # A search may end before a likelihood has learned.
        models = self if of_likelihood else self.without_likelihood()
        for name, values in weights.items():
            needs = None if name == "likelihood" else name
            if any(key.startswith("energy.") for key in values):
                needs = "hybrid"
            # Not the likelihood that `train` built.
            linear_start = any("regression." in key for key in of_likelihood)
            networks = models.complete(
                networks, needs, prior, rows, device, linear_start=linear_start
            )
        assert networks is not None
        # Copies: builders may put the same embedding into every network.
        copies = {
            name: _with_members(deepcopy(net), weights[name])
            for name, net in networks.named().items()
        }
        networks = DesignEstimators(**copies)
        if any(key.startswith("success_net.") for key in of_likelihood):
            networks.likelihood = LikelihoodWithFailures(networks.likelihood)
        for name, network in networks.named().items():
            try:
                network.load_state_dict(weights[name])
            except RuntimeError as error:
                raise ValueError(
                    f"The {name} network of the trainer ({type(network).__name__}) is "
                    "another than the one whose weights were saved: make the trainer "
                    "with the estimators, sizes and coordinates that it had."
                ) from error
        return networks

    def __getstate__(self) -> dict[str, Any]:
        """Leave out a builder of the likelihood that cannot be pickled."""
        return {**vars(self), "likelihood": if_it_pickles(self.likelihood)}


def _is_named_field(model: Any) -> bool:
    """Return whether a model, or what a builder builds, is a vector field."""
    name = getattr(model, "model", model)
    return isinstance(name, str) and name in VECTOR_FIELDS


def _with_members(network: Any, weights: dict[str, Any]) -> Any:
    """Return a network as an ensemble of as many as some weights have."""
    # A likelihood with failures and a hybrid have the ensemble inside.
    number = weights.get("num_members", weights.get("net.num_members"))
    if number is None:
        return network
    inner = network.base if isinstance(network, HybridEstimator) else network
    joined = EnsembleEstimator([deepcopy(inner) for _ in range(int(number))])
    if isinstance(network, HybridEstimator):
        network.net = joined
        return network
    return joined


def check_posterior_describes(
    prior: Distribution, objective: str, needs: str | None
) -> None:
    """Raise if the posterior network of a search cannot describe the parameters.

    Values that repeat have no density. They do only where all parameters take finitely
    many values and the objective needs nothing but their probabilities.
    """
    fault = why_no_density(prior) if needs in ("posterior", "hybrid") else None
    if fault is None or (needs == "posterior" and finite_values(prior) is not None):
        return
    raise ValueError(
        f"objective='{objective}' needs a posterior network, but {fault}, so that no "
        "density gives it. Use objective='info_nce', or, for finitely many "
        "values, a prior whose support is boolean or an integer_interval and "
        "objective='barber_agakov'."
    )
