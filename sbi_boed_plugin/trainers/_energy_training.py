"""The second stage of a hybrid posterior: its energy, with the base left as it is.

What does not change while the energy learns is computed once: what the energy is shown
of each simulation, and a pool of draws from the base, of which every step takes some to
estimate the partition function. An epoch costs as much as that of a small network.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch
from sbi.utils.torchutils import assert_all_finite
from torch import Tensor, nn
from torch.distributions import Distribution
from tqdm.auto import tqdm

from sbi_boed_plugin._fit import AveragedSchedule, Batches, Fit
from sbi_boed_plugin._memory import MAX_ROWS, MEMORY_BYTES
from sbi_boed_plugin._numbers import (
    MOST_LEARNING_RATE,
    MOST_WEIGHT,
    check_fields,
    check_integer,
    check_real,
)
from sbi_boed_plugin._rng import isolated_rng
from sbi_boed_plugin.estimators.energy import SMALL_DATA
from sbi_boed_plugin.estimators.hybrid import HybridEstimator
from sbi_boed_plugin.estimators.rejection import draws_at_once
from sbi_boed_plugin.objectives.generalized_kl import atomic_hybrid_loss, ratio_loss

__all__ = ["EnergyConfig", "EnergyHistory", "train_energy"]

# Draws of the base for each simulation: to train with, to validate with after each
# epoch, and at least, however little memory there is.
_POOL_SIZE, _VALIDATION_POOL, _LEAST_POOL = 24, 32, 4
# Draws that decide in the end whether the energy helps: of all simulations, and the
# least and most of each.
_NUM_FINAL_DRAWS, _LEAST_FINAL_POOL, _MOST_FINAL_POOL = 2**18, 128, 1_024
# Validation simulations from which on those that decide are not those that choose.
_MIN_ROWS_TO_SPLIT = 4
_VALIDATION_SEED = 20_231_002
# A correction of hundredths of a nat is worth steps of a small network.
_MIN_GAIN = 0.002

# What is known of simulations before the energy is. Of their own parameters and draws,
# values and noise `(num_rows, 1 + num_draws, dim_theta)` and log-weights: 0, `-inf`
# outside of the prior's support, or `log b - log p` of atoms. And features of the data.
_Rows = list[Tensor]


@dataclass(frozen=True)
class EnergyConfig:
    """How `NPE_GKL.train` trains the energy of a hybrid posterior.

    Attributes:
        num_partition_samples: Draws from the base that estimate the partition function
            of each simulation in each step.
        learning_rate: First learning rate, of an :class:`AveragedSchedule`.
        max_num_epochs: Number of epochs at most.
        training_batch_size: Simulations per step. If `None`, 64 for fewer than 3,000
            simulations to train with, else 200.
        weight_decay: That of AdamW. If `None`, 1e-2 for fewer than 3,000, else 1e-4.
        clip_max_norm: Largest norm of the gradient, `None` for no clipping.
        min_standard_errors: Standard errors by which the energy must improve held-out
            log-densities. Otherwise, or if it worsens the held-out objective, the base
            is kept as it is.
    """

    num_partition_samples: int = 8
    learning_rate: float = 3e-3
    max_num_epochs: int = 2**31 - 1
    training_batch_size: int | None = None
    weight_decay: float | None = None
    clip_max_norm: float | None = 5.0
    min_standard_errors: float = 2.0

    def __post_init__(self) -> None:
        """Check the values."""
        integer = partial(check_fields, self, check_integer)
        real = partial(check_fields, self, check_real)
        integer(["num_partition_samples", "max_num_epochs"], 1)
        integer(["training_batch_size"], 2, or_none=True)
        real(["learning_rate"], most=MOST_LEARNING_RATE, above=0.0)
        no_clipping = {"or_none": True, "remedy": "None means no clipping."}
        real(["clip_max_norm"], above=0.0, or_infinite=True, **no_clipping)
        real(["weight_decay"], 0.0, MOST_WEIGHT, or_none=True)
        real(["min_standard_errors"])


class EnergyHistory(NamedTuple):
    """Losses of epochs without those of the base, and held-out gains, in nats."""

    training_loss: list[float]
    validation_loss: list[float]
    gain: float  # in log-density
    gain_standard_error: float
    objective_gain: float
    kept: bool


def train_energy(
    hybrid: HybridEstimator,
    theta: Tensor,
    x: Tensor,
    *,
    train_rows: Tensor,
    validation_rows: Tensor,
    config: EnergyConfig,
    atomic_prior: Distribution | None = None,
    show_progress_bar: bool = False,
) -> EnergyHistory:
    """Train the energy of a hybrid in place, and judge whether it should be kept.

    With an `atomic_prior`, for parameters that came from proposals, parameters of other
    simulations take the place of draws from the base.
    """
    hybrid.base.eval()
    choosing = deciding = validation_rows
    if len(validation_rows) >= _MIN_ROWS_TO_SPLIT:
        choosing, deciding = validation_rows[::2], validation_rows[1::2]

    def prepare(rows: Tensor, num_draws: int, least: int = _LEAST_POOL) -> _Rows:
        affordable = MEMORY_BYTES // (4 * (2 * theta.shape[1] + 1) * len(rows))
        num_draws = max(least, min(num_draws, affordable))
        return _prepare(hybrid, theta[rows], x[rows], num_draws, atomic_prior)

    least = max(_LEAST_POOL, config.num_partition_samples)
    training = prepare(train_rows, _POOL_SIZE, least)
    with isolated_rng(_VALIDATION_SEED):
        validation = prepare(choosing, _VALIDATION_POOL)
    is_atomic = atomic_prior is not None

    def training_losses(rows: Tensor) -> Tensor:
        draws = torch.randperm(training[0].shape[1] - 1)
        draws = draws[: config.num_partition_samples]
        batch = [values[rows] for values in training]
        return _losses(*_ratios(hybrid, batch, draws), is_atomic)

    @torch.no_grad()
    def validation_loss() -> float:
        parts = (_ratios(hybrid, part) for part in _in_parts(validation))
        losses = [_losses(*part, is_atomic) for part in parts]
        return float(torch.cat(losses).mean())

    given = training_losses, validation_loss, len(train_rows), config
    losses = _fit(hybrid.energy, *given, show_progress_bar)
    num_draws = min(_NUM_FINAL_DRAWS // len(deciding), _MOST_FINAL_POOL)
    with isolated_rng(_VALIDATION_SEED + 1):
        final = prepare(deciding, max(_LEAST_FINAL_POOL, num_draws))
    gains = _gains(hybrid, final, is_atomic)
    return EnergyHistory(*losses, *_judge(*gains, config.min_standard_errors))


@torch.no_grad()
def _prepare(
    hybrid: HybridEstimator,
    theta: Tensor,
    x: Tensor,
    num_draws: int,
    atomic_prior: Distribution | None,
) -> _Rows:
    """Compute what does not change while the energy learns, in chunks of rows."""
    parts, device = [], next(hybrid.energy.parameters()).device
    size = max(1, draws_at_once(hybrid, x) // num_draws)
    for rows in torch.arange(len(theta)).split(size):
        own, data = theta[rows].to(device).unsqueeze(0), x[rows].to(device)
        if atomic_prior is None:
            pool = hybrid.base.sample(torch.Size((num_draws,)), data)
            both = torch.cat([own, pool])
            log_weight = torch.zeros(both.shape[:2], device=device)
            log_weight[1:].masked_fill_(~hybrid.inside(pool), -torch.inf)
        else:
            # Any row but the own one.
            shift = torch.randint(1, max(2, len(theta)), (num_draws, len(rows)))
            both = torch.cat([own, theta[(rows + shift) % len(theta)].to(device)])
            log_prior = atomic_prior.log_prob(both.flatten(0, 1))
            assert_all_finite(log_prior, "prior eval")
            log_base = hybrid.base.log_prob(both, data)
            log_weight = log_base - log_prior.reshape(log_base.shape)
        of_draws = both, hybrid.latent(both, data), log_weight
        part = [values.transpose(0, 1) for values in of_draws]
        part.append(hybrid.condition_features(data))
        parts.append([values.to(theta.device) for values in part])
    return [torch.cat(values) for values in zip(*parts, strict=True)]


def _fit(
    energy: nn.Module,
    training_losses: Callable[[Tensor], Tensor],
    validation_loss: Callable[[], float],
    num_rows: int,
    config: EnergyConfig,
    show_progress_bar: bool,
) -> tuple[list[float], list[float]]:
    """Minimise the loss, keep the best average, and return the losses of all epochs."""
    small = num_rows < SMALL_DATA
    batch_size = min(config.training_batch_size or (64 if small else 200), num_rows)
    decay = config.weight_decay
    if decay is None:
        decay = 1e-2 if small else 1e-4
    schedule = AveragedSchedule(
        config.learning_rate, min_gain=_MIN_GAIN, weight_decay=decay
    )
    rows = torch.arange(num_rows)
    losses: list[tuple[float, float]] = []
    with tqdm(
        desc="Training energy", unit=" epochs", disable=not show_progress_bar
    ) as bar:

        def after_epoch(training_loss: float, validation_loss: float) -> None:
            losses.append((training_loss, validation_loss))
            bar.set_postfix(loss=f"{validation_loss:.4f}")
            bar.update()

        Fit(energy, schedule, config.clip_max_norm).run(
            Batches([rows], rows, batch_size),
            lambda batch: training_losses(*batch),
            validation_loss,
            max_num_epochs=config.max_num_epochs,
            after_epoch=after_epoch,
        )
    trained, validated = zip(*losses, strict=True)
    return list(trained), list(validated)


def _in_parts(rows: _Rows) -> Iterator[tuple[Tensor, ...]]:
    """Return all rows with all of their draws, a part at a time."""
    size = max(1, MAX_ROWS // rows[0].shape[1])
    return zip(*(values.split(size) for values in rows), strict=True)


def _ratios(
    hybrid: HybridEstimator, rows: Sequence[Tensor], draws: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Return ratios and log-weights of own parameters and draws, a column of a row."""
    device = next(hybrid.energy.parameters()).device
    *of_draws, features = (values.to(device) for values in rows)
    if draws is not None:
        with_own = torch.cat([draws.new_zeros(1), draws + 1])
        of_draws = [values[:, with_own] for values in of_draws]
    theta, noise, log_weight = (values.transpose(0, 1) for values in of_draws)
    return hybrid.ratio_of_features(theta, features, noise), log_weight


