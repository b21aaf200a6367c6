"""The state of a trainer between experiments as plain tensors, and back."""

import math
from copy import deepcopy
from typing import Any, Protocol

import torch
from sbi.neural_nets.estimators import ConditionalDensityEstimator

from sbi_boed_plugin._prior import to_real_numbers
from sbi_boed_plugin.estimators.failures import LikelihoodWithFailures
from sbi_boed_plugin.search.belief import ParticleBelief
from sbi_boed_plugin.search.estimators import DesignEstimators
from sbi_boed_plugin.trainers._sequential import Observation

__all__ = ["get_state", "set_state"]

_NETWORKS = {
    "likelihood": "_neural_net",
    "posterior": "_posterior_net",
    "marginal": "_marginal_net",
}


class _Trainer(Protocol):
    _prior: Any
    _device: str
    _dim_design: int | None
    _design_policy: Any
    _design_optimizer: Any
    _observations: list[Observation]
    _belief: ParticleBelief | None
    _neural_net: Any
    _search_coordinates: Any
    _trained_by: tuple[str, int] | None

    def _estimator_builders(self) -> Any: ...


def get_state(trainer: _Trainer) -> dict[str, Any]:
    """Return networks, policy, observations and belief of a trainer.

    Args:
        trainer: A trainer that learns designs, between two searches.

    Returns:
        Tensors, numbers, lists and dictionaries.
    """
    networks = {
        name: None if network is None else dict(network.state_dict())
        for name, attribute in _NETWORKS.items()
        for network in [getattr(trainer, attribute)]
    }
    observations = trainer._observations
    kept = list(dict.fromkeys(o.likelihood_estimator for o in observations))
    belief = trainer._belief
    net = trainer._neural_net
    return {
        "networks": networks,
        "dim_x": None if net is None else net.input_shape[-1],
        "trained_by": trainer._trained_by,
        "policy": dict(trainer._design_policy.state_dict()),
        "kept_likelihoods": [dict(network.state_dict()) for network in kept],
        "observations": [
            {
                "design": o.design,
                "x": o.x,
                "likelihood": kept.index(o.likelihood_estimator),
                "predictive_p_value": o.predictive_p_value,
            }
            for o in observations
        ],
        "belief": None
        if belief is None
        else {
            "particles": belief.particles,
            "log_evidence": belief.log_evidence,
            "log_evidence_variance": belief.log_evidence_variance,
            "acceptance_rate": belief.acceptance_rate,
        },
    }


def set_state(trainer: _Trainer, state: dict[str, Any]) -> None:
    """Bring a trainer to a state, whatever it did before.

    Args:
        trainer: A trainer with the same prior, policy and kinds of networks.
        state: What `get_state` returned.

    Raises:
        Exception: If the state is not one of such a trainer, which is left as it was.
    """
    networks, dim_x = state["networks"], state["dim_x"]
    # Everything is built before anything changes.
    built = {
        attribute: _build(trainer, networks, name, dim_x)
        for name, attribute in _NETWORKS.items()
        if networks[name] is not None
    }
    kept = []
    for weights in state["kept_likelihoods"]:
        likelihood = _build(trainer, {"likelihood": weights}, "likelihood", dim_x)
        kept.append(likelihood.eval().requires_grad_(False))
    policy = deepcopy(trainer._design_policy)
    policy.load_state_dict(state["policy"])
    device = trainer._device
    observations = [
        Observation(
            o["design"].to(device),
            o["x"].to(device),
            kept[o["likelihood"]],
            o.get("predictive_p_value", math.nan),
        )
        for o in state["observations"]
    ]
    belief = None
    if state["belief"] is not None:
        belief = ParticleBelief.restore(
            trainer._prior,
            to_real_numbers(trainer._prior),
            [o.log_likelihood for o in observations],
            **{
                name: value.to(device) if isinstance(value, torch.Tensor) else value
                for name, value in state["belief"].items()
            },
        )
    trained_by = state["trained_by"]
    for attribute in _NETWORKS.values():
        setattr(trainer, attribute, built.get(attribute))
    trainer._trained_by = trained_by
    trainer._design_policy.load_state_dict(state["policy"])
    trainer._design_optimizer = None
    is_trained = networks["likelihood"] is not None
    trainer._dim_design = policy.dim_design if is_trained else None
    trainer._observations, trainer._belief = observations, belief


def _build(
    trainer: _Trainer,
    networks: dict[str, Any],
    name: str,
    dim_x: int,
) -> ConditionalDensityEstimator:
    """Build a network from data of the right shape, and give it its weights."""
    rows = 16
    theta = trainer._prior.sample(torch.Size((rows,))).cpu().float()
    design = trainer._design_policy.sample(torch.Size((rows,))).cpu().float()
    # Any data for which the coordinates of the network exist.
    to_natural_units = trainer._search_coordinates.to("cpu").of_x.inv
    x = to_natural_units(torch.randn(rows, dim_x))
    weights = networks[name]
    needs = {"likelihood": None, "marginal": "marginal", "posterior": "posterior"}[name]
    if name == "posterior" and any(key.startswith("energy.") for key in weights):
        needs = "hybrid"
    built: DesignEstimators = trainer._estimator_builders().complete(
        None, needs, theta, x, design, trainer._device
    )
    # A copy: builders may put the same embedding into every network.
    network = deepcopy(getattr(built, name))
    if any(key.startswith("success_net.") for key in weights):
        network = LikelihoodWithFailures(network)
    try:
        network.load_state_dict(weights)
    except RuntimeError as error:
        raise ValueError(
            f"The {name} network of the trainer ({type(network).__name__}) is another "
            "than the one whose weights were saved: make the trainer with the "
            "estimators, sizes and coordinates that it had."
        ) from error
    return network
