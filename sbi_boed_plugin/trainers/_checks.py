"""Checks of what users pass to the trainers."""

from typing import Any

import torch
from torch import Tensor

from sbi_boed_plugin._numbers import (
    MOST_LEARNING_RATE,
    check_integer,
    check_real,
)
from sbi_boed_plugin.search.checks import check_design as check_design
from sbi_boed_plugin.search.design_search import DesignSearch

__all__ = [
    "check_design",
    "check_designs_given",
    "check_training",
    "join_designs",
]


def join_designs(
    theta: Tensor,
    x: Tensor,
    design: Tensor | None,
    search: DesignSearch,
    *,
    is_first: bool,
) -> tuple[Tensor, int]:
    """Return `(theta, design)` in one row each and the size of a design, or raise.

    The first simulations of a trainer have nothing to be consistent with.
    """
    if not is_first:
        check_designs_given(design, search.dim_design)
    dim_design = 0
    if design is not None:
        if not isinstance(theta, Tensor):
            raise TypeError(
                f"theta must be a torch.Tensor, got {type(theta).__name__}."
            )
        design = search.check(design)
        if theta.dim() != 2 or len(design) != len(theta):
            raise ValueError(
                f"theta has shape {tuple(theta.shape)} and design "
                f"{tuple(design.shape)}: both must have two dimensions and one row per "
                "simulation. One number per design is design.unsqueeze(1)."
            )
        dim_design = design.shape[-1]
        theta = torch.cat([theta, design.to(theta)], dim=-1)
    if len(theta) != len(x):
        raise ValueError(
            f"theta has {len(theta)} rows and x {len(x)}: each simulation needs a row "
            "in both."
        )
    return theta, dim_design


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
