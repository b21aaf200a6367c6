r"""Networks for energy ratios :math:`\rho(\theta, x)`, and their builder."""

from collections.abc import Callable
from functools import partial
from typing import Literal, cast

import torch
from torch import Tensor, nn

from sbi_boed_plugin._numbers import check_integer, check_real
from sbi_boed_plugin.estimators.coordinates import Units

__all__ = ["SMALL_DATA", "EnergyBuilder", "EnergyRatio", "bounded", "energy_nn"]

# From parameters and features, in rows, to a module of both that returns ratios.
EnergyBuilder = Callable[[Tensor, Tensor], nn.Module]

# Below this number of simulations hidden features are left out at random, and the
# energy is trained with small batches and decay.
SMALL_DATA = 3_000

# Ratios are what networks say between the inner numbers of nats, and never beyond the
# outer ones. One draw with a huge ratio, where no draw was trained, would otherwise
# fill the samples.
_LOWEST, _FREE_BELOW, _FREE_ABOVE, _HIGHEST = -20.0, -15.0, 3.0, 5.0


class EnergyRatio(nn.Module):
    r"""Residual network for :math:`\rho(\theta, x)`, zero before training."""

    mean: Tensor
    scale: Tensor

    def __init__(
        self,
        input: Tensor,
        condition: Tensor,
        *,
        hidden_features: int = 64,
        num_blocks: int = 2,
        dropout: float | None = 0.0,
    ) -> None:
        """Initialize the network, standardized by parameters and conditions in rows."""
        super().__init__()
        if dropout is None:
            dropout = 0.1 if len(input) < SMALL_DATA else 0.0
        features = torch.cat([input, condition], dim=-1)
        self.units = Units(features)
        features = cast(Tensor, self.units(features))
        scale = features.std(dim=0)
        self.register_buffer("mean", features.mean(dim=0))
        self.register_buffer("scale", torch.where(scale > 1e-6, scale, 1.0))
        self.first = nn.Linear(features.shape[-1], hidden_features)
        self.blocks = nn.ModuleList(
            nn.Sequential(
                nn.SiLU(),
                nn.Linear(hidden_features, hidden_features),
                nn.SiLU(),
                *([nn.Dropout(dropout)] if dropout else []),
                nn.Linear(hidden_features, hidden_features),
            )
            for _ in range(num_blocks)
        )
        self.last = nn.Linear(hidden_features, 1)
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)

    def forward(self, input: Tensor, condition: Tensor) -> Tensor:
        """Return ratios `batch_shape` of rows `(*batch_shape, dim)`."""
        features = cast(Tensor, self.units(torch.cat([input, condition], dim=-1)))
        hidden = self.first((features - self.mean) / self.scale)
        for block in self.blocks:
            hidden = hidden + block(hidden)
        return self.last(hidden).squeeze(-1)


def bounded(ratio: Tensor) -> Tensor:
    """Return a smooth and increasing function of ratios, between -20 and 5 nats.

    Ratios between -15 and 3 nats stay the same, and NaN raises a `ValueError`.
    """
    if torch.isnan(ratio).any():
        raise ValueError(
            f"energy_net returned NaN for {int(torch.isnan(ratio).sum())} of "
            f"{ratio.numel()} rows. Check it, and the parameters and data for values "
            "that are not finite."
        )
    free = ratio.clamp(_FREE_BELOW, _FREE_ABOVE)
    room = torch.where(ratio < 0.0, _FREE_BELOW - _LOWEST, _HIGHEST - _FREE_ABOVE)
    return free + room * torch.tanh((ratio - free) / room)


def energy_nn(
    model: Literal["resnet"] = "resnet",
    *,
    hidden_features: int = 64,
    num_blocks: int = 2,
    dropout: float | None = None,
) -> EnergyBuilder:
    r"""Return a function that builds the energy network of `NPE_GKL`.

    Args:
        model: Kind of network; `"resnet"` is the only one.
        hidden_features: Width of the layers.
        num_blocks: Number of residual blocks.
        dropout: Probability to leave out a hidden feature during training. If `None`,
            0.1 for fewer than 3,000 simulations to train with, else 0.

    Returns:
        Function of `theta` and features.

    Raises:
        ValueError: If the model is unknown, or a number is out of range.

    Example:
        >>> from sbi_boed_plugin import NPE_GKL, energy_nn
        >>> inference = NPE_GKL(energy_net=energy_nn(hidden_features=128))
    """
    if model != "resnet":
        raise ValueError(f"model='{model}' is unknown. Use 'resnet'.")
    return partial(
        EnergyRatio,
        hidden_features=check_integer("hidden_features", hidden_features, 1),
        num_blocks=check_integer("num_blocks", num_blocks, 0),
        dropout=check_real("dropout", dropout, 0.0, below=1.0, or_none=True),
    )
