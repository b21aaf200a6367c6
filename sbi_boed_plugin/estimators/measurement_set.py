r"""Features of several measurements that do not depend on their order."""

import torch
from torch import Tensor, nn
from zuko.nn import MLP

from sbi_boed_plugin._numbers import check_integer

__all__ = ["MeasurementSetEmbedding"]


class MeasurementSetEmbedding(nn.Module):
    r"""Embedding of many measurements, each with a design of its own.

    Measurement :math:`x_j` was taken at :math:`\xi_j`, and their order says nothing.
    Features are the mean of what one network makes of every pair,

    .. math:: \frac1n \sum_{j=1}^n f(x_j, \xi_j),

    so that the number of weights does not grow with the number of measurements. Rows
    are `(x, design)`: pass it as the `embedding_net` of
    :func:`~sbi_boed_plugin.transformed_posterior_nn`, which calls :meth:`standardize`
    with the first simulations, for all measurements alike.

    References:
        Zaheer et al., *Deep Sets*, NeurIPS 2017, https://arxiv.org/abs/1703.06114.

    Example:
        >>> import torch
        >>> import sbi_boed_plugin as boed
        >>> embed = boed.MeasurementSetEmbedding(num_measurements=20)
        >>> build = boed.transformed_posterior_nn(
        ...     "mdn", dim_design=20, embedding_net=embed
        ... )
        >>> theta, rows = torch.randn(50, 2), torch.randn(50, 40)  # (x, design)
        >>> build(theta, rows).log_prob(theta[None], rows).shape
        torch.Size([1, 50])
    """

    mean: Tensor
    scale: Tensor

    def __init__(
        self,
        num_measurements: int,
        *,
        dim_x: int = 1,
        dim_design: int = 1,
        hidden_features: int = 64,
        num_layers: int = 2,
        output_dim: int = 32,
    ) -> None:
        """Initialize the network.

        Args:
            num_measurements: Number of measurements of an experiment.
            dim_x: Number of values of one measurement; a row holds them in succession.
            dim_design: Number of values of one measurement's design, likewise.
            hidden_features: Width of the network of one measurement.
            num_layers: Number of its hidden layers.
            output_dim: Number of features.

        Raises:
            ValueError: If a number is less than one.
        """
        super().__init__()
        self.num_measurements = check_integer("num_measurements", num_measurements, 1)
        self.dim_x = check_integer("dim_x", dim_x, 1)
        self.dim_design = check_integer("dim_design", dim_design, 1)
        hidden_features = check_integer("hidden_features", hidden_features, 1)
        num_layers = check_integer("num_layers", num_layers, 1)
        output_dim = check_integer("output_dim", output_dim, 1)
        dim_pair = self.dim_x + self.dim_design
        self.register_buffer("mean", torch.zeros(dim_pair))
        self.register_buffer("scale", torch.ones(dim_pair))
        hidden = [hidden_features] * num_layers
        self.of_one = MLP(dim_pair, output_dim, hidden, nn.SiLU)

    @torch.no_grad()
    def standardize(self, rows: Tensor) -> None:
        """Take mean and scale from rows, over all of their measurements."""
        pairs = self._pairs(rows).flatten(0, -2)
        # Tiny units keep their scale in double precision; constants keep their unit.
        double = pairs.cpu().double()
        scale = double.std(dim=0)
        scale = torch.where(scale > 1e-7 * double.abs().amax(0), scale, 1.0)
        self.mean.copy_(pairs.mean(dim=0))
        self.scale.copy_(scale)

    def forward(self, rows: Tensor) -> Tensor:
        """Return features `(..., output_dim)` of rows `(x, design)`.

        Raises:
            ValueError: If rows have another length.
        """
        return self.of_one((self._pairs(rows) - self.mean) / self.scale).mean(dim=-2)

    def _pairs(self, rows: Tensor) -> Tensor:
        """Return measurements with their designs, a pair in a row."""
        num_x = self.num_measurements * self.dim_x
        expected = num_x + self.num_measurements * self.dim_design
        if rows.shape[-1] != expected:
            raise ValueError(
                f"rows have {rows.shape[-1]} values, but {self.num_measurements} "
                f"measurements of {self.dim_x} + {self.dim_design} values have "
                f"{expected}. Adjust num_measurements, dim_x or dim_design."
            )
        shape = (self.num_measurements, -1)
        x = rows[..., :num_x].unflatten(-1, shape)
        design = rows[..., num_x:].unflatten(-1, shape)
        return torch.cat([x, design], dim=-1)
