"""The posterior network that proposes parameters for a likelihood to correct."""

from typing import Any

import torch
from sbi.neural_nets.estimators import ConditionalDensityEstimator
from torch import Tensor
from torch.distributions import Distribution

from sbi_boed_plugin._fit import AveragedSchedule
from sbi_boed_plugin._prior import finite_values, why_no_density
from sbi_boed_plugin._rng import get_rng_state, isolated_rng
from sbi_boed_plugin.search.estimators import DesignEstimators, NetworkModels
from sbi_boed_plugin.search.fitting import fit_network

__all__ = ["Proposal"]

_BATCH_SIZE, _VALIDATION_SHARE = 200, 0.1


class Proposal:
    """The posterior network of a likelihood trainer's stored simulations.

    It is trained when it is first asked for, and anew once there are others.
    """

    def __init__(self) -> None:
        self._of: Any = None
        self._network: ConditionalDensityEstimator | None = None

    def network(
        self, trainer: Any, prior: Distribution | None
    ) -> ConditionalDensityEstimator | None:
        """Return the network, of a search if there is one; `None` if none can be."""
        search, prior = trainer.search, prior or trainer.search.prior
        if search.networks is None or prior is None:
            return None
        if search.networks.posterior is not None or not trainer._theta_roundwise:
            return search.networks.posterior_base
        theta, x, _ = trainer.get_simulations()
        if self._of != (len(theta), prior):
            dim_design = search.dim_design or 0
            theta, design = theta.split([theta.shape[1] - dim_design, dim_design], 1)
            self._network = _trained(
                search.models,
                search.networks.likelihood,
                prior,
                (theta, x, design),
                device=trainer._device,
                show_progress_bar=trainer._show_progress_bars,
            )
            self._of = len(theta), prior
        return self._network


def _trained(
    models: NetworkModels,
    likelihood: ConditionalDensityEstimator,
    prior: Distribution,
    rows: tuple[Tensor, Tensor, Tensor],
    *,
    device: str,
    show_progress_bar: bool,
) -> ConditionalDensityEstimator:
    """Return the posterior network of the models, trained on stored simulations.

    `rows` are parameters, data and designs. The random numbers are its own.
    """
    fault = why_no_density(prior)
    if fault is not None and finite_values(prior) is None:
        raise ValueError(
            f"sample_with='hybrid' needs a posterior network, but {fault}, so that no "
            "density gives it. Use sample_with='mcmc'."
        )
    with isolated_rng(get_rng_state()):
        theta, x, design = rows
        pair = theta, torch.cat([x, design], dim=-1) if design.numel() else x
        networks = DesignEstimators(likelihood)
        networks = models.complete(networks, "posterior", prior, rows, device)
        order = torch.randperm(len(theta))
        num_left_out = max(1, int(_VALIDATION_SHARE * len(theta)))
        fit_network(
            networks.posterior,
            pair,
            order[num_left_out:],
            order[:num_left_out],
            AveragedSchedule(),
            batch_size=_BATCH_SIZE,
            description="Training proposal",
            show_progress_bar=show_progress_bar,
        )
    return networks.posterior
