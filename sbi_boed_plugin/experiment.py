"""The stages of a designed experiment: find the design, measure there, infer.

They are what `sbi-boed design` runs one after another. Each stage is a function of a
:class:`~sbi_boed_plugin.tasks.Task` and of what the stage before it returned, so that
a script can stop between them, save, or replace one.
"""

import warnings
from collections.abc import Sequence
from typing import Any

import torch
from sbi.inference.posteriors.posterior_parameters import MCMCPosteriorParameters
from sbi.neural_nets.estimators import ConditionalDensityEstimator
from torch import Tensor

from sbi_boed_plugin.design.config import DesignResult
from sbi_boed_plugin.design.policies import TruncatedNormalPolicy
from sbi_boed_plugin.estimators.transformed import transformed_likelihood_nn
from sbi_boed_plugin.objectives.eig import EIGEstimate, estimate_eig
from sbi_boed_plugin.tasks.sir import SIR
from sbi_boed_plugin.tasks.sir_reference import brute_force_eig
from sbi_boed_plugin.tasks.task import Task
from sbi_boed_plugin.trainers.nle_ince import NLE_INCE

__all__ = [
    "NoOpTracker",
    "design_grid",
    "eig_over_designs",
    "find_design",
    "infer_parameters",
    "make_trainer",
    "measure",
    "reference_eig",
]

# 20 chains advance in one batch; 50 steps let them forget where they started.
_MCMC = MCMCPosteriorParameters(
    method="slice_np_vectorized", num_chains=20, warmup_steps=50, thin=1
)


