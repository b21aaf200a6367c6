"""Adaptive experiments with a likelihood that is trained once, judged by true bounds.

A *group* of experiments shares the training of one likelihood over a distribution of
designs. For each experiment a truth is drawn from the prior; designs are then chosen
one after the other by a multi-start search, or drawn at random, and the total
information is bounded with the true likelihood, whatever was learned.
"""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks.evaluation import total_information
from benchmarks.papers._methods import Observer
from sbi_boed_plugin.search.multi_start import MultiStartConfig
from sbi_boed_plugin.tasks.task import Task
from sbi_boed_plugin.trainers.nle_ince import NLE_INCE

__all__ = ["QUICK", "AmortisedSettings", "run_group", "run_random"]


@dataclass(frozen=True)
class AmortisedSettings:
    """How to train once and experiment often.

    Attributes:
        num_experiments: Number of truths of a group.
        num_rounds: Number of designs of each.
        num_steps: Number of training steps.
        batch_size: Number of simulations of a step.
        learning_rate: Learning rate, which falls to a hundredth.
        num_particles: Number of particles of the belief.
        num_contrastive: Number of contrastive draws of the bounds.
        search: Settings of each search.
    """

    num_experiments: int = 10
    num_rounds: int = 10
    num_steps: int = 2_000
    batch_size: int = 1_024
    learning_rate: float = 2e-3
    num_particles: int = 2_048
    num_contrastive: int = 10**6
    search: MultiStartConfig = MultiStartConfig(
        num_starts=64,
        num_samples=32,
        num_climb_steps=36,
        num_candidates=2,
        num_candidate_samples=256,
    )


QUICK = AmortisedSettings(
    num_experiments=2,
    num_rounds=2,
    num_steps=30,
    batch_size=256,
    num_particles=512,
    num_contrastive=10_000,
    search=MultiStartConfig(
        num_starts=16,
        num_climb_steps=6,
        num_candidates=2,
        num_candidate_samples=50,
    ),
)


def run_group(
    task: Task,
    make_inference: Callable[[], NLE_INCE],
    settings: AmortisedSettings,
    seed: int,
) -> dict[str, float | str]:
    """Train a likelihood, and run experiments whose designs are searched for.

    Args:
        task: Simulator with its true likelihood, which only the measures use.
        make_inference: Function that returns a new trainer with a policy.
        settings: Sizes.
        seed: Seed of training, truths, data and searches.

    Returns:
        Mean bounds over the experiments and the bounds of each [nats],
        `"kl_prior"` and `"kl_chosen"`, the divergence of the learned from the true
        likelihood at designs of the policy and at those that were chosen, given what
        was known then, and times on one core.
    """
    torch.manual_seed(seed)
    started = time.process_time()
    inference = make_inference()
    policy = inference.design_policy
    assert policy is not None
    _train(inference, task, settings)
    num_held_out = 20_000
    theta = task.prior.sample(torch.Size((num_held_out,)))
    kl_prior = _divergence(
        inference, task, theta, policy.sample(torch.Size((num_held_out,)))
    )
    training_seconds = time.process_time() - started
    divergences: list[float] = []
    bounds = []
    for truth in _truths(task, settings, seed):
        one = _fresh(inference, make_inference)
        measure = Observer(task, int(torch.randint(2**31, (1,))), truth)
        for _ in range(settings.num_rounds):
            result = one.optimize_design(
                task.simulator,
                method="multi_start",
                objective="info_nce",
                num_steps=0 if one.belief is None else None,
                multi_start=settings.search,
                num_eig_samples=2,
                num_eig_contrastive=1,
            )
            known = one.belief or task.prior
            theta = known.sample(torch.Size((1_000,)))
            rows = result.design.expand(len(theta), -1)
            divergences.append(_divergence(one, task, theta, rows))
            one.observe(
                result.design,
                measure(result.design),
                num_particles=settings.num_particles,
            )
        designs = torch.stack([o.design for o in one.observations])
        x = torch.cat([o.x for o in one.observations])
        bounds.append(_bounds(task, truth, designs, x, settings, seed))
    total_seconds = time.process_time() - started
    return {
        **_means(bounds),
        "kl_prior": round(kl_prior, 5),
        "kl_chosen": round(statistics.fmean(divergences), 5),
        "training_seconds": round(training_seconds, 1),
        "cpu_seconds": round(total_seconds, 1),
    }


