"""Features of a history of experiments that do not depend on their order."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions.transforms import Transform, identity_transform
from zuko.nn import MLP

from sbi_boed_plugin.estimators.coordinates import move_transform

__all__ = ["PairEncoder"]

_LEAST_SPREAD = 1e-7


class PairEncoder(nn.Module):
    r"""Features of pairs of a design and its data, which are summed over a history.

    .. math:: h_t \mapsto \sum_{i \leq t} f(\xi_i, x_i).

    The sum over all experiments so far can be kept and added to, so that one more costs
    the same however many there were. Values are seen as distances from their median, on
    a scale that is logarithmic far out. Data of an experiment that failed are NaN: it
    has features of its own if `tells_failures`, and none otherwise.
    """

    centre: Tensor
    spread: Tensor

    def __init__(
        self,
        dim_design: int,
        dim_x: int,
        *,
        hidden_features: int,
        num_features: int,
        tells_failures: bool,
        x_transform: Transform = identity_transform,
        design_transform: Transform = identity_transform,
    ) -> None:
        super().__init__()
        self.dim_x, self.num_features = dim_x, num_features
        self.tells_failures = tells_failures
        self.x_transform, self.design_transform = x_transform, design_transform
        dim_pair = dim_design + dim_x
        self.register_buffer("centre", torch.zeros(dim_pair))
        self.register_buffer("spread", torch.ones(dim_pair))
        hidden = [hidden_features] * 2
        self.of_pair = MLP(dim_pair + 1, num_features, hidden, nn.SiLU)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True):
        """Move the tensors of the transforms as those of the network."""
        super()._apply(fn, recurse)
        self.x_transform = move_transform(self.x_transform, fn)
        self.design_transform = move_transform(self.design_transform, fn)
        return self

    def _in_coordinates(self, design: Tensor, x: Tensor) -> Tensor:
        of_design: Any = self.design_transform
        of_x: Any = self.x_transform
        return torch.cat([of_design(design), of_x(x)], dim=-1)

    @torch.no_grad()
    def standardize(self, design: Tensor, x: Tensor) -> None:
        """Take centre and spread from simulations, of which some may have failed."""
        values = self._in_coordinates(design, x).cpu().double()
        values = values[values.isfinite().all(dim=1)]
        centre = values.median(dim=0).values
        distances = (values - centre).abs()
        spread = 1.5 * distances.median(dim=0).values
        # Values of which most are the same, and then constants, which keep their unit.
        least = _LEAST_SPREAD * values.abs().amax(dim=0)
        spread = torch.where(spread > least, spread, values.std(dim=0))
        spread = torch.where(spread > least, spread, 1.0)
        self.centre.copy_(centre)
        self.spread.copy_(spread)

    def forward(self, design: Tensor, x: Tensor) -> Tensor:
        """Return features `(..., num_features)` of `(..., dim)` designs and data."""
        failed = ~x.isfinite().all(dim=-1, keepdim=True)
        centre_of_x = self.centre[-self.dim_x :]
        if failed.any():
            inverse: Any = self.x_transform.inv
            x = torch.where(failed, inverse(centre_of_x), x)
        values = self._in_coordinates(design, x)
        values = ((values - self.centre) / self.spread).asinh()
        features = self.of_pair(torch.cat([values, failed.to(values)], dim=-1))
        return features if self.tells_failures else features.masked_fill(failed, 0.0)
