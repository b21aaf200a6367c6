"""Checks of what users pass to the trainers, and rows with their designs."""

from typing import Any

import torch
from torch import Tensor

from sbi_boed_plugin._numbers import MOST_LEARNING_RATE, check_integer, check_real
from sbi_boed_plugin.policies.policy import DesignPolicy
from sbi_boed_plugin.search.checks import check_design as check_design

__all__ = [
    "append_design",
    "check_design",
    "check_designs_given",
    "check_is_tensor",
    "check_training",
]


def append_design(
    values: Tensor,
    design: Tensor | None,
    dim_design: int | None,
    policy: DesignPolicy | None = None,
    name: str = "x",
    num_rows: int | None = None,
) -> tuple[Tensor, int]:
    """Return `(values, design)` in one row each and the size of a design, or raise.

    Data of any shape are flattened. Without a design it is 0; `dim_design` is that of
    earlier simulations, if any, and `num_rows` how many rows of `x` go with the values.
    """
    check_designs_given(design, dim_design)
    if design is None:
        _check_length(values, num_rows, name)
        return values, 0
    check_is_tensor(values, name)
    design = check_design(design, dim_design, policy)
    is_array = name == "x" and values.dim() > 2
    if not (values.dim() == 2 or is_array) or len(design) != len(values):
        raise ValueError(
            f"{name} has shape {tuple(values.shape)} and design "
            f"{tuple(design.shape)}: with designs both must have two dimensions and "
            "one row per simulation. One number per design is design.unsqueeze(1)."
        )
    _check_length(values, num_rows, name)
    values = values.flatten(1)
    return torch.cat([values, design.to(values)], dim=-1), design.shape[-1]


def check_is_tensor(values: Any, name: str) -> None:
    """Raise if values are a list or an array."""
    if not isinstance(values, Tensor):
        raise TypeError(
            f"{name} must be a torch.Tensor, got {type(values).__name__}. Use "
            f"torch.as_tensor({name}, dtype=torch.float32)."
        )


def _check_length(values: Tensor, num_rows: int | None, name: str) -> None:
    if num_rows not in (None, len(values)):
        raise ValueError(
            f"{name} has {len(values)} rows and x {num_rows}: each simulation needs a "
            "row in both."
        )


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
    """Return the numbers of a training by name, or raise."""
    size = check_integer("training_batch_size", training_batch_size, 1)
    rate = check_real("learning_rate", learning_rate, None, MOST_LEARNING_RATE, above=0)
    fraction = check_real("validation_fraction", validation_fraction, above=0, below=1)
    clip = {"or_infinite": True, "or_none": True, "remedy": "None means no clipping."}
    return {
        "training_batch_size": size,
        "learning_rate": rate,
        "validation_fraction": fraction,
        "stop_after_epochs": check_integer("stop_after_epochs", stop_after_epochs, 1),
        "max_num_epochs": check_integer("max_num_epochs", max_num_epochs, 1),
        "clip_max_norm": check_real("clip_max_norm", clip_max_norm, above=0, **clip),
    }
