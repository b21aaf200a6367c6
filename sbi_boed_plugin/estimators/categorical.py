"""Posteriors of parameters that take finitely many values."""

from typing import cast

import torch
from sbi.neural_nets.net_builders.categorial import build_categoricalmassestimator
from torch import Tensor

from sbi_boed_plugin.estimators.transformed import TransformedEstimator
from sbi_boed_plugin.estimators.units import Units

__all__ = ["CategoricalPosteriorBuilder"]


class CategoricalPosteriorBuilder:
    """Builds sbi's autoregressive categorical network; a class, so that it pickles.

    The probabilities of a network over finitely many values sum to one, so that its
    bound of the information never exceeds the entropy of the prior. A density over the
    same values has no such limit.
    """

    def __init__(self, values: list[Tensor]) -> None:
        """Initialize the builder.

        Args:
            values: Sorted values of each parameter.
        """
        self.values = values

    def __call__(self, theta: Tensor, x: Tensor) -> TransformedEstimator:
        """Build the network.

        Args:
            theta: Parameters of shape `(batch_dim, dim_theta)`.
            x: Conditions of shape `(batch_dim, dim_condition)`.

        Returns:
            Estimator of the probabilities of `theta` given `x`.
        """
        # sbi reads the values from rows, of which a batch may lack some.
        num_values = torch.tensor([len(values) for values in self.values])
        rows = torch.arange(int(num_values.max()))
        every = torch.stack([v[rows % len(v)].to(theta) for v in self.values], dim=1)
        units = Units(x)
        network = build_categoricalmassestimator(
            every,
            cast(Tensor, units(x)),
            num_categories_per_variable=num_values,
            num_hidden=50,
        )
        return TransformedEstimator(network, condition_transform=units)
