"""The boundary to a user's simulator: what goes in, and checks on what comes out."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["ValidSimulations", "simulate_batch"]


@dataclass(frozen=True)
class ValidSimulations:
    """Simulations of one batch without NaN or infinite values.

    Attributes:
        theta: Parameters of shape `(batch_dim, dim_theta)`.
        x: Data of shape `(batch_dim, *x_event_shape)`.
        designs: All designs of the batch, of shape `(num_designs, dim_design)`.
        design_index: For each row, its design, of shape `(batch_dim,)`.
        num_invalid: Number of rows that were left out.
    """

    theta: Tensor
    x: Tensor
    designs: Tensor
    design_index: Tensor
    num_invalid: int


def simulate_batch(
    simulator: Callable[[Tensor, Tensor], Tensor],
    theta: Tensor,
    designs: Tensor,
    design_index: Tensor,
    num_contrastive: int,
) -> ValidSimulations:
    """Simulate a batch and keep the rows that are finite.

    Args:
        simulator: Function from `theta` of shape `(batch_dim, dim_theta)` and `design`
            of shape `(batch_dim, dim_design)` to `x` of shape
            `(batch_dim, *x_event_shape)`.
        theta: Parameters of shape `(batch_dim, dim_theta)`.
        designs: Designs of shape `(num_designs, dim_design)`.
        design_index: For each row of `theta`, its design.
        num_contrastive: Number of other rows that training needs beside each.

    Returns:
        The finite simulations.

    Raises:
        TypeError: If `simulator` does not return an array.
        ValueError: If it returns another number of rows, or too few finite ones.
    """
    num_rows = theta.shape[0]
    x = simulator(theta, designs[design_index])
    try:
        x = torch.as_tensor(x, dtype=theta.dtype, device=theta.device).detach()
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(
            "simulator(theta, design) must return a tensor or an array of numbers of "
            f"shape (batch_dim, *x_event_shape), got {type(x).__name__}."
        ) from error
    if x.dim() != 2 or x.shape[0] != num_rows:
        raise ValueError(
            f"simulator returned x of shape {tuple(x.shape)} for theta of shape "
            f"{tuple(theta.shape)}. It must return shape ({num_rows}, *x_event_shape), "
            "one row per row of theta; a single number per row has shape "
            f"({num_rows}, 1)."
        )
    finite = torch.isfinite(x).flatten(1).all(dim=1)
    num_valid = int(finite.sum())
    if num_valid <= num_contrastive or num_valid * 10 < num_rows:
        raise ValueError(
            f"Only {num_valid} of {num_rows} simulations are free of NaN and infinite "
            f"values, at designs between {designs.min().item():.4g} and "
            f"{designs.max().item():.4g}. Check the simulator there, or restrict the "
            "support of the design policy."
        )
    if num_valid < num_rows:
        theta, x, design_index = theta[finite], x[finite], design_index[finite]
    return ValidSimulations(theta, x, designs, design_index, num_rows - num_valid)
