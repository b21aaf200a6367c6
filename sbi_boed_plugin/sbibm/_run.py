"""What every method does with a task of sbibm: simulate, train, draw, and answer."""

import contextlib
import hashlib
import io
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Distribution, TransformedDistribution, biject_to

from sbi_boed_plugin._numbers import check_integer
from sbi_boed_plugin._rng import isolated_rng
from sbi_boed_plugin.experiment import NoOpTracker
from sbi_boed_plugin.posteriors.hybrid_posterior import HybridPosterior
from sbi_boed_plugin.sbibm._cache import TrainingCache, is_from_sbibm, training_key
from sbi_boed_plugin.sbibm.settings import PosteriorSettings, RunSettings

__all__ = ["CACHE", "Method", "RunOutcome", "SbibmResult", "run"]

# What sbibm's runner takes: samples, number of simulations, and the log-probability of
# the true parameters where it is known.
SbibmResult = tuple[Tensor, int, Tensor | None]

CACHE = TrainingCache()


@dataclass(frozen=True)
class RunOutcome:
    """Samples of a posterior, and what they cost.

    Attributes:
        samples: Samples of shape `(num_samples, dim_parameters)`.
        num_simulations: Number of simulations used.
        log_prob_true_parameters: Log-density of the true parameters in nats, of shape
            `(1,)`; `None` if the observation is not one of the task, or the method has
            no normalized density.
        training_seconds: Time of simulations and training, also if it was spent by an
            earlier call.
        sampling_seconds: Time of the samples.
        from_cache: Whether an earlier call trained.
        diagnostics: What the method says of itself.
    """

    samples: Tensor
    num_simulations: int
    log_prob_true_parameters: Tensor | None
    training_seconds: float
    sampling_seconds: float
    from_cache: bool
    diagnostics: dict[str, float] = field(default_factory=dict)

    def to_sbibm(self) -> SbibmResult:
        """Return samples, number of simulations, and log-density, as sbibm does."""
        return self.samples, self.num_simulations, self.log_prob_true_parameters


@dataclass(frozen=True)
class Method:
    """A method: a trainer of sbi's kind with a network, and hyperparameters."""

    name: str
    trainer: Callable[..., Any]
    network: Callable[..., Any]
    settings: RunSettings

    def make_trainer(self, prior: Distribution) -> Any:
        """Return a new trainer, which keeps no logs."""
        builder = self.network(
            self.settings.neural_net,
            hidden_features=self.settings.hidden_features,
            z_score_x=self.settings.z_score_x,
            z_score_theta=self.settings.z_score_theta,
        )
        return self.trainer(
            prior, builder, tracker=NoOpTracker(), show_progress_bars=False
        )

    def sample(self, posterior: Any, num_samples: int, x_o: Tensor) -> Tensor:
        """Draw from a posterior."""
        arguments = self.settings.of_sample()
        return posterior.sample((num_samples,), x=x_o, **arguments).detach()


@dataclass(frozen=True)
class _Trained:
    """What is kept of a training."""

    estimator: Any
    num_simulations: int
    seconds: float


def run(
    method: Method,
    task: Any,
    num_samples: int,
    num_simulations: int,
    num_observation: int | None,
    observation: Tensor | None,
) -> RunOutcome:
    """Train a method on a task, or find it trained, and draw from its posterior."""
    settings = method.settings
    check_integer("num_samples", num_samples, 1)
    least = settings.num_rounds
    remedy = f"One per round of num_rounds={least} is the least."
    check_integer("num_simulations", num_simulations, least, remedy=remedy)
    may_be_kept = _may_be_kept(settings, task)
    x_o = _observation(task, num_observation, observation)
    prior, transform = task.get_prior_dist(), None
    if settings.automatic_transforms_enabled:
        transform = biject_to(prior.support).inv
        prior = TransformedDistribution(prior, transform)

    def train() -> _Trained:
        simulator = task.get_simulator(max_calls=num_simulations)
        with isolated_rng(settings.seed):
            return _train(method, simulator, prior, transform, num_simulations, x_o)

    if may_be_kept:
        key = training_key(method.name, settings, task, num_simulations, x_o)
        folder = None if settings.cache is None else Path(settings.cache)
        trained, from_cache = CACHE.get(key, train, folder)
    else:
        trained, from_cache = train(), False

    started = time.perf_counter()
    # The trainer is in here, too: sbi draws from priors to look at them.
    with isolated_rng(_sampling_seed(settings.seed, x_o)):
        posterior = method.make_trainer(prior).build_posterior(
            trained.estimator, **settings.of_build_posterior()
        )
        samples = method.sample(posterior, num_samples, x_o)
        seconds = time.perf_counter() - started
        log_prob = None
        # A likelihood or ratio has no normalized density.
        if isinstance(settings, PosteriorSettings) and num_observation is not None:
            truth = task.get_true_parameters(num_observation)
            log_prob = _log_prob(posterior, truth, x_o, transform)
        diagnostics = _diagnostics(posterior, x_o)
    return RunOutcome(
        samples=samples if transform is None else transform.inv(samples),
        num_simulations=trained.num_simulations,
        log_prob_true_parameters=log_prob,
        training_seconds=trained.seconds,
        sampling_seconds=seconds,
        from_cache=from_cache,
        diagnostics=diagnostics,
    )


