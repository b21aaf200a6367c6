"""Information of designs beside the one that was found."""

import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.distributions.transforms import ExpTransform

from sbi_boed_plugin.objectives.eig import Bound, EIGEstimate, estimate_eig
from sbi_boed_plugin.tasks._gaussian import GridTask
from sbi_boed_plugin.tasks.sir import SIR
from sbi_boed_plugin.tasks.sir_reference import brute_force_eig
from sbi_boed_plugin.tasks.task import Task

__all__ = ["design_grid", "eig_over_designs", "has_log_designs", "reference_eig"]

_GRID_SIZES = {1: 21, 2: 15}
# More designs than this make do with fewer parameters each, for an error that is
# still far below that of any learned estimate.
_MANY_DESIGNS = 50


def eig_over_designs(
    estimator: Any,
    task: Task,
    designs: Tensor,
    *,
    bound: Bound = "pce",
    num_samples: int | None = None,
    num_contrastive: int = 255,
    num_workers: int = 1,
    seed: int = 0,
) -> list[EIGEstimate]:
    """Estimate the expected information gain of several designs.

    All designs share the random numbers of `seed`: their differences are more
    accurate than the values. The global random state is left as it was.

    Args:
        estimator: What `bound` needs: a likelihood conditioned on `(theta, design)`,
            or a posterior conditioned on `(x, design)`.
        task: Simulator and prior.
        designs: Designs of shape `(num_designs, dim_design)`.
        bound: Which estimate of :func:`~sbi_boed_plugin.estimate_eig`.
        num_samples: Number of simulations of each design. If `None`, 1,000 for the
            Barber-Agakov bound, which contrasts them with nothing, and 300 for others.
        num_contrastive: Number of contrastive parameters of each simulation.
        num_workers: Number of processes that simulate.
        seed: Seed of the simulations.

    Returns:
        One estimate per design. A lower bound can be negative where the policy hardly
        ever was, because the estimator was not trained there.
    """
    if num_samples is None:
        num_samples = 1_000 if bound == "barber_agakov" else 300
    with warnings.catch_warnings():
        # The same remarks for many designs tell less than the values themselves.
        warnings.filterwarnings("ignore", "The estimate", UserWarning)
        return [
            estimate_eig(
                estimator,
                task.simulator,
                prior=task.prior,
                design=design,
                bound=bound,
                num_samples=num_samples,
                num_contrastive=num_contrastive,
                num_workers=num_workers,
                seed=seed,
            )
            for design in designs
        ]


def reference_eig(task: Task, designs: Tensor) -> Sequence[tuple[float, float]] | None:
    """Return what the information gain really is, where that can be computed.

    No learned estimator is involved: the value is exact where the task has an exact
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
    if task.has_exact_eig and isinstance(task, GridTask):
        num_samples = 2_048 if len(designs) > _MANY_DESIGNS else 8_192
        values, errors = task.exact_eig_grid(designs, num_samples=num_samples)
    elif task.has_exact_eig:
        return [task.exact_eig(design) for design in designs]
    elif isinstance(task, SIR) and task.dim_design == 1:
        # Enough for a standard error of about 0.01 nats, in a few seconds.
        brute_force = brute_force_eig(
            designs[:, 0], num_parameters=256, num_trajectories=2_048, num_replicates=4
        )
        values, errors = brute_force.eig, brute_force.standard_error
    else:
        return None
    return list(zip(values.tolist(), errors.tolist(), strict=True))


def design_grid(task: Task, num_designs: int | None = None) -> Tensor:
    """Return designs that cover a design space of one or two dimensions.

    They are evenly spaced in the coordinates of the task's `design_transform`:
    geometrically where designs span decades.

    Args:
        task: Task with `dim_design` of 1 or 2.
        num_designs: Number of values along each dimension; 21 or, for pairs, 15 if
            `None`.

    Returns:
        Designs of shape `(num_designs, 1)`, or all pairs `(num_designs**2, 2)`.

    Raises:
        ValueError: If designs have more than two values.

    Example:
        >>> from sbi_boed_plugin.tasks import get_task
        >>> [f"{design.item():.0e}" for design in design_grid(get_task("bmp"), 4)]
        ['1e-06', '1e-03', '1e+00', '1e+03']
        >>> design_grid(get_task("location_finding"), 5).shape
        torch.Size([25, 2])
    """
    if task.dim_design not in _GRID_SIZES:
        raise ValueError(
            f"Task {task.name!r} has {task.dim_design} design values: a grid is for "
            "one or two."
        )
    num = num_designs or _GRID_SIZES[task.dim_design]
    ends = torch.stack([task.design_low, task.design_high])
    transform = task.design_transform
    low, high = torch.as_tensor(transform(ends))
    part = torch.linspace(0.0, 1.0, num).unsqueeze(1)
    values = torch.as_tensor(transform.inv(low + part * (high - low)))
    # What rounding leaves outside is brought back.
    values = values.clamp(task.design_low, task.design_high)
    return values if task.dim_design == 1 else torch.cartesian_prod(*values.unbind(1))


def has_log_designs(task: Task) -> bool:
    """Return whether the task takes designs as logarithms, since they span decades.

    Example:
        >>> from sbi_boed_plugin.tasks import get_task
        >>> has_log_designs(get_task("bmp")), has_log_designs(get_task("sir"))
        (True, False)
    """
    return isinstance(task.design_transform.inv, ExpTransform)
