"""The networks that a design search trains, and how they are built."""

from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from sbi.neural_nets.estimators import ConditionalDensityEstimator
from torch import Tensor

from sbi_boed_plugin.estimators.coordinates import warn_of_scales
from sbi_boed_plugin.estimators.energy import EnergyRatio
from sbi_boed_plugin.estimators.failures import LikelihoodWithFailures, without_failures
from sbi_boed_plugin.estimators.hybrid import HybridEstimator

__all__ = ["Builder", "DesignEstimators", "EstimatorBuilders"]

Builder = Callable[[Tensor, Tensor], ConditionalDensityEstimator]
_NAMES = ("likelihood", "posterior", "marginal")


@dataclass
class DesignEstimators:
    """Networks over parameters, data and designs.

    Attributes:
        likelihood: Of `x`, conditioned on `(theta, design)` in one row; a
            `LikelihoodWithFailures` if simulations have failed.
        posterior: Of `theta`, conditioned on `(x, design)` in one row; a
            `HybridEstimator` if it has an energy ratio.
        marginal: Of `x`, conditioned on `design`.
    """

    likelihood: ConditionalDensityEstimator
    posterior: ConditionalDensityEstimator | None = None
    marginal: ConditionalDensityEstimator | None = None

    def named(self) -> dict[str, ConditionalDensityEstimator]:
        """Return the networks that there are, by their names."""
        networks = {name: getattr(self, name) for name in _NAMES}
        return {name: net for name, net in networks.items() if net is not None}

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
        return replace(self, likelihood=without_failures(self.likelihood))

    def has_networks_for(self, needs: str | None) -> bool:
        """Whether the networks that an objective needs beside the likelihood exist."""
        if needs == "hybrid":
            return isinstance(self.posterior, HybridEstimator)
        return needs is None or getattr(self, needs) is not None

    def require(self, name: str) -> ConditionalDensityEstimator:
        """Return the posterior or the marginal, which must be there."""
        network = getattr(self, name)
        if network is None:
            raise RuntimeError(f"There is no {name} estimator in this search.")
        return network

    @property
    def hybrid(self) -> HybridEstimator:
        """The posterior, which must have an energy ratio."""
        return cast(HybridEstimator, self.require("posterior"))

    @property
    def posterior_base(self) -> ConditionalDensityEstimator:
        """The posterior, or its normalized base if it has an energy ratio."""
        posterior = self.require("posterior")
        return posterior.base if isinstance(posterior, HybridEstimator) else posterior

    def weights(self) -> dict[str, dict[str, Tensor]]:
        """Return the weights of each network by its name."""
        return {name: dict(net.state_dict()) for name, net in self.named().items()}


@dataclass(frozen=True)
class EstimatorBuilders:
    """Functions that build the networks from the first simulations.

    Attributes:
        likelihood: From `(theta, design)` and `x`, as sbi's `likelihood_nn`; `None` if
            it was lost when the trainer was pickled.
        posterior: From `theta` and `(x, design)`, as sbi's `posterior_nn`.
        marginal: From `design` and `x`, as sbi's `likelihood_nn`.
    """

    likelihood: Builder | None
    posterior: Builder
    marginal: Builder

    def complete(
        self,
        estimators: DesignEstimators | None,
        needs: str | None,
        theta: Tensor,
        x: Tensor,
        design: Tensor,
        device: str,
    ) -> DesignEstimators:
        """Return networks with what an objective needs and what was there already."""
        # sbi hands its builders data on the CPU, wherever it trains.
        theta, x, design = theta.detach().cpu(), x.detach().cpu(), design.detach().cpu()
        data = torch.cat([x, design], dim=-1)
        if estimators is None:
            if self.likelihood is None:
                raise RuntimeError(
                    "The trainer was pickled before the first step, and pickling "
                    "leaves out density_estimator. Start again with a new trainer."
                )
            conditions = torch.cat([theta, design], dim=-1)
            warn_of_scales(self.likelihood, conditions, x)
            estimators = DesignEstimators(self.likelihood(conditions, x))
        estimators = replace(estimators)  # A step that fails leaves the old ones.
        if needs in ("posterior", "hybrid") and estimators.posterior is None:
            estimators.posterior = self.posterior(theta, data)
        if needs == "hybrid" and not isinstance(estimators.posterior, HybridEstimator):
            base = estimators.require("posterior")
            estimators.posterior = HybridEstimator(base, EnergyRatio(theta, data))
        if needs == "marginal" and estimators.marginal is None:
            estimators.marginal = self.marginal(design, x)
        for network in estimators.all():
            network.to(device)
        return estimators

    def restore(
        self, weights: dict[str, dict[str, Any]], *rows: Tensor, device: str
    ) -> DesignEstimators | None:
        """Return networks with saved weights, built from any rows of the right shape.

        Raises:
            ValueError: If the builders make other networks than those that were saved.
        """
        if not weights:
            return None
        networks = self.complete(None, None, *rows, device)
        for needs in ("posterior", "marginal"):
            if needs in weights:
                is_hybrid = any(key.startswith("energy.") for key in weights[needs])
                kind = "hybrid" if is_hybrid else needs
                networks = self.complete(networks, kind, *rows, device)
        # Copies: builders may put the same embedding into every network.
        copies = {name: deepcopy(net) for name, net in networks.named().items()}
        networks = DesignEstimators(**copies)
        if any(key.startswith("success_net.") for key in weights["likelihood"]):
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
