"""Simulations to learn from, of parameters and designs drawn together."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Distribution

from sbi_boed_plugin._parallel import default_chunk_size
from sbi_boed_plugin._rng import isolated_rng
from sbi_boed_plugin._simulation import run_simulator
from sbi_boed_plugin.design.policy import DesignPolicy

__all__ = ["simulate_for_boed"]


def simulate_for_boed(
    simulator: Callable[[Tensor, Tensor], Tensor],
    prior: Distribution,
    design_policy: DesignPolicy | Distribution,
    num_simulations: int,
    num_workers: int | None = 1,
    *,
    simulation_batch_size: int | None = None,
    seed: int | None = None,
    show_progress_bar: bool = True,
) -> tuple[Tensor, Tensor, Tensor]:
    """Draw parameters and designs and simulate them, on several workers if asked.

    The counterpart of sbi's `simulate_for_sbi`. The same seed and
    `simulation_batch_size` give the same simulations with any number and any kind of
    workers. Those are processes of this machine, or whatever
    `joblib.parallel_config` says: around the call,
    `with joblib.parallel_config(backend="dask"):` hands the simulations to a cluster.

    Args:
        simulator: Function from `theta` of shape `(batch_dim, dim_theta)` and `design`
            of shape `(batch_dim, dim_design)` to `x` of shape `(batch_dim, dim_x)`.
            With several workers it has to be picklable, as functions, lambdas and most
            objects are, and gets tensors on the CPU. Rows for which it raises an
            `Exception` become NaN; it is called again with parts of the rows to find
            out which these are.
        prior: Distribution of the parameters.
        design_policy: Distribution of the designs, a design policy or one of torch's,
            with an event dimension.
        num_simulations: Number of simulations.
        num_workers: Number of workers. 1 means this process, -1 as many as there are
            cores, `None` the `n_jobs` of `joblib.parallel_config`. A dask cluster
            lends all of its workers to any number but 1. Threads take turns, because
            they share the random generators: give each process one thread.
        simulation_batch_size: Number of rows that `simulator` gets per call. If
            `None`, a sixteenth of `num_simulations`; smaller numbers share the work
            better among many workers.
        seed: Seed of everything that is drawn. The global random state is left as it
            was. If `None`, the global random state is used and advanced.
        show_progress_bar: Whether to show how many simulations are done.

    Returns:
        Parameters of shape `(num_simulations, dim_theta)`, designs of shape
        `(num_simulations, dim_design)` and data of shape `(num_simulations, dim_x)`,
        all in single precision, as sbi's networks need them. Simulations that failed
        are NaN in the data: `append_simulations(..., exclude_invalid_x=True)` leaves
        them out.

    Raises:
        TypeError: If `design_policy` cannot be sampled, or `simulator` returns no
            array of numbers or cannot be sent to the workers.
        ValueError: If an argument is out of range, or something has a wrong shape.
        Exception: What `simulator` raises, if it does so for every simulation.

    Example:
        >>> from sbi.utils import BoxUniform
        >>> def simulator(theta, design):
        ...     return theta * design + torch.randn_like(theta)
        >>> theta, design, x = simulate_for_boed(
        ...     simulator,
        ...     prior=BoxUniform(-torch.ones(2), torch.ones(2)),
        ...     design_policy=BoxUniform(torch.zeros(1), torch.ones(1)),
        ...     num_simulations=100,
        ...     seed=0,
        ...     show_progress_bar=False,
        ... )
        >>> theta.shape, design.shape, x.shape
        (torch.Size([100, 2]), torch.Size([100, 1]), torch.Size([100, 2]))
    """
    if num_simulations < 1:
        raise ValueError(f"num_simulations={num_simulations} must be at least 1.")
    if simulation_batch_size is None:
        # Always chunks, for results that do not tell one worker from several.
        simulation_batch_size = default_chunk_size(num_simulations)
    shape = torch.Size((num_simulations,))
    with torch.no_grad(), isolated_rng(seed):
        theta = prior.sample(shape).to(torch.float32)
        design = _sample_designs(design_policy, shape).to(theta)
        x, _ = run_simulator(
            simulator,
            theta,
            design,
            num_workers=num_workers,
            simulation_batch_size=simulation_batch_size,
            isolate_errors=True,
            show_progress_bar=show_progress_bar,
        )
    return theta, design, x


def _sample_designs(design_policy: Any, shape: torch.Size) -> Tensor:
    """Draw designs of shape `(num_simulations, dim_design)`."""
    if not callable(getattr(design_policy, "sample", None)):
        raise TypeError(
            "design_policy must be a design policy or a distribution with sample(shape)"
            f", got {type(design_policy).__name__}. Use for example "
            "TruncatedNormalPolicy(low, high) or sbi.utils.BoxUniform(low, high)."
        )
    design = design_policy.sample(shape)
    if design.dim() != 2:
        raise ValueError(
            f"design_policy returns designs of shape {tuple(design.shape)}, but one "
            f"row per draw of shape ({shape.numel()}, dim_design) is needed. Wrap it "
            "in torch.distributions.Independent."
        )
    return design
