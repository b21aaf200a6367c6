"""Parts of a training step: contrasts, gradients, and what must hold before it."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Distribution
from torch.nn.utils.clip_grad import clip_grad_norm_

from sbi_boed_plugin.objectives.info_nce import in_batch_contrast
from sbi_boed_plugin.policies.policy import DesignPolicy
from sbi_boed_plugin.search.batch import Batch
from sbi_boed_plugin.search.estimators import DesignEstimators
from sbi_boed_plugin.search.gradients import DATA_PATHS, score_loss
from sbi_boed_plugin.search.information import POLICY_OBJECTIVES, Densities
from sbi_boed_plugin.search.multi_start import uniform_designs
from sbi_boed_plugin.search.progress import Progress

__all__ = [
    "check_finite",
    "clipped_gradients",
    "contrast_of",
    "gradients_of_policy",
    "learning_rate_factor",
    "spread_designs",
    "trainable_parameters",
]

# Learning rate of the networks, relative to that of the search, when refinement starts.
_REFINEMENT_RATE = 0.2


def learning_rate_factor(progress: Progress, config: Any) -> float:
    """Return the share of the first learning rate, which falls along half a cosine.

    To a hundredth; that of the networks starts anew, lower, with refinement.
    """
    step, start, num_steps = progress.step, 1.0, config.num_steps
    if progress.search_ended is not None:
        step -= progress.search_ended
        start, num_steps = _REFINEMENT_RATE, config.num_refinement_steps
    cosine = 0.5 * (1.0 + math.cos(math.pi * step / num_steps))
    return 0.01 + (start - 0.01) * cosine


def spread_designs(design: Tensor, policy: DesignPolicy) -> Tensor:
    """Return designs that differ, for networks to take a standardization from.

    With those of a point, any other design would be infinitely far away.
    """
    same = (design == design[0]).all(dim=0)
    if not same.any():
        return design
    box = uniform_designs(policy)
    if box is None:
        spread = design + design.abs().clamp_min(1.0) * torch.randn_like(design)
    else:
        spread = box.sample(torch.Size((len(design),))).to(design)
    return torch.where(same, spread, design)


def contrast_of(batch: Batch, num_contrastive: int) -> Tensor:
    """Return contrastive parameters of the simulations that did not fail.

    All parameters are draws from the prior; those whose simulation is valid are not, so
    that contrasting with them alone would invent information.
    """
    return in_batch_contrast(batch.theta, num_contrastive)[:, batch.valid]


def trainable_parameters(policy: DesignPolicy) -> list[Tensor]:
    """Return the parameters of a policy that are not frozen."""
    return [p for p in policy.parameters() if p.requires_grad]


def gradients_of_policy(
    policy: DesignPolicy,
    batch: Batch,
    estimators: DesignEstimators,
    prior: Distribution,
    config: Any,
    contrast: Tensor,
    information: Tensor,
) -> Sequence[Tensor | None]:
    """Return the gradient of the policy's loss for each of its parameters."""
    if config.gradient == "score":
        per_design = information.reshape(len(batch.designs), -1).mean(dim=1)
        log_prob = policy.log_prob(batch.designs.detach())
        loss = score_loss(per_design, log_prob)
    else:
        finite = batch.finite()
        x = DATA_PATHS[config.gradient](finite, estimators)
        densities = Densities(
            estimators, prior, finite.theta, x, finite.design, contrast
        )
        terms = POLICY_OBJECTIVES[config.objective].terms(densities)
        loss = -terms.sum() / len(batch.theta)
    return torch.autograd.grad(loss, trainable_parameters(policy), allow_unused=True)


def clipped_gradients(
    estimators: DesignEstimators, max_norm: float | None
) -> list[Tensor | None]:
    """Clip the gradient of each network, and return all of them."""
    gradients: list[Tensor | None] = []
    for network in estimators.all():
        if max_norm is not None:
            clip_grad_norm_(network.parameters(), max_norm)
        gradients += [parameter.grad for parameter in network.parameters()]
    return gradients


def check_finite(
    step: int,
    losses: dict[str, Tensor],
    gradients: Sequence[Tensor | None],
    batch: Batch,
    prior: Distribution,
) -> None:
    """Raise before anything is updated with what is not finite."""
    values = [*losses.values(), *(g for g in gradients if g is not None)]
    if all(bool(torch.isfinite(value).all()) for value in values):
        return
    described = ", ".join(f"{key} {loss.item()}" for key, loss in losses.items())
    parts = {
        "theta": batch.theta,
        "x": batch.x.detach(),
        "design": batch.design.detach(),
        "log prior": prior.log_prob(batch.theta),
    }
    sizes = ", ".join(
        f"{name} {values.abs().max():.3g} ({values.abs().median():.3g})"
        for name, values in parts.items()
    )
    raise ValueError(
        f"A loss at step {step} or its gradient is not finite ({described}). The state "
        "before this step is kept. Largest absolute values of its batch, and medians: "
        f"{sizes}. Where theta or the log prior stands out, draw from a prior with "
        "shorter tails or transform it; where x does, transform it (for instance to "
        "logarithms) or check the simulator; where nothing does, lower learning_rate."
    )
