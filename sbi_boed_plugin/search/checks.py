"""Checks of designs, and of what a policy must have to be trained."""

import torch
from torch import Tensor

from sbi_boed_plugin.policies.policy import DesignPolicy
from sbi_boed_plugin.search.gradients import DATA_PATHS

__all__ = ["check_design", "check_gradient"]


def check_design(
    design: Tensor, dim_design: int | None, policy: DesignPolicy | None
) -> Tensor:
    """Return designs as a batch, or raise if shape, values or support are wrong."""
    design = torch.as_tensor(design)
    given_shape = tuple(design.shape)
    design = torch.atleast_2d(design)
    expected = dim_design or (policy.dim_design if policy is not None else None)
    is_matrix = design.dim() == 2 and len(design) > 0
    if not is_matrix or expected not in (None, design.shape[-1]):
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
                f"{support}. Use a policy with a larger support, or leave it out."
            )
    return design.to(torch.float32)


def check_gradient(gradient: str, policy: DesignPolicy) -> None:
    """Raise if the policy does not have what its gradient needs."""
    name = type(policy).__name__
    if not any(parameter.requires_grad for parameter in policy.parameters()):
        raise ValueError(
            f"design_policy: a {name} without parameters to learn stays as it is. Use "
            "method='multi_start', which searches its support."
        )
    if gradient == "score" and not policy.has_log_prob:
        raise ValueError(
            f"gradient='score' needs the density of the policy, and a {name} has none. "
            "Use gradient='surrogate', or a policy such as TruncatedNormalPolicy."
        )
    if gradient in DATA_PATHS and not policy.has_rsample:
        raise ValueError(
            f"gradient='{gradient}' differentiates in the design, and designs of a "
            f"{name} carry no gradient. Use gradient='score'."
        )
