"""Builders of energy networks, by name or by hand."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn

from sbi_boed_plugin._numbers import check_integer, check_real
from sbi_boed_plugin.estimators.energy import EnergyRatio

__all__ = ["SMALL_DATA", "EnergyBuilder", "energy_nn"]

# From parameters of shape `(num, dim_theta)` and what the energy is shown beside them,
# `(num, num_features)`, to a module of both that returns ratios of shape `(num,)`.
EnergyBuilder = Callable[[Tensor, Tensor], nn.Module]

# Below this number of simulations hidden features are left out at random, and the
# energy is trained with small batches and decay.
SMALL_DATA = 3_000


@dataclass(frozen=True)
class _ResidualBuilder:
    hidden_features: int
    num_blocks: int
    dropout: float | None
    sees_parameters: bool

    def __call__(self, theta: Tensor, features: Tensor) -> nn.Module:
        dropout = self.dropout
        if dropout is None:
            dropout = 0.1 if len(theta) < SMALL_DATA else 0.0
        return EnergyRatio(
            theta,
            features,
            hidden_features=self.hidden_features,
            num_blocks=self.num_blocks,
            dropout=dropout,
            sees_parameters=self.sees_parameters,
        )


def energy_nn(
    model: Literal["resnet"] = "resnet",
    *,
    hidden_features: int = 64,
    num_blocks: int = 2,
    dropout: float | None = None,
    sees_parameters: bool = True,
) -> EnergyBuilder:
    r"""Return a function that builds the energy network of `NPE_GKL`.

    Args:
        model: Kind of network; `"resnet"` is the only one.
        hidden_features: Width of the layers.
        num_blocks: Number of residual blocks.
        dropout: Probability to leave out a hidden feature during training. If `None`,
            0.1 for fewer than 3,000 simulations to train with, else 0.
        sees_parameters: Whether the network is shown parameters. If not, it judges them
            by the noise that the base makes them of, which with the data determines
            them: draws are then judged before they are made, and sampling is several
            times faster. Where simulations are few, compare the gains of both.

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
    return _ResidualBuilder(
        check_integer("hidden_features", hidden_features, 1),
        check_integer("num_blocks", num_blocks, 0),
        check_real("dropout", dropout, 0.0, below=1.0, or_none=True),
        sees_parameters,
    )
