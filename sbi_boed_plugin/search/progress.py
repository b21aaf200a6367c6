"""How far a design search has come."""

import math
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor

from sbi_boed_plugin.search.batch import Batch

__all__ = ["Progress"]

# Simulations, the last ones, that are kept: they tell when one fails, whether the
# policy arrived, and are learned from again.
_MAX_STORED = 16_384


@dataclass
class Progress:
    """All that changes during a search beside weights and optimizers.

    `seconds` are those of completed steps and of learning again from the `stored`
    simulations of the last steps, which took `rehearsal_seconds` of them. `overfit` is
    how much more each network knows of these than of others, in nats, with its standard
    error, and `num_scored` the number of simulations that ranked and scored designs.
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

    @property
    def num_spent(self) -> int:
        """Number of all simulations so far."""
        return self.num_simulations + self.num_scored

    def keep(self, batch: Batch, information: Tensor | None, seconds: float) -> None:
        """Count a step, and keep its simulations beside the last ones."""
        self.step += 1
        self.num_simulations += batch.num_calls
        self.num_invalid_simulations += int((~batch.valid).sum())
        self.seconds += seconds
        x, design = batch.x.detach(), batch.design.detach()
        self.stored.append(replace(batch, x=x, design=design, information=information))
        del self.stored[: -math.ceil(_MAX_STORED / len(batch.theta))]

    def record(self, **values: Any) -> None:
        """Append one entry for each quantity."""
        for name, value in values.items():
            self.history.setdefault(name, []).append(value)
