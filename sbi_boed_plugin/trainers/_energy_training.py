"""The second stage of a hybrid posterior: its energy, with the base left as it is.

Everything that does not change while the energy learns is computed once: what the
energy is shown of each simulation, and a pool of draws from the base for each, of which
every step takes some to estimate the partition function. An epoch then costs as much
as that of a small network, whatever the base is.
"""

import math
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any

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
from sbi_boed_plugin.estimators.weights import draws_at_once
from sbi_boed_plugin.objectives.generalized_kl import (
    atomic_hybrid_loss,
    hybrid_loss,
    partition_function,
)

__all__ = ["EnergyConfig", "EnergyHistory", "train_energy"]

# Draws of the base for each simulation: to train with, to validate with after each
# epoch, and, at least, to decide in the end whether the energy helps. In the end there
# are more of them for few simulations: as many as so many evaluations of the base take.
_POOL_SIZE, _VALIDATION_POOL, _FINAL_POOL = 24, 32, 128
_MAX_FINAL_EVALUATIONS, _MAX_FINAL_POOL = 16, 1_024
# However little memory there is.
_LEAST_POOL = 4
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
        clip_max_norm: Value at which to clip the total gradient norm, `None` for no
            clipping.
        min_standard_errors: Standard errors by which the energy must improve held-out
            log-densities. Otherwise, or if it worsens the held-out objective in the
            mean, the base is kept as it is.
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
        counts = ["num_partition_samples", "max_num_epochs", "stop_after_epochs"]
        check_fields(self, check_integer, counts, 1)
        check_fields(self, check_integer, ["training_batch_size"], 2, or_none=True)
        rates = ["learning_rate"]
        check_fields(self, check_real, rates, most=MOST_LEARNING_RATE, above=0.0)
        check_fields(
            self,
            check_real,
            ["clip_max_norm"],
            above=0.0,
            or_infinite=True,
            or_none=True,
            remedy="None means no clipping.",
        )
        decay = ["weight_decay"]
        check_fields(self, check_real, decay, 0.0, MOST_WEIGHT, or_none=True)
        check_fields(self, check_real, ["min_standard_errors"])

    def for_data(self, num_simulations: int) -> tuple[int, float]:
        """Return batch size and weight decay for a number of simulations."""
        small = num_simulations < SMALL_DATA
        batch_size = self.training_batch_size or (64 if small else 200)
        decay = self.weight_decay
        if decay is None:
            decay = 1e-2 if small else 1e-4
        return min(batch_size, num_simulations), decay


@dataclass
class EnergyHistory:
    """What the training of an energy recorded.

    Attributes:
        training_loss: Mean loss of each epoch, without that of the base (nats).
        validation_loss: The same of the validation set, with the same draws each time.
        gain: Mean improvement of held-out log-densities over the base (nats), of
            simulations that neither trained the energy nor chose its epoch.
        gain_standard_error: Its standard error.
        objective_gain: Mean improvement of the held-out objective (nats).
        kept: Whether the energy is kept.
    """

    training_loss: list[float] = field(default_factory=list)
    validation_loss: list[float] = field(default_factory=list)
    gain: float = 0.0
    gain_standard_error: float = 0.0
    objective_gain: float = 0.0
    kept: bool = False


