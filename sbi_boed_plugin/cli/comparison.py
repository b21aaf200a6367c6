"""The information of designs beside the one that `sbi-boed design` found."""

import warnings

import torch
from torch import Tensor
from torch.distributions.transforms import ExpTransform

from sbi_boed_plugin.objectives.eig import EIGEstimate, estimate_eig
from sbi_boed_plugin.search.result import DesignResult
from sbi_boed_plugin.tasks import SIR, Task, brute_force_eig
from sbi_boed_plugin.tasks._gaussian import GridTask

__all__ = ["design_grid", "eig_over_designs", "has_log_designs", "reference_eig"]

_GRID_SIZES = {1: 21, 2: 15}
# More designs than this make do with fewer parameters each, for an error that is
# still far below that of any learned estimate.
_MANY_DESIGNS = 50


def eig_over_designs(
    result: DesignResult, task: Task, designs: Tensor, num_workers: int = 1
) -> list[EIGEstimate]:
    """Return the same estimate as that of the design found, to compare like with like.

    The designs, of shape `(num_designs, dim_design)`, share their random numbers:
    differences are more accurate than values. A lower bound is negative where the
    networks were not trained.
    """
    bound = result.eig.bound
    estimator, options = result.likelihood_estimator, {}
    if bound in ("barber_agakov", "gkl"):
        estimator = result.posterior_estimator
    elif bound == "lace":
        options["posterior_estimator"] = result.posterior_estimator
    # The Barber-Agakov bound contrasts its simulations with nothing.
    options["num_samples"] = 1_000 if bound == "barber_agakov" else 300
    with warnings.catch_warnings():
        # The same remarks for many designs tell less than the values themselves.
        warnings.filterwarnings("ignore", "The .*estimate", UserWarning)
        return [
            estimate_eig(
                estimator,
                task.simulator,
                prior=task.prior,
                design=design,
                bound=bound,
                num_contrastive=255,
                num_workers=num_workers,
                seed=0,
                **options,
            )
            for design in designs
        ]


def reference_eig(task: Task, designs: Tensor) -> list[tuple[float, float]] | None:
    """Return the information without learned networks and its standard error, in nats.

    It is exact where the task has an exact answer, and for one count of the SIR model
    comes from brute-force simulation. For other tasks it is `None`.
    """
    if task.has_exact_eig and isinstance(task, GridTask):
        num_samples = 2_048 if len(designs) > _MANY_DESIGNS else 8_192
        values, errors = task.exact_eig_grid(designs, num_samples=num_samples)
    elif task.has_exact_eig:
        return [task.exact_eig(design) for design in designs]
    elif isinstance(task, SIR) and task.dim_design == 1:
        # Enough for a standard error of about 0.01 nats, in a few seconds.
        values, errors = brute_force_eig(
            designs[:, 0], num_parameters=256, num_trajectories=2_048, num_replicates=4
        )
    else:
        return None
    return list(zip(values.tolist(), errors.tolist(), strict=True))


def design_grid(task: Task, num_designs: int | None = None) -> Tensor:
    """Return designs `(num, 1)`, or all pairs `(num**2, 2)`, that cover the space.

    They are evenly spaced in the coordinates of the task's `design_transform`:
    geometrically where designs span decades.
    """
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
    """Return whether the task takes designs as logarithms, since they span decades."""
    return isinstance(task.design_transform.inv, ExpTransform)
