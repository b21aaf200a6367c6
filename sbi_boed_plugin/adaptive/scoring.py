"""What rollouts that nothing was trained on tell about a policy."""

import math
from typing import Any

import torch

from sbi_boed_plugin.adaptive.config import PolicySearchConfig
from sbi_boed_plugin.adaptive.objective import contrastive_terms, log_posterior
from sbi_boed_plugin.adaptive.rollout import LearnedExperiment, Rollouts
from sbi_boed_plugin.adaptive.training import PolicyTraining
from sbi_boed_plugin.objectives.eig import EIGEstimate

__all__ = ["policy_bounds", "policy_doubts"]

# Rollouts that are scored at once.
_NUM_AT_ONCE = 64
# Nats, and share of the information, by which the model may promise more.
_SLACK, _SHARE = 0.1, 0.2


@torch.no_grad()
def policy_bounds(
    training: PolicyTraining,
    experiment: LearnedExperiment | None,
    rollouts: Rollouts,
    num_simulations: int,
    config: PolicySearchConfig,
) -> dict[str, EIGEstimate]:
    """Return the bounds of rollouts, by the posterior and by the likelihood.

    With data of the simulator both are lower bounds, whatever the networks are.
    """
    theta = rollouts.theta
    target = theta if training.target is None else training.target(theta)
    of_last = log_posterior(training.posterior, target, rollouts)[-1]
    terms = {"barber_agakov": of_last - training.log_prior(theta, target)}
    is_exact, error = True, 0.0
    if training.target is not None:
        is_exact, error = training.target.is_exact, training.target.error
    elif experiment is not None:
        lace = []
        for rows in torch.arange(len(theta)).split(_NUM_AT_ONCE):
            parts = rollouts.design, rollouts.x, rollouts.log_prob
            some = Rollouts(theta[rows], *(part[:, rows] for part in parts))
            networks = experiment, training.posterior, training.prior
            lace.append(contrastive_terms(*networks, some, config.num_eig_contrastive))
        terms["lace"] = torch.cat(lace, dim=1)[0]
    bounds = {}
    for name, values in terms.items():
        bound: Any = name if is_exact else "target"
        of_mean = float(values.double().std()) / math.sqrt(len(values))
        bounds[name] = EIGEstimate(
            float(values.mean()),
            math.hypot(of_mean, error),
            bound,
            num_contrastive=config.num_eig_contrastive if name == "lace" else 0,
            num_simulations=num_simulations,
        )
    return bounds


def policy_doubts(eig: EIGEstimate, inside: list[float]) -> list[str]:
    """Return what speaks against a result.

    `inside` is the information inside the learned model at each step, if there is one.
    """
    doubts = []
    least = max(_SLACK, _SHARE * eig.value) + 3.0 * eig.standard_error
    tail = inside[-max(1, len(inside) // 20) :]
    if not eig.num_simulations:
        doubts.append(
            "No simulation has scored the policy: its information is that inside the "
            "learned model. Pass a simulator to make sure."
        )
    elif tail and sum(tail) / len(tail) > eig.value + least:
        doubts.append(
            f"Inside the learned model the policy tells {sum(tail) / len(tail):.2f} "
            f"nats, and with simulations {eig.value:.2f} at least: the likelihood is "
            "not accurate where the policy measures. Allow for more simulations."
        )
    if eig.value < 2.0 * eig.standard_error:
        doubts.append(
            f"No information was found ({eig.value:.3f} ± {eig.standard_error:.3f} "
            "nats): either the experiments tell nothing, or less than the networks can "
            "learn. Allow for more steps."
        )
    return doubts