@dataclass
class _Rows:
    """What is known of some simulations before the energy is.

    Parameters of shape `(num, dim_theta)`, features of shape `(num, num_features)` and
    noise; of the pool with a first dimension of draws. Log-weights of the pool are zero
    or `-inf` for draws of the base, inside and outside of the prior's support; for
    atoms, those and the row's own are `log b - log p`.
    """

    theta: Tensor
    shown: Tensor
    noise: Tensor
    pool_theta: Tensor
    pool_noise: Tensor
    pool_log_weight: Tensor
    log_weight: Tensor | None
    kernel: Tensor

    def take(self, rows: Tensor, draws: Tensor, device: str) -> "_Rows":
        own = None if self.log_weight is None else self.log_weight[rows].to(device)
        # One index of both: two in succession would copy all rows first.
        draws = draws.unsqueeze(1)
        return _Rows(
            self.theta[rows].to(device),
            self.shown[rows].to(device),
            self.noise[rows].to(device),
            self.pool_theta[draws, rows].to(device),
            self.pool_noise[draws, rows].to(device),
            self.pool_log_weight[draws, rows].to(device),
            own,
            self.kernel[rows].to(device),
        )


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
    device: str = "cpu",
    show_progress_bar: bool = False,
) -> EnergyHistory:
    """Train the energy of a hybrid on simulations, in place.

    Every other validation simulation chooses the best epoch; the rest decide whether
    the energy is kept. With fewer than four of them all do both, and an energy that
    fits noise is kept more often. If the energy does not improve the log-densities of
    those that decide, its weights are set back to what they were before. Whatever
    interrupts the training, the best so far are kept.

    Args:
        hybrid: Base, trained, and energy.
        theta: Parameters of shape `(num_simulations, dim_theta)`.
        x: Data of shape `(num_simulations, *condition_event_shape)`.
        train_rows: Indices of simulations to train with.
        validation_rows: Indices of the others.
        config: Settings.
        atomic_prior: The prior, if parameters came from other proposals. Atoms, which
            are parameters of other simulations, then take the place of draws from the
            base.
        calibration_kernel: Weight of each simulation, from `x`.
        device: Device of training.
        show_progress_bar: Whether to show a progress bar.

    Returns:
        Losses and the improvement.
    """
    hybrid.base.eval()
    history = EnergyHistory()

    def prepare(rows: Tensor, num_draws: int) -> _Rows:
        return _prepare(
            hybrid,
            theta[rows],
            x[rows],
            num_draws,
            atomic_prior,
            calibration_kernel,
            device,
        )

    choosing = deciding = validation_rows
    if len(validation_rows) >= _MIN_ROWS_TO_SPLIT:
        choosing, deciding = validation_rows[::2], validation_rows[1::2]

    def affordable(rows: Tensor, wanted: int) -> int:
        """Return how many draws of each row to keep, with their noise and weight."""
        bytes_of_draw = 4 * (2 * theta.shape[1] + 1)
        return min(wanted, MEMORY_BYTES // (bytes_of_draw * max(1, len(rows))))

    least = max(_LEAST_POOL, config.num_partition_samples)
    training = prepare(train_rows, max(least, affordable(train_rows, _POOL_SIZE)))
    with isolated_rng(_VALIDATION_SEED):
        num_draws = max(_LEAST_POOL, affordable(choosing, _VALIDATION_POOL))
        validation = prepare(choosing, num_draws)

    batch_size, weight_decay = config.for_data(len(train_rows))
    num_batches = max(1, len(train_rows) // batch_size)
    optimizer = AdamW(
        hybrid.energy.parameters(), lr=config.learning_rate, weight_decay=weight_decay
    )
    schedule = OneCycleLR(
        optimizer,
        max_lr=config.learning_rate,
        total_steps=config.max_num_epochs * num_batches,
    )
    initial = deepcopy(hybrid.energy.state_dict())
    best, best_loss, since_best = initial, _mean_loss(hybrid, validation, device), 0
    bar = tqdm(
        total=config.max_num_epochs,
        desc="Training energy",
        disable=not show_progress_bar,
    )
    try:
        with bar:
            for _ in range(config.max_num_epochs):
                hybrid.energy.train()
                order = torch.randperm(len(train_rows))
                total = 0.0
                for batch in range(num_batches):
                    rows = order[batch * batch_size : (batch + 1) * batch_size]
                    draws = torch.randperm(len(training.pool_theta))
                    draws = draws[: config.num_partition_samples]
                    chosen = training.take(rows, draws, device)
                    loss = (chosen.kernel * _losses(hybrid, chosen)).mean()
                    optimizer.zero_grad(set_to_none=True)
                    loss.backward()
                    if config.clip_max_norm is not None:
                        clip_grad_norm_(
                            hybrid.energy.parameters(), max_norm=config.clip_max_norm
                        )
                    optimizer.step()
                    schedule.step()
                    total += loss.item()
                hybrid.energy.eval()
                held_out = _mean_loss(hybrid, validation, device)
                history.training_loss.append(total / num_batches)
                history.validation_loss.append(held_out)
                bar.update()
                bar.set_postfix(loss=f"{held_out:.4f}")
                if held_out < best_loss:
                    best_loss, since_best = held_out, 0
                    best = deepcopy(hybrid.energy.state_dict())
                else:
                    since_best += 1
                if since_best >= config.stop_after_epochs:
                    break
    finally:
        hybrid.energy.load_state_dict(best)
        hybrid.energy.zero_grad(set_to_none=True)
        hybrid.energy.eval()

    at_once = draws_at_once(hybrid, x)
    fair = _MAX_FINAL_EVALUATIONS * at_once // len(deciding)
    num_draws = max(_FINAL_POOL, min(fair, _MAX_FINAL_POOL))
    # Of some rows at a time, as there may be more draws than in training. Atoms are
    # other rows, of which none may be missing.
    at_a_time = len(deciding)
    if atomic_prior is None:
        at_a_time = max(1, MAX_ROWS // num_draws)
    parts = []
    with isolated_rng(_VALIDATION_SEED + 1):
        for rows in deciding.split(at_a_time):
            final = prepare(rows, num_draws)
            parts.append((*_gains(hybrid, final, device), final.kernel.to(device)))
    gains, of_objective, kernel = (torch.cat(part) for part in zip(*parts, strict=True))
    gains, of_objective = gains / kernel.mean(), of_objective / kernel.mean()
    _judge(history, gains, of_objective, config.min_standard_errors)
    if not history.kept:
        hybrid.energy.load_state_dict(initial)
    return history


def _judge(
    history: EnergyHistory, gains: Tensor, of_objective: Tensor, num_errors: float
) -> None:
    """Write down what an energy gains, and whether it is kept."""
    history.gain = float(gains.mean())
    history.gain_standard_error = math.inf
    if len(gains) > 1:
        history.gain_standard_error = float(gains.std() / len(gains) ** 0.5)
    # Logarithms hide rare draws with huge ratios, of which samples would then be full;
    # the objective, which has the partition function itself, shows them.
    history.objective_gain = float(of_objective.mean())
    threshold = max(num_errors * history.gain_standard_error, 0.0)
    history.kept = history.gain > threshold and history.objective_gain > 0.0


def _losses(hybrid: HybridEstimator, rows: _Rows) -> Tensor:
    """Return the loss of each row without that of the base, of shape `(num,)`."""
    ratio, pool_ratio = _ratios(hybrid, rows)
    if rows.log_weight is None:
        partition = partition_function(pool_ratio, log_weight=rows.pool_log_weight)
        return hybrid_loss(torch.zeros_like(ratio), ratio, partition)
    own = (rows.log_weight + ratio).unsqueeze(0)
    return atomic_hybrid_loss(torch.cat([own, rows.pool_log_weight + pool_ratio]))


def _ratios(hybrid: HybridEstimator, rows: _Rows) -> tuple[Tensor, Tensor]:
    """Return the ratios of the rows' own parameters, and of their pool."""
    theta = torch.cat([rows.theta.unsqueeze(0), rows.pool_theta])
    noise = torch.cat([rows.noise.unsqueeze(0), rows.pool_noise])
    ratios = hybrid.ratio_of_features(theta, rows.shown, noise)
    return ratios[0], ratios[1:]


@torch.no_grad()
def _mean_loss(hybrid: HybridEstimator, rows: _Rows, device: str) -> float:
    losses = [
        chosen.kernel * _losses(hybrid, chosen) for chosen in _chunks(rows, device)
    ]
    return float(torch.cat(losses).mean())


@torch.no_grad()
def _gains(hybrid: HybridEstimator, rows: _Rows, device: str) -> tuple[Tensor, Tensor]:
    """Return what the energy gains of each row: in log-density, and in the objective.

    Base and hybrid are taken as posteriors take them: normalized, over the support of
    the prior. The objective has the partition function itself in the place of its
    logarithm. With atoms, both are that of their objective. Each row counts with the
    weight that the calibration kernel gives it.
    """
    gains, of_objective = [], []
    for chosen in _chunks(rows, device):
        ratio, pool_ratio = _ratios(hybrid, chosen)
        inside = chosen.pool_log_weight
        if chosen.log_weight is None:
            # One draw inside, where there is none: that much may be there.
            least = -math.log(len(inside))
            log_partition = torch.logsumexp(inside + pool_ratio, dim=0) + least
            base = (torch.logsumexp(inside, dim=0) + least).clamp(min=least)
            gain = ratio - log_partition.clamp(min=least) + base
            objective = ratio - log_partition.expm1() + base
        else:
            own = chosen.log_weight.unsqueeze(0)
            atoms = torch.cat([own + ratio, inside + pool_ratio])
            gain = atomic_hybrid_loss(torch.cat([own, inside]))
            gain = objective = gain - atomic_hybrid_loss(atoms)
        gains.append(chosen.kernel * gain)
        of_objective.append(chosen.kernel * objective)
    return torch.cat(gains), torch.cat(of_objective)


def _chunks(rows: _Rows, device: str) -> Any:
    size = max(1, MAX_ROWS // len(rows.pool_theta))
    draws = torch.arange(len(rows.pool_theta))
    for indices in torch.arange(len(rows.theta)).split(size):
        yield rows.take(indices, draws, device)


@torch.no_grad()
def _prepare(
    hybrid: HybridEstimator,
    theta: Tensor,
    x: Tensor,
    num_draws: int,
    atomic_prior: Distribution | None,
    calibration_kernel: Callable[[Tensor], Tensor] | None,
    device: str,
) -> _Rows:
    """Compute what does not change while the energy learns, in chunks of rows."""
    parts = []
    size = max(1, draws_at_once(hybrid, x) // num_draws)
    for rows in torch.arange(len(theta)).split(size):
        own, data = theta[rows].to(device), x[rows].to(device)
        if atomic_prior is None:
            pool, pool_noise = hybrid.draw(num_draws, data)
            log_weight = None
            pool_log_weight = torch.zeros(pool.shape[:2], device=device)
            inside = hybrid.inside(pool)
            if inside is not None:
                pool_log_weight = pool_log_weight.masked_fill(~inside, -torch.inf)
        else:
            # Any row but the own one.
            shift = torch.randint(1, max(2, len(theta)), (num_draws, len(rows)))
            pool = theta[(rows + shift) % len(theta)].to(device)
            pool_noise = hybrid.latent(pool, data)
            both = torch.cat([own.unsqueeze(0), pool])
            log_prior = atomic_prior.log_prob(both.flatten(0, 1))
            assert_all_finite(log_prior, "prior eval")
            weights = hybrid.base.log_prob(both, data)
            weights = weights - log_prior.reshape(both.shape[:2])
            log_weight, pool_log_weight = weights[0], weights[1:]
        kernel = torch.ones(len(rows), device=device)
        if calibration_kernel is not None:
            kernel = calibration_kernel(data).to(device)
        parts.append(
            _Rows(
                own,
                hybrid.condition_features(data),
                hybrid.latent(own.unsqueeze(0), data)[0],
                pool,
                pool_noise,
                pool_log_weight,
                log_weight,
                kernel,
            )
        )
    where = theta.device

    def join(name: str, dim: int) -> Tensor:
        return torch.cat([getattr(part, name).to(where) for part in parts], dim=dim)

    return _Rows(
        join("theta", 0),
        join("shown", 0),
        join("noise", 0),
        join("pool_theta", 1),
        join("pool_noise", 1),
        join("pool_log_weight", 1),
        None if atomic_prior is None else join("log_weight", 0),
        join("kernel", 0),
    )
