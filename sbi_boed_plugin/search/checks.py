"""Checks of designs, and of what a policy must have to be trained."""

import math
import warnings

import torch
from torch import Tensor

from sbi_boed_plugin.policies.policy import DesignPolicy
from sbi_boed_plugin.search.gradients import DATA_PATHS

__all__ = ["check_design", "check_gradient", "warn_if_capped"]


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