def _losses(ratio: Tensor, log_weight: Tensor, is_atomic: bool) -> Tensor:
    """Return losses of rows without those of the base."""
    if is_atomic:
        return atomic_hybrid_loss(log_weight + ratio)
    return ratio_loss(ratio[0], ratio[1:] + log_weight[1:])


@torch.no_grad()
def _gains(
    hybrid: HybridEstimator, rows: _Rows, is_atomic: bool = False
) -> tuple[Tensor, Tensor]:
    """Return what the energy gains of each row: in log-density, and in the objective.

    Base and hybrid are normalized over the support of the prior; the objective has the
    partition function itself in the place of its logarithm. With atoms, both gains are
    that of their objective.
    """
    gains, objective_gains = [], []
    for part in _in_parts(rows):
        ratio, of_base = _ratios(hybrid, part)
        of_hybrid = of_base + ratio
        if is_atomic:
            gains.append(atomic_hybrid_loss(of_base) - atomic_hybrid_loss(of_hybrid))
            objective_gains.append(gains[-1])
            continue
        # One draw inside, where there is none: that much may be there.
        least = -math.log(len(ratio) - 1)
        log_partition = torch.logsumexp(of_hybrid[1:], dim=0) + least
        base = (torch.logsumexp(of_base[1:], dim=0) + least).clamp(min=least)
        gains.append(ratio[0] - log_partition.clamp(min=least) + base)
        objective_gains.append(ratio[0] - log_partition.expm1() + base)
    return torch.cat(gains), torch.cat(objective_gains)


def _judge(
    gains: Tensor, objective_gains: Tensor, min_standard_errors: float
) -> tuple[float, float, float, bool]:
    """Return the gain, its error, that of the objective, and whether they suffice.

    Logarithms hide rare draws with huge ratios, of which samples would then be full;
    the objective, which has the partition function itself, shows them.
    """
    gain, error = float(gains.mean()), math.inf
    if len(gains) > 1:
        error = float(gains.std() / len(gains) ** 0.5)
    objective_gain = float(objective_gains.mean())
    enough = gain > max(min_standard_errors * error, 0.0)
    return gain, error, objective_gain, enough and objective_gain > 0.0
