r"""The routine that trains networks on rows in memory.

The rate is constant after a short warm-up, and an average of the weights over about the
last tenth of the steps is validated after each epoch: it has the quality of a rate that
has fallen to zero, at any time. Where a share of the steps so far brings no gain, or
the validation loss has risen, the rate falls to a third, from the best average on;
where a later rate brought none, training ends with the best average of all. So the
number of steps follows the data.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain

import torch
from torch import Tensor, nn
from torch.nn.utils.clip_grad import clip_grad_norm_
from torch.optim.adamw import AdamW
from torch.optim.swa_utils import get_ema_multi_avg_fn

from sbi_boed_plugin._numbers import (
    MOST_LEARNING_RATE,
    MOST_WEIGHT,
    check_fields,
    check_integer,
    check_real,
)

__all__ = ["AveragedSchedule", "Batches", "Fit"]

# The average of the weights spans this share of the steps of a rate.
_HORIZON = 0.1
_RATE_FACTOR = 1.0 / 3.0
_NUM_WARMUP_STEPS = 100
# Rows of a batch, of however few simulations.
_LEAST_BATCH = 50
# Steps before a validation, which costs as much as a few of them.
_MIN_STEPS_OF_EPOCH = 10
# Decay of weights, a prior that counts for less the more rows there are.
_ROWS_OF_DECAY, _MOST_DECAY = 100.0, 0.1
# Rise of the validation loss that ends a rate, as a share of all that was gained.
_MAX_RISE = 0.05
# The second moment of gradients has a short memory, as rates are high.
_BETAS = (0.9, 0.99)
# Devices that have a fused optimizer.
_FUSED = ("cpu", "cuda", "mps")


@dataclass(frozen=True)
class AveragedSchedule:
    """How `train(schedule=...)` trains networks, in the place of sbi's loop.

    The rate is constant after a short warm-up, and an average of the weights over about
    the last tenth of the steps is validated after each epoch, which is one pass over
    the simulations, or as many as make ten steps. Where the validation loss gains no
    more, or has lost a twentieth of what was gained, the rate falls to a third, and
    training goes on from the best average; it ends where a later rate brought no
    gain.

    Attributes:
        learning_rate: First learning rate, of AdamW.
        patience: Steps without a gain that end a rate, as a share of all steps so far.
        min_patience: Least number of steps without a gain that end a rate.
        min_gain: Smallest decrease of the validation loss that is a gain, in nats.
        max_num_rates: Number of rates at most.
        weight_decay: Decay of the weights by AdamW. If `None`, 100 divided by the
            number of simulations to train with, at most 0.1.
        min_num_batches: Least number of batches of an epoch: of few simulations they
            have fewer than `training_batch_size`, but 50 at least. The noise of small
            batches keeps networks from overfitting. `NRE_GKL`, whose rows are
            classified against others of their batch, does without.
    """

    learning_rate: float = 6e-3
    patience: float = 0.15
    min_patience: int = 150
    min_gain: float = 0.02
    max_num_rates: int = 4
    weight_decay: float | None = None
    min_num_batches: int = 16

    def batch_size(self, most: int, num_rows: int) -> int:
        """Return the size of batches where so many rows are trained with."""
        return min(most, max(_LEAST_BATCH, num_rows // self.min_num_batches))

    def decay(self, num_rows: int) -> float:
        """Return the decay of the weights where so many rows are trained with."""
        if self.weight_decay is not None:
            return self.weight_decay
        return min(_MOST_DECAY, _ROWS_OF_DECAY / num_rows)

    def __post_init__(self) -> None:
        """Check the values."""
        check_fields(
            self,
            check_real,
            ["learning_rate"],
            most=MOST_LEARNING_RATE,
            above=0.0,
        )
        check_fields(self, check_real, ["patience"], above=0.0)
        check_fields(self, check_real, ["min_gain"], 0.0)
        decay = ["weight_decay"], 0.0, MOST_WEIGHT
        check_fields(self, check_real, *decay, or_none=True)
        check_fields(
            self, check_integer, ["min_patience", "max_num_rates", "min_num_batches"], 1
        )


class Batches:
    """Some rows of tensors in batches of one size, each time in another order.

    As from sbi's loaders the rest of an epoch is left out. Without `shuffle` batches
    are as even as they can be.
    """

    def __init__(
        self,
        tensors: Sequence[Tensor],
        rows: Tensor,
        batch_size: int,
        *,
        shuffle: bool = True,
    ) -> None:
        if not shuffle:
            batch_size = len(rows) // math.ceil(len(rows) / batch_size)
        self.tensors, self.rows, self.shuffle = tensors, rows, shuffle
        self.batch_size = min(batch_size, len(rows))

    def __len__(self) -> int:
        """Return the number of batches."""
        return len(self.rows) // self.batch_size

    def __iter__(self) -> Iterator[tuple[Tensor, ...]]:
        """Return the batches of an epoch."""
        rows = self.rows
        if self.shuffle:
            rows = rows[torch.randperm(len(rows)).to(rows.device)]
        for chosen in rows.split(self.batch_size)[: len(self)]:
            yield tuple(t[chosen.to(t.device)] for t in self.tensors)


class Fit:
    """A training of networks, which goes on from where it ended or was interrupted.

    Between calls of `run` the networks have the weights of the best average.
    """

    def __init__(
        self,
        network: nn.Module,
        schedule: AveragedSchedule,
        clip_max_norm: float | None = 5.0,
    ) -> None:
        self.network, self.schedule = network, schedule
        self.clip_max_norm = clip_max_norm
        self.rate, self.epoch, self.num_steps = schedule.learning_rate, 0, 0
        self.best_loss, self._first_loss, self.finished = math.inf, math.inf, False
        self._num_rates, self._loss_of_rate = 0, math.inf
        self._best = self._copy()
        self._start_rate()

    def run(
        self,
        batches: Batches,
        losses: Callable[[tuple[Tensor, ...]], Tensor],
        validate: Callable[[], float],
        *,
        max_num_epochs: int,
        after_epoch: Callable[[float, float], None] = lambda *_: None,
    ) -> None:
        """Train until validation gains no more, or for `max_num_epochs` in all.

        An epoch is one pass over the rows, or as many as make ten steps. `losses` are
        those of the rows of a batch, `validate` returns a mean loss of the networks as
        they are. `after_epoch` is told the losses of training and validation.
        """
        self._load(self._weights)
        if self.best_loss == math.inf:
            # Where nothing is gained, networks stay as they are.
            self._first_loss = self._validate(validate)
        try:
            while not self.finished and self.epoch < max_num_epochs:
                training_loss = self._train_epoch(batches, losses)
                validation_loss = self._validate(validate)
                self.epoch += 1
                if self._gains_no_more(validation_loss):
                    self._end_rate()
                after_epoch(training_loss, validation_loss)
        finally:
            self._weights = self._copy()
            self._load(self._best)
            self.network.zero_grad(set_to_none=True)
            self.network.eval()

    def _train_epoch(self, batches: Batches, losses: Callable) -> float:
        self.network.train()
        parameters = [p for p in self.network.parameters() if p.requires_grad]
        most = math.inf if self.clip_max_norm is None else self.clip_max_norm
        num_passes = math.ceil(_MIN_STEPS_OF_EPOCH / len(batches))
        tensors, total, num_taken = self._tensors(), 0.0, 0
        decay = self.schedule.decay(len(batches.rows))
        for batch in chain.from_iterable(batches for _ in range(num_passes)):
            since = self.num_steps - self._first_step + 1
            for group in self.optimizer.param_groups:
                group["lr"] = self.rate * min(1.0, since / _NUM_WARMUP_STEPS)
                group["weight_decay"] = decay
            loss = losses(batch).mean()
            self.optimizer.zero_grad(set_to_none=True)
            loss.backward()
            # A step whose gradient is not finite would end the training.
            if bool(clip_grad_norm_(parameters, most).isfinite()):
                self.optimizer.step()
                num_taken += 1
            self.num_steps += 1
            kept = 1.0 - 1.0 / (1.0 + _HORIZON * since)
            get_ema_multi_avg_fn(kept)(self._average, tensors, None)
            total += loss.item()
        if not num_taken:
            raise ValueError(
                f"No gradient of epoch {self.epoch + 1} is finite: check the rows for "
                "values that are huge or not finite, or use a lower learning_rate."
            )
        return total / (num_passes * len(batches))

    def _validate(self, validate: Callable[[], float]) -> float:
        """Validate the average, and keep it if it is the best."""
        weights = self._copy()
        self._load(self._average)
        self.network.eval()
        with torch.no_grad():
            loss = validate()
        if loss < self.best_loss:
            self.best_loss, self._best = loss, self._copy()
        if loss < self._gained_loss - self.schedule.min_gain:
            self._gained_loss, self._last_gain = loss, self.num_steps
        self._load(weights)
        return loss

    def _gains_no_more(self, validation_loss: float) -> bool:
        patience = self.schedule.patience * self.num_steps
        if self.num_steps - self._last_gain >= max(
            patience, self.schedule.min_patience
        ):
            return True
        is_warm = self.num_steps - self._first_step > _NUM_WARMUP_STEPS
        gained = self._first_loss - self.best_loss
        return is_warm and validation_loss > self.best_loss + _MAX_RISE * gained

    def _end_rate(self) -> None:
        """Go on at a lower rate from the best average, or finish."""
        self._num_rates += 1
        has_gained = self.best_loss < self._loss_of_rate - self.schedule.min_gain
        is_last = self._num_rates == self.schedule.max_num_rates
        # The first rate may be too high for networks that were trained before.
        self.finished = is_last or (self._num_rates > 1 and not has_gained)
        self._loss_of_rate = self.best_loss
        self.rate *= _RATE_FACTOR
        self._load(self._best)
        self._start_rate()

    def _start_rate(self) -> None:
        self._first_step = self._last_gain = self.num_steps
        self._gained_loss = self.best_loss
        self._average, self._weights = self._copy(), self._copy()
        parameters = [p for p in self.network.parameters() if p.requires_grad]
        self.optimizer = AdamW(
            parameters,
            lr=self.rate,
            betas=_BETAS,
            fused=all(p.device.type in _FUSED for p in parameters),
        )

    def _tensors(self) -> list[Tensor]:
        """Return the weights, and what batch normalization keeps."""
        state = self.network.state_dict().values()
        return [tensor for tensor in state if tensor.is_floating_point()]

    def _copy(self) -> list[Tensor]:
        return [tensor.clone() for tensor in self._tensors()]

    @torch.no_grad()
    def _load(self, tensors: list[Tensor]) -> None:
        for tensor, value in zip(self._tensors(), tensors, strict=True):
            tensor.copy_(value)
