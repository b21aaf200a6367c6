"""Simulations of a design search, and how far it has come."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Distribution

from sbi_boed_plugin._prior import draw_parameters
from sbi_boed_plugin.simulation import Simulator, run_simulator

__all__ = ["Batch", "Progress", "check_finite", "simulate_batch"]

# Simulations, the last ones, that tell when one fails, and are learned from again.
_MAX_RECENT = 16_384


@dataclass(frozen=True)
class Batch:
    """Simulations of one step, those that failed included.

    Tensors have a row for each, and `valid` are those without NaN and infinite values.
    `num_calls` is the number of rows that the simulator got, those repeated included,
    `is_complete` whether its limit left every row its chance, `information` what each
    row told, in nats, if the policy learned from it, and `log_proposal` the log-density
    of what the parameters were drawn from.
    """

    theta: Tensor
    x: Tensor
    design: Tensor
    valid: Tensor
    num_calls: int = 0
    is_complete: bool = True
    information: Tensor | None = None
    log_proposal: Tensor | None = None

    @classmethod
    def join(cls, batches: "Sequence[Batch]") -> "Batch":
        """Return all rows of several batches as one, without what they told."""
        names = ["theta", "x", "design", "valid"]
        if all(batch.log_proposal is not None for batch in batches):
            names.append("log_proposal")
        rows = {name: torch.cat([getattr(b, name) for b in batches]) for name in names}
        return cls(**rows)

    def to(self, device: str) -> "Batch":
        """Return the rows on a device."""
        tensors = {n: v.to(device) for n, v in vars(self).items() if torch.is_tensor(v)}
        return replace(self, **tensors)

    def finite(self) -> "Batch":
        """Return the simulations that did not fail, without what they told."""
        kept, proposal = self.valid, self.log_proposal
        if kept.all():
            return replace(self, information=None)
        theta, x, design = self.theta[kept], self.x[kept], self.design[kept]
        return replace(
            self,
            theta=theta,
            x=x,
            design=design,
            valid=kept[kept],
            information=None,
            log_proposal=None if proposal is None else proposal[kept],
        )


@dataclass
class Progress:
    """All that changes during a search beside weights and optimizers.

    `seconds` are those of completed steps and of learning again from the last of the
    `stored` simulations, which took `rehearsal_seconds` of them. `overfit` is
    how much more each network knows of these than of others, in nats, with its standard
    error, `num_scored` the number of simulations that ranked and scored designs, and
    `num_taken` that of the batches that are kept beside the search by now.
    """

    step: int = 0
    num_simulations: int = 0
    num_invalid_simulations: int = 0
    seconds: float = 0.0
    history: dict[str, list[Any]] = field(default_factory=dict)
    stored: list[Batch] = field(default_factory=list)
    rehearsal_seconds: float = 0.0
    overfit: dict[str, tuple[float, float]] = field(default_factory=dict)
    num_scored: int = 0
    num_taken: int = 0

    @property
    def num_spent(self) -> int:
        """Number of all simulations so far."""
        return self.num_simulations + self.num_scored

    def check_budget(self, budget: int | None, num_after: int) -> None:
        """Raise if a search that goes on has no simulations left to score a design."""
        spent = self.num_spent
        if spent and budget is not None and spent + num_after > budget:
            raise ValueError(
                f"max_num_simulations={budget} is too few: there have been {spent} "
                f"simulations, and {num_after} score the design. Raise it, or lower "
                "num_eig_samples."
            )

    def keep(self, batch: Batch, information: Tensor | None, seconds: float) -> None:
        """Count a step, and keep its simulations beside the last ones."""
        self.step += 1
        self.num_simulations += batch.num_calls
        self.num_invalid_simulations += int((~batch.valid).sum())
        self.seconds += seconds
        x, design = batch.x.detach(), batch.design.detach()
        self.stored.append(replace(batch, x=x, design=design, information=information))

    def recent(self) -> Batch:
        """Return the last simulations as one batch."""
        return Batch.join(self.stored[-self._num_recent() :])

    def drop_old(self) -> None:
        """Let go of simulations before the last ones, which are kept elsewhere."""
        num_old = max(0, len(self.stored) - self._num_recent())
        del self.stored[:num_old]
        self.num_taken -= num_old

    def _num_recent(self) -> int:
        """Return the number of batches that the last simulations are."""
        rows = len(self.stored[-1].theta) if self.stored else 1
        return math.ceil(_MAX_RECENT / rows)

    def record(self, **values: Any) -> None:
        """Append one entry for each quantity."""
        for name, value in values.items():
            self.history.setdefault(name, []).append(value)


def simulate_batch(
    simulator: Simulator,
    prior: Distribution,
    designs: Tensor,
    *,
    keep_gradient: bool = False,
    device: str = "cpu",
    num_workers: int | None = 1,
    simulation_batch_size: int | None = None,
    show_progress_bar: bool = False,
    warn: bool = True,
) -> Batch:
    """Draw parameters for designs of shape `(batch_dim, dim_design)` and simulate them.

    The gradient of the designs stays with the batch, and with its data if they are to
    keep it. A `ValueError` says if hardly any value is finite.
    """
    # The networks of sbi are in single precision, whatever prior and policy are.
    theta = draw_parameters(prior, len(designs), torch.float32).to(device)
    design = designs.to(theta)
    made = run_simulator(
        simulator,
        theta,
        design if keep_gradient else design.detach(),
        num_workers=num_workers,
        simulation_batch_size=simulation_batch_size,
        keep_gradient=keep_gradient,
        warn=warn,
        show_progress_bar=show_progress_bar,
    )
    num_valid, is_complete = int(made.valid.sum()), bool(made.tried.all())
    if is_complete and num_valid * 10 < len(theta):
        raise ValueError(
            f"Only {num_valid} of {len(theta)} simulations are free of NaN and "
            f"infinite values, at designs between {designs.min().item():.4g} and "
            f"{designs.max().item():.4g}. Check the simulator there, or restrict the "
            "support of the design policy."
        )
    return Batch(theta, made.x, design, made.valid, made.num_calls, is_complete)


def check_finite(
    step: int,
    losses: dict[str, Tensor],
    gradients: Iterable[Tensor | None],
    batch: Batch,
) -> None:
    """Raise if a loss or gradient is not finite, with what may stand out in a batch."""
    values = [*losses.values(), *(g for g in gradients if g is not None)]
    if all(bool(torch.isfinite(value).all()) for value in values):
        return
    described = ", ".join(f"{key} {loss.item()}" for key, loss in losses.items())
    parts = {"theta": batch.theta, "x": batch.x, "design": batch.design}
    sizes = ", ".join(f"{name} {p.abs().max():.3g}" for name, p in parts.items())
    raise ValueError(
        f"A loss at step {step} or its gradient is not finite ({described}). The state "
        f"before it is kept. Largest sizes in its batch: {sizes}. Where theta stands "
        "out, use a prior with shorter tails; where x does, transform it or check the "
        "simulator; else lower learning_rate."
    )
