"""What is saved of all that a search has learned, and how it is taken up again."""

from copy import deepcopy
from typing import Any

import torch

from sbi_boed_plugin._rng import isolated_rng
from sbi_boed_plugin.search.estimators import DesignEstimators

__all__ = ["load_state", "state_of"]


def state_of(search: Any, device: str) -> dict[str, Any]:
    """Return what a `DesignSearch` keeps, as plain values."""
    networks, policy = search.networks, search.policy
    rows, log_prob = (), None
    if networks is not None and policy is not None and search.dim_design:
        shape = torch.Size((16,))
        with isolated_rng(0), torch.no_grad():
            theta, design = search.known().sample(shape), policy.sample(shape)
            theta, design = theta.to(device).float(), design.float()
            condition = torch.cat([theta, design], dim=-1)
            x = networks.likelihood.sample(torch.Size((1,)), condition)[0]
        rows = theta, x, design
        log_prob = networks.log_likelihood(*rows)
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
        found = networks.log_likelihood(*rows_here).to(state["log_prob"])
        if not torch.allclose(found, state["log_prob"], 1e-3, 1e-3, equal_nan=True):
            raise ValueError(
                "The likelihood of the trainer works in other coordinates than the "
                "one that was saved: make the trainer as it was."
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
    search.optimizer = None