def _train(
    method: Method,
    simulator: Any,
    prior: Distribution,
    transform: Any,
    num_simulations: int,
    x_o: Tensor,
) -> _Trained:
    """Simulate and train, round after round."""
    started = time.perf_counter()
    settings, trainer = method.settings, method.make_trainer(prior)
    posterior: Any = None
    estimator: Any = None
    # sbi prints how each training ends.
    with contextlib.redirect_stdout(io.StringIO()):
        for number in range(settings.num_rounds):
            # Rounds of the same size, the first ones taking what is left over.
            size, rest = divmod(num_simulations, settings.num_rounds)
            size += number < rest
            if number == 0:
                theta = prior.sample(torch.Size((size,)))
            else:
                posterior = trainer.build_posterior(
                    estimator, **settings.of_build_posterior()
                )
                posterior.set_default_x(x_o)
                theta = method.sample(posterior, size, x_o)
            parameters = theta if transform is None else transform.inv(theta)
            batches = parameters.split(settings.simulation_batch_size)
            x = torch.cat([simulator(batch) for batch in batches])
            if isinstance(settings, PosteriorSettings):
                trainer.append_simulations(theta, x, proposal=posterior)
            else:
                trainer.append_simulations(theta, x, from_round=number)
            estimator = trainer.train(**settings.of_train())
    seconds = time.perf_counter() - started
    return _Trained(estimator, simulator.num_simulations, seconds)


def _log_prob(posterior: Any, truth: Tensor, x_o: Tensor, transform: Any) -> Tensor:
    """Return the log-density of parameters in their own units."""
    if transform is None:
        return posterior.log_prob(truth, x=x_o).detach()
    moved = transform(truth)
    density = posterior.log_prob(moved, x=x_o).detach()
    return density + transform.log_abs_det_jacobian(truth, moved)


def _diagnostics(posterior: Any, x_o: Tensor) -> dict[str, float]:
    """Return how well the base of a hybrid fits; nothing of other posteriors."""
    if not isinstance(posterior, HybridPosterior):
        return {}
    return {
        name: float(value)
        for name, value in asdict(posterior.diagnostics(x_o)).items()
        if isinstance(value, Tensor) and value.numel() == 1
    }


def _may_be_kept(settings: RunSettings, task: Any) -> bool:
    """Tell whether a training may be used again, or raise if the user wants it to."""
    cache = f"cache={str(settings.cache)!r}"
    reason = None
    if settings.seed is None:
        reason = (
            f"{cache} needs a seed: without one, every run is another one, and "
            "nothing can be kept. Pass seed=0, for example."
        )
    elif settings.cache_tag is None and not is_from_sbibm(task):
        reason = (
            f"{cache} needs a cache_tag: {type(task).__name__} is a task of your own, "
            "whose code may change from run to run. Pass cache_tag='1', for example, "
            "and another one whenever you change the task."
        )
    if reason is not None and settings.cache is not None:
        raise ValueError(reason)
    return reason is None


def _observation(
    task: Any, num_observation: int | None, observation: Tensor | None
) -> Tensor:
    """Return the observation of shape `(1, dim_data)`, or say what is wrong."""
    if (num_observation is None) == (observation is None):
        raise ValueError(
            "Give either num_observation or observation, got num_observation="
            f"{num_observation} and observation={observation}."
        )
    if observation is None:
        if num_observation not in range(1, task.num_observations + 1):
            raise ValueError(
                f"num_observation={num_observation} is none of task '{task.name}', "
                f"which has 1 to {task.num_observations}."
            )
        return task.get_observation(num_observation)
    if observation.numel() != task.dim_data:
        raise ValueError(
            f"observation has shape {tuple(observation.shape)}, but data of task "
            f"'{task.name}' have shape (1, {task.dim_data})."
        )
    return observation.reshape(1, task.dim_data)


def _sampling_seed(seed: int | None, x_o: Tensor) -> int | None:
    """Return a seed of the samples, which no other observation shares."""
    if seed is None:
        return None
    text = f"{seed} {x_o.tolist()}"
    return int(hashlib.sha256(text.encode()).hexdigest()[:8], 16)
