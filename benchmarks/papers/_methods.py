"""Ways to choose designs and to train a likelihood, compared at equal simulations."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.distributions import Independent, Uniform

from sbi_boed_plugin._rng import isolated_rng
from sbi_boed_plugin.sequence import run_experiments
from sbi_boed_plugin.simulation import simulate_for_boed
from sbi_boed_plugin.tasks.task import Task
from sbi_boed_plugin.trainers.nle_ince import NLE_INCE

__all__ = ["Method", "Settings", "Observer", "run_method"]


@dataclass(frozen=True)
class Method:
    """How designs are chosen and the likelihood is trained.

    Attributes:
        designs: `"search"`, `"random"` (uniform on the design space) or `"sobol"`.
        regularization_strength: Weight λ of maximum likelihood.
        objective: What a search climbs.
        num_contrastive: Number of contrastive parameters where nothing is searched
            for; 0 is NLE.
    """

    designs: Literal["search", "random", "sobol"]
    regularization_strength: float
    objective: Literal["info_nce", "barber_agakov"] = "info_nce"
    num_contrastive: int = 31


@dataclass(frozen=True)
class Settings:
    """What all methods share.

    Attributes:
        num_rounds: Number of experiments.
        num_steps: Number of training steps of each search.
        num_refinement_steps: Number of further steps at the design found.
        batch_size: Number of simulations of a step.
        num_eig_samples: Number of simulations that score a design.
        num_eig_contrastive: Number of contrastive parameters of each of them.
        clip_max_norm: Value at which to clip gradients.
    """

    num_rounds: int
    num_steps: int
    batch_size: int = 256
    num_eig_samples: int = 4_000
    num_eig_contrastive: int = 511
    clip_max_norm: float | None = 5.0
    num_refinement_steps: int = 0


class Observer:
    """The experiment: the simulator at the true parameters.

    The noise of each experiment follows from the seed and the number of the experiment
    alone: methods that choose the same designs see the same data.
    """

    def __init__(self, task: Task, seed: int, truth: Tensor | None = None) -> None:
        self.task = task
        self.seed = seed
        self.truth = task.true_parameters if truth is None else truth.reshape(1, -1)
        self.num_done = 0

    def __call__(self, design: Tensor) -> Tensor:
        """Return data of shape `(1, dim_x)` of the next experiment."""
        with isolated_rng(1_000_003 * (self.seed + 1) + self.num_done):
            self.num_done += 1
            return self.task.simulator(self.truth, design.reshape(1, -1))


def run_method(
    inference: NLE_INCE, task: Task, method: Method, settings: Settings, seed: int
) -> tuple[list[float], int]:
    """Run a sequence of experiments, which `inference` has observed afterwards.

    Args:
        inference: New trainer with a policy.
        task: Simulator with true parameters.
        method: How to choose designs and to train.
        settings: What all methods share.
        seed: Seed of training, given designs and data.

    Returns:
        The information that was reported for each experiment beforehand, in nats, and
        the number of simulations.
    """
    if method.designs == "search":
        result = run_experiments(
            inference,
            task.simulator,
            Observer(task, seed),
            settings.num_rounds,
            seed=seed,
            show_progress_bar=False,
            num_steps=settings.num_steps,
            num_refinement_steps=settings.num_refinement_steps,
            training_batch_size=settings.batch_size,
            objective=method.objective,
            clip_max_norm=settings.clip_max_norm,
            regularization_strength=method.regularization_strength,
            num_eig_samples=settings.num_eig_samples,
            num_eig_contrastive=settings.num_eig_contrastive,
        )
        return [r.eig.value for r in result.records], result.num_simulations
    with isolated_rng(seed):
        return _run_given(inference, task, method, settings, seed)


def _run_given(
    inference: NLE_INCE, task: Task, method: Method, settings: Settings, seed: int
) -> tuple[list[float], int]:
    """Train once for all designs, and experiment at given ones."""
    num_steps = settings.num_steps + settings.num_refinement_steps
    num_stored = settings.num_rounds * num_steps * settings.batch_size
    theta, design, x = simulate_for_boed(
        task.simulator,
        task.prior,
        Independent(Uniform(task.design_low, task.design_high), 1),
        num_stored,
        show_progress_bar=False,
    )
    inference.append_simulations(theta, x, design=design)
    # One pass at each rate: as much training as the searches, whose rate falls too.
    for learning_rate in (5e-3, 1e-3, 2e-4):
        inference.train(
            training_batch_size=settings.batch_size,
            learning_rate=learning_rate,
            max_num_epochs=1,
            clip_max_norm=settings.clip_max_norm,
            num_contrastive=method.num_contrastive,
            regularization_strength=method.regularization_strength,
        )
    observe, eigs = Observer(task, seed), []
    for design in _given_designs(task, method.designs, settings.num_rounds, seed):
        estimate = inference.estimate_eig(
            task.simulator,
            design,
            num_samples=settings.num_eig_samples,
            num_contrastive=settings.num_eig_contrastive,
        )
        eigs.append(estimate.value)
        inference.observe(design, observe(design))
    scoring = settings.num_rounds * settings.num_eig_samples
    return eigs, num_stored + scoring


def _given_designs(task: Task, kind: str, num_designs: int, seed: int) -> Tensor:
    """Return designs that depend on the seed alone."""
    if kind == "sobol":
        engine = torch.quasirandom.SobolEngine(
            task.dim_design, scramble=True, seed=seed
        )
        unit = engine.draw(num_designs)
    else:
        generator = torch.Generator().manual_seed(1_000 + seed)
        unit = torch.rand(num_designs, task.dim_design, generator=generator)
    return task.design_low + unit * (task.design_high - task.design_low)
