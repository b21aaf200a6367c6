"""Simulations with designs that are kept between searches."""

import torch
from torch import Tensor
from torch.distributions import Distribution

from sbi_boed_plugin.search.batch import Batch, Progress

__all__ = ["SimulationStore"]


class SimulationStore:
    """All simulations with designs, failed ones included, oldest first."""

    def __init__(self, device: str) -> None:
        self.batches: list[Batch] = []
        self._device = device

    def add(
        self, theta: Tensor, x: Tensor, design: Tensor, proposal: Distribution | None
    ) -> None:
        """Store simulations, whose parameters were drawn from a proposal if known."""
        theta, x, design = (p.to(self._device).float() for p in (theta, x, design))
        log_proposal = None
        if proposal is not None:
            log_proposal = proposal.log_prob(theta).to(theta).detach()
        valid = x.flatten(1).isfinite().all(dim=1)
        self.batches.append(Batch(theta, x, design, valid, log_proposal=log_proposal))

    def take(self, progress: Progress, proposal: Distribution) -> None:
        """Store what a search has simulated since it was taken last."""
        new = progress.stored[progress.num_taken :]
        progress.num_taken += len(new)
        if new:
            rows = Batch.join(new)
            self.add(rows.theta, rows.x, rows.design, proposal)

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
        return (
            rows.theta,
            rows.design,
            rows.x.masked_fill(
                ~rows.valid.reshape(-1, *[1] * (rows.x.dim() - 1)), torch.nan
            ),
        )

    def finite_since(self, number: int) -> list[tuple[Tensor, Tensor]]:
        """Return rows `(theta, design)` and data of later batches, without failures."""
        finite = [batch.finite() for batch in self.batches[number:]]
        return [(torch.cat([b.theta, b.design], dim=-1), b.x) for b in finite]
