"""The networks that a design search trains, and how they are built."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import cast

import torch
from sbi.neural_nets.estimators import ConditionalDensityEstimator
from torch import Tensor

from sbi_boed_plugin.estimators.coordinates import warn_of_scales
from sbi_boed_plugin.estimators.energy import EnergyRatio
from sbi_boed_plugin.estimators.failures import without_failures
from sbi_boed_plugin.estimators.hybrid import HybridEstimator

__all__ = ["DesignEstimators", "EstimatorBuilders"]

Builder = Callable[[Tensor, Tensor], ConditionalDensityEstimator]


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

    def all(self) -> list[ConditionalDensityEstimator]:
        """Return the networks that there are."""
        networks = (self.likelihood, self.posterior, self.marginal)
        return [network for network in networks if network is not None]

    @property
    def trained(self) -> "DesignEstimators":
        """The networks that learn from finite outcomes."""
        return replace(self, likelihood=without_failures(self.likelihood))

    def serve(self, needs: str | None) -> bool:
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


@dataclass(frozen=True)
class EstimatorBuilders:
    """Functions that build the networks from the first simulations.

    Attributes:
        likelihood: From `(theta, design)` and `x`, as sbi's `likelihood_nn`.
        posterior: From `theta` and `(x, design)`, as sbi's `posterior_nn`.
        marginal: From `design` and `x`, as sbi's `likelihood_nn`.
    """

    likelihood: Builder
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
        """Build what is missing.

        Args:
            estimators: Networks that there are already.
            needs: Which network an objective needs beside the likelihood.
            theta: Parameters of shape `(batch_dim, dim_theta)`.
            x: Data of shape `(batch_dim, dim_x)`.
            design: Designs of shape `(batch_dim, dim_design)`.
            device: Where to move the networks.

        Returns:
            All networks needed.
        """
        # sbi hands its builders data on the CPU, wherever it trains.
        theta, x, design = theta.detach().cpu(), x.detach().cpu(), design.detach().cpu()
        data = torch.cat([x, design], dim=-1)
        if estimators is None:
            conditions = torch.cat([theta, design], dim=-1)
            warn_of_scales(self.likelihood, conditions, x)
            estimators = DesignEstimators(self.likelihood(conditions, x))
        estimators = replace(estimators)  # a step that fails leaves the old ones.
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
