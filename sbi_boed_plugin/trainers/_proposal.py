"""The posterior network that proposes parameters for a likelihood to correct."""

from typing import Any

import torch
from sbi.neural_nets.estimators import ConditionalDensityEstimator
from torch import Tensor
from torch.distributions import Distribution
from tqdm.auto import tqdm

from sbi_boed_plugin._fit import AveragedSchedule, Batches, Fit
from sbi_boed_plugin._prior import finite_values, why_no_density
from sbi_boed_plugin._rng import get_rng_state, isolated_rng
from sbi_boed_plugin.search.estimators import DesignEstimators, NetworkModels

__all__ = ["Proposal"]

_BATCH_SIZE, _VALIDATION_SHARE, _VALIDATION_ROWS = 200, 0.1, 1_000


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
        networks = DesignEstimators(likelihood)
        networks = models.complete(networks, "posterior", prior, rows, device)
        network: ConditionalDensityEstimator = networks.posterior
        theta, x, design = rows
        pair = theta, torch.cat([x, design], dim=-1) if design.numel() else x
        order = torch.randperm(len(theta))
        num_left_out = max(1, int(_VALIDATION_SHARE * len(theta)))
        validation = Batches(
            pair, order[:num_left_out], _VALIDATION_ROWS, shuffle=False
        )

        def losses(batch: tuple[Tensor, ...]) -> Tensor:
            return network.loss(*(values.to(device) for values in batch))

        bar = tqdm(
            desc="Training proposal", unit=" epochs", disable=not show_progress_bar
        )

        def after_epoch(_: float, validation_loss: float) -> None:
            bar.set_postfix(loss=f"{validation_loss:.4f}")
            bar.update()

        with bar:
            Fit(network, AveragedSchedule()).run(
                Batches(pair, order[num_left_out:], _BATCH_SIZE),
                losses,
                lambda: torch.cat([losses(b) for b in validation]).mean().item(),
                max_num_epochs=2**31 - 1,
                after_epoch=after_epoch,
            )
    return network
