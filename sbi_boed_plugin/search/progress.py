"""How far a design search has come."""

import math
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from sbi_boed_plugin.search.batch import Batch

__all__ = ["Progress"]

# Simulations, the last ones, that are kept: they tell when one fails, whether the
# policy arrived, and are learned from again.
_MAX_STORED = 16_384
# Learning rate of the networks, relative to that of the search, when refinement starts.
_REFINEMENT_RATE = 0.2


@dataclass
class Progress:
    """All that changes during a search beside weights and optimizers.

    `seconds` are those of completed steps and of learning again from the `stored`
    simulations of the last steps, which took `rehearsal_seconds` of them. `overfit` is
    how much more each network knows of these than of others, in nats, with its standard
    error. `search_ended` is the step at which the policy stopped, and `num_scored` the
    number of simulations that ranked and scored designs.
    """

    step: int = 0
    num_simulations: int = 0
    num_invalid_simulations: int = 0
    seconds: float = 0.0
    search_ended: int | None = None
    history: dict[str, list[Any]] = field(default_factory=dict)
    stored: list[Batch] = field(default_factory=list)
    rehearsal_seconds: float = 0.0
    overfit: dict[str, tuple[float, float]] = field(default_factory=dict)
    num_scored: int = 0

    @property
    def pace(self) -> float:
        """Seconds of a step for each of its simulations, zero before the first."""
        return (self.seconds - self.rehearsal_seconds) / max(1, self.num_simulations)

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
        kept = replace(
            batch,
            x=batch.x.detach(),
            designs=batch.designs.detach(),
            design=batch.design.detach(),
            information=information,
        )
        self.stored.append(kept)
        del self.stored[: -math.ceil(_MAX_STORED / len(batch.theta))]

    def record(self, **values: Any) -> None:
        """Append one entry for each quantity."""
        for name, value in values.items():
            self.history.setdefault(name, []).append(value)

    def learning_rate_factor(self, num_steps: int, num_refinement_steps: int) -> float:
        """Return the share of the first learning rate, which falls along half a cosine.

        To a hundredth; that of the networks starts anew, lower, with refinement.
        """
        step, start = self.step, 1.0
        if self.search_ended is not None:
            step, start = self.step - self.search_ended, _REFINEMENT_RATE
            num_steps = num_refinement_steps
        cosine = 0.5 * (1.0 + math.cos(math.pi * step / num_steps))
        return 0.01 + (start - 0.01) * cosine

    def on_plateau(self, window: int, num_warmup_steps: int) -> bool:
        """Whether the mean information over a window is lower than over the one before.

        By a standard error, and on windows that do not overlap: of many looks at the
        same noise one would stop the search too soon.
        """
        values = self.history.get("eig", [])[num_warmup_steps:]
        if len(values) < 2 * window or len(values) % window:
            return False
        recent = torch.tensor(values[-window:])
        before = torch.tensor(values[-2 * window : -window])
        noise = ((recent.var() + before.var()) / window).sqrt()
        return bool(recent.mean() < before.mean() - noise)
