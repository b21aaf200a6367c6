"""The second stage of a hybrid posterior: its energy, with the base left as it is.

What does not change while the energy learns is computed once: what the energy is shown
of each simulation, and a pool of draws from the base, of which every step takes some to
estimate the partition function. An epoch costs as much as that of a small network.
"""

import math
from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
from sbi.utils.torchutils import assert_all_finite
from torch import Tensor
from torch.distributions import Distribution
from torch.nn.utils.clip_grad import clip_grad_norm_
from torch.optim.adamw import AdamW
from torch.optim.lr_scheduler import OneCycleLR
from tqdm.auto import tqdm

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

# Draws of the base for each simulation: to train with, and to validate with after each
# epoch; at least four, however little memory there is.
_POOL_SIZE, _VALIDATION_POOL, _LEAST_POOL = 24, 32, 4
# Draws that decide in the end whether the energy helps: of all simulations, and the
# least and most of each.
_NUM_FINAL_DRAWS, _LEAST_FINAL_POOL, _MOST_FINAL_POOL = 2**18, 128, 1_024
# Validation simulations from which on those that decide are not those that choose.
_MIN_ROWS_TO_SPLIT = 4
_VALIDATION_SEED = 20_231_002


@dataclass(frozen=True)
class EnergyConfig:
    """How `NPE_GKL.train` trains the energy of a hybrid posterior.

    Attributes:
        num_partition_samples: Draws from the base that estimate the partition function
            of each simulation in each step.
        learning_rate: Largest learning rate of a one-cycle schedule.
        max_num_epochs: Length of the schedule in epochs.
        stop_after_epochs: Epochs without improvement of the validation loss after which
            training stops.
        training_batch_size: Simulations per step. If `None`, 64 for fewer than 3,000
            simulations to train with, else 200.
        weight_decay: Decay of the weights by AdamW. If `None`, 1e-2 for fewer than
            3,000 simulations, else 1e-4.
        clip_max_norm: Largest norm of the gradient, `None` for no clipping.
        min_standard_errors: Standard errors by which the energy must improve held-out
            log-densities. Otherwise, or if it worsens the held-out objective, the base
            is kept as it is.
    """

    num_partition_samples: int = 8
    learning_rate: float = 3e-3
    max_num_epochs: int = 120
    stop_after_epochs: int = 20
    training_batch_size: int | None = None
    weight_decay: float | None = None
    clip_max_norm: float | None = 5.0
    min_standard_errors: float = 2.0

    def __post_init__(self) -> None:
        """Check the values."""
        integer = partial(check_fields, self, check_integer)
        real = partial(check_fields, self, check_real)
        integer(["num_partition_samples", "max_num_epochs", "stop_after_epochs"], 1)
        integer(["training_batch_size"], 2, or_none=True)
        real(["learning_rate"], most=MOST_LEARNING_RATE, above=0.0)
        no_clipping = {"or_none": True, "remedy": "None means no clipping."}
        real(["clip_max_norm"], above=0.0, or_infinite=True, **no_clipping)
        real(["weight_decay"], 0.0, MOST_WEIGHT, or_none=True)
        real(["min_standard_errors"])

    def for_data(self, num_simulations: int) -> tuple[int, float]:
        """Return batch size and weight decay for a number of simulations."""
        small = num_simulations < SMALL_DATA
        batch_size = self.training_batch_size or (64 if small else 200)
        decay = self.weight_decay
        if decay is None:
            decay = 1e-2 if small else 1e-4
        return min(batch_size, num_simulations), decay


