"""What is saved of all that a search has learned, and how it is taken up again."""

from copy import deepcopy
from typing import Any

import torch
from torch import Tensor

from sbi_boed_plugin._rng import isolated_rng
from sbi_boed_plugin.search.batch import Batch
from sbi_boed_plugin.search.estimators import DesignEstimators

__all__ = ["load_state", "state_of"]

_NUM_ROWS = 16


def state_of(search: Any, device: str) -> dict[str, Any]:
    """Return what a `DesignSearch` keeps, as plain values."""
    networks, policy = search.networks, search.policy
    rows, log_prob = (), None
    if networks is not None and networks.likelihood is None:
        some = Batch.join(search.simulations.batches).finite()
        rows = some.theta[:_NUM_ROWS], some.x[:_NUM_ROWS], some.design[:_NUM_ROWS]
        log_prob = _log_density(networks, *rows)
    elif networks is not None and policy is not None and search.dim_design:
        shape = torch.Size((_NUM_ROWS,))
        with isolated_rng(0), torch.no_grad():
            theta, design = search.known().sample(shape), policy.sample(shape)
            theta, design = theta.to(device).float(), design.float()
            condition = torch.cat([theta, design], dim=-1)
            x = networks.likelihood.sample(torch.Size((1,)), condition)[0]
        rows = theta, x, design
        log_prob = _log_density(networks, *rows)
    return {
        "networks": {} if networks is None else networks.weights(),
        # Networks are built from these rows, and are the same if they judge alike.
        "rows": rows,
        "log_prob": log_prob,
        "covers_all_designs": search.covers_all_designs,
        "trained_after": search.trained_after,
        "policy": None if policy is None else dict(policy.state_dict()),
        "measurements": search.measurements.state_dict(),
        "simulations": search.simulations.state_dict(),
        "x_shape": search.simulations.x_shape,
    }


def load_state(search: Any, state: dict[str, Any], device: str) -> None:
    """Let a `DesignSearch` take up a state, or raise and change nothing."""
    if search.policy is None:
        raise ValueError("design_policy=None: a search to load has a policy.")

    def built(weights: dict[str, Any]) -> DesignEstimators:
        return search.models.restore(weights, search.known(), rows, device)

    # Everything is built before anything changes.
    networks, rows = None, state["rows"]
    if state["networks"]:
        networks = built(state["networks"])
        rows_here = [part.to(device) for part in rows]
        found = _log_density(networks, *rows_here).to(state["log_prob"])
        if not torch.allclose(found, state["log_prob"], 1e-3, 1e-3, equal_nan=True):
            raise ValueError(
                "The networks of the trainer work in other coordinates than those "
                "that were saved: make the trainer as it was."
            )
    measurements = search.measurements.restored(
        state["measurements"], lambda weights: built(weights).likelihood
    )
    trained = state["covers_all_designs"], state["trained_after"]
    deepcopy(search.policy).load_state_dict(state["policy"])
    search.policy.load_state_dict(state["policy"])
    search.dim_design = None if networks is None else search.policy.dim_design
    search.covers_all_designs, search.trained_after = trained
    search.networks, search.measurements = networks, measurements
    search.simulations.load_state_dict(state["simulations"])
    shape = state["x_shape"]
    search.simulations.x_shape = None if shape is None else torch.Size(shape)
    search.optimizer = None


@torch.no_grad()
def _log_density(
    networks: DesignEstimators, theta: Tensor, x: Tensor, design: Tensor
) -> Tensor:
    """Return what the likelihood says of rows, or without one the posterior."""
    if networks.likelihood is not None:
        return networks.log_likelihood(theta, x, design)
    data = torch.cat([x, design], dim=-1)
    return networks.posterior_base.eval().log_prob(theta.unsqueeze(0), data)[0]
