"""Simulations to learn from, of parameters and designs drawn together."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Distribution

from sbi_boed_plugin._contract import NUM_CHECKED
from sbi_boed_plugin._numbers import check_integer, check_seed
from sbi_boed_plugin._parallel import default_chunk_size
from sbi_boed_plugin._rng import isolated_rng
from sbi_boed_plugin._simulation import CheckedSimulator, run_simulator
from sbi_boed_plugin.policies.policy import DesignPolicy

__all__ = ["simulate_for_boed", "vectorize"]


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
            out which these are. Before its first use it is called with one row and
            twice with three, to see that rows do not depend on each other; for a
            function of one parameter vector and one design see :func:`vectorize`.
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
    num_simulations = check_integer("num_simulations", num_simulations, 1)
    seed = check_seed(seed)
    simulation_batch_size = check_integer(
        "simulation_batch_size", simulation_batch_size, 1, or_none=True
    )
    checked = CheckedSimulator(
        simulator, num_checked=min(NUM_CHECKED, simulation_batch_size or NUM_CHECKED)
    )
    if simulation_batch_size is None:
        # Always chunks, for results that do not tell one worker from several.
        simulation_batch_size = default_chunk_size(num_simulations)
    shape = torch.Size((num_simulations,))
    with torch.no_grad(), isolated_rng(seed):
        # Copies, since a prior or policy may keep what it returned.
        theta = prior.sample(shape).to(torch.float32, copy=True)
        design = _sample_designs(design_policy, shape).to(theta, copy=True)
        made = run_simulator(
            checked,
            theta,
            design,
            num_workers=num_workers,
            simulation_batch_size=simulation_batch_size,
            isolate_errors=True,
            show_progress_bar=show_progress_bar,
        )
    return theta, design, made.x


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


class _RowByRow:
    """What `vectorize` returns."""

    is_row_by_row = True

    def __init__(self, simulator: Callable[[Tensor, Tensor], Any]) -> None:
        self.simulator = simulator

    def __call__(self, theta: Tensor, design: Tensor) -> Tensor:
        rows = [
            _as_vector(self.simulator(*row), theta)
            for row in zip(theta, design, strict=True)
        ]
        if len({len(row) for row in rows}) > 1:
            raise ValueError(
                "simulator returned vectors of different lengths: "
                f"{sorted({len(row) for row in rows})}. Pad with NaN what has not been "
                "measured."
            )
        return torch.stack(rows)

    def __repr__(self) -> str:
        return f"vectorize({self.simulator!r})"


def _as_vector(x: Any, theta: Tensor) -> Tensor:
    """Return what a simulator made of one row as a vector of shape `(dim_x,)`."""
    if isinstance(x, (list, tuple)) and any(isinstance(part, Tensor) for part in x):
        x = torch.stack([torch.as_tensor(part).to(theta) for part in x])
    vector = torch.as_tensor(x).to(theta)
    if vector.numel() != max([1, *vector.shape]):
        raise ValueError(
            f"simulator returned x of shape {tuple(vector.shape)} for one parameter "
            "vector and one design, but must return a number or a vector of shape "
            "(dim_x,)."
        )
    return vector.reshape(-1)


def vectorize(
    simulator: Callable[[Tensor, Tensor], Any],
) -> Callable[[Tensor, Tensor], Tensor]:
    """Make a simulator of many rows from a function of one parameter vector.

    The counterpart of sbi's `process_simulator`. Rows are simulated one after another,
    or on several processes with `num_workers`; a row that raises costs no other row.

    Args:
        simulator: Function from `theta` of shape `(dim_theta,)` and `design` of shape
            `(dim_design,)` to a number or a vector of shape `(dim_x,)`, a tensor, an
            array or a list. To run on several processes it has to be picklable.

    Returns:
        Function from `theta` of shape `(batch_dim, dim_theta)` and `design` of shape
        `(batch_dim, dim_design)` to `x` of shape `(batch_dim, dim_x)`. It carries
        gradients if `simulator` does.

    Raises:
        TypeError: If `simulator` is not a function.

    Example:
        >>> def decay(theta, design):
        ...     return [theta[0] * torch.exp(-theta[1] * design[0])]
        >>> simulator = vectorize(decay)
        >>> simulator(torch.ones(5, 2), torch.zeros(5, 1)).shape
        torch.Size([5, 1])
    """
    if not callable(simulator):
        raise TypeError(
            "simulator must be a function of one parameter vector and one design, got "
            f"{type(simulator).__name__}."
        )
    return _RowByRow(simulator)
