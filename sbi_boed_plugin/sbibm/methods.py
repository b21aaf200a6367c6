"""sbi's methods and ours as sbibm calls its algorithms, side by side.

Each takes a task, numbers of samples and simulations, and an observation or its number,
and returns samples, the number of simulations, and the log-density of the true
parameters where it is known. With the same seed all methods see the same simulations.
"""

import contextlib
import hashlib
import io
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Distribution, TransformedDistribution, biject_to
from torch.distributions.transforms import IndependentTransform, identity_transform

from sbi_boed_plugin._numbers import check_integer
from sbi_boed_plugin._rng import isolated_rng
from sbi_boed_plugin._sbi_compat import NoOpTracker
from sbi_boed_plugin.posteriors.hybrid_posterior import HybridPosterior
from sbi_boed_plugin.sbibm._cache import kept_or_made, training_key
from sbi_boed_plugin.sbibm.settings import RECIPES, check_hyper, posterior_arguments

__all__ = [
    "METHODS",
    "RunOutcome",
    "nle",
    "nle_ince",
    "npe",
    "npe_gkl",
    "nre",
    "nre_gkl",
    "run_method",
]

# The others have a likelihood or ratio, from which no density is normalized.
_NORMALIZED = ("npe", "npe_gkl")
_TRAINS_WITH = {
    *("training_batch_size", "max_num_epochs", "num_atoms", "num_contrastive"),
    *("regularization_strength", "training", "energy", "schedule"),
}


@dataclass(frozen=True)
class RunOutcome:
    """Samples of a posterior, and what they cost.

    The log-density of the true parameters is in nats, of shape `(1,)`, and `None` where
    the observation is not one of the task or the method has no normalized density.
    `training_seconds` are those of simulations and training, also if an earlier call
    spent them; `diagnostics` are what the method says of itself.
    """

    samples: Tensor
    num_simulations: int
    log_prob_true_parameters: Tensor | None
    training_seconds: float
    sampling_seconds: float
    from_cache: bool
    diagnostics: dict[str, float] = field(default_factory=dict)


def run_method(
    name: str,
    task: Any,
    num_samples: int,
    num_simulations: int,
    num_observation: int | None = None,
    observation: Tensor | None = None,
    **hyper: Any,
) -> RunOutcome:
    """Run a method by its name, and tell training from sampling.

    Args:
        name: One of `METHODS`.
        task: A task of sbibm, or like one of them.
        num_samples: Number of posterior samples.
        num_simulations: Number of simulations of all rounds together.
        num_observation: Number of one of the task's observations.
        observation: Or an observation of shape `(1, dim_data)`.
        **hyper: What the method has of `num_rounds`; `neural_net`, `hidden_features`,
            `z_score_x` and `z_score_theta` of sbi's networks; arguments of `train()`;
            `mcmc_method` and `mcmc_parameters` of sbi's; `simulation_batch_size`;
            `automatic_transforms_enabled`, whether networks see parameters without
            bounds, such as logarithms of positive ones; `seed` of simulations, training
            and sampling; `cache`, a folder of pickles in which trainings are kept, so
            that the observations of a task share one (needs a seed); and `cache_tag`,
            any text: trainings with another one are not used again.

    Returns:
        Samples of shape `(num_samples, dim_parameters)`, and what they cost.

    Raises:
        ValueError: If there is no such method, not exactly one observation is given or
            it does not match the task, a number is too small, or a cache has no seed
            or, for a task of your own, no tag.
        TypeError: If a hyperparameter is unknown.
    """
    settings = check_hyper(name, **hyper)
    check_integer("num_samples", num_samples, 1)
    least = settings["num_rounds"]
    remedy = f"One per round of num_rounds={least} is the least."
    check_integer("num_simulations", num_simulations, least, remedy=remedy)
    x_o = _observation(task, num_observation, observation)
    prior = task.get_prior_dist()
    transform: Any = IndependentTransform(identity_transform, 1)
    if settings["automatic_transforms_enabled"]:
        transform = biject_to(prior.support).inv
        prior = TransformedDistribution(prior, transform)

    def train() -> tuple[Any, int, float]:
        started = time.perf_counter()
        simulator = task.get_simulator(max_calls=num_simulations)
        with isolated_rng(settings["seed"]):
            estimator = _train(
                name, settings, simulator, prior, transform, num_simulations, x_o
            )
        return estimator, simulator.num_simulations, time.perf_counter() - started

    from_cache = False
    if settings["cache"] is None:
        trained = train()
    else:
        key = training_key(name, settings, task, num_simulations, x_o)
        trained, from_cache = kept_or_made(key, train, settings["cache"])
    estimator, num_used, training_seconds = trained

    sampling_seed = None
    if settings["seed"] is not None:
        # No other observation shares it.
        text = f"{settings['seed']} {x_o.tolist()}"
        sampling_seed = int(hashlib.sha256(text.encode()).hexdigest()[:8], 16)
    started = time.perf_counter()
    # The trainer is in here, too: sbi draws from priors to look at them.
    with isolated_rng(sampling_seed):
        trainer = _make_trainer(name, settings, prior)
        posterior = trainer.build_posterior(estimator, **posterior_arguments(settings))
        drawn = posterior.sample((num_samples,), x=x_o, show_progress_bars=False)
        sampling_seconds = time.perf_counter() - started
        log_prob = None
        if name in _NORMALIZED and num_observation is not None:
            truth = task.get_true_parameters(num_observation)
            log_prob = _log_prob(posterior, truth, x_o, transform)
        is_hybrid = isinstance(posterior, HybridPosterior)
        diagnostics = asdict(posterior.diagnostics(x_o)) if is_hybrid else {}
    return RunOutcome(
        samples=transform.inv(drawn.detach()),
        num_simulations=num_used,
        log_prob_true_parameters=log_prob,
        training_seconds=training_seconds,
        sampling_seconds=sampling_seconds,
        from_cache=from_cache,
        diagnostics={
            name: float(value)
            for name, value in diagnostics.items()
            if isinstance(value, Tensor) and value.numel() == 1
        },
    )


