"""The boundary to a user's simulator: checks on what comes out of it."""

from collections.abc import Callable

import torch
from torch import Tensor

__all__ = ["run_simulator"]


def run_simulator(
    simulator: Callable[[Tensor, Tensor], Tensor], theta: Tensor, design: Tensor
) -> tuple[Tensor, Tensor]:
    """Simulate one experiment per row.

    Args:
        simulator: Function from `theta` and `design` to `x` of shape
            `(batch_dim, dim_x)`.
        theta: Parameters of shape `(batch_dim, dim_theta)`.
        design: Designs of shape `(batch_dim, dim_design)`.

    Returns:
        Data of shape `(batch_dim, dim_x)`, on the device and in the dtype of `theta`;
        and which rows are free of NaN and infinite values, of shape `(batch_dim,)`.

    Raises:
        TypeError: If `simulator` does not return an array of numbers.
        ValueError: If it returns another shape.
    """
    if theta.dim() != 2:
        raise ValueError(
            f"The prior returns parameters of shape {tuple(theta.shape)}, but one row "
            "per draw of shape (batch_dim, dim_theta) is needed. Wrap it with "
            "sbi.utils.process_prior, or in torch.distributions.Independent."
        )
    x = simulator(theta, design)
    try:
        x = torch.as_tensor(x, dtype=theta.dtype, device=theta.device).detach()
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(
            "simulator(theta, design) must return a tensor or an array of numbers of "
            f"shape (batch_dim, dim_x), got {type(x).__name__}."
        ) from error
    if x.dim() != 2 or x.shape[0] != theta.shape[0]:
        raise ValueError(
            f"simulator returned x of shape {tuple(x.shape)} for theta of shape "
            f"{tuple(theta.shape)}. It must return shape ({len(theta)}, dim_x), one "
            "row per row of theta; a single number per row has shape "
            f"({len(theta)}, 1)."
        )
    return x, torch.isfinite(x).all(dim=1)
