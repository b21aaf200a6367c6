"""Compare settings of the InfoNCE-λ objective with NLE on stored simulations.

For each task, seed and setting: train on the same simulations, draw from the posterior
of sbibm's observations, and measure C2ST against the reference posterior (sbi's
random-forest C2ST, not sbibm's) and the held-out log-likelihood on new simulations.

    make reproduce NAME=objective-defaults
"""

import time
from collections.abc import Sequence

import sbibm
import torch
from sbi.inference import NLE
from sbi.inference.posteriors.posterior_parameters import MCMCPosteriorParameters
from sbi.neural_nets import likelihood_nn
from sbi.utils.metrics import c2st

from benchmarks.study import Job, Row, Study, averages
from sbi_boed_plugin import NLE_INCE

MODELS = {"two_moons": "nsf", "slcp": "maf"}
# Name: (num_contrastive, regularization_strength); None is sbi's NLE.
SETTINGS = {
    "nle": None,
    "ince L=15 λ=1": (15, 1.0),
    "ince L=15 λ=10": (15, 10.0),
    "ince L=3 λ=1": (3, 1.0),
    "ince L=3 λ=10": (3, 10.0),
}


def jobs(num_seeds: int, quick: bool) -> list[Job]:
    """Return one job for each seed, task and setting."""
    return [
        {"task": task, "num_simulations": 1_000, "seed": seed, "setting": setting}
        for seed in range(num_seeds)
        for task in MODELS
        for setting in (list(SETTINGS)[:2] if quick else SETTINGS)
    ]


def run(job: Job, quick: bool) -> Row:
    """Train one setting and judge it."""
    task_name, num_simulations = job["task"], job["num_simulations"]
    seed, setting = job["seed"], job["setting"]
    torch.manual_seed(seed)
    task = sbibm.get_task(task_name)
    prior, simulator = task.get_prior_dist(), task.get_simulator()
    theta = prior.sample((num_simulations,))
    x = simulator(theta)
    held_out_theta = prior.sample((5_000,))
    held_out_x = simulator(held_out_theta)

    torch.manual_seed(seed)
    started = time.perf_counter()
    model = MODELS[task_name]
    build = likelihood_nn(model)
    if SETTINGS[setting] is None:
        inference = NLE(prior, build, show_progress_bars=False)
        train_kwargs = {}
    else:
        inference = NLE_INCE(prior, build, show_progress_bars=False)
        num_contrastive, strength = SETTINGS[setting]
        train_kwargs = {
            "num_contrastive": num_contrastive,
            "regularization_strength": strength,
        }
    estimator = inference.append_simulations(theta, x).train(**train_kwargs)
    seconds = time.perf_counter() - started
    with torch.no_grad():
        held_out = -estimator.loss(held_out_x, held_out_theta).mean().item()
    scores = []
    for num_observation in (1, 2, 3):
        samples = sample_posterior(inference, task.get_observation(num_observation))
        reference = task.get_reference_posterior_samples(num_observation)[:1_000]
        scores.append(c2st(samples, reference, seed=0).item())
    return {
        "model": model,
        "c2st": sum(scores) / len(scores),
        "held_out_log_likelihood": held_out,
        "epochs": inference.summary["epochs_trained"][-1],
        "training_seconds": seconds,
    }


def sample_posterior(inference: NLE, x_o: torch.Tensor) -> torch.Tensor:
    """Return 1,000 posterior samples.

    With two parameters by rejection from the prior, which is exact up to the largest
    weight of so many draws; else by slice sampling with 100 chains.
    """
    prior = inference._prior
    if prior.event_shape[0] > 2:
        parameters = MCMCPosteriorParameters(
            method="slice_np_vectorized", num_chains=100, thin=2, warmup_steps=100
        )
        posterior = inference.build_posterior(posterior_parameters=parameters)
        return posterior.sample((1_000,), x=x_o, show_progress_bars=False)
    posterior = inference.build_posterior(sample_with="rejection")
    theta = prior.sample((600_000,))
    with torch.no_grad():
        log_weights = posterior.potential(theta, x=x_o) - prior.log_prob(theta)
    accepted = theta[torch.rand(len(theta)).log() < log_weights - log_weights.max()]
    if len(accepted) < 1_000:
        raise RuntimeError(f"Only {len(accepted)} draws from the prior were accepted.")
    return accepted[:1_000]


def summary(rows: Sequence[Row]) -> list[Row]:
    """Return means over seeds of each task and setting."""
    values = ["c2st", "held_out_log_likelihood", "training_seconds"]
    return averages(rows, by=["task", "setting"], values=values)


STUDY = Study(
    name="objective-defaults",
    title="Settings of the InfoNCE-λ objective against NLE on stored simulations",
    jobs=jobs,
    run=run,
    summary=summary,
    num_seeds=3,
)