class NoOpTracker:
    """Satisfies `sbi.sbi_types.Tracker` and keeps nothing.

    Without a tracker sbi's trainers write a folder `sbi-logs/` to the working
    directory.
    """

    log_dir: str | None = None

    def log_metric(self, name: str, value: float, step: int | None = None) -> None:
        """Ignore a number."""

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Ignore numbers."""

    def log_params(self, params: dict[str, Any]) -> None:
        """Ignore settings."""

    def add_figure(self, name: str, figure: Any, step: int | None = None) -> None:
        """Ignore a figure."""

    def flush(self) -> None:
        """Do nothing."""


def make_trainer(
    task: Task,
    *,
    density_estimator: str | None = None,
    show_progress_bars: bool = True,
) -> NLE_INCE:
    """Return a trainer for a task, in the coordinates that suit it.

    Args:
        task: Simulator, prior and design space.
        density_estimator: Name of a model of `sbi.neural_nets.likelihood_nn`. If
            `None`, `"mdn"` for one measurement, where autoregressive flows are mere
            Gaussians and splines slow to become as narrow as the noise, and `"maf"`
            for several.
        show_progress_bars: Whether training shows a progress bar.

    Returns:
        Trainer with a policy over the design space, and without files of its own.
    """
    if density_estimator is None:
        density_estimator = "mdn" if task.dim_x == 1 else "maf"
    builder = transformed_likelihood_nn(
        density_estimator,
        dim_design=task.dim_design,
        x_transform=task.x_transform,
        theta_transform=task.theta_transform,
        design_transform=task.design_transform,
    )
    return NLE_INCE(
        task.prior,
        builder,
        tracker=NoOpTracker(),
        show_progress_bars=show_progress_bars,
        design_policy=TruncatedNormalPolicy(task.design_low, task.design_high),
    )


def find_design(
    trainer: NLE_INCE,
    task: Task,
    *,
    num_steps: int | None = None,
    max_seconds: float | None = None,
) -> DesignResult:
    """Optimize the design with the defaults of `NLE_INCE.optimize_design`.

    Args:
        trainer: What :func:`make_trainer` returned.
        task: Simulator to learn from.
        num_steps: Number of steps; the default of the trainer if `None`.
        max_seconds: Time in seconds after which no further step is started.

    Returns:
        The design with its expected information gain, the policy, and the history.
    """
    steps = {} if num_steps is None else {"num_steps": num_steps}
    return trainer.optimize_design(task.simulator, max_seconds=max_seconds, **steps)


def measure(task: Task, design: Tensor) -> Tensor:
    """Simulate one experiment at the true parameters.

    Args:
        task: Simulator with its true parameters.
        design: Design of shape `(dim_design,)`.

    Returns:
        Observation of shape `(1, dim_x)`.
    """
    return task.simulator(task.true_parameters, design.unsqueeze(0))


def infer_parameters(
    trainer: NLE_INCE,
    design: Tensor,
    x_o: Tensor,
    *,
    num_samples: int = 1_000,
    show_progress_bars: bool = True,
) -> Tensor:
    """Draw from the posterior of the parameters by Markov chain Monte Carlo.

    Args:
        trainer: Trainer with a likelihood.
        design: Design at which was measured, of shape `(dim_design,)`.
        x_o: Observation of shape `(1, dim_x)`.
        num_samples: Number of samples.
        show_progress_bars: Whether to show the progress of the chains.

    Returns:
        Samples of shape `(num_samples, dim_theta)`.
    """
    posterior = trainer.build_posterior(design=design, posterior_parameters=_MCMC)
    return posterior.sample(
        torch.Size((num_samples,)), x=x_o, show_progress_bars=show_progress_bars
    )


def eig_over_designs(
    likelihood_estimator: ConditionalDensityEstimator,
    task: Task,
    designs: Tensor,
    *,
    num_samples: int = 300,
    num_contrastive: int = 255,
    seed: int = 0,
) -> list[EIGEstimate]:
    """Estimate the expected information gain of several designs.

    All designs share the random numbers of `seed`: their differences are more
    accurate than the values. The global random state is left as it was.

    Args:
        likelihood_estimator: Likelihood conditioned on `(theta, design)`.
        task: Simulator and prior.
        designs: Designs of shape `(num_designs, dim_design)`.
        num_samples: Number of simulations of each design.
        num_contrastive: Number of contrastive parameters of each simulation.
        seed: Seed of the simulations.

    Returns:
        One lower bound per design. It can be negative where the policy hardly ever
        was, because the likelihood was not trained there.
    """
    with warnings.catch_warnings():
        # The same remarks for many designs tell less than the values themselves.
        warnings.filterwarnings("ignore", "The estimate", UserWarning)
        return [
            estimate_eig(
                likelihood_estimator,
                task.simulator,
                prior=task.prior,
                design=design,
                num_samples=num_samples,
                num_contrastive=num_contrastive,
                seed=seed,
            )
            for design in designs
        ]


def reference_eig(task: Task, designs: Tensor) -> Sequence[tuple[float, float]] | None:
    """Return what the information gain really is, where that can be computed.

    No learned likelihood is involved: the value is exact where the task has an exact
    answer, and for one count of the SIR model comes from brute-force simulation.

    Args:
        task: Task with or without known answers.
        designs: Designs of shape `(num_designs, dim_design)`.

    Returns:
        Value and standard error for each design, in nats, or `None`.

    Example:
        >>> from sbi_boed_plugin.tasks.gaussian_linear import GaussianLinear
        >>> ((value, error),) = reference_eig(GaussianLinear(), torch.zeros(1, 1))
        >>> round(value, 3), error
        (1.151, 0.0)
    """
    if task.has_exact_eig:
        return [task.exact_eig(design) for design in designs]
    if isinstance(task, SIR) and task.dim_design == 1:
        # Enough for a standard error of about 0.01 nats, in a few seconds.
        brute_force = brute_force_eig(
            designs[:, 0], num_parameters=256, num_trajectories=2_048, num_replicates=4
        )
        values, errors = brute_force.eig, brute_force.standard_error
        return list(zip(values.tolist(), errors.tolist(), strict=True))
    return None


def design_grid(task: Task, num_designs: int = 21) -> Tensor:
    """Return evenly spaced designs over the range of a one-dimensional design.

    Args:
        task: Task with `dim_design` of 1.
        num_designs: Number of designs.

    Returns:
        Designs of shape `(num_designs, 1)`.
    """
    low, high = task.design_low.item(), task.design_high.item()
    return torch.linspace(low, high, num_designs).unsqueeze(1)
