"""The information of designs where there is no likelihood to draw data from."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sbi_boed_plugin._fit import AveragedSchedule
from sbi_boed_plugin.search.fitting import fit_network
from sbi_boed_plugin.search.utility import Utility

__all__ = ["RegressedModel", "regress"]

_NUM_HIDDEN = 32
# Terms of single simulations scatter far more than their mean differs.
_SCHEDULE = AveragedSchedule(learning_rate=3e-3, min_gain=2e-3)
# One of so many rows is left out.
_LEFT_OUT = 10
# So many of the lowest terms, a share but three at least, count as the lowest of the
# rest: one parameter that a network thought impossible would outweigh all others.
_LOWEST_SHARE, _LEAST_LOWEST = 0.005, 3
# Spread of a value that varies, as a share of its largest.
_LEAST_SPREAD = 1e-6


class _Regression(nn.Module):
    """A smooth function of the design, in units of the rows it is fitted to."""

    design_centre: Tensor
    design_spread: Tensor
    terms_centre: Tensor
    terms_spread: Tensor

    def __init__(self, design: Tensor, terms: Tensor) -> None:
        super().__init__()
        for name, values in (("design", design), ("terms", terms.unsqueeze(1))):
            self.register_buffer(f"{name}_centre", values.mean(dim=0))
            # A value that never varied has a spread that is but rounding.
            spread, largest = values.std(dim=0), values.abs().amax(dim=0)
            spread = spread.where(spread > _LEAST_SPREAD * largest, 1.0)
            self.register_buffer(f"{name}_spread", spread)
        self.net = nn.Sequential(
            nn.Linear(design.shape[1], _NUM_HIDDEN),
            nn.Tanh(),
            nn.Linear(_NUM_HIDDEN, _NUM_HIDDEN),
            nn.Tanh(),
            nn.Linear(_NUM_HIDDEN, 1),
        )

    def _scaled(self, design: Tensor) -> Tensor:
        return self.net((design - self.design_centre) / self.design_spread)

    def forward(self, design: Tensor) -> Tensor:
        """Return the mean of the terms at designs, `(num_designs,)`."""
        return (self._scaled(design) * self.terms_spread + self.terms_centre)[:, 0]

    def loss(self, terms: Tensor, design: Tensor) -> Tensor:
        """Return squared errors, in units of the variance of the terms."""
        scaled = (terms.unsqueeze(1) - self.terms_centre) / self.terms_spread
        return (scaled - self._scaled(design)).square()[:, 0]


def regress(
    terms: Tensor, design: Tensor, weights: Tensor, clip_max_norm: float | None
) -> nn.Module:
    """Return a function of designs that is fitted to the terms of simulations.

    `terms` are what each simulation tells, in nats, and `weights` how often it counts.
    """
    design, terms = design.float(), terms.to(design.device).float()
    ranked = terms.nan_to_num(nan=-torch.inf).sort().values
    num_lowest = max(_LEAST_LOWEST, math.ceil(_LOWEST_SHARE * len(terms)))
    floor = ranked[min(num_lowest, len(terms) - 1) :]
    floor = floor[floor.isfinite()][:1].sum()  # Zero nats, if none is finite.
    terms = terms.nan_to_num(nan=-torch.inf).maximum(floor)
    network: Any = _Regression(design, terms).to(design.device)
    is_left_out = torch.arange(len(terms)) % _LEFT_OUT == 0
    fit_network(
        network,
        (terms, design),
        (~is_left_out).nonzero()[:, 0],
        is_left_out.nonzero()[:, 0],
        _SCHEDULE,
        weights=weights,
        clip_max_norm=clip_max_norm,
    )
    return network.requires_grad_(False)


@dataclass(frozen=True)
class RegressedModel:
    """The information of designs, regressed on that of simulations left out.

    It answers what a `LearnedModel` answers. The mean of several regressions needs no
    draws of parameters or data.
    """

    regressions: Sequence[nn.Module]
    objective: str
    utility: Utility

    def information(
        self, designs: Tensor, num_samples: int = 0, num_contrastive: int = 0
    ) -> Tensor:
        """Return differentiable estimates of shape `(num_designs,)`, in nats."""
        values = [regression(designs.float()) for regression in self.regressions]
        return torch.stack(values).mean(dim=0)

    def parts(
        self, designs: Tensor, num_samples: int, num_contrastive: int
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield all designs and their estimates."""
        yield designs, self.information(designs)

    def data_move(self, designs: Tensor) -> bool:
        """Whether a design can be climbed from, with a gradient."""
        return True