def run_random(
    task: Task,
    draw_designs: Callable[[int], Tensor],
    settings: AmortisedSettings,
    seed: int,
) -> dict[str, float | str]:
    """Run experiments with random designs, for the same truths as `run_group`.

    Args:
        task: Simulator with its true likelihood.
        draw_designs: Function from a number to as many designs,
            `(num, dim_design)`.
        settings: Sizes.
        seed: Seed of truths, designs and data.

    Returns:
        The columns of `run_group`, empty where nothing was learned.
    """
    torch.manual_seed(seed)
    started = time.process_time()
    bounds = []
    for truth in _truths(task, settings, seed):
        designs = draw_designs(settings.num_rounds)
        measure = Observer(task, int(torch.randint(2**31, (1,))), truth)
        x = torch.cat([measure(design) for design in designs])
        bounds.append(_bounds(task, truth, designs, x, settings, seed))
    return {
        **_means(bounds),
        "kl_prior": "",
        "kl_chosen": "",
        "training_seconds": "",
        "cpu_seconds": round(time.process_time() - started, 1),
    }


def _train(inference: NLE_INCE, task: Task, settings: AmortisedSettings) -> None:
    """Train over all designs of the policy; the search that follows is thrown away."""
    inference.optimize_design(
        task.simulator,
        method="multi_start",
        objective="info_nce",
        num_steps=settings.num_steps,
        training_batch_size=settings.batch_size,
        num_contrastive=3,
        regularization_strength=1.0,
        learning_rate=settings.learning_rate,
        num_eig_samples=2,
        num_eig_contrastive=1,
        multi_start=MultiStartConfig(
            num_starts=1, num_climb_steps=0, num_candidates=1, num_candidate_samples=2
        ),
    )


def _fresh(trained: NLE_INCE, make_inference: Callable[[], NLE_INCE]) -> NLE_INCE:
    """Return a trainer with the same likelihood that has observed nothing."""
    other = make_inference()
    other._neural_net = trained._neural_net
    other.search.dim_design = trained.search.dim_design
    return other


def _truths(task: Task, settings: AmortisedSettings, seed: int) -> Tensor:
    """Return parameters of shape `(num_experiments, dim_theta)`, the seed's own."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(10_000 + seed)
        return task.prior.sample(torch.Size((settings.num_experiments,)))


@torch.no_grad()
def _divergence(
    inference: NLE_INCE, task: Task, theta: Tensor, design: Tensor
) -> float:
    """Return KL(true likelihood || learned likelihood) by simulation, in nats."""
    likelihood = inference._neural_net
    assert likelihood is not None
    x = task.simulator(theta, design)
    learned = likelihood.log_prob(x.unsqueeze(0), torch.cat([theta, design], dim=1))
    return float((task.log_likelihood(x, theta, design) - learned[0]).mean())


def _bounds(
    task: Task,
    truth: Tensor,
    designs: Tensor,
    x: Tensor,
    settings: AmortisedSettings,
    seed: int,
) -> tuple[float, float]:
    return total_information(
        task.log_likelihood,
        task.prior,
        truth,
        designs,
        x,
        num_contrastive=settings.num_contrastive,
        seed=seed,
    )


def _means(bounds: list[tuple[float, float]]) -> dict[str, float | str]:
    """Return means over experiments and, for pooling, each experiment's values."""
    lower, upper = zip(*bounds, strict=True)
    return {
        "spce": round(statistics.fmean(lower), 4),
        "snmc": round(statistics.fmean(upper), 4),
        "spce_each": " ".join(f"{value:.4f}" for value in lower),
        "snmc_each": " ".join(f"{value:.4f}" for value in upper),
    }
