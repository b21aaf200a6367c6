"""Draws from a prior that networks can learn from."""

import torch
from torch import Tensor
from torch.distributions import Distribution

__all__ = ["draw_parameters"]

_MAX_ATTEMPTS = 100


def draw_parameters(
    prior: Distribution, num_samples: int, dtype: torch.dtype | None = None
) -> Tensor:
    """Draw parameters whose density is finite.

    In single precision a uniform draw can be rounded onto the open end of its interval,
    where the density is zero. Few rows, but one is enough to spoil a loss.

    Args:
        prior: Distribution of the parameters.
        num_samples: Number of draws.
        dtype: Precision of the draws; that of the prior if `None`.

    Returns:
        Parameters of shape `(num_samples, *event_shape)`.

    Raises:
        ValueError: If the prior gives hardly any of its own draws a density.
    """
    theta = prior.sample(torch.Size((num_samples,)))
    theta = theta if dtype is None else theta.to(dtype)
    if theta.dim() != 2 or getattr(prior, "has_finite_draws", False):
        return theta
    for _ in range(_MAX_ATTEMPTS):
        bad = ~torch.isfinite(prior.log_prob(theta))
        if not bad.any():
            return theta
        theta[bad] = prior.sample(torch.Size((int(bad.sum()),))).to(theta)
    raise ValueError(
        f"prior.log_prob is not finite for {int(bad.sum())} of {num_samples} of the "
        "prior's own draws. Check that sample and log_prob of the prior agree."
    )