def _make_trainer(name: str, settings: Mapping[str, Any], prior: Distribution) -> Any:
    """Return a new trainer of a method, which keeps no logs."""
    trainer, network, _ = RECIPES[name]
    builder = network(
        settings["neural_net"],
        hidden_features=settings["hidden_features"],
        z_score_x=settings["z_score_x"],
        z_score_theta=settings["z_score_theta"],
    )
    return trainer(prior, builder, tracker=NoOpTracker(), show_progress_bars=False)


def _train(
    name: str,
    settings: Mapping[str, Any],
    simulator: Any,
    prior: Distribution,
    transform: Any,
    num_simulations: int,
    x_o: Tensor,
) -> Any:
    """Simulate and train, round after round, and return the estimator."""
    trainer = _make_trainer(name, settings, prior)
    posterior: Any = None
    estimator: Any = None
    # sbi's own trainers print how each training ends.
    with contextlib.redirect_stdout(io.StringIO()):
        for number in range(settings["num_rounds"]):
            # Rounds of the same size, the first ones taking what is left over.
            size, rest = divmod(num_simulations, settings["num_rounds"])
            size += number < rest
            if number == 0:
                theta = prior.sample(torch.Size((size,)))
            else:
                posterior = trainer.build_posterior(
                    estimator, **posterior_arguments(settings)
                )
                posterior.set_default_x(x_o)
                theta = posterior.sample((size,), show_progress_bars=False).detach()
            batches = transform.inv(theta).split(settings["simulation_batch_size"])
            x = torch.cat([simulator(batch) for batch in batches])
            if name in _NORMALIZED:
                trainer.append_simulations(theta, x, proposal=posterior)
            else:
                trainer.append_simulations(theta, x, from_round=number)
            arguments = {key: settings[key] for key in settings if key in _TRAINS_WITH}
            estimator = trainer.train(**arguments)
    return estimator


def _log_prob(posterior: Any, truth: Tensor, x_o: Tensor, transform: Any) -> Tensor:
    """Return the log-density of parameters in their own units."""
    moved = transform(truth)
    density = posterior.log_prob(moved, x=x_o).detach()
    return density + transform.log_abs_det_jacobian(truth, moved)


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
        most = task.num_observations
        return task.get_observation(
            check_integer("num_observation", num_observation, 1, most)
        )
    if observation.numel() != task.dim_data:
        raise ValueError(
            f"observation has shape {tuple(observation.shape)}, but data of task "
            f"'{task.name}' have shape (1, {task.dim_data})."
        )
    return observation.reshape(1, task.dim_data)


def _run_function(name: str) -> Callable[..., tuple[Tensor, int, Tensor | None]]:
    """Return the function of a method that sbibm's runner calls."""

    def run_on_task(
        task: Any, num_samples: int, num_simulations: int, *args: Any, **hyper: Any
    ) -> tuple[Tensor, int, Tensor | None]:
        run = run_method(name, task, num_samples, num_simulations, *args, **hyper)
        return run.samples, run.num_simulations, run.log_prob_true_parameters

    # It is pickled under the name that it gets in this module.
    run_on_task.__name__ = run_on_task.__qualname__ = name
    run_on_task.__doc__ = f"""Run the method `{name}` on a task of sbibm.

    Arguments and errors are those of `run_method`, its hyperparameters
    {", ".join(RECIPES[name].defaults)}.

    It returns samples of shape `(num_samples, dim_parameters)`, the number of
    simulations, and the log-density in nats of the true parameters: `None` where an
    observation has no number, and for all methods but `npe` and `npe_gkl`.
    """
    return run_on_task


METHODS = {name: _run_function(name) for name in RECIPES}
nle, nle_ince, npe, npe_gkl, nre, nre_gkl = METHODS.values()
