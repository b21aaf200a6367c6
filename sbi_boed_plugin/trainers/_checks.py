"""Checks of what users pass to the trainers."""

import math
import warnings
from typing import Any

import torch
from torch import Tensor

from sbi_boed_plugin._numbers import (
    MOST_LEARNING_RATE,
    MOST_WEIGHT,
    check_integer,
    check_real,
)
from sbi_boed_plugin.policies.policy import DesignPolicy
from sbi_boed_plugin.search.gradients import DATA_PATHS

__all__ = [
    "append_designs",
    "check_design",
    "check_designs_given",
    "check_gradient",
    "check_objective",
    "check_training",
    "resolve_num_contrastive",
    "warn_if_capped",
]

# Chosen by experiment, see the README.
DEFAULT_NUM_CONTRASTIVE = 3


def check_objective(
    num_contrastive: int | None, regularization_strength: float
) -> tuple[int | None, float]:
    """Return plain numbers, or raise if one is wrong or nothing is to train on."""
    num_contrastive = check_integer("num_contrastive", num_contrastive, 0, or_none=True)
    regularization_strength = check_real(
        "regularization_strength", regularization_strength, 0.0, MOST_WEIGHT
    )
    if num_contrastive == 0 and regularization_strength == 0.0:
        raise ValueError(
            "num_contrastive=0 with regularization_strength=0 leaves nothing to train "
            "on. Use num_contrastive of at least 1, or regularization_strength=1 for "
            "maximum likelihood."
        )
    return num_contrastive, regularization_strength


def resolve_num_contrastive(
    num_contrastive: int | None, regularization_strength: float, batch_size: int
) -> int:
    """Return the number of contrastive samples that a batch size allows.

    Args:
        num_contrastive: Number asked for; `None` for the default.
        regularization_strength: Weight of maximum likelihood.
        batch_size: Number of rows of a training batch.

    Returns:
        The number asked for, or the default where it fits, else the largest possible.

    Raises:
        ValueError: If the number asked for does not fit.
    """
    if num_contrastive is None:
        resolved = min(DEFAULT_NUM_CONTRASTIVE, batch_size - 1)
        check_objective(resolved, regularization_strength)
        return resolved
    if num_contrastive >= batch_size:
        raise ValueError(
            f"num_contrastive={num_contrastive} must be less than the training batch "
            f"size {batch_size}, since contrastive parameters are other rows of the "
            "batch. Use fewer, or a larger training_batch_size (which cannot exceed "
            "the number of training simulations)."
        )
    return num_contrastive


def check_design(
    design: Tensor, dim_design: int | None, policy: DesignPolicy | None
) -> Tensor:
    """Return designs as a batch, or raise if shape, values or support are wrong."""
    design = torch.as_tensor(design)
    given_shape = tuple(design.shape)
    design = torch.atleast_2d(design)
    expected = dim_design or (policy.dim_design if policy is not None else None)
    if (
        design.dim() != 2
        or len(design) == 0
        or expected not in (None, design.shape[-1])
    ):
        shape = f"(num_designs, {expected or 'dim_design'})"
        raise ValueError(
            f"design has shape {given_shape}, but must have shape {shape}. One number "
            "per design is design.unsqueeze(1)."
        )
    invalid = ~torch.isfinite(design).all(dim=1)
    if invalid.any():
        raise ValueError(
            f"design={design[invalid][0].tolist()} in row {int(invalid.nonzero()[0])} "
            "is NaN or infinite. Leave such rows out."
        )
    if policy is not None:
        support = policy.support
        # In the precision of the policy: rounding may leave the box.
        inside = support.check(design.to(policy.mode))
        if not inside.all():
            outside = design[~inside.to(design.device)][0].tolist()
            raise ValueError(
                f"design={outside} lies outside the support of the design policy, "
                f"{support}. Use a policy whose support holds every design, or leave "
                "such designs out."
            )
    return design.to(torch.float32)