class EnergyHistory(NamedTuple):
    """Losses of epochs without those of the base, and gains over the base, in nats.

    Gains are means of held-out simulations, in log-density and in the objective.
    """

    training_loss: list[float]
    validation_loss: list[float]
    gain: float
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
    calibration_kernel: Callable[[Tensor], Tensor] | None = None,
    show_progress_bar: bool = False,
) -> EnergyHistory:
    """Train the energy of a hybrid in place, and judge whether it should be kept.

    With an `atomic_prior`, for parameters that came from proposals, parameters of other
    simulations take the place of draws from the base.
    """
    hybrid.base.eval()

    def prepare(rows: Tensor, wanted: int, least: int = _LEAST_POOL) -> _Rows:
        """Take as many draws of each row as are wanted, if they fit into memory."""
        bytes_of_draw = 4 * (2 * theta.shape[1] + 1)
        affordable = MEMORY_BYTES // (bytes_of_draw * len(rows))
        num_draws = max(least, min(wanted, affordable))
        given = (num_draws, atomic_prior, calibration_kernel)
        return _prepare(hybrid, theta[rows], x[rows], *given)

    choosing = deciding = validation_rows
    if len(validation_rows) >= _MIN_ROWS_TO_SPLIT:
        choosing, deciding = validation_rows[::2], validation_rows[1::2]
    least = max(_LEAST_POOL, config.num_partition_samples)
    training = prepare(train_rows, _POOL_SIZE, least)
    with isolated_rng(_VALIDATION_SEED):
        validation = prepare(choosing, _VALIDATION_POOL)
    losses = _fit(hybrid, training, validation, config, show_progress_bar)
    num_draws = min(_NUM_FINAL_DRAWS // len(deciding), _MOST_FINAL_POOL)
    with isolated_rng(_VALIDATION_SEED + 1):
        final = prepare(deciding, max(_LEAST_FINAL_POOL, num_draws))
    judgement = _judge(*_gains(hybrid, final), config.min_standard_errors)
    return EnergyHistory(*losses, *judgement)


@dataclass
class _Rows:
    """What is known of some simulations before the energy is.

    Of draws the first is the simulation's own parameter, the others are its pool.
    Log-weights are 0 for draws of the base, or `-inf` outside of the prior's support;
    for atoms they are `log b - log p`.
    """

    theta: Tensor  # (1 + num_draws, num_rows, dim_theta)
    noise: Tensor  # (1 + num_draws, num_rows, dim_theta), or with no values
    log_weight: Tensor  # (1 + num_draws, num_rows)
    features: Tensor  # (num_rows, num_features)
    kernel: Tensor  # (num_rows,), weights of the rows
    atomic: bool = False
    device: Any = "cpu"  # where the energy is

    def take(self, rows: Tensor, draws: Tensor) -> "_Rows":
        """Return some rows with some draws of their pools, on the energy's device."""
        # One index of both: two in succession would copy all rows first.
        draws = torch.cat([draws.new_zeros(1), draws + 1]).unsqueeze(1)
        taken = [v[draws, rows] for v in (self.theta, self.noise, self.log_weight)]
        taken += [self.features[rows], self.kernel[rows]]
        return _Rows(*(values.to(self.device) for values in taken), self.atomic)

    def chunks(self) -> Iterator["_Rows"]:
        """Return all rows with all of their draws, in parts."""
        draws = torch.arange(len(self.theta) - 1)
        rows = torch.arange(len(self.kernel))
        for part in rows.split(max(1, MAX_ROWS // len(draws))):
            yield self.take(part, draws)


@torch.no_grad()
def _prepare(
    hybrid: HybridEstimator,
    theta: Tensor,
    x: Tensor,
    num_draws: int,
    atomic_prior: Distribution | None,
    calibration_kernel: Callable[[Tensor], Tensor] | None,
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
        kernel = torch.ones(len(rows), device=device)
        if calibration_kernel is not None:
            kernel = calibration_kernel(data).to(device)
        noise = hybrid.latent(both, data)
        part = (both, noise, log_weight, hybrid.condition_features(data), kernel)
        parts.append([values.to(theta.device) for values in part])
    *of_draws, features, kernel = zip(*parts, strict=True)
    of_draws = [torch.cat(values, dim=1) for values in of_draws]
    of_rows = [torch.cat(features), torch.cat(kernel)]
    return _Rows(*of_draws, *of_rows, atomic_prior is not None, device)


def _fit(
    hybrid: HybridEstimator,
    training: _Rows,
    validation: _Rows,
    config: EnergyConfig,
    show_progress_bar: bool,
) -> tuple[list[float], list[float]]:
    """Minimise the loss, keep the best epoch, and return the losses of all epochs."""
    energy, num_rows = hybrid.energy, len(training.kernel)
    batch_size, decay = config.for_data(num_rows)
    num_batches = num_rows // batch_size
    rate, num_epochs = config.learning_rate, config.max_num_epochs
    optimizer = AdamW(energy.parameters(), rate, weight_decay=decay)
    schedule = OneCycleLR(optimizer, rate, total_steps=num_epochs * num_batches)
    training_loss, validation_loss, since_best = [], [], 0
    best, best_loss = deepcopy(energy.state_dict()), _mean_loss(hybrid, validation)
    bar = tqdm(range(num_epochs), "Training energy", disable=not show_progress_bar)
    try:
        for _ in bar:
            energy.train()
            total = 0.0
            for rows in torch.randperm(num_rows).split(batch_size)[:num_batches]:
                draws = torch.randperm(len(training.theta) - 1)
                chosen = training.take(rows, draws[: config.num_partition_samples])
                loss = (chosen.kernel * _losses(hybrid, chosen)).mean()
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                if config.clip_max_norm is not None:
                    clip_grad_norm_(energy.parameters(), config.clip_max_norm)
                optimizer.step()
                schedule.step()
                total += loss.item()
            energy.eval()
            training_loss.append(total / num_batches)
            validation_loss.append(_mean_loss(hybrid, validation))
            bar.set_postfix(loss=f"{validation_loss[-1]:.4f}")
            since_best += 1
            if validation_loss[-1] < best_loss:
                best, best_loss = deepcopy(energy.state_dict()), validation_loss[-1]
                since_best = 0
            if since_best >= config.stop_after_epochs:
                break
    finally:
        energy.load_state_dict(best)
        energy.zero_grad(set_to_none=True)
        energy.eval()
    return training_loss, validation_loss


def _losses(hybrid: HybridEstimator, rows: _Rows) -> Tensor:
    """Return the loss of each row without that of the base, of shape `(num_rows,)`."""
    ratio = hybrid.ratio_of_features(rows.theta, rows.features, rows.noise)
    if rows.atomic:
        return atomic_hybrid_loss(rows.log_weight + ratio)
    return ratio_loss(ratio[0], ratio[1:] + rows.log_weight[1:])


@torch.no_grad()
def _mean_loss(hybrid: HybridEstimator, rows: _Rows) -> float:
    """Return the mean loss of all rows with all draws, weighted by their kernels."""
    losses = [chunk.kernel * _losses(hybrid, chunk) for chunk in rows.chunks()]
    return float(torch.cat(losses).mean())


@torch.no_grad()
def _gains(hybrid: HybridEstimator, rows: _Rows) -> tuple[Tensor, Tensor]:
    """Return what the energy gains of each row: in log-density, and in the objective.

    Base and hybrid are normalized over the support of the prior; the objective has the
    partition function itself in the place of its logarithm. With atoms, both gains are
    that of their objective.
    """
    parts = []
    for chunk in rows.chunks():
        ratio = hybrid.ratio_of_features(chunk.theta, chunk.features, chunk.noise)
        of_base, of_hybrid = chunk.log_weight, chunk.log_weight + ratio
        if rows.atomic:
            gain = atomic_hybrid_loss(of_base) - atomic_hybrid_loss(of_hybrid)
            objective = gain
        else:
            # One draw inside, where there is none: that much may be there.
            least = -math.log(len(ratio) - 1)
            log_partition = torch.logsumexp(of_hybrid[1:], dim=0) + least
            base = (torch.logsumexp(of_base[1:], dim=0) + least).clamp(min=least)
            gain = ratio[0] - log_partition.clamp(min=least) + base
            objective = ratio[0] - log_partition.expm1() + base
        parts.append(chunk.kernel * torch.stack([gain, objective]))
    gains, objective_gains = torch.cat(parts, dim=1) / rows.kernel.mean().item()
    return gains, objective_gains


def _judge(
    gains: Tensor, objective_gains: Tensor, min_standard_errors: float
) -> tuple[float, float, float, bool]:
    """Return the gain, its error, that of the objective, and whether they suffice."""
    gain, error = float(gains.mean()), math.inf
    if len(gains) > 1:
        error = float(gains.std() / len(gains) ** 0.5)
    # Logarithms hide rare draws with huge ratios, of which samples would then be full;
    # the objective, which has the partition function itself, shows them.
    objective_gain = float(objective_gains.mean())
    threshold = max(min_standard_errors * error, 0.0)
    return gain, error, objective_gain, gain > threshold and objective_gain > 0.0
