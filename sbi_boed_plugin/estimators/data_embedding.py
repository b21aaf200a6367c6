"""An embedding of data in networks whose condition also holds the design."""

import torch
from torch import Tensor, nn

from sbi_boed_plugin._numbers import check_integer

__all__ = ["DataEmbedding"]

_LEAST_SPREAD = 1e-7


class DataEmbedding(nn.Module):
    """An embedding of the data alone, for networks conditioned on `(x, design)`.

    Where there are designs, data are kept as rows of numbers, with the design behind
    them. This gives an embedding its images, traces or sets back, and puts the design
    behind what it makes of them.

    Hand it to :func:`~sbi_boed_plugin.transformed_posterior_nn`, which has it take its
    units from the first simulations: one centre and spread of all values of the data,
    as between the pixels of an image, and of each value of the design its own.

    Args:
        embedding_net: Module from data `(batch_dim, *x_shape)` to features
            `(batch_dim, num_features)`, such as sbi's CNNs and sets.
        x_shape: Shape of the data of one simulation.
        dim_design: Number of values of the design; 0 without designs.

    Raises:
        ValueError: If rows do not have as many values as data and design.

    Example:
        >>> import torch
        >>> from sbi.neural_nets.embedding_nets import CNNEmbedding
        >>> from sbi_boed_plugin import transformed_posterior_nn
        >>> cnn = CNNEmbedding((16, 16), output_dim=8)
        >>> embedding = DataEmbedding(cnn, x_shape=(1, 16, 16), dim_design=1)
        >>> build = transformed_posterior_nn("maf", embedding_net=embedding)
        >>> theta, x, design = (torch.rand(50, dim) for dim in (2, 256, 1))
        >>> posterior = build(theta, torch.cat([x, design], dim=1))
    """

    centre: Tensor
    spread: Tensor
    design_centre: Tensor
    design_spread: Tensor

    def __init__(
        self, embedding_net: nn.Module, x_shape: tuple[int, ...], dim_design: int = 0
    ) -> None:
        super().__init__()
        self.dim_design = check_integer("dim_design", dim_design, 0)
        self.embedding_net, self.x_shape = embedding_net, torch.Size(x_shape)
        for name, value in (("centre", 0.0), ("spread", 1.0)):
            self.register_buffer(name, torch.tensor(value))
            self.register_buffer(f"design_{name}", torch.tensor([value]))

    @torch.no_grad()
    def standardize(self, rows: Tensor) -> None:
        """Take centre and spread from simulations, of which some may have failed."""
        x, design = self._split(rows.flatten(1))
        finite = torch.cat([x, design], dim=1).isfinite().all(dim=1)
        x, design = x[finite], design[finite]
        self.centre, self.spread = x.mean(), _not_zero(x.std(), x.abs().max())
        if design.shape[1]:
            largest = design.abs().amax(dim=0)
            self.design_centre = design.mean(dim=0)
            self.design_spread = _not_zero(design.std(dim=0), largest)

    def forward(self, rows: Tensor) -> Tensor:
        """Return features and designs of rows `(batch_dim, dim)`, in one row each.

        Without designs, also of data `(batch_dim, *x_shape)`.
        """
        x, design = self._split(rows.flatten(1))
        x = (x - self.centre) / self.spread
        features = self.embedding_net(x.reshape(-1, *self.x_shape))
        design = (design - self.design_centre) / self.design_spread
        return torch.cat([features, design], dim=1)

    def _split(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        dim_x = self.x_shape.numel()
        if rows.shape[1] != dim_x + self.dim_design:
            raise ValueError(
                f"x_shape={tuple(self.x_shape)} has {dim_x} values and dim_design="
                f"{self.dim_design}, but rows of data and design have {rows.shape[1]}. "
                "Pass the shape of the data of one simulation, and the number of "
                "values of a design."
            )
        return rows[:, :dim_x], rows[:, dim_x:]


def _not_zero(spread: Tensor, largest: Tensor) -> Tensor:
    """Return a spread, one where values do not vary."""
    return spread.where(spread > _LEAST_SPREAD * largest, 1.0)