def append_designs(
    theta: Tensor,
    design: Tensor,
    dim_design: int | None,
    policy: DesignPolicy | None,
) -> Tensor:
    """Return `(theta, design)` in one row each, after checking the designs."""
    if not isinstance(theta, Tensor):
        raise TypeError(f"theta must be a torch.Tensor, got {type(theta).__name__}.")
    design = check_design(design, dim_design, policy)
    if theta.dim() != 2 or len(design) != len(theta):
        raise ValueError(
            f"theta has shape {tuple(theta.shape)} and design {tuple(design.shape)}: "
            "both must have two dimensions and one row per simulation. One number per "
            "design is design.unsqueeze(1)."
        )
    return torch.cat([theta, design.to(theta)], dim=-1)


def check_designs_given(design: Tensor | None, dim_design: int | None) -> None:
    """Raise if designs are given where there were none before, or missing."""
    if design is None and dim_design:
        raise ValueError(
            "design=None, but the simulations of this trainer depend on designs of "
            f"{dim_design} values. Pass design=..."
        )
    if design is not None and dim_design == 0:
        raise ValueError(
            "design was given, but the simulations of this trainer have no designs. "
            "Leave it out, or store all simulations with their designs."
        )


def check_gradient(gradient: str, policy: DesignPolicy) -> None:
    """Raise if the policy does not have what its gradient needs."""
    name = type(policy).__name__
    if not any(parameter.requires_grad for parameter in policy.parameters()):
        raise ValueError(
            f"design_policy: a {name} without parameters to learn stays as it is. Use "
            "method='multi_start', which searches its support, or a policy with "
            "parameters, such as TruncatedNormalPolicy."
        )
    if gradient == "score" and not policy.has_log_prob:
        raise ValueError(
            f"gradient='score' needs the density of the policy, and a {name} has none. "
            "Use gradient='surrogate', or 'pathwise' with a differentiable simulator, "
            "or a policy with a density, such as TruncatedNormalPolicy."
        )
    if gradient in DATA_PATHS and not policy.has_rsample:
        raise ValueError(
            f"gradient='{gradient}' differentiates in the design, and designs of a "
            f"{name} carry no gradient. Use gradient='score'."
        )


def warn_if_capped(bounds: list[float], num_contrastive: int) -> None:
    """Warn if the bound was too close to its cap to tell good designs apart."""
    last = bounds[-max(1, len(bounds) // 10) :]
    mean, cap = sum(last) / len(last), math.log(num_contrastive + 1)
    if mean > cap - 1.0:
        warnings.warn(
            f"At the end of the search the bound of {mean:.2f} nats was within a nat "
            f"of log(num_contrastive + 1) = {cap:.2f}, the most that it can tell. "
            "Increase num_contrastive to tell good designs apart.",
            stacklevel=4,
        )


def check_training(
    training_batch_size: int,
    learning_rate: float,
    validation_fraction: float,
    stop_after_epochs: int,
    max_num_epochs: int,
    clip_max_norm: float | None,
) -> dict[str, Any]:
    """Return the numbers that sbi's training takes by name, or raise."""
    return {
        "training_batch_size": check_integer(
            "training_batch_size", training_batch_size, 1
        ),
        "learning_rate": check_real(
            "learning_rate", learning_rate, most=MOST_LEARNING_RATE, above=0.0
        ),
        "validation_fraction": check_real(
            "validation_fraction", validation_fraction, above=0.0, below=1.0
        ),
        "stop_after_epochs": check_integer("stop_after_epochs", stop_after_epochs, 1),
        "max_num_epochs": check_integer("max_num_epochs", max_num_epochs, 1),
        "clip_max_norm": check_real(
            "clip_max_norm",
            clip_max_norm,
            above=0.0,
            or_infinite=True,
            or_none=True,
            remedy="None means no clipping.",
        ),
    }
