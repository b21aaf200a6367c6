"""Simulations with designs that are kept between searches."""

import torch
from torch import Tensor
from torch.distributions import Distribution

from sbi_boed_plugin.search.batch import Batch, Progress
from sbi_boed_plugin.simulation import joint_shape

__all__ = ["SimulationStore"]

_KEPT = ("theta", "x", "design", "valid", "log_proposal")


class SimulationStore:
    """All simulations with designs, failed ones included, oldest first.

    Data are kept as rows of numbers. `x_shape` is the shape of those of one simulation,
    `None` before there are any.
    """

    def __init__(self, device: str) -> None:
        self.batches: list[Batch] = []
        self.x_shape: torch.Size | None = None
        self._device = device

    def flat(self, x: Tensor) -> Tensor:
        """Return data `(num, *x_shape)`, or `x_shape` of one, as rows of numbers.

        Data of another shape are left to those who know what is wrong with them.
        """
        shape = self.x_shape or x.shape[1:]
        x = x.unsqueeze(0) if x.shape == shape else x
        return x.flatten(1) if x.dim() > 2 and x.shape[1:] == shape else x

    def add(
        self,
        theta: Tensor,
        x: Tensor,
        design: Tensor,
        proposal: Distribution | None,
        *,
        is_adaptive: bool = False,
    ) -> None:
        """Store simulations, whose parameters were drawn from a proposal if known.

        A row outside of its support counts for no posterior, and no row does if designs
        followed earlier data, which makes them depend on parameters.
        """
        self.x_shape = joint_shape(self.x_shape, x.shape[1:])
        theta, x, design = (p.to(self._device).float() for p in (theta, x, design))
        log_proposal = None
        if proposal is not None:
            log_proposal = proposal.log_prob(theta).to(theta).detach()
            log_proposal = log_proposal.nan_to_num(
                nan=torch.inf, neginf=torch.inf, posinf=torch.inf
            )
        if is_adaptive:
            log_proposal = torch.full_like(theta[:, 0], torch.inf)
        x = x.flatten(1)
        valid = x.isfinite().all(dim=1)
        self.batches.append(Batch(theta, x, design, valid, log_proposal=log_proposal))

    def take(self, progress: Progress, proposal: Distribution) -> None:
        """Store what a search has simulated since it was taken last."""
        new = progress.stored[progress.num_taken :]
        if new:
            rows = Batch.join(new)
            self.add(rows.theta, rows.x, rows.design, proposal)
            progress.num_taken += len(new)

    def state_dict(self) -> list[dict[str, Tensor | None]]:
        """Return all simulations as tensors."""
        return [{name: getattr(b, name) for name in _KEPT} for b in self.batches]

    def load_state_dict(self, state: list[dict[str, Tensor | None]]) -> None:
        """Take up simulations of a state."""
        self.batches = [
            Batch(**{n: v if v is None else v.to(self._device) for n, v in row.items()})
            for row in state
        ]

    def rows(self) -> Batch | None:
        """Return all simulations, `None` if there are none."""
        return Batch.join(self.batches) if self.batches else None

    @property
    def tensors(self) -> tuple[Tensor, Tensor, Tensor]:
        """Parameters, designs and data, which are NaN where simulations failed."""
        rows = self.rows()
        if rows is None:
            raise RuntimeError(
                "There are no simulations with designs yet: call optimize_design(), or "
                "append_simulations(theta, x, design=design)."
            )
        x = rows.x.masked_fill(~rows.valid.unsqueeze(1), torch.nan)
        return rows.theta, rows.design, x.reshape(-1, *(self.x_shape or x.shape[1:]))

    def since(self, number: int) -> list[tuple[Tensor, Tensor, int]]:
        """Return rows `(theta, design)`, data and `dim_design` of later batches.

        Without simulations that failed.
        """
        return [
            (torch.cat([b.theta, b.design], dim=-1), b.x, b.design.shape[1])
            for b in map(Batch.finite, self.batches[number:])
            if len(b.theta)
        ]
