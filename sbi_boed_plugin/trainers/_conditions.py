"""Designs beside data, for estimators that are conditioned on both in one row."""

import torch
from torch import Tensor

from sbi_boed_plugin.trainers._checks import check_design, check_designs_given

__all__ = ["append_design_to_data", "one_design"]


def append_design_to_data(
    x: Tensor, design: Tensor | None, dim_design: int | None
) -> tuple[Tensor, int]:
    """Return `(x, design)` in one row each and the size of a design, after checks.

    Without a design the size is 0. That of earlier simulations is `None` if there are
    none.
    """
    check_designs_given(design, dim_design)
    if design is None:
        return x, 0
    if not isinstance(x, Tensor):
        raise TypeError(f"x must be a torch.Tensor, got {type(x).__name__}.")
    design = check_design(design, dim_design, None)
    if x.dim() != 2 or len(design) != len(x):
        raise ValueError(
            f"x has shape {tuple(x.shape)} and design {tuple(design.shape)}: with "
            "designs both must have two dimensions and one row per simulation. One "
            "number per design is design.unsqueeze(1)."
        )
    return torch.cat([x, design.to(x)], dim=-1), design.shape[-1]


def one_design(design: Tensor, dim_design: int | None) -> Tensor:
    """Return a design of shape `(dim_design,)`; of several there is no posterior."""
    design = check_design(design, dim_design, None)
    if len(design) != 1:
        raise ValueError(
            f"design has shape {tuple(design.shape)}, but an amortised posterior has "
            "one design, of shape (dim_design,). For several observations use NLE_INCE."
        )
    return design[0]
